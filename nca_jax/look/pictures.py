"""The pictures of `show` and `calibrate`: automata still and moving, their statistics, and scores beside texts'."""

import io
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from nca_jax.nca.config import NCAConfig
from nca_jax.report import figures

# Sequences of each set in the animation and in the film strips.
SHOWN = 8
# The set in the band, and the unfiltered one.
SET_COLOURS = (figures.ARMS[2], figures.ARMS[1])
# Fewer bits are drawn as this: they are noise, and a logarithmic axis has no zero.
MIN_BITS = 1e-3
# In pixels, of the animation: a trajectory, and the gap around it, with room for words.
SIDE, GAP = 96, 20


def draw_sequences(data: NCAConfig, sets: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, bytes]:
    """The pictures of `show` by file name, from `sequences.SequenceSet`s and what `sequences.measure` makes of them."""
    blocks = {name: drawn.spaced(SHOWN) for name, drawn in sets.items()}
    low, high = data.band
    note = f"the sequence's own score by {data.complexity.measure}; band by {data.band_by}: {low:g} to {high:g}"
    return {
        'trajectories.gif': animation(blocks, data.rule.colours),
        'trajectories.png': figures.render(figures.film_strips, blocks, data.rule.colours, note),
        'rank_frequency.png': figures.render(rank_frequency, measured, data.vocab.start),
        'information.png': figures.render(information, measured, data.tokens_per_grid),
    }


def animation(blocks: Mapping[str, tuple[np.ndarray, np.ndarray]], colours: int) -> bytes:
    """A GIF of the frames (R, T, Y, X) and scores (R) of each set: a row for each, all with as many frames."""
    pitch, palette, images = SIDE + GAP, figures.cell_colours(colours), []
    width, height = SHOWN * pitch + GAP, len(blocks) * pitch + GAP
    count = next(iter(blocks.values()))[0].shape[1]
    for t in range(count):
        image = Image.new('RGB', (width, height), figures.PAPER)
        pen = ImageDraw.Draw(image)
        for y, (title, (frames_RxTxYxX, scores_R)) in zip(range(GAP, height, pitch), blocks.items(), strict=False):
            for x, frames_TxYxX, score in zip(range(GAP, width, pitch), frames_RxTxYxX, scores_R, strict=False):
                pen.text((x, y - 15), f'{title} {score:.2f}', figures.MUTED)
                cells = Image.fromarray(palette[frames_TxYxX[t]])
                image.paste(cells.resize((SIDE, SIDE), Image.Resampling.NEAREST), (x, y))
        # A bar of the time, without which Pillow would merge equal frames.
        pen.rectangle((0, height - 3, (t + 1) * width // count, height - 1), figures.MUTED)
        images.append(image)
    buffer = io.BytesIO()
    images[0].save(buffer, 'gif', save_all=True, append_images=images[1:], duration=160, loop=0)
    return buffer.getvalue()


def rank_frequency(measured: Mapping[str, Any], tokens: int) -> Figure:
    """Share of tokens by rank, all sequences of each set together. `tokens` is the size of the vocabulary."""
    figure = Figure(figsize=(figures.WIDTH, 4.3), layout='constrained')
    axes = figure.subplots()

    def plot(counts: np.ndarray, **look: Any) -> None:
        axes.plot(np.arange(1, len(counts) + 1), counts / np.sum(counts), **look)

    for (name, values), colour in zip(measured.items(), SET_COLOURS, strict=False):
        plot(values['counts'], color=colour, linewidth=2, label=f'{name}, all {values["tokens"]:,} tokens')
        plot(values['counts_shuffled'], color=colour, linewidth=1.2, linestyle='dotted')
    label = 'slope -1, about that of language'
    plot(1 / np.arange(1, tokens + 1), color=figures.MUTED, linewidth=1, linestyle='dashed', label=label)
    axes.set(xscale='log', yscale='log', xlabel='rank', ylabel='share of tokens')
    figures.label(axes, 'All sequences together', 'dotted: cells shuffled within each sequence')
    return figure


def information(measured: Mapping[str, Any], tokens_per_grid: int) -> Figure:
    """Mutual information of cells less that of chance: by distance in tokens, and by offset in frames and cells."""
    figure = Figure(figsize=(figures.WIDTH, 6.4))
    grid = figure.add_gridspec(2, 2, left=0.09, right=0.88, top=0.9, bottom=0.08, hspace=0.5, wspace=0.3)
    axes = figure.add_subplot(grid[0, :])
    for (name, values), colour in zip(measured.items(), SET_COLOURS, strict=False):
        bits = np.maximum(values['information_by_distance'], MIN_BITS)
        axes.plot(1 + np.arange(len(bits)), bits, color=colour, linewidth=1.4, label=name)
    axes.set(yscale='log', xlabel='distance in tokens', ylabel='bits per cell')
    axes.xaxis.set_major_locator(ticker.MultipleLocator(tokens_per_grid))
    figures.label_ticks(axes.yaxis, figures.LOG_TICKS, '{x:g}')
    chance = 'less that of cells in permuted places: an upper bound'
    note = f'of a cell and the same one in a later token, {chance}; ticks: one grid'
    figures.label(axes, 'Mutual information along the sequence', note)
    for number, (name, values) in enumerate(measured.items()):
        axes, bits_TxX = figure.add_subplot(grid[1, number]), values['information_by_offset']
        # One scale in all charts, so that their colours compare: up to 30 bits, so that they are pale under the words.
        scale = {'vmin': np.log10(MIN_BITS), 'vmax': 1.5}
        axes.imshow(np.log10(np.maximum(bits_TxX, MIN_BITS)), cmap='YlGnBu', aspect='auto', **scale)
        for (dt, dx), bits in np.ndenumerate(bits_TxX):
            label = 'itself' if np.isnan(bits) else f'{max(0.0, round(bits, 3)):.2g}'
            axes.text(dx, dt, label, ha='center', va='center', fontsize=7)
        axes.set(xlabel='cells to the right', ylabel='frames later')
        axes.grid(visible=False)
        figures.label(axes, f'Between cells, {name}', 'bits, less those of permuted places: an upper bound')
    return figure


def score_histograms(data: NCAConfig, record: Mapping[str, Any]) -> Figure:
    """The picture of `calibrate`: the rules' scores and, below on the same axis, those of each text's windows."""
    rules, texts = record['rules'], record['texts']
    bands = {text['band'] for text in texts.values()}
    family = f'Rules of family {data.rule.family}, {data.rule.colours} colours'
    # By title: what is counted, the scores, their median, and the bands to shade.
    panels = {family: ('rules', rules['scores'], rules['median'], bands)}
    for name, text in texts.items():
        of_bytes = text['settings']['bytes']
        panels[name] = 'windows', of_bytes['scores'], of_bytes['score'], {text['band']}
    # A little more than the highest score, so that none lies on the last edge.
    highest = 1.001 * max(scores.max() for _, scores, *_ in panels.values())
    edges = 0.02 * np.arange(1 + np.ceil(highest / 0.02))
    figure = Figure(figsize=(figures.WIDTH, 0.95 + 1.75 * len(panels)), layout='constrained')
    rows, colours = figure.subplots(len(panels), sharex=True), itertools.cycle((figures.MUTED, *figures.ARMS))
    for axes, colour, (title, (counted, scores, median, bands)) in zip(rows, colours, panels.items(), strict=False):
        percent = np.full(len(scores), 100 / len(scores))
        axes.hist(scores, edges, weights=percent, color=colour, edgecolor=figures.PAPER, linewidth=0.8)
        axes.axvline(median, color=figures.INK, linewidth=1.2, linestyle=figures.DASHES)
        for name in bands:
            # The outer bands reach beyond all scores.
            low, high = np.clip([record['bands'][name][end] for end in ('low', 'high')], 0, edges[-1])
            axes.axvspan(low, high, color=colour, alpha=0.18, linewidth=0, zorder=0)
        axes.grid(visible=False, axis='x')
        axes.set_ylabel(f'% of {counted}')
        note = f'{len(scores):,} {counted}; dashed: their median; shaded: band {", ".join(sorted(bands))}'
        # The end of a long path tells more than its beginning.
        figures.label(axes, title[-90:], note)
    xlabel = f"{data.complexity.measure} ratio; of texts: bytes, on the automata's scale"
    rows[-1].set(xlim=(0, edges[-1]), xlabel=xlabel)
    return figure
