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

# By arm: x, and the interval over seeds at each.
Levels = Mapping[str, tuple[np.ndarray, Sequence[stats.Interval]]]
# y, text and colour of the label at a curve's end.
End = tuple[float, str, str]


def levels_and_gains(
    study: Study,
    theme: style.Theme,
    *,
    levels: Levels,
    scores: Mapping[str, Mapping[int, stats.Curve]],
    title: str,
    units: tuple[str, str],
    note: str,
    guessing: Sequence[float] | None = None,
    scale_from: float = 0.0,
) -> Figure:
    """A panel of each arm's level and one of paired gains, which is left out where no arm has a pair.

    - scores: by arm and seed, the curve from which gains are computed; higher is better.
    - guessing: what guessing reaches at each x, empty for problems with open answers.
    - scale_from: x below this share of the curves doesn't set the scale of gains.
    """
    colours, baseline = style.arm_colours(study.arms, study.baseline, theme), study.baseline
    gains, theirs = {}, scores.get(baseline, {})
    for arm, ours in scores.items():
        if arm != baseline and ours.keys() & theirs:
            gains[arm] = [stats.difference_curve(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    # A bare Figure, since pyplot would keep every figure in memory.
    figure = Figure(figsize=(WIDTH, 3.9))
    # Panels of solved problems have one size, whether their problems can be guessed or not.
    names = levels if guessing is None else [*levels, 'guessing']
    left, *right = style.panels(figure, 2 if gains else 1, longest_label=max(map(len, names)))
    ends = [_draw_band(left, *level, arm, colours[arm]) for arm, level in levels.items()]
    if guessing:
        x, _ = next(iter(levels.values()))
        left.plot(x, guessing, color=theme.muted, linewidth=1, linestyle=style.DASHES)
        ends.append((guessing[-1], 'guessing', theme.muted))
    _limit(left, levels, guessing or [])
    _label(left, title, units[0], note, ends, theme)
    for axes in right:
        axes.axhline(0, color=colours[baseline], linewidth=1.4)
        ends, late, reach = [(0.0, baseline, colours[baseline])], {}, [0.0]
        for arm, curves in gains.items():
            # Single pairs are thin lines under the mean: with few seeds they tell more than the band.
            for x, gain in curves:
                axes.plot(x, gain, color=colours[arm], linewidth=0.7, alpha=0.55)
                # The late part of each pair stays within the axes, however wide the band.
                reach += gain[int(scale_from * len(gain)) :].tolist()
            x, intervals = stats.mean_curve(curves)
            ends.append(_draw_band(axes, x, intervals, arm, colours[arm]))
            late[arm] = x, intervals[int(scale_from * len(intervals)) :]
        _limit(axes, late, reach)
        note = 'mean and 95 % interval; thin: single pairs of seeds'
        _label(axes, f'Paired gain over {baseline}', f'{units[1]}, up is better', note, ends, theme)
    return figure


def _draw_band(axes: Axes, x: np.ndarray, intervals: Sequence[stats.Interval], arm: str, colour: str) -> End:
    """Draws an arm's mean within its intervals; returns the label of its end."""
    low, high, mean = ([getattr(i, name) for i in intervals] for name in ('low', 'high', 'mean'))
    # No interval (nan) draws no band.
    axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
    axes.plot(x, mean, color=colour)
    return mean[-1], arm, colour


def _limit(axes: Axes, levels: Levels, others: Sequence[float]) -> None:
    """Sets the limits of y to hold the means, the others, and the intervals as far as curves stay readable."""
    intervals = [i for _, of_arm in levels.values() for i in of_arm]
    bounds = [bound for i in intervals for bound in (i.low, i.high) if not math.isnan(bound)]
    values = [*others, *(i.mean for i in intervals)]
    low, high = min(values), max(values)
    # Equal values need some height too.
    span = high - low or 1.0
    # Two seeds have intervals of many times their difference: those may leave the axes.
    bottom, top = max(min([low, *bounds]), low - span), min(max([high, *bounds]), high + span)
    axes.set_ylim(bottom - 0.08 * span, top + 0.08 * span)


def _label(axes: Axes, title: str, ylabel: str, note: str, ends: list[End], theme: style.Theme) -> None:
    axes.set(title=title, ylabel=ylabel)
    style.subtitle(axes, note, theme)
    style.label_ends(axes, ends)


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


def nca_stage(study: Study, theme: style.Theme) -> Figure:
    """The automata stage: held-out loss against tokens, and next-grid accuracy by grids seen in context."""
    runs, alone = study.nca, len(study.nca) == 1
    figure = Figure(figsize=(WIDTH, 3.7))
    left, right = style.panels(figure, 2, longest_label=7 if alone else max(7, *(len(run.name) for run in runs)))
    losses, accuracies = [], []
    for run, colour in zip(runs, itertools.cycle(style.ARMS), strict=False):
        # A logarithmic axis has no zero.
        tokens, loss = run.curve(least_tokens=1)
        left.plot(tokens, loss, color=colour)
        # One run's curve needs no name, so that its label is its loss.
        losses.append((loss[-1], f'{loss[-1]:.2f}' if alone else run.name, colour))
        for name, dashes in (('cell', (0, ())), ('grid', (0, (1, 1.2)))):
            # Entry i is the accuracy after i whole grids.
            accuracy = 100 * np.array(run.final.get(f'{name}_accuracy_by_grid', []), float)
            if len(accuracy):
                right.plot(np.arange(len(accuracy)), accuracy, color=colour, linestyle=dashes)
                accuracies.append((accuracy[-1], f'{name}s', colour if alone else theme.muted))
    losses.append(_reference(left, max(math.log(run.record['vocab_size']) for run in runs), 'uniform', theme))
    left.set_ylim(0, 1.08 * max(y for y, _, _ in losses))
    token_axis(left)
    _label(left, 'Held-out loss on automata', 'nats per token', 'rules never trained on', losses, theme)
    # Copying the last grid is what context gives a reader who has inferred nothing.
    if alone and 'copy_accuracy' in runs[0].final:
        accuracies.append(_reference(right, 100 * runs[0].final['copy_accuracy'], 'copying', theme))
    right.set(ylim=(0, 100), xlabel='grids seen in context')
    right.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    # Of several runs the first one's labels stand for all: colours tell the runs apart.
    ends = accuracies if alone else accuracies[:2]
    _label(right, 'Next grid predicted', '% right', 'at the end of the stage', ends, theme)
    return figure


def _reference(axes: Axes, y: float, label: str, theme: style.Theme) -> End:
    """Draws a dashed line across the axes; returns the label of its end."""
    axes.axhline(y, color=theme.muted, linewidth=1, linestyle=style.DASHES)
    return y, label, theme.muted


def film_strips(
    blocks: Mapping[str, tuple[np.ndarray, np.ndarray]], colours: int, note: str, theme: style.Theme
) -> Figure:
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
    axes.text(0.1, 0.1, note, color=theme.muted, fontsize=8)
    axes.text(width - gap, height - 0.21, 'successive frames →', ha='right', color=theme.muted, fontsize=8)
    # After the images, each of which sets limits of its own.
    axes.set(xlim=(0, width), ylim=(0, height))
    return figure


def complexity(record: Mapping[str, Any], theme: style.Theme) -> Figure:
    """Histogram of the scores of random rules, unfiltered, with the accepted band."""
    edges, counts = np.asarray(record['edges'], float), np.asarray(record['counts'], float)
    # Empty bins beyond the last score say nothing.
    used = min(len(counts), 3 + max(np.flatnonzero(counts), default=0))
    edges, counts = edges[: used + 1], counts[:used]
    # A band may reach beyond the histogram.
    low, high = np.clip(record['band'], edges[0], edges[-1])
    figure = Figure(figsize=(WIDTH, 3.3))
    axes = figure.subplots()
    figure.subplots_adjust(left=0.07, right=0.97, top=0.8, bottom=0.17)
    # At least one, for a histogram without candidates.
    shares = 100 * counts / max(counts.sum(), 1)
    centres = (edges[1:] + edges[:-1]) / 2
    # A band may begin or end within a bin, so a bin counts by its centre.
    inside = (centres > low) & (centres < high)
    shades = [style.ARMS[2] if chosen else theme.muted for chosen in inside]
    axes.axvspan(low, high, color=style.ARMS[2], alpha=0.13, linewidth=0)
    axes.bar(edges[:-1], shares, np.diff(edges), align='edge', color=shades, edgecolor=theme.paper, linewidth=0.8)
    # Room above the bars for the note.
    top = 1.22 * max(shares.max(), 1e-9)
    axes.set(xlim=(edges[0], edges[-1]), ylim=(0, top), ylabel='% of rules', xlabel=style.score_name(record['score']))
    axes.grid(visible=False, axis='x')
    bounds, counted = '{:g} to {:g}'.format(*record['band']), f'{record["accepted"]:,} of {record["candidates"]:,}'
    note = {'color': style.ARMS[2], 'fontsize': 8.5, 'fontweight': 'bold', 'ha': 'center', 'va': 'top'}
    axes.text((low + high) / 2, 0.985 * top, f'accepted {bounds}\n{counted}', **note)
    axes.set_title('How complex random automata are')
    style.subtitle(axes, 'before filtering', theme)
    return figure
