"""How the figures look: two themes, one colour an arm everywhere, labels at the curves instead of legends."""

import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from scipy import optimize

STYLE_SHEET = Path(__file__).with_name('figures.mplstyle')
# Legible on white and on black.
ARMS = ('#3b82c4', '#e2803a', '#2a9d8f', '#c2567f', '#8b72cf', '#b8961f', '#5f9442', '#8c6d5a')
DASHES = (0, (4, 3))
# For logarithmic axes of less than three decades, where powers of ten alone are too few.
LOG_TICKS = tuple(m * 10.0**d for d in range(-9, 18) for m in (1, 2, 5))
CELLS = ('#264653', '#f4a261', '#2a9d8f', '#e9c46a', '#e76f51', '#8ab6d6', '#6d597a', '#f6e7cb', '#b56576', '#90be6d')


class Theme(NamedTuple):
    # Text, secondary text, background, grid lines.
    ink: str
    muted: str
    paper: str
    rule: str


LIGHT = Theme(ink='#1f2328', muted='#6b7280', paper='#ffffff', rule='#e5e7eb')
DARK = Theme(ink='#e6e6e6', muted='#9ca3af', paper='#16181c', rule='#30343b')


def score_name(measure: str) -> str:
    """The name of a complexity measure's values, for labels."""
    return 'change rate' if measure == 'change_rate' else f'{measure} ratio'


def settings(theme: Theme) -> dict:
    """Matplotlib's settings for a theme; use inside `matplotlib.rc_context`."""
    return {
        **matplotlib.rc_params_from_file(STYLE_SHEET, use_default_template=False),
        **dict.fromkeys(('text.color', 'axes.titlecolor'), theme.ink),
        **dict.fromkeys(('axes.labelcolor', 'xtick.color', 'ytick.color'), theme.muted),
        **dict.fromkeys(('axes.facecolor', 'figure.facecolor', 'savefig.facecolor'), theme.paper),
        **dict.fromkeys(('axes.edgecolor', 'grid.color'), theme.rule),
    }


def png(figure: Figure) -> bytes:
    """The figure as a PNG, without metadata that would differ from machine to machine."""
    # A report made twice has the same bytes, so that its changes are changes of results.
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', metadata={'Software': None})
    return buffer.getvalue()


def arm_colours(arms: Sequence[str], baseline: str, theme: Theme) -> dict[str, str]:
    """One colour an arm, the same in every figure; the baseline is grey."""
    others = [arm for arm in arms if arm != baseline]
    return {baseline: theme.muted} | dict(zip(others, itertools.cycle(ARMS), strict=False))


def cell_colours(count: int) -> np.ndarray:
    """(count, 3) uint8: one colour a cell state; beyond the palette, evenly from a smooth map."""
    names = CELLS[:count] if count <= len(CELLS) else matplotlib.colormaps['Spectral'](np.linspace(0, 1, count))
    return (255 * to_rgba_array(names)[:, :3]).round().astype(np.uint8)


def panels(figure: Figure, count: int, longest_label: int) -> list[Axes]:
    """Panels side by side, each with room at its right for labels of so many characters."""
    # By hand, since matplotlib's layouts leave no room for text outside the axes.
    width, height = figure.get_size_inches()
    # Inches: labels at the right, ticks and their title at the left.
    label, axis = 0.15 + 0.09 * longest_label, 0.62
    size = width / count - label - axis
    rectangle = (size / width, (height - 1.1) / height)
    starts = [(axis + i * width / count) / width for i in range(count)]
    return [figure.add_axes((start, 0.5 / height, *rectangle)) for start in starts]


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Moves label positions apart, by as little as keeps their order and `gap` between neighbours."""
    order = np.argsort(positions, kind='stable')
    # Labels in order keep the gap if they, minus rank * gap, don't decrease: the nearest such values are an isotonic
    # regression.
    offsets = gap * np.arange(len(order))
    placed = np.empty(len(order))
    placed[order] = optimize.isotonic_regression(np.asarray(positions)[order] - offsets).x + offsets
    return placed.tolist()


def label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Writes (y, text, colour) labels just right of the axes at their curves' ends; call when limits are final."""
    # Places are compared as they are seen, in the axis's own scale.
    scale = axes.yaxis.get_transform()
    low, high = scale.transform(np.array(axes.get_ylim()))
    height = axes.get_figure().get_size_inches()[1] * axes.get_position().height
    ys = scale.transform(np.array([y for y, _, _ in ends]))
    positions = scale.inverted().transform(spread(ys, gap=abs(high - low) * 0.16 / height))
    for y, (_, text, colour) in zip(positions, ends, strict=True):
        place = axes.get_yaxis_transform()
        axes.text(1.015, y, text, color=colour, transform=place, va='center', fontsize=9, fontweight='bold')


def subtitle(axes: Axes, text: str, theme: Theme) -> None:
    """A line of small print between the axes' title and its frame."""
    place = {'xy': (0, 1), 'xycoords': 'axes fraction', 'xytext': (0, 8), 'textcoords': 'offset points'}
    axes.annotate(text, **place, color=theme.muted, fontsize=8)


def tokens_label(value: float, _position: int | None = None) -> str:
    """1500 as 1.5K, 4.1e6 as 4.1M, 9e9 as 9B."""
    for unit, name in ((1e9, 'B'), (1e6, 'M'), (1e3, 'K')):
        if abs(value) >= unit:
            return f'{value / unit:.3g}{name}'
    return f'{value:.3g}'
