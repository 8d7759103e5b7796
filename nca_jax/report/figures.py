"""The report's figures: functions that return a Figure, how it looks (one colour an arm everywhere), and its PNG."""

import io
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure

from nca_jax.report import stats
from nca_jax.report.runs import Study

# Inches.
WIDTH = 8.6
# Its colours of text, of secondary text and of the background.
INK, MUTED, PAPER = '#1f2328', '#6b7280', '#ffffff'
ARMS = ('#3b82c4', '#e2803a', '#2a9d8f', '#c2567f', '#8b72cf', '#b8961f', '#5f9442', '#8c6d5a')
DASHES = (0, (4, 3))
# For logarithmic axes of less than three decades, where powers of ten alone are too few.
LOG_TICKS = tuple(m * 10.0**d for d in range(-9, 18) for m in (1, 2, 5))
CELLS = ('#264653', '#f4a261', '#2a9d8f', '#e9c46a', '#e76f51', '#8ab6d6', '#6d597a', '#f6e7cb', '#b56576', '#90be6d')
# The end of the captions of levels and gains.
GAIN_CAPTION = (
    'The paired gain takes the baseline of the same seed away, and with it what seeds share; where its band leaves '
    'zero, the seeds support a difference at that one point.'
)
# By arm: x, and the interval over seeds at each.
Levels = Mapping[str, tuple[np.ndarray, Sequence[stats.Interval]]]


def render(draw: Callable[..., Figure], *args: Any) -> bytes:
    """The figure that draw(*args) returns, as a PNG in the style of figures.mplstyle."""
    buffer = io.BytesIO()
    # Matplotlib reads its settings while it makes a figure's parts, and again while it draws them.
    with matplotlib.rc_context(fname=Path(__file__).with_suffix('.mplstyle')):
        # Without versions: a report made twice has the same bytes, so that its changes are changes of results.
        draw(*args).savefig(buffer, format='png', metadata={'Software': None})
    return buffer.getvalue()


def arm_colours(arms: Sequence[str], baseline: str) -> dict[str, str]:
    """One colour an arm, the same in every figure; the baseline is grey."""
    others = [arm for arm in arms if arm != baseline]
    return {baseline: MUTED} | dict(zip(others, itertools.cycle(ARMS), strict=False))


def cell_colours(count: int) -> np.ndarray:
    """(count, 3) uint8: one colour a cell state; beyond the palette, evenly from a smooth map."""
    names = CELLS[:count] if count <= len(CELLS) else matplotlib.colormaps['Spectral'](np.linspace(0, 1, count))
    return (255 * to_rgba_array(names)[:, :3]).round().astype(np.uint8)


def label(axes: Axes, title: str, note: str) -> None:
    """Writes the title, a line of small print below it, and the curves' names at the right, in order of their ends."""
    # A $ in a name begins no formula.
    axes.set_title(title, parse_math=False)
    place = {'xy': (0, 1), 'xycoords': 'axes fraction', 'xytext': (0, 8), 'textcoords': 'offset points'}
    axes.annotate(note, **place, color=MUTED, fontsize=8)
    curves, _ = axes.get_legend_handles_labels()
    if curves:
        curves.sort(key=lambda line: line.get_ydata()[-1], reverse=True)
        axes.legend(handles=curves, loc='center left', bbox_to_anchor=(1, 0.5), labelcolor='linecolor')


def levels_and_gains(
    study: Study,
    levels: Levels,
    scores: Mapping[str, Mapping[int, stats.Curve]],
    *,
    title: str,
    unit: str,
    note: str,
    guessing: Sequence[float] = (),
    scale_from: float = 0.0,
) -> Figure:
    """A panel of each arm's level and one of paired gains, which is left out where no arm has a pair.

    - scores: by arm and seed, the curve from which gains are computed; higher is better.
    - guessing: what guessing reaches at each x, empty for problems with open answers.
    - scale_from: x below this share of the curves doesn't set the scale of gains.
    """
    colours, baseline = arm_colours(study.arms, study.baseline), study.baseline
    gains, theirs = {}, scores.get(baseline, {})
    for arm, ours in scores.items():
        if arm != baseline and ours.keys() & theirs:
            gains[arm] = [stats.difference_curve(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    # A bare Figure, since pyplot would keep every figure in memory.
    figure = Figure(figsize=(WIDTH, 3.7), layout='constrained')
    left, *right = figure.subplots(1, 2 if gains else 1, squeeze=False)[0]
    if guessing:
        x, _ = next(iter(levels.values()))
        left.plot(x, guessing, color=MUTED, linewidth=1, linestyle=DASHES, label='guessing')
    _draw_bands(left, levels, colours)
    left.set_ylabel(unit)
    label(left, title, note)
    for axes in right:
        axes.axhline(0, color=colours[baseline], linewidth=1.4, label=baseline)
        for arm, pairs in gains.items():
            # Single pairs are thin lines under the mean: with few seeds they tell more than the band.
            for x, gain in pairs:
                axes.plot(x, gain, color=colours[arm], linewidth=0.7, alpha=0.55)
        _draw_bands(axes, {arm: stats.mean_curve(pairs) for arm, pairs in gains.items()}, colours, scale_from)
        axes.set_ylabel(f'{unit}, up is better')
        label(axes, f'Paired gain over {baseline}', 'mean and 95 % interval; thin: single pairs of seeds')
    return figure


def _draw_bands(axes: Axes, levels: Levels, colours: Mapping[str, str], scale_from: float = 0.0) -> None:
    """Draws each arm's mean within its intervals; then sets the limits of y for all curves of the axes."""
    bounds = []
    for arm, (x, intervals) in levels.items():
        low, high, mean = ([getattr(i, name) for i in intervals] for name in ('low', 'high', 'mean'))
        # No interval (nan) draws no band.
        axes.fill_between(x, low, high, color=colours[arm], alpha=0.16, linewidth=0)
        axes.plot(x, mean, color=colours[arm], label=arm)
        start = int(scale_from * len(intervals))
        bounds += [*low[start:], *high[start:]]
    curves = [line.get_ydata() for line in axes.lines]
    values = np.concatenate([curve[int(scale_from * len(curve)) :] for curve in curves])
    low, high = values.min(), values.max()
    # Equal values need some height too.
    span = high - low or 1.0
    # Two seeds have intervals of many times their difference: those may leave the axes.
    bottom, top = np.clip([np.nanmin([low, *bounds]), np.nanmax([high, *bounds])], low - span, high + span)
    axes.set_ylim(bottom - 0.08 * span, top + 0.08 * span)


def token_axis(axes: Axes) -> None:
    # Logarithmic: a learning curve's early fall and its late differences are both visible.
    axes.set_xscale('log')
    low, high = axes.dataLim.intervalx
    # A run of one evaluation has a point, and an axis needs a width.
    axes.set_xlim(low, high if high > low else low * 1.1)
    axes.set_xlabel('tokens')
    # 1500 as 1.5k, 4.1e6 as 4.1M.
    label_ticks(axes.xaxis, LOG_TICKS, ticker.EngFormatter(sep=''))


def label_ticks(axis: Axis, places: Sequence[float], text: ticker.Formatter | str) -> None:
    # A logarithmic axis adds minor ticks of its own.
    axis.set(major_locator=ticker.FixedLocator(places), minor_locator=ticker.NullLocator(), major_formatter=text)


def nca_stage(study: Study) -> Figure:
    """The automata stage: held-out loss against tokens, and next-grid accuracy by grids seen in context."""
    figure = Figure(figsize=(WIDTH, 3.7), layout='constrained')
    left, right = figure.subplots(1, 2)
    for run, colour in zip(study.nca, itertools.cycle(ARMS), strict=False):
        # A logarithmic axis has no zero.
        left.plot(*run.curve(least_tokens=1), color=colour, label=run.name)
        for name, dashes in (('cell', 'solid'), ('grid', 'dotted')):
            # Entry i is the accuracy after i whole grids. Of several runs the first one's names stand for all.
            accuracy = 100 * np.array(run.final.get(f'{name}_accuracy_by_grid', []), float)
            legend = f'{name}s' if run is study.nca[0] and len(accuracy) else None
            right.plot(np.arange(len(accuracy)), accuracy, color=colour, linestyle=dashes, label=legend)
    uniform = max(math.log(run.record['vocab_size']) for run in study.nca)
    reference = {'color': MUTED, 'linewidth': 1, 'linestyle': DASHES}
    left.axhline(uniform, **reference, label='uniform')
    # Copying the last grid is what context gives a reader who has inferred nothing.
    if len(study.nca) == 1 and 'copy_accuracy' in study.nca[0].final:
        right.axhline(100 * study.nca[0].final['copy_accuracy'], **reference, label='copying')
    left.set_ylabel('nats per token')
    left.set_ylim(bottom=0)
    token_axis(left)
    label(left, 'Held-out loss on automata', 'rules never trained on')
    right.set(ylabel='% right', ylim=(0, 100), xlabel='grids seen in context')
    right.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    label(right, 'Next grid predicted', 'at the end of the stage')
    return figure


def film_strips(blocks: Mapping[str, tuple[np.ndarray, np.ndarray]], colours: int, note: str) -> Figure:
    """A film strip a rule, its first frames in time: blocks of frames (R, T, Y, X) and scores (R), in their order.

    `note` says what the scores are.
    """
    palette = cell_colours(colours)
    count = min(10, *(frames.shape[1] for frames, _ in blocks.values()))
    # In inches, so that strips look alike however many a figure holds.
    left, side, gap, space, heading, foot = 0.8, 0.74, 0.05, 0.22, 0.3, 0.35
    pitch = side + gap
    width = left + count * pitch
    height = sum(heading + len(scores) * pitch + space for _, scores in blocks.values()) - space + foot
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis('off')
    y = height
    for title, (frames_RxTxYxX, scores_R) in blocks.items():
        y -= heading
        axes.text(0.1, y + 0.09, title, fontsize=10, fontweight='bold')
        for frames_TxYxX, score in zip(frames_RxTxYxX, scores_R, strict=True):
            y -= pitch
            axes.text(0.1, y + side / 2, f'{score:.2f}', va='center', fontsize=11)
            for number, image in enumerate(palette[frames_TxYxX[:count]]):
                x = left + number * pitch
                axes.imshow(image, extent=(x, x + side, y, y + side), interpolation='nearest')
        y -= space
    axes.text(0.1, 0.1, note, color=MUTED, fontsize=8)
    axes.text(width - gap, height - 0.21, 'successive frames →', ha='right', color=MUTED, fontsize=8)
    # After the images, each of which sets limits of its own.
    axes.set(xlim=(0, width), ylim=(0, height))
    return figure


def complexity(record: Mapping[str, Any]) -> Figure:
    """Histogram of the scores of random rules, unfiltered, with the accepted band."""
    edges, counts = np.asarray(record['edges'], float), np.asarray(record['counts'], float)
    # Empty bins beyond the last score say nothing.
    used = min(len(counts), 3 + max(np.flatnonzero(counts), default=0))
    edges, counts = edges[: used + 1], counts[:used]
    figure = Figure(figsize=(WIDTH, 3.3), layout='constrained')
    axes = figure.subplots()
    # At least one, for a histogram without candidates.
    shares = 100 * counts / max(counts.sum(), 1)
    axes.axvspan(*record['band'], color=ARMS[2], alpha=0.25, linewidth=0)
    axes.bar(edges[:-1], shares, np.diff(edges), align='edge', color=MUTED, edgecolor=PAPER, linewidth=0.8)
    # A band may reach beyond the histogram.
    axes.set(xlim=(edges[0], edges[-1]), ylabel='% of rules', xlabel=f'score by {record["score"]}')
    axes.grid(visible=False, axis='x')
    accepted = '{:g} to {:g}'.format(*record['band'])
    within = f'{record["accepted"]:,} of {record["candidates"]:,}'
    label(axes, 'How complex random automata are', f'before filtering; shaded: accepted, {accepted}, {within}')
    return figure
