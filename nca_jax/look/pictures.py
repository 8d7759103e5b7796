"""The pictures of `show` and `calibrate`: automata still and moving, their statistics, and scores beside texts'."""

import io
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from nca_jax.nca.config import NCAConfig
from nca_jax.report import figures, style

# Sequences of each set in the animation and in the film strips.
MOVING, STRIPS = 16, 8
# The set in the band, and the unfiltered one.
SET_COLOURS = (style.ARMS[2], style.ARMS[1])
# Fewer bits are drawn as this: they are noise, and a logarithmic axis has no zero.
MIN_BITS = 1e-3
# The animation's layout, in pixels and milliseconds.
COLUMNS, SIDE, GAP, LABEL, TITLE, BETWEEN, MARGIN, FOOT = 4, 96, 12, 18, 34, 36, 14, 26
FRAME_MS, LAST_FRAME_MS = 160, 1200

# Frames (R, T, Y, X) and scores (R) by title.
Blocks = Mapping[str, tuple[np.ndarray, np.ndarray]]
# The records of `sequences.measure` by the name of the set.
Measured = Mapping[str, Mapping[str, Any]]


def draw_sequences(data: NCAConfig, sets: Mapping[str, Any], measured: Measured) -> dict[str, bytes]:
    """The pictures of `show` by file name, from `sequences.SequenceSet`s and their statistics."""

    def choose(drawn: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
        rows = drawn.spaced(count)
        return drawn.frames_SxTxYxX[rows], drawn.scores_S[rows]

    moving, strips = ({name: choose(drawn, count) for name, drawn in sets.items()} for count in (MOVING, STRIPS))
    # A short sequence has fewer frames than rules are judged by.
    frames = min(next(iter(moving.values()))[0].shape[1], data.complexity.frames)
    score, (low, high) = style.score_name(data.complexity.measure), data.band
    note = f'{score} of the sequence shown, first {frames} frames; band by {data.band_by}: {low:g} to {high:g}'
    with matplotlib.rc_context(style.settings(style.LIGHT)):
        return {
            'trajectories.gif': animation(moving, data.rule.colours, note),
            'trajectories.png': style.png(figures.film_strips(strips, data.rule.colours, note, style.LIGHT)),
            'rank_frequency.png': style.png(rank_frequency(measured, data.vocab.start)),
            'information.png': style.png(information(measured, data.tokens_per_grid)),
        }


def animation(blocks: Blocks, colours: int, note: str) -> bytes:
    """A GIF of trajectories side by side, each below its score; all have the same number of frames."""
    count = min(frames.shape[1] for frames, _ in blocks.values())
    rows = max(-(-len(scores) // COLUMNS) for _, scores in blocks.values())
    block_width = COLUMNS * (SIDE + GAP) - GAP
    width = 2 * MARGIN + len(blocks) * (block_width + BETWEEN) - BETWEEN
    height = TITLE + rows * (SIDE + LABEL + GAP) + FOOT
    paper = Image.new('RGB', (width, height), style.LIGHT.paper)
    pen, title_font, small = ImageDraw.Draw(paper), ImageFont.load_default(14), ImageFont.load_default(11)
    places = []
    for number, (title, (frames_RxTxYxX, scores_R)) in enumerate(blocks.items()):
        left = MARGIN + number * (block_width + BETWEEN)
        pen.text((left, 6), title, style.LIGHT.ink, title_font)
        for index, (frames_TxYxX, score) in enumerate(zip(frames_RxTxYxX, scores_R, strict=True)):
            x = left + index % COLUMNS * (SIDE + GAP)
            y = TITLE + index // COLUMNS * (SIDE + LABEL + GAP) + LABEL
            pen.text((x, y - 15), f'{score:.2f}', style.LIGHT.muted, small)
            places.append((x, y, frames_TxYxX))
    pen.text((MARGIN, height - 22), f'above each: {note}', style.LIGHT.muted, small)
    palette, images = style.cell_colours(colours), []
    # The paper holds all that never moves, and is drawn once.
    for t in range(count):
        image = paper.copy()
        for x, y, frames_TxYxX in places:
            cells = Image.fromarray(palette[frames_TxYxX[t]])
            image.paste(cells.resize((SIDE, SIDE), Image.Resampling.NEAREST), (x, y))
        # A bar of the time, without which Pillow would merge equal frames.
        end = MARGIN + (t + 1) * (width - 2 * MARGIN) // count
        ImageDraw.Draw(image).rectangle((MARGIN, height - 6, end, height - 4), style.LIGHT.muted)
        images.append(image)
    buffer, pauses = io.BytesIO(), [FRAME_MS] * (count - 1) + [LAST_FRAME_MS]
    images[0].save(buffer, 'gif', save_all=True, append_images=images[1:], duration=pauses, loop=0)
    return buffer.getvalue()


def rank_frequency(measured: Measured, tokens: int) -> Figure:
    """Share of tokens by rank: all sequences of each set together, and a few by themselves.

    tokens: the size of the vocabulary.
    """

    def plot(axes: Axes, counts: Sequence[float], **look: Any) -> None:
        axes.plot(np.arange(1, len(counts) + 1), np.array(counts) / np.sum(counts), **look)

    figure = Figure(figsize=(figures.WIDTH, 4.3), layout='constrained')
    together, alone = figure.subplots(1, 2)
    for (name, values), colour in zip(measured.items(), SET_COLOURS, strict=False):
        plot(together, values['counts'], color=colour, linewidth=2, label=f'{name}, all {values["tokens"]:,} tokens')
        plot(together, values['counts_shuffled'], color=colour, linewidth=1.2, linestyle='dotted')
        for number, counts in enumerate(values['sequence_counts']):
            label = None if number else f'{name}, {len(values["sequence_counts"])} sequences'
            # Marked at the first rank, since a sequence of one token has no line.
            marked = {'marker': 'o', 'markersize': 3.5, 'markevery': [0]}
            plot(alone, counts, color=colour, linewidth=1.1, label=label, **marked)
    muted, law = {'color': style.LIGHT.muted}, 1 / np.arange(1, tokens + 1)
    plot(together, law, **muted, linewidth=1, linestyle='dashed', label='slope -1, about that of language')
    uniform = next(iter(measured.values()))['sequence_counts_uniform']
    plot(alone, uniform, **muted, linewidth=2, label='uniform, as many kinds as the middle one')
    for axes, title, note in (
        (together, 'All sequences together', 'dotted: cells shuffled within each sequence'),
        (alone, 'Sequences by themselves', 'from the lowest score to the highest'),
    ):
        axes.set(xscale='log', yscale='log', xlabel='rank', title=title)
        style.subtitle(axes, note, style.LIGHT)
        low, high = axes.get_ylim()
        # Room for the legend, the words of which have the lines' colours and need no samples of them.
        axes.set_ylim(low * (low / high) ** 0.3, high)
        axes.legend(loc='lower left', frameon=False, labelcolor='linecolor', handlelength=0, markerscale=0)
    together.set_ylabel('share of tokens')
    return figure


def information(measured: Measured, tokens_per_grid: int) -> Figure:
    """Mutual information of cells less that of chance: by distance in tokens, and by offset in frames and cells."""
    figure = Figure(figsize=(figures.WIDTH, 6.4))
    grid = figure.add_gridspec(2, 2, left=0.09, right=0.88, top=0.9, bottom=0.08, hspace=0.5, wspace=0.3)
    axes = figure.add_subplot(grid[0, :])
    ends = []
    for (name, values), colour in zip(measured.items(), SET_COLOURS, strict=False):
        bits = np.maximum(values['information_by_distance'], MIN_BITS)
        axes.plot(1 + np.arange(len(bits)), bits, color=colour, linewidth=1.4)
        ends.append((bits[-1], name, colour))
    drawn = np.concatenate([line.get_ydata() for line in axes.get_lines()])
    # At least a decade, if nothing is above the noise.
    low, high = np.nanmin(drawn) / 1.3, 1.3 * max(10 * MIN_BITS, np.nanmax(drawn))
    axes.set(yscale='log', ylim=(low, high), xlabel='distance in tokens', ylabel='bits per cell')
    axes.set_title('Mutual information along the sequence')
    axes.xaxis.set_major_locator(ticker.MultipleLocator(tokens_per_grid))
    axes.yaxis.set_major_locator(ticker.FixedLocator(style.LOG_TICKS))
    axes.yaxis.set_minor_locator(ticker.NullLocator())
    axes.yaxis.set_major_formatter(ticker.FormatStrFormatter('%g'))
    chance = 'less that of cells in permuted places: an upper bound'
    style.subtitle(axes, f'of a cell and the same one in a later token, {chance}; ticks: one grid', style.LIGHT)
    style.label_ends(axes, [end for end in ends if np.isfinite(end[0])])
    charts = {
        name: np.log10(np.maximum(values['information_by_offset'], MIN_BITS)) for name, values in measured.items()
    }
    # One scale for both charts, so that their colours compare.
    low = min(np.nanmin(chart) for chart in charts.values())
    high = max(1 + np.log10(MIN_BITS), *(np.nanmax(chart) for chart in charts.values()))
    for number, (name, chart_TxX) in enumerate(charts.items()):
        axes = figure.add_subplot(grid[1, number])
        axes.imshow(chart_TxX, cmap='YlGnBu', vmin=low, vmax=high, aspect='auto')
        for (dt, dx), bits in np.ndenumerate(measured[name]['information_by_offset']):
            # White text on the dark end of the map.
            dark = chart_TxX[dt, dx] > 0.4 * low + 0.6 * high
            label = 'itself' if np.isnan(bits) else f'{max(0.0, round(bits, 3)):.2g}'
            axes.text(dx, dt, label, ha='center', va='center', fontsize=7, color='white' if dark else style.LIGHT.ink)
        axes.set(xlabel='cells to the right', ylabel='frames later', title=f'Between cells, {name}')
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        style.subtitle(axes, 'bits, less those of permuted places: an upper bound', style.LIGHT)
    return figure


def score_histograms(data: NCAConfig, record: Mapping[str, Any]) -> bytes:
    """The picture of `calibrate`: the rules' scores and, below on the same axis, those of each text's windows."""
    scores_R = record['rules']['scores']
    windows = {name: text['settings']['bytes']['scores'] for name, text in record['texts'].items()}
    highest = max(scores_R.max(), *(scores.max() for scores in windows.values()))
    # A measure with small scores takes narrower bins.
    width = 0.02 if highest > 0.4 else 0.01
    # A little more than the highest, so that no score lies on the last edge.
    edges = width * np.arange(1 + np.ceil(1.001 * highest / width))

    def histogram(axes: Axes, scores: np.ndarray, colour: str, bands: set[str]) -> None:
        percent = np.full(len(scores), 100 / len(scores))
        axes.hist(scores, edges, weights=percent, color=colour, edgecolor=style.LIGHT.paper, linewidth=0.8)
        axes.margins(y=0.3)
        axes.grid(visible=False, axis='x')
        for name in bands:
            # The outer bands reach beyond all scores.
            low, high = max(0, record['bands'][name]['low']), min(record['bands'][name]['high'], edges[-1])
            axes.axvspan(low, high, color=colour, alpha=0.18, linewidth=0, zorder=0)

    with matplotlib.rc_context(style.settings(style.LIGHT)):
        figure = Figure(figsize=(figures.WIDTH, 0.95 + 1.75 * (1 + len(windows))), layout='constrained')
        top, *panels = figure.subplots(1 + len(windows), sharex=True)
        histogram(top, scores_R, style.LIGHT.muted, {text['band'] for text in record['texts'].values()})
        top.set(title=f'Rules of family {data.rule.family}, {data.rule.colours} colours', ylabel='% of rules')
        style.subtitle(top, f'{len(scores_R):,} of them, before filtering; shaded: proposed bands', style.LIGHT)
        colours = itertools.cycle(style.ARMS)
        for axes, (name, scores), colour in zip(panels, windows.items(), colours, strict=False):
            text = record['texts'][name]
            histogram(axes, scores, colour, {text['band']})
            # The end of a long path tells more than its beginning; a $ is no formula.
            axes.set_title(name[-90:], parse_math=False)
            axes.set(ylabel='% of windows')
            counted = f'{len(scores):,} windows on the scale of the rules'
            style.subtitle(axes, f'{counted}; dashed: their median; shaded: band {text["band"]}', style.LIGHT)
            score = text['settings']['bytes']['score']
            axes.axvline(score, color=style.LIGHT.ink, linewidth=1.2, linestyle=style.DASHES)
        xlabel = f"{data.complexity.measure} ratio; of texts: bytes, on the automata's scale"
        panels[-1].set(xlim=(0, edges[-1]), xlabel=xlabel)
        return style.png(figure)
