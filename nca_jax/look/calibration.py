"""A calibration for people: the figure of what rules and texts score, on one axis, and the tables in words."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nca_jax.report import figures, style

LONGEST = 90  # characters of a path that fit
LEGEND = (
    'position: 0 as constant tokens, 1 as uniform ones over so many kinds; score: what automata of that position have;'
    " shuffled: the same for tokens drawn from the text's frequencies, without order. raw and long are for reference."
)


def calibration(
    scores_R: np.ndarray, windows: Mapping[str, np.ndarray], record: Mapping[str, Any], theme: style.Theme
) -> Figure:
    """Histograms of the rules' scores and, below them, of each text's windows on the same scale.

    windows: of each text its windows' scores; record: what `tables` tells.
    """
    highest = max(scores_R.max(), *(scores.max() for scores in windows.values()))
    width = 0.02 if highest > 0.4 else 0.01
    edges = width * np.arange(1 + np.ceil(1.001 * highest / width))
    rows = 1 + len(windows)
    height = 0.95 + 1.75 * rows
    figure = Figure(figsize=(figures.WIDTH, height))
    panels = figure.subplots(rows, sharex=True)
    bottom, top = 0.5 / height, 1 - 0.65 / height
    figure.subplots_adjust(left=0.07, right=0.97, top=top, bottom=bottom, hspace=0.55)
    _histogram(panels[0], scores_R, edges, theme.muted, theme)
    rule = record['spec']['rule']
    panels[0].set(title=f'Rules of family {rule["family"]}, {rule["colours"]} colours', ylabel='% of rules')
    style.subtitle(panels[0], f'{len(scores_R):,} of them, before filtering; shaded: proposed bands', theme)
    by_name = {band['name']: band for band in record['bands']}
    for name in {text['band']: None for text in record['texts'].values()}:
        _shade(panels[0], by_name[name], edges, theme.muted)
    for number, (axes, (name, scores)) in enumerate(zip(panels[1:], windows.items(), strict=True)):
        colour, text = style.ARMS[number % len(style.ARMS)], record['texts'][name]
        _histogram(axes, scores, edges, colour, theme)
        axes.set_title(name if len(name) <= LONGEST else f'…{name[-LONGEST:]}', parse_math=False)
        axes.set(ylabel='% of windows')
        note = f'{len(scores):,} windows on the scale of the rules; dashed: their median; shaded: band {text["band"]}'
        style.subtitle(axes, note, theme)
        axes.axvline(text['score'], color=theme.ink, linewidth=1.2, linestyle=(0, (4, 3)))
        _shade(axes, by_name[text['band']], edges, colour)
    measure = f'{record["spec"]["complexity"]["measure"]} ratio'
    panels[-1].set(xlim=(0, edges[-1]), xlabel=f"{measure}; of texts: {record['rests_on']}, on the automata's scale")
    return figure


def _histogram(axes: Axes, scores: np.ndarray, edges: np.ndarray, colour: str, theme: style.Theme) -> None:
    shares = 100 * np.histogram(scores, edges)[0] / len(scores)
    axes.bar(edges[:-1], shares, np.diff(edges), align='edge', color=colour, edgecolor=theme.paper, linewidth=0.8)
    axes.set_ylim(0, 1.3 * shares.max())
    axes.grid(visible=False, axis='x')


def _shade(axes: Axes, band: Mapping[str, Any], edges: np.ndarray, colour: str) -> None:
    low, high = band['low'] or 0, edges[-1] if band['high'] is None else min(band['high'], edges[-1])
    axes.axvspan(low, high, color=colour, alpha=0.18, linewidth=0, zorder=0)


def tables(record: Mapping[str, Any]) -> str:
    """What was measured, and in a few sentences a text what is proposed."""
    rules, scored, texts = record['rules'], record['spec']['complexity'], record['texts']
    summary = (
        f'{rules["count"]:,} unfiltered rules in {record["seconds"]["rules"]:.0f} s, scored by {scored["measure"]} of'
        f' {rules["tokens"]} tokens of {scored["bytes_per_token"]} bytes. Constant tokens have {rules["floor"]:.3f},'
        f' uniform ones of {rules["alphabet"]:,} kinds {rules["ceiling"]:.3f}.'
    )
    head = ('', 'windows x tokens x width', 'ratio (quartiles)', 'constant', 'uniform', 'kinds')
    rows = [(*head, 'position', 'score', 'shuffled', 'score')]
    for name, text in texts.items():
        rows.append((f'{name}, {text["bytes"]:,} bytes', *[''] * (len(rows[0]) - 1)))
        rows += [footing_row(footing_name, found) for footing_name, found in text['footings'].items()]
    shares = [('share of scores', *rules['shares'], 'least', 'median', 'most'), share_row('rules', rules)]
    shares += [share_row(name, text['windows']) for name, text in texts.items()]
    parts = [wrap(summary), columns_of(rows), wrap(LEGEND), columns_of(shares)]
    if record['bands'][0]['name'] not in rules['shares']:
        fifths = ', '.join(f'{band["name"]} {edges(band)}' for band in record['bands'])
        parts.append(wrap(f"The paper's bands don't apply to these rules; the fifths of training: {fifths}."))
    return '\n\n'.join([*parts, *(propose(name, text, record) for name, text in texts.items())])


def footing_row(name: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    low, median, high = found['ratio_quartiles']
    return (
        f'  {name}',
        f'{found["windows"]:,} x {found["tokens"]:,} x {found["bytes_per_token"]} B',
        f'{median:.3f} ({low:.3f}-{high:.3f})',
        f'{found["floor"]:.3f}',
        f'{found["ceiling"]:.3f}',
        f'{found["alphabet"]:,}',
        f'{found["position"]:.2f}',
        f'{found["score"]:.3f}' if 'score' in found else '',
        f'{found["shuffled_position"]:.2f}',
        f'{found["shuffled_score"]:.3f}' if 'score' in found else '',
    )


def share_row(name: str, summary: Mapping[str, Any]) -> tuple[str, ...]:
    shares = (f'{100 * share:.1f} %' for share in summary['shares'].values())
    return (name, *shares, *(f'{summary[of]:.3f}' for of in ('least', 'median', 'most')))


def edges(band: Mapping[str, Any]) -> str:
    low, high = (None if band[end] is None else f'{band[end]:.3f}' for end in ('low', 'high'))
    return f'up to {high}' if low is None else f'above {low}' if high is None else f'{low}-{high}'


def propose(name: str, text: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """The proposal in words, with what speaks against it."""
    lines = [f'On {record["rests_on"]}, the median window lies where automata score {text["score"]:.3f},']
    if text['within_reach']:
        lines.append(f'above {100 * text["rules_below"]:.0f} % of rules.')
    else:
        least, most = (record['rules'][end] for end in ('least', 'most'))
        lines.append(f'OUTSIDE OF WHAT RULES SCORE ({least:.3f} to {most:.3f}): this is only the nearest band.')
    for other, found in text['footings'].items():
        if found.get('band', text['band']) != text['band']:
            lines.append(f'On {other} it would be {found["band"]}.')
    if text['packed_files']:
        lines.append(f'{text["packed_files"]} of its files look compressed and were measured as they lie: unpack them.')
    return '\n'.join([f'{name}: band {text["band"]}', f'  {text["asked"]}', wrap(' '.join(lines), '  ')])


def wrap(text: str, indent: str = '') -> str:
    return textwrap.fill(text, 118, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def columns_of(rows: Sequence[Sequence[str]]) -> str:
    """Rows as lines, the first column flush left; a row that names a text doesn't widen it."""
    widths = [max(len(row[i]) for row in rows if any(row[1:])) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append('  '.join(cells).rstrip())
    return '\n'.join(lines)
