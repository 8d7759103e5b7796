"""Markdown tables and the numbers in their cells."""

import math
from collections.abc import Mapping, Sequence

# The cell of a number that doesn't exist: an interval of one seed, a gain of the baseline.
NONE = '-'


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows with the same keys as a Markdown table, padded so that it reads well in a terminal too; '' for no rows."""
    if not rows:
        return ''
    header = list(rows[0])
    # A bar in a name would begin another cell.
    cells = [header, *([row[column].replace('|', r'\|') for column in header] for row in rows)]
    # Markdown's rule under the header has at least three characters.
    widths = [max(3, *(len(line[i]) for line in cells)) for i in range(len(header))]
    # Names stand at the left of the first column, numbers at the right of the others.
    sides = '<' + '>' * (len(header) - 1)
    rule = ['-' * widths[0], *('-' * (width - 1) + ':' for width in widths[1:])]
    lines = (
        ' | '.join(f'{text:{side}{width}}' for text, side, width in zip(line, sides, widths, strict=True))
        for line in (header, rule, *cells[1:])
    )
    return '\n'.join(f'| {line} |' for line in lines)


def number(value: float | None, digits: int = 3, sign: str = '-') -> str:
    """A number for a cell; '-' for None or nan. sign '+' writes the plus too."""
    return NONE if value is None or math.isnan(value) else f'{value:{sign}.{digits}f}'


def percent(share: float | None, digits: int = 1) -> str:
    return NONE if share is None else number(100 * share, digits)


def ranged(mean: float, low: float, high: float, digits: int, sign: str = '+') -> str:
    """'mean (low to high)', the mean alone where it has no interval."""
    middle = number(mean, digits, sign)
    return middle if math.isnan(low) else f'{middle} ({number(low, digits, sign)} to {number(high, digits, sign)})'


def p_value(p: float) -> str:
    return NONE if math.isnan(p) else '< 0.001' if p < 0.001 else f'{p:.3f}'
