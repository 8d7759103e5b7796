"""Figures of what sequences of automata are like; each draws under the current style and returns the figure."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nca_jax.report import figures, style

SHADES = (style.ARMS[2], style.ARMS[1])  # the set in the band, the unfiltered one


def rank_frequency(
    sets: Mapping[str, Mapping[str, Mapping[str, Any]]],
    uniform: Mapping[str, np.ndarray],
    steps: Sequence[int],
    theme: style.Theme,
) -> Figure:
    """Share of tokens against rank, both logarithmic, of each set's `pooled` tokens and `within` a sequence.

    sets[name][panel] has the counts by rank, those of shuffled cells, the Zipf exponent and the ranks it was fitted on;
    uniform[panel] are the counts of as many tokens drawn from the whole vocabulary alike. The steps are the numbers of
    tokens of at most 1, 2, ... colours.
    """
    figure = Figure(figsize=(figures.WIDTH, 4.3))
    titles = {
        'pooled': ('All sequences together', 'dashed: Zipf law; dotted: cells shuffled within each sequence'),
        'within': ('In one sequence', 'ranked by itself, mean over sequences'),
    }
    panels = figure.subplots(1, 2, sharey=True)
    figure.subplots_adjust(left=0.085, right=0.985, top=0.84, bottom=0.115, wspace=0.06)
    for axes, (panel, (title, small_print)) in zip(panels, titles.items(), strict=True):
        notes = []
        for (name, found), colour in zip(sets.items(), SHADES, strict=False):
            _ranked(axes, found[panel]['counts'], color=colour, linewidth=2)
            _ranked(axes, found[panel]['counts_shuffled'], color=colour, linewidth=1.2, linestyle=(0, (1, 1.5)))
            notes.append((f'{name}: {_fit(axes, found[panel], colour)}', colour))
        _ranked(axes, uniform[panel], color=theme.muted, linewidth=1)
        notes.append(('uniform tokens', theme.muted))
        for number, (note, colour) in enumerate(reversed(notes)):
            place = {'transform': axes.transAxes, 'fontsize': 8.5, 'fontweight': 'bold'}
            axes.text(0.03, 0.035 + 0.06 * number, note, color=colour, **place)
        axes.set(xscale='log', yscale='log', xlabel='rank')
        axes.set_title(title)
        style.subtitle(axes, small_print, theme)
    panels[0].set_ylabel('share of tokens')
    panels[0].set_ylim(bottom=panels[0].get_ylim()[0] / 8)
    for kind, (low, high) in enumerate(zip((1, *steps), steps, strict=False), start=1):
        panels[0].axvline(high, 0.24, 1, color=theme.muted, linewidth=0.7, linestyle=(0, (1, 2)))
        words = '1 colour' if kind == 1 else f'{kind}'
        place = {'transform': panels[0].get_xaxis_transform(), 'ha': 'center', 'va': 'top', 'fontsize': 7.5}
        panels[0].text((low * high) ** 0.5, 0.985, words, color=theme.muted, **place)
    return figure


def _ranked(axes: Axes, counts: np.ndarray, **look: Any) -> None:
    axes.plot(np.arange(1, len(counts) + 1), counts / counts.sum(), **look)


def _fit(axes: Axes, found: Mapping[str, Any], colour: str) -> str:
    """Draws the fitted law, with the counted share of tokens in its range, and returns it in words."""
    exponent, (first, last) = found['zipf_exponent'], found['zipf_ranks']
    if last <= first:
        return 'too few tokens to fit'
    law = np.arange(first, last + 1, dtype=float) ** -exponent
    counts = found['counts']
    line = law * counts[first - 1 : last].sum() / law.sum() / counts.sum()
    axes.plot([first, last], line[[0, -1]], color=colour, linewidth=1, linestyle=(0, (5, 3)))
    return f'$r^{{-{exponent:.2f}}}$ for $r$ = {first:,} to {last:,}'


def information(
    distances: Sequence[int],
    by_tokens: Mapping[str, np.ndarray],
    floors: Mapping[str, np.ndarray],
    by_place: Mapping[str, np.ndarray],
    tokens_per_grid: int,
    theme: style.Theme,
) -> Figure:
    """Mutual information of cells against distance in tokens, with that of shuffled sequences (`floors`), and as a
    chart (dt, dx) with the shuffled one subtracted."""
    width, height = figures.WIDTH, 6.4
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0.74 / width, 3.75 / height, (width - 1.77) / width, 2.05 / height))
    ends = []
    for (name, found), colour in zip(by_tokens.items(), SHADES, strict=False):
        axes.plot(distances, found, color=colour, linewidth=1.4)
        axes.plot(distances, floors[name], color=colour, linewidth=1, linestyle=(0, (1, 1.5)))
        ends += [(found[-1], name, colour), (floors[name][-1], 'shuffled', colour)]
    axes.set(yscale='log', xlim=(0, max(distances) + 1), xlabel='distance in tokens', ylabel='bits per cell')
    axes.xaxis.set_major_locator(ticker.MultipleLocator(tokens_per_grid))
    axes.yaxis.set_major_locator(ticker.FixedLocator(style.nice_ticks(*axes.get_ylim())))
    axes.yaxis.set_minor_locator(ticker.NullLocator())
    axes.yaxis.set_major_formatter(ticker.FormatStrFormatter('%g'))
    axes.set_title('Mutual information along the sequence')
    style.subtitle(axes, 'of a cell and its like in a later token; ticks: one grid, the same place a frame on', theme)
    label_ends_log(axes, ends)
    size, left = 2.35, 0.74
    for number, (name, found) in enumerate(by_place.items()):
        start = left + number * (width - left) / 2
        chart = figure.add_axes((start / width, 0.5 / height, 1.25 * size / width, size / height))
        shown = np.log10(np.maximum(found, 1e-3))
        chart.imshow(shown, cmap='YlGnBu', vmin=-3, vmax=0.3, aspect='auto')
        for (dt, dx), bits in np.ndenumerate(found):
            shade = '#ffffff' if shown[dt, dx] > -1.1 else style.LIGHT.ink
            chart.text(dx, dt, short(bits), ha='center', va='center', fontsize=7, color=shade)
        chart.set(xlabel='cells to the right', ylabel='frames later')
        chart.set(xticks=range(found.shape[1]), yticks=range(found.shape[0]))
        chart.grid(visible=False)
        chart.spines[:].set_visible(False)
        chart.set_title(f'Between cells, {name}')
        style.subtitle(chart, 'bits, those of shuffled cells subtracted', theme)
    return figure


def label_ends_log(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """`style.label_ends` for a logarithmic axis."""
    low, high = np.log10(axes.get_ylim())
    height = axes.get_figure().get_size_inches()[1] * axes.get_position().height
    positions = style.spread([float(np.log10(y)) for y, _, _ in ends], gap=(high - low) * 0.16 / height)
    for y, (_, text, colour) in zip(positions, ends, strict=True):
        place = axes.get_yaxis_transform()
        axes.text(1.012, 10**y, text, color=colour, transform=place, va='center', fontsize=9, fontweight='bold')


def short(bits: float) -> str:
    """Two digits that count: 2.1, .43, .021, and 0 for less than a thousandth."""
    if bits < 5e-4:
        return '0'
    return f'{bits:.1f}' if bits >= 1 else f'{bits:.{2 if bits >= 0.095 else 3}f}'.removeprefix('0')
