"""How the figures look: one colour an arm everywhere, and names in their curves' colours beside the axes."""

import io
import itertools
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure

# For `matplotlib.rc_context(fname=SHEET)`.
SHEET = Path(__file__).with_name('figures.mplstyle')
# Its colours of text, of secondary text and of the background.
INK, MUTED, PAPER = '#1f2328', '#6b7280', '#ffffff'
ARMS = ('#3b82c4', '#e2803a', '#2a9d8f', '#c2567f', '#8b72cf', '#b8961f', '#5f9442', '#8c6d5a')
DASHES = (0, (4, 3))
# For logarithmic axes of less than three decades, where powers of ten alone are too few.
LOG_TICKS = tuple(m * 10.0**d for d in range(-9, 18) for m in (1, 2, 5))
CELLS = ('#264653', '#f4a261', '#2a9d8f', '#e9c46a', '#e76f51', '#8ab6d6', '#6d597a', '#f6e7cb', '#b56576', '#90be6d')


def score_name(measure: str) -> str:
    """The name of a complexity measure's values, for labels."""
    return 'change rate' if measure == 'change_rate' else f'{measure} ratio'


def png(figure: Figure) -> bytes:
    """The figure as a PNG, without metadata that would differ from machine to machine."""
    # A report made twice has the same bytes, so that its changes are changes of results.
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', metadata={'Software': None})
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


def tokens_label(value: float, _position: int | None = None) -> str:
    """1500 as 1.5K, 4.1e6 as 4.1M, 9e9 as 9B."""
    for unit, name in ((1e9, 'B'), (1e6, 'M'), (1e3, 'K')):
        if abs(value) >= unit:
            return f'{value / unit:.3g}{name}'
    return f'{value:.3g}'
