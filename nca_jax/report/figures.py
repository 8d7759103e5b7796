"""The report's figures. Each function draws one figure under the current style and returns it; none writes files."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nca_jax.report import stats, style
from nca_jax.report.study import Study

# Inches.
WIDTH = 8.6
# The end of the captions of levels and gains.
GAIN_CAPTION = (
    'The paired gain takes the baseline of the same seed away, and with it what seeds share; where its band leaves '
    'zero, the seeds support a difference at that one point.'
)
# By arm: x, and the interval over seeds at each.
Levels = Mapping[str, tuple[np.ndarray, Sequence[stats.Interval]]]


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
    colours, baseline = style.arm_colours(study.arms, study.baseline), study.baseline
    gains, theirs = {}, scores.get(baseline, {})
    for arm, ours in scores.items():
        if arm != baseline and ours.keys() & theirs:
            gains[arm] = [stats.difference_curve(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    # A bare Figure, since pyplot would keep every figure in memory.
    figure = Figure(figsize=(WIDTH, 3.7), layout='constrained')
    left, *right = figure.subplots(1, 2 if gains else 1, squeeze=False)[0]
    if guessing:
        x, _ = next(iter(levels.values()))
        left.plot(x, guessing, color=style.MUTED, linewidth=1, linestyle=style.DASHES, label='guessing')
    _draw_bands(left, levels, colours)
    left.set_ylabel(unit)
    style.label(left, title, note)
    for axes in right:
        axes.axhline(0, color=colours[baseline], linewidth=1.4, label=baseline)
        for arm, pairs in gains.items():
            # Single pairs are thin lines under the mean: with few seeds they tell more than the band.
            for x, gain in pairs:
                axes.plot(x, gain, color=colours[arm], linewidth=0.7, alpha=0.55)
        _draw_bands(axes, {arm: stats.mean_curve(pairs) for arm, pairs in gains.items()}, colours, scale_from)
        axes.set_ylabel(f'{unit}, up is better')
        style.label(axes, f'Paired gain over {baseline}', 'mean and 95 % interval; thin: single pairs of seeds')
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
    label_ticks(axes, style.LOG_TICKS, style.tokens_label)


def label_ticks(axes: Axes, places: Sequence[float], text: Callable[[float, int], str] | str) -> None:
    # A logarithmic axis adds minor ticks of its own.
    axes.xaxis.set(major_locator=ticker.FixedLocator(places), minor_locator=ticker.NullLocator())
    axes.xaxis.set_major_formatter(text)


def nca_stage(study: Study) -> Figure:
    """The automata stage: held-out loss against tokens, and next-grid accuracy by grids seen in context."""
    figure = Figure(figsize=(WIDTH, 3.7), layout='constrained')
    left, right = figure.subplots(1, 2)
    for run, colour in zip(study.nca, itertools.cycle(style.ARMS), strict=False):
        # A logarithmic axis has no zero.
        left.plot(*run.curve(least_tokens=1), color=colour, label=run.name)
        for name, dashes in (('cell', 'solid'), ('grid', 'dotted')):
            # Entry i is the accuracy after i whole grids. Of several runs the first one's names stand for all.
            accuracy = 100 * np.array(run.final.get(f'{name}_accuracy_by_grid', []), float)
            label = f'{name}s' if run is study.nca[0] and len(accuracy) else None
            right.plot(np.arange(len(accuracy)), accuracy, color=colour, linestyle=dashes, label=label)
    reference = {'color': style.MUTED, 'linewidth': 1, 'linestyle': style.DASHES}
    left.axhline(max(math.log(run.record['vocab_size']) for run in study.nca), **reference, label='uniform')
    # Copying the last grid is what context gives a reader who has inferred nothing.
    if len(study.nca) == 1 and 'copy_accuracy' in study.nca[0].final:
        right.axhline(100 * study.nca[0].final['copy_accuracy'], **reference, label='copying')
    left.set_ylabel('nats per token')
    left.set_ylim(bottom=0)
    token_axis(left)
    style.label(left, 'Held-out loss on automata', 'rules never trained on')
    right.set(ylabel='% right', ylim=(0, 100), xlabel='grids seen in context')
    right.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    style.label(right, 'Next grid predicted', 'at the end of the stage')
    return figure


def film_strips(blocks: Mapping[str, tuple[np.ndarray, np.ndarray]], colours: int, note: str) -> Figure:
    """A film strip a rule, its first frames in time: blocks of frames (R, T, Y, X) and scores (R), in their order.

    `note` says what the scores are.
    """
    palette = style.cell_colours(colours)
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
    axes.text(0.1, 0.1, note, color=style.MUTED, fontsize=8)
    axes.text(width - gap, height - 0.21, 'successive frames →', ha='right', color=style.MUTED, fontsize=8)
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
    axes.axvspan(*record['band'], color=style.ARMS[2], alpha=0.25, linewidth=0)
    axes.bar(edges[:-1], shares, np.diff(edges), align='edge', color=style.MUTED, edgecolor=style.PAPER, linewidth=0.8)
    # A band may reach beyond the histogram.
    axes.set(xlim=(edges[0], edges[-1]), ylabel='% of rules', xlabel=style.score_name(record['score']))
    axes.grid(visible=False, axis='x')
    accepted = '{:g} to {:g}'.format(*record['band'])
    within = f'{record["accepted"]:,} of {record["candidates"]:,}'
    style.label(axes, 'How complex random automata are', f'before filtering; shaded: accepted, {accepted}, {within}')
    return figure
