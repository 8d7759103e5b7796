"""The report's figures. Each function draws one figure under the current style and returns it; none writes files."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nca_jax.report import runs, solved, stats, style

WIDTH = 8.6


def learning_curves(study: runs.Study, theme: style.Theme) -> Figure:
    """Held-out loss against tokens, mean and 95 % interval over seeds; beside it the paired gain over the baseline."""
    colours = style.arm_colours(list(study.arms), study.baseline, theme)
    curves = {arm: {seed: run.curve() for seed, run in seeds.items()} for arm, seeds in study.arms.items()}
    others = [by_seed for arm, by_seed in curves.items() if arm != study.baseline]
    paired = any(by_seed.keys() & curves.get(study.baseline, {}).keys() for by_seed in others)
    figure = Figure(figsize=(WIDTH, 3.9))
    left, *right = style.panels(figure, 2 if paired else 1, longest_label=max(map(len, curves)))
    _loss_panel(left, curves, colours, theme)
    for axes in right:
        _gain_panel(axes, curves, study.baseline, colours, theme)
    return figure


def _loss_panel(axes: Axes, curves: Mapping, colours: Mapping[str, str], theme: style.Theme) -> None:
    ends, tops = [], []
    for arm, by_seed in curves.items():
        tokens, intervals = stats.mean_curve(list(by_seed.values()))
        shown = tokens > 0
        mean = _band(axes, tokens[shown], [i for i, keep in zip(intervals, shown, strict=True) if keep], colours[arm])
        ends.append((mean[-1], arm, colours[arm]))
        tops.append(mean[0])
    low = min(y for y, _, _ in ends)
    span = max(tops) - low or 1.0
    axes.set_ylim(low - 0.06 * span, low + 1.04 * span)
    _token_axis(axes)
    axes.set(title='Held-out loss', ylabel='nats per token')
    style.subtitle(axes, 'mean and 95 % interval over seeds', theme)
    style.label_ends(axes, ends)


def _gain_panel(axes: Axes, curves: Mapping, baseline: str, colours: Mapping[str, str], theme: style.Theme) -> None:
    ends, reach = [(0.0, baseline, colours[baseline])], [0.0]
    axes.axhline(0, color=colours[baseline], linewidth=1.4)
    for arm, by_seed in curves.items():
        seeds = sorted(by_seed.keys() & curves[baseline].keys())
        if arm == baseline or not seeds:
            continue
        pairs = [stats.difference_curve(by_seed[s], curves[baseline][s]) for s in seeds]
        pairs = [(tokens[tokens > 0], gain[tokens > 0]) for tokens, gain in pairs]
        for tokens, gain in pairs:
            axes.plot(tokens, gain, color=colours[arm], linewidth=0.7, alpha=0.55)
        mean = _band(axes, *stats.mean_curve(pairs), colours[arm])
        ends.append((mean[-1], arm, colours[arm]))
        reach += [gain[len(gain) // 4 :] for _, gain in pairs]
    # The last three quarters of training set the scale: early differences are large and say little.
    low, high = min(map(np.min, reach)), max(map(np.max, reach))
    margin = 0.35 * (high - low or 1)
    axes.set_ylim(low - margin, high + margin)
    _token_axis(axes)
    axes.set(title=f'Paired gain over {baseline}', ylabel='nats per token, up is better')
    style.subtitle(axes, 'mean and 95 % interval; thin: single pairs of seeds', theme)
    style.label_ends(axes, ends)


def _band(axes: Axes, x: np.ndarray, intervals: Sequence[stats.Interval], colour: str) -> np.ndarray:
    mean = np.array([i.mean for i in intervals])
    axes.fill_between(x, [i.low for i in intervals], [i.high for i in intervals], color=colour, alpha=0.16, linewidth=0)
    axes.plot(x, mean, color=colour)
    return mean


def _token_axis(axes: Axes) -> None:
    """Logarithmic in tokens: a learning curve's late differences and its early fall are both visible."""
    axes.set_xscale('log')
    low, high = min(line.get_xdata()[0] for line in _curves(axes)), max(line.get_xdata()[-1] for line in _curves(axes))
    axes.set_xlim(low, high if high > low else low * 1.1)
    axes.xaxis.set_major_locator(ticker.FixedLocator(style.nice_ticks(*axes.get_xlim())))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(style.tokens_label))
    axes.set_xlabel('tokens')


def _curves(axes: Axes) -> list:
    return [line for line in axes.get_lines() if line.get_transform() == axes.transData]


def pass_at_k(study: runs.Study, benchmark: str, theme: style.Theme) -> Figure:
    """pass@k against k by arm, mean and 95 % interval; beside it the paired gain over the baseline at each k."""
    group = study.solved[benchmark]
    colours = style.arm_colours(study.arm_names, study.baseline, theme)
    others = [by_seed for arm, by_seed in group.items() if arm != study.baseline]
    paired = any(by_seed.keys() & group.get(study.baseline, {}).keys() for by_seed in others)
    figure = Figure(figsize=(WIDTH, 3.9))
    left, *right = style.panels(figure, 2 if paired else 1, longest_label=max(8, *map(len, group)))
    _pass_panel(left, group, colours, theme)
    for axes in right:
        _pass_gain_panel(axes, group, study.baseline, colours, theme)
    return figure


def _pass_panel(axes: Axes, group: solved.Group, colours: Mapping[str, str], theme: style.Theme) -> None:
    ks, ends, reach = np.array(solved.all_ks(group)), [], []
    for arm, by_seed in group.items():
        records = solved.finals(by_seed)
        intervals = [solved.level(records, f'pass@{k}') for k in ks]
        mean = _band(axes, ks, intervals, colours[arm])
        ends.append((mean[-1], arm, colours[arm]))
        reach += [bound for i in intervals for bound in (i.low, i.high)]
    if f'chance_pass@{ks[-1]}' in records[0]:  # of every arm the same: they were asked the same problems
        guessing = [100 * records[0][f'chance_pass@{k}'] for k in ks]
        axes.plot(ks, guessing, color=theme.muted, linewidth=1, linestyle=(0, (4, 3)))
        ends.append((guessing[-1], 'guessing', theme.muted))
        reach += guessing
    margin = 0.06 * (max(reach) - min(reach) or 1)
    axes.set_ylim(min(reach) - margin, max(reach) + margin)
    _k_axis(axes, ks)
    axes.set(title='Problems solved in k answers', ylabel='pass@k, %')
    alone = 'one seed: over problems' if any(len(by_seed) == 1 for by_seed in group.values()) else ''
    style.subtitle(axes, f'mean and 95 % interval over seeds{alone and "; " + alone}', theme)
    style.label_ends(axes, ends)


def _pass_gain_panel(
    axes: Axes, group: solved.Group, baseline: str, colours: Mapping[str, str], theme: style.Theme
) -> None:
    ks, ends = np.array(solved.all_ks(group)), [(0.0, baseline, colours[baseline])]
    reach, bounds = [0.0], []
    axes.axhline(0, color=colours[baseline], linewidth=1.4)
    for arm, by_seed in group.items():
        seeds = sorted(by_seed.keys() & group[baseline].keys())
        if arm == baseline or not seeds:
            continue
        for seed in seeds:
            ours, theirs = (solved.finals({seed: group[a][seed]})[0] for a in (arm, baseline))
            points = [100 * (ours[f'pass@{k}'] - theirs[f'pass@{k}']) for k in ks]
            axes.plot(ks, points, color=colours[arm], linewidth=0.7, alpha=0.55)
            reach += points
        intervals = [solved.gain(group, baseline, arm, k).gain for k in ks]
        mean = _band(axes, ks, intervals, colours[arm])
        ends.append((mean[-1], arm, colours[arm]))
        bounds += [bound for i in intervals for bound in (i.low, i.high) if not math.isnan(bound)]
    # Two pairs have intervals of many times their difference: those may leave the axes, so that lines can be read.
    low, high = min(reach), max(reach)
    span = high - low or 1
    low, high = max(min(bounds, default=low), low - span), min(max(bounds, default=high), high + span)
    axes.set_ylim(min([low, *reach]) - 0.08 * span, max([high, *reach]) + 0.08 * span)
    _k_axis(axes, ks)
    axes.set(title=f'Paired gain over {baseline}', ylabel='percentage points, up is better')
    style.subtitle(axes, 'mean and 95 % interval; thin: single pairs of seeds', theme)
    style.label_ends(axes, ends)


def _k_axis(axes: Axes, ks: np.ndarray) -> None:
    axes.set_xscale('log', base=2)
    axes.set_xlim(ks[0], ks[-1])
    axes.xaxis.set_major_locator(ticker.FixedLocator(ks))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.xaxis.set_major_formatter(ticker.FormatStrFormatter('%d'))
    axes.set_xlabel('k, answers to a problem')


def automata(
    frames_RxTxYxX: np.ndarray,
    scores_R: np.ndarray,
    levels_R: np.ndarray,
    colours: int,
    score: str,
    theme: style.Theme,
) -> Figure:
    """Film strips of rules in blocks of low, medium and high complexity; `score` names what was measured."""
    blocks = {}
    for level in ('low', 'medium', 'high'):
        rows = np.flatnonzero(levels_R == level)
        rows = rows[np.argsort(scores_R[rows])]
        blocks[f'{level} complexity'] = frames_RxTxYxX[rows], scores_R[rows]
    return film_strips(blocks, colours, score, theme)


def film_strips(
    blocks: Mapping[str, tuple[np.ndarray, np.ndarray]], colours: int, note: str, theme: style.Theme
) -> Figure:
    """A film strip a rule, its first frames in time: blocks of frames (R, T, Y, X) and scores (R), in their order.

    `note` says what the scores are.
    """
    palette = style.cell_colours(colours)
    count = min(10, *(frames.shape[1] for frames, _ in blocks.values()))
    left, size, gap, space = 0.8, 0.74, 0.05, 0.22  # inches
    width = left + count * (size + gap)
    height = sum(0.3 + len(scores) * (size + gap) + space for _, scores in blocks.values()) - space + 0.35
    figure = Figure(figsize=(width, height))
    y = height
    for title, (frames_RxTxYxX, scores_R) in blocks.items():
        y -= 0.3
        figure.text(0.1 / width, (y + 0.09) / height, title, fontsize=10, fontweight='bold')
        for frames_TxYxX, found in zip(frames_RxTxYxX, scores_R, strict=True):
            y -= size + gap
            axes = figure.add_axes((left / width, y / height, (width - left - gap) / width, size / height))
            axes.imshow(_strip(palette[frames_TxYxX[:count]], gap / size), interpolation='nearest', aspect='auto')
            axes.axis('off')
            figure.text(0.1 / width, (y + size / 2) / height, f'{found:.2f}', va='center', fontsize=11)
        y -= space
    figure.text(0.1 / width, 0.1 / height, note, color=theme.muted, fontsize=8)
    figure.text(1 - gap / width, 1 - 0.21 / height, 'successive frames →', ha='right', color=theme.muted, fontsize=8)
    return figure


def _strip(frames_TxYxX3: np.ndarray, gap: float) -> np.ndarray:
    """(T, Y, X, 3) frames side by side as one RGBA image, `gap` of a frame's width transparent between them."""
    count, height, width, _ = frames_TxYxX3.shape
    scale = max(1, round(100 / width))  # pixels a cell, so that a gap narrower than a cell can be drawn
    pixels = frames_TxYxX3.repeat(scale, axis=1).repeat(scale, axis=2)
    between = max(1, round(gap * width * scale))
    strip = np.zeros((height * scale, count * (width * scale + between) - between, 4), np.uint8)
    for i, frame in enumerate(pixels):
        start = i * (width * scale + between)
        strip[:, start : start + width * scale, :3] = frame
        strip[:, start : start + width * scale, 3] = 255
    return strip


def complexity(found: Mapping[str, Any], theme: style.Theme) -> Figure:
    """Histogram of the scores of random rules, unfiltered, with the accepted band."""
    edges, counts = np.asarray(found['edges'], float), np.asarray(found['counts'], float)
    used = min(len(counts), 3 + max(np.flatnonzero(counts), default=0))  # empty bins beyond say nothing
    edges, counts = edges[: used + 1], counts[:used]
    low, high = found['band']
    figure = Figure(figsize=(WIDTH, 3.3))
    axes = figure.subplots()
    figure.subplots_adjust(left=0.07, right=0.97, top=0.8, bottom=0.17)
    shares = 100 * counts / max(counts.sum(), 1)
    centres = (edges[1:] + edges[:-1]) / 2
    inside = (centres > low) & (centres < high)
    shades = [style.ARMS[2] if chosen else theme.muted for chosen in inside]
    axes.axvspan(max(low, edges[0]), min(high, edges[-1]), color=style.ARMS[2], alpha=0.13, linewidth=0)
    axes.bar(edges[:-1], shares, np.diff(edges), align='edge', color=shades, edgecolor=theme.paper, linewidth=0.8)
    top = 1.22 * max(shares.max(), 1e-9)
    axes.set(xlim=(edges[0], edges[-1]), ylim=(0, top), ylabel='% of rules', xlabel=style.score_name(found['score']))
    axes.grid(visible=False, axis='x')
    middle = (max(low, edges[0]) + min(high, edges[-1])) / 2
    note = f'accepted {low:g} to {high:g}\n{found["accepted"]:,} of {found["candidates"]:,}'
    axes.text(middle, 0.985 * top, note, ha='center', va='top', fontsize=8.5, color=style.ARMS[2], fontweight='bold')
    axes.set_title('How complex random automata are')
    style.subtitle(axes, 'before filtering', theme)
    return figure


def nca_stage(study: runs.Study, theme: style.Theme) -> Figure:
    """The automata stage: held-out loss against tokens, and next-grid accuracy by grids seen in context."""
    figure = Figure(figsize=(WIDTH, 3.7))
    names = [run.name for run in study.nca]
    left, right = style.panels(figure, 2, longest_label=max(7, *map(len, names)) if len(names) > 1 else 7)
    ends = []
    colours = dict(zip(names, (style.ARMS * len(names))[: len(names)], strict=True))
    for run in study.nca:
        tokens, loss = run.curve()
        left.plot(tokens[tokens > 0], loss[tokens > 0], color=colours[run.name])
        ends.append((loss[-1], run.name if len(names) > 1 else f'{loss[-1]:.2f}', colours[run.name]))
    uniform = max(math.log(run.about['vocab_size']) for run in study.nca)
    left.axhline(uniform, color=theme.muted, linewidth=1, linestyle=(0, (4, 3)))
    left.set_ylim(0, 1.08 * max([uniform, *(y for y, _, _ in ends)]))
    _token_axis(left)
    left.set(title='Held-out loss on automata', ylabel='nats per token')
    style.subtitle(left, 'rules never trained on', theme)
    style.label_ends(left, [*ends, (uniform, 'uniform', theme.muted)])
    _accuracy_panel(right, study.nca, colours, theme)
    return figure


def _accuracy_panel(axes: Axes, nca: Sequence[runs.Run], colours: Mapping[str, str], theme: style.Theme) -> None:
    """Entry i of a list by grid is the accuracy after i whole grids; copying the last grid is what context is worth
    to a reader who has inferred nothing."""
    ends = []
    for run in nca:
        for name, label, dashes in (('cell', 'cells', (0, ())), ('grid', 'grids', (0, (1, 1.2)))):
            accuracy = np.array(run.final.get(f'{name}_accuracy_by_grid', []), float)
            if len(accuracy):
                axes.plot(np.arange(len(accuracy)), 100 * accuracy, color=colours[run.name], linestyle=dashes)
                ends.append((100 * accuracy[-1], label, colours[run.name]))
    copied = [run.final['copy_accuracy'] for run in nca if 'copy_accuracy' in run.final]
    if copied and len(nca) == 1:
        axes.axhline(100 * copied[0], color=theme.muted, linewidth=1, linestyle=(0, (4, 3)))
        ends.append((100 * copied[0], 'copying', theme.muted))
    axes.set_ylim(0, 100)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.set(title='Next grid predicted', xlabel='grids seen in context', ylabel='% right')
    style.subtitle(axes, 'at the end of the stage', theme)
    if len(nca) == 1:
        style.label_ends(axes, ends)
    else:
        style.label_ends(axes, [(y, label, theme.muted) for y, label, _ in ends[:2]])
