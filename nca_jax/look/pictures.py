"""The pictures of `show` and `calibrate`: automata still and moving, their statistics, and scores beside texts'."""

import io
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from nca_jax.nca.config import NCAConfig
from nca_jax.report import figures

# Sequences of each set in the animation and in the film strips.
SHOWN = 8
# The set in the band, and the unfiltered one.
SET_COLOURS = (figures.ARMS[2], figures.ARMS[1])
# Fewer bits are drawn as this: they are noise, and a logarithmic axis has no zero.
MIN_BITS = 1e-3
# The animation's layout, in pixels: a row for each set, with the gap after each trajectory and the words above.
SIDE, GAP, LABEL, TITLE, MARGIN, FOOT = 96, 12, 18, 34, 14, 26
FRAME_MS = 160

# Frames (R, T, Y, X) and scores (R) by title.
Blocks = Mapping[str, tuple[np.ndarray, np.ndarray]]
# `sequences.measure` of each set by name.
Measured = Mapping[str, Mapping[str, Any]]


def draw_sequences(data: NCAConfig, sets: Mapping[str, Any], measured: Measured) -> dict[str, bytes]:
    """The pictures of `show` by file name, from `sequences.SequenceSet`s and their statistics."""
    blocks = {name: drawn.spaced(SHOWN) for name, drawn in sets.items()}
    # A short sequence has fewer frames than rules are judged by.
    frames = min(next(iter(blocks.values()))[0].shape[1], data.complexity.frames)
    score, (low, high) = figures.score_name(data.complexity.measure), data.band
    note = f'{score} of the sequence shown, first {frames} frames; band by {data.band_by}: {low:g} to {high:g}'
    return {
        'trajectories.gif': animation(blocks, data.rule.colours, note),
        'trajectories.png': figures.render(figures.film_strips, blocks, data.rule.colours, note),
        'rank_frequency.png': figures.render(rank_frequency, measured, data.vocab.start),
        'information.png': figures.render(information, measured, data.tokens_per_grid),
    }


def animation(blocks: Blocks, colours: int, note: str) -> bytes:
    """A GIF of trajectories, a row for each set, each below its score; all have the same number of frames."""
    width, row_height = 2 * MARGIN + SHOWN * (SIDE + GAP) - GAP, TITLE + LABEL + SIDE + GAP
    height = len(blocks) * row_height + FOOT
    paper = Image.new('RGB', (width, height), figures.PAPER)
    pen, title_font, small = ImageDraw.Draw(paper), ImageFont.load_default(14), ImageFont.load_default(11)
    places = {}
    for top, (title, (frames_RxTxYxX, scores_R)) in zip(range(0, height, row_height), blocks.items(), strict=False):
        pen.text((MARGIN, top + 6), title, figures.INK, title_font)
        y = top + TITLE + LABEL
        for index, (frames_TxYxX, score) in enumerate(zip(frames_RxTxYxX, scores_R, strict=True)):
            x = MARGIN + index * (SIDE + GAP)
            pen.text((x, y - 15), f'{score:.2f}', figures.MUTED, small)
            places[x, y] = frames_TxYxX
    pen.text((MARGIN, height - 22), f'above each: {note}', figures.MUTED, small)
    palette, count, images = figures.cell_colours(colours), len(frames_TxYxX), []
    # The paper holds all that never moves, and is drawn once.
    for t in range(count):
        image = paper.copy()
        for place, frames_TxYxX in places.items():
            cells = Image.fromarray(palette[frames_TxYxX[t]])
            image.paste(cells.resize((SIDE, SIDE), Image.Resampling.NEAREST), place)
        # A bar of the time, without which Pillow would merge equal frames.
        end = MARGIN + (t + 1) * (width - 2 * MARGIN) // count
        ImageDraw.Draw(image).rectangle((MARGIN, height - 6, end, height - 4), figures.MUTED)
        images.append(image)
    buffer = io.BytesIO()
    images[0].save(buffer, 'gif', save_all=True, append_images=images[1:], duration=FRAME_MS, loop=0)
    return buffer.getvalue()


def rank_frequency(measured: Measured, tokens: int) -> Figure:
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


def information(measured: Measured, tokens_per_grid: int) -> Figure:
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
        # Up to one bit in all charts, so that their colours compare, and pale enough for dark words.
        scale = {'vmin': np.log10(MIN_BITS), 'vmax': 0.0, 'alpha': 0.6}
        axes.imshow(np.log10(np.maximum(bits_TxX, MIN_BITS)), cmap='YlGnBu', aspect='auto', **scale)
        for (dt, dx), bits in np.ndenumerate(bits_TxX):
            label = 'itself' if np.isnan(bits) else f'{max(0.0, round(bits, 3)):.2g}'
            axes.text(dx, dt, label, ha='center', va='center', fontsize=7)
        axes.set(xlabel='cells to the right', ylabel='frames later')
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        figures.label(axes, f'Between cells, {name}', 'bits, less those of permuted places: an upper bound')
    return figure


def score_histograms(data: NCAConfig, record: Mapping[str, Any]) -> Figure:
    """The picture of `calibrate`: the rules' scores and, below on the same axis, those of each text's windows."""
    scores_R, texts = record['rules']['scores'], record['texts']
    windows = {name: text['settings']['bytes']['scores'] for name, text in texts.items()}
    # A little more than the highest score, so that none lies on the last edge.
    highest = 1.001 * max(scores_R.max(), *(scores.max() for scores in windows.values()))
    edges = 0.02 * np.arange(1 + np.ceil(highest / 0.02))

    def histogram(axes: Axes, scores: np.ndarray, colour: str, bands: set[str]) -> None:
        percent = np.full(len(scores), 100 / len(scores))
        axes.hist(scores, edges, weights=percent, color=colour, edgecolor=figures.PAPER, linewidth=0.8)
        axes.grid(visible=False, axis='x')
        for name in bands:
            # The outer bands reach beyond all scores.
            low, high = max(0, record['bands'][name]['low']), min(record['bands'][name]['high'], edges[-1])
            axes.axvspan(low, high, color=colour, alpha=0.18, linewidth=0, zorder=0)

    figure = Figure(figsize=(figures.WIDTH, 0.95 + 1.75 * (1 + len(windows))), layout='constrained')
    top, *panels = figure.subplots(1 + len(windows), sharex=True)
    histogram(top, scores_R, figures.MUTED, {text['band'] for text in texts.values()})
    top.set_ylabel('% of rules')
    rules = f'Rules of family {data.rule.family}, {data.rule.colours} colours'
    figures.label(top, rules, f'{len(scores_R):,} of them, before filtering; shaded: proposed bands')
    for axes, (name, scores), colour in zip(panels, windows.items(), itertools.cycle(figures.ARMS), strict=False):
        histogram(axes, scores, colour, {texts[name]['band']})
        axes.set_ylabel('% of windows')
        counted = f'{len(scores):,} windows on the scale of the rules'
        # The end of a long path tells more than its beginning.
        figures.label(axes, name[-90:], f'{counted}; dashed: their median; shaded: band {texts[name]["band"]}')
        score = texts[name]['settings']['bytes']['score']
        axes.axvline(score, color=figures.INK, linewidth=1.2, linestyle=figures.DASHES)
    xlabel = f"{data.complexity.measure} ratio; of texts: bytes, on the automata's scale"
    panels[-1].set(xlim=(0, edges[-1]), xlabel=xlabel)
    return figure
