"""Figures of what sequences of automata are like; each draws under the current style and returns the figure."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nca_jax.report import figures, style

SHADES = (style.ARMS[2], style.ARMS[1])  # the set in the band, the unfiltered one
DOTTED, DASHED = (0, (1, 1.5)), (0, (5, 3))
LEAST_BITS = 1e-3  # less is drawn as this


def rank_frequency(sets: Mapping[str, Mapping[str, Any]], kinds: int, theme: style.Theme) -> Figure:
    """Share of tokens against rank, both logarithmic, of each set as sample.measure describes it: of all its sequences
    together, and of a few by themselves. `kinds` is the size of the vocabulary."""
    figure = Figure(figsize=(figures.WIDTH, 4.3))
    together, alone = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.085, right=0.985, top=0.84, bottom=0.115, wspace=0.17)
    notes = {together: [], alone: []}
    for (name, found), colour in zip(sets.items(), SHADES, strict=False):
        pooled, within = found['pooled'], found['within']
        _ranked(together, pooled['counts'], color=colour, linewidth=2)
        _ranked(together, pooled['counts_shuffled'], color=colour, linewidth=1.2, linestyle=DOTTED)
        for counts in within['counts']:
            _ranked(alone, counts, color=colour, linewidth=1.1, alpha=0.8, marker='o', markersize=3.5, markevery=[0])
        notes[together].append((f'{name}, all {found["tokens"]:,} tokens', colour))
        notes[alone].append((f'{name}, {len(within["counts"])} sequences', colour))
    law = 1 / np.arange(1, kinds + 1)
    _ranked(together, law, color=theme.muted, linewidth=1, linestyle=DASHED)
    _ranked(alone, next(iter(sets.values()))['within']['counts_uniform'], color=theme.muted, linewidth=2)
    notes[together].append(('slope -1, about that of language', theme.muted))
    notes[alone].append(('uniform, as many kinds as the middle one', theme.muted))
    for axes, lines in notes.items():
        for number, (note, colour) in enumerate(reversed(lines)):
            place = {'transform': axes.transAxes, 'fontsize': 8.5, 'fontweight': 'bold'}
            axes.text(0.03, 0.035 + 0.06 * number, note, color=colour, **place)
        axes.set(xscale='log', yscale='log', xlabel='rank')
        low, high = axes.get_ylim()
        axes.set_ylim(low * (low / high) ** 0.3, high)  # room for the notes
    together.set_title('All sequences together')
    style.subtitle(together, 'dotted: cells shuffled within each sequence', theme)
    alone.set_title('Sequences by themselves')
    style.subtitle(alone, 'from the lowest score to the highest', theme)
    together.set_ylabel('share of tokens')
    return figure


def _ranked(axes: Axes, counts: np.ndarray, **look: Any) -> None:
    axes.plot(np.arange(1, len(counts) + 1), counts / counts.sum(), **look)


def information(sets: Mapping[str, Mapping[str, Any]], tokens_per_grid: int, theme: style.Theme) -> Figure:
    """Mutual information of cells, net of chance, against their distance in tokens, and as a chart (dt, dx)."""
    width, height = figures.WIDTH, 6.4
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0.74 / width, 3.75 / height, (width - 1.77) / width, 2.05 / height))
    low, top, ends = np.inf, 10 * LEAST_BITS, []
    for (name, found), colour in zip(sets.items(), SHADES, strict=False):
        distances, bits = found['distances'], np.maximum(found['information_by_tokens'], LEAST_BITS)
        axes.plot(distances, bits, color=colour, linewidth=1.4)
        ends.append((bits[-1], name, colour))
        low, top = min(low, np.nanmin(bits)), max(top, np.nanmax(bits))
    axes.set(yscale='log', ylim=(low / 1.3, 1.3 * top), xlim=(0, max(distances) + 1))
    axes.set(xlabel='distance in tokens', ylabel='bits per cell')
    axes.xaxis.set_major_locator(ticker.MultipleLocator(tokens_per_grid))
    axes.yaxis.set_major_locator(ticker.FixedLocator(style.LOG_TICKS))
    axes.yaxis.set_minor_locator(ticker.NullLocator())
    axes.yaxis.set_major_formatter(ticker.FormatStrFormatter('%g'))
    axes.set_title('Mutual information along the sequence')
    chance = 'less that of cells in permuted places: an upper bound'
    style.subtitle(axes, f'of a cell and its like in a later token, {chance}; ticks: one grid', theme)
    style.label_ends(axes, [end for end in ends if np.isfinite(end[0])])
    size, left = 2.35, 0.74
    charts = [np.log10(np.maximum(found['information_by_place'], LEAST_BITS)) for found in sets.values()]
    low, top = np.nanmin(charts), max(np.nanmax(charts), 1 + np.log10(LEAST_BITS))
    for number, (name, found) in enumerate(sets.items()):
        start = left + number * (width - left) / 2
        chart = figure.add_axes((start / width, 0.5 / height, 1.25 * size / width, size / height))
        shown = charts[number]
        chart.imshow(shown, cmap='YlGnBu', vmin=low, vmax=top, aspect='auto')
        for (dt, dx), bits in np.ndenumerate(found['information_by_place']):
            shade = '#ffffff' if shown[dt, dx] > 0.4 * low + 0.6 * top else style.LIGHT.ink
            words, shade = ('itself', theme.muted) if np.isnan(bits) else (short(bits), shade)
            chart.text(dx, dt, words, ha='center', va='center', fontsize=7, color=shade)
        chart.set(xlabel='cells to the right', ylabel='frames later')
        chart.set(xticks=range(shown.shape[1]), yticks=range(shown.shape[0]))
        chart.grid(visible=False)
        chart.spines[:].set_visible(False)
        chart.set_title(f'Between cells, {name}')
        style.subtitle(chart, 'bits, less those of permuted places: an upper bound', theme)
    return figure


def short(bits: float) -> str:
    """Two digits that count: 2.1, .43, .021, and 0 for less than a thousandth."""
    if bits < 5e-4:
        return '0'
    return f'{bits:.1f}' if bits >= 1 else f'{bits:.{2 if bits >= 0.095 else 3}f}'.removeprefix('0')
