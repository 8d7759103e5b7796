"""A calibration for people: the figure of what rules and texts score, on one axis, and the tables in words."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nca_jax.report import figures, style

LONGEST = 90  # characters of a path that fit


def calibration(
    scores_R: np.ndarray,
    texts: Mapping[str, tuple[np.ndarray, tuple[float, float], str]],
    score: str,
    theme: style.Theme,
) -> Figure:
    """Histograms of the rules' scores and, below them, of each text's windows on the same scale.

    texts: of each text its windows' scores, the proposed band (low, high) and its name.
    """
    highest = max(scores_R.max(), *(scores.max() for scores, _, _ in texts.values()))
    width = 0.02 if highest > 0.4 else 0.01
    edges = width * np.arange(1 + np.ceil(1.001 * highest / width))
    rows = 1 + len(texts)
    height = 0.95 + 1.75 * rows
    figure = Figure(figsize=(figures.WIDTH, height))
    panels = figure.subplots(rows, sharex=True)
    bottom, top = 0.5 / height, 1 - 0.65 / height
    figure.subplots_adjust(left=0.07, right=0.97, top=top, bottom=bottom, hspace=0.55)
    _histogram(panels[0], scores_R, edges, theme.muted, theme)
    panels[0].set(title='Random rules', ylabel='% of rules')
    style.subtitle(panels[0], f'{len(scores_R):,} of them, before filtering; shaded: proposed bands', theme)
    for number, (axes, (name, (scores, band, word))) in enumerate(zip(panels[1:], texts.items(), strict=True)):
        colour = style.ARMS[number % len(style.ARMS)]
        _histogram(axes, scores, edges, colour, theme)
        axes.set(title=name if len(name) <= LONGEST else f'…{name[-LONGEST:]}', ylabel='% of windows')
        note = f'{len(scores):,} windows on the scale of the rules; dashed: their median; shaded: band {word}'
        style.subtitle(axes, note, theme)
        axes.axvline(np.median(scores), color=theme.ink, linewidth=1.2, linestyle=(0, (4, 3)))
        low, high = np.clip(band, 0, edges[-1])
        for shaded in (panels[0], axes):
            shaded.axvspan(low, high, color=colour, alpha=0.18, linewidth=0, zorder=0)
    panels[-1].set(xlim=(0, edges[-1]), xlabel=score)
    return figure


def _histogram(axes: Axes, scores: np.ndarray, edges: np.ndarray, colour: str, theme: style.Theme) -> None:
    shares = 100 * np.histogram(scores, edges)[0] / len(scores)
    axes.bar(edges[:-1], shares, np.diff(edges), align='edge', color=colour, edgecolor=theme.paper, linewidth=0.8)
    axes.set_ylim(0, 1.3 * shares.max())
    axes.grid(visible=False, axis='x')


def tables(record: Mapping[str, Any], legend: str) -> str:
    """What was measured, with its legend, and in a sentence a text what is proposed."""
    rules, scored = record['rules'], record['spec']['complexity']
    summary = (
        f'{rules["count"]:,} unfiltered rules in {record["seconds"]["rules"]:.0f} s, scored by {scored["measure"]} of'
        f' {rules["tokens"]} tokens of {scored["bytes_per_token"]} bytes: {rules["least"]:.3f} to {rules["most"]:.3f},'
        f' median {rules["quartiles"][1]:.3f}. Constant tokens have {rules["floor"]:.3f}, uniform ones of'
        f' {rules["alphabet"]:,} {rules["ceiling"]:.3f}.'
    )
    head = (
        '',
        'windows x tokens x width',
        'ratio (quartiles)',
        'constant',
        'uniform over',
        'position',
        'as a score',
        'band',
        'plain',
    )
    rows = [head]
    for name, text in record['texts'].items():
        rows.append((f'{name}, {text["bytes"]:,} bytes', *[''] * (len(head) - 1)))
        rows += [footing_row(footing_name, found) for footing_name, found in text['footings'].items()]
    names = [band['name'] for band in record['bands']]
    shares = [('share in band', *names), ('rules', *(f'{100 * band["share"]:.1f} %' for band in record['bands']))]
    for name, text in record['texts'].items():
        shares.append((name, *(f'{100 * text["windows_in_bands"][band]:.1f} %' for band in names)))
    proposals = [propose(name, text, record) for name, text in record['texts'].items()]
    parts = [wrap(summary), columns_of(rows), legend, columns_of(shares), *proposals]
    return '\n\n'.join([*parts, '\n'.join(record['files'])])


def footing_row(name: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    low, median, high = found['ratio_quartiles']
    return (
        f'  {name}',
        f'{found["windows"]:,} x {found["tokens"]:,} x {found["bytes_per_token"]} B',
        f'{median:.3f} ({low:.3f}-{high:.3f})',
        f'{found["floor"]:.3f}',
        f'{found["ceiling"]:.3f} ({found["alphabet"]:,})',
        f'{found["position"]:.2f}',
        f'{found["as_score"]:.3f}',
        found['band'],
        found['band_of_plain_ratio'],
    )


def propose(name: str, text: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """The proposal in words, with what speaks against it."""
    asked = f'{text["word"]}, or {text["flags"]}' if text['word'] else text['flags']
    lines = [f'On {record["rests_on"]}, the median window lies where automata score {text["as_score"]:.3f},']
    if text['within_reach']:
        lines.append(f'above {100 * text["rules_below"]:.0f} % of rules.')
    else:
        least, most = (record['rules'][end] for end in ('least', 'most'))
        lines.append(f'OUTSIDE OF WHAT RULES SCORE ({least:.3f} to {most:.3f}): this is only the nearest band.')
    others = {found['band'] for found in text['footings'].values()} - {text['band']}
    if others:
        lines.append(f'On other footings it would be {" or ".join(sorted(others))}.')
    if text['packed_files']:
        lines.append(f'{text["packed_files"]} of its files look compressed and were measured as they lie: unpack them.')
    return '\n'.join([f'{name}: {asked}', wrap(' '.join(lines), '  ')])


def wrap(text: str, first: str = '', rest: str | None = None) -> str:
    after = first if rest is None else rest
    return textwrap.fill(text, 118, initial_indent=first, subsequent_indent=after, break_on_hyphens=False)


def columns_of(rows: Sequence[Sequence[str]]) -> str:
    """Rows as lines, the first column flush left; a row that names a text doesn't widen it."""
    widths = [max(len(row[i]) for row in rows if any(row[1:])) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append('  '.join(cells).rstrip())
    return '\n'.join(lines)
