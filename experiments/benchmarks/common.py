"""How benchmarks are timed and shown: both sides in turn in one process tree, medians, one row per comparison."""

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterable


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison. name: module/case/precision. ratio: above 1 is better for us, so times are inverted.

    floor: the least ratio demanded, or None where a row only reports. unit: of `ours` and `theirs`.
    """

    name: str
    ours: float
    theirs: float
    ratio: float
    floor: float | None
    unit: str
    note: str


def seconds_in_turn(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median wall time of each side, which must wait for its own result.

    Each is called once to compile, then all of them round after round, so that a busy machine slows them alike.
    """
    for run in sides.values():
        run()
    times = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def throughput_row(
    name: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    *,
    amount: float,
    unit: str,
    floor: float | None,
    note: str,
    rounds: int = 7,
) -> Row:
    """A row of `amount` of work per second on both sides."""
    seconds = seconds_in_turn({'ours': ours, 'theirs': theirs}, rounds)
    rates = {side: amount / value for side, value in seconds.items()}
    return Row(name, rates['ours'], rates['theirs'], rates['ours'] / rates['theirs'], floor, unit, note)


def main(rows: Iterable[Row], description: str) -> None:
    """A benchmark's command line: prints rows as they come, as a table or with --json as one object a line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('--json', action='store_true', help='one JSON object a row')
    as_json = parser.parse_args().json
    if not as_json:
        print(f'{"name":36}{"ours":>14}{"theirs":>14}{"ratio":>9}{"floor":>7}  unit')
    for row in rows:
        print(json.dumps(dataclasses.asdict(row)) if as_json else line(row), flush=True)


def line(row: Row) -> str:
    """A row of the table."""
    floor = '' if row.floor is None else f'{row.floor:g}'
    numbers = f'{row.ours:14,.4g}{row.theirs:14,.4g}{row.ratio:9.2f}{floor:>7}'
    return f'{row.name:36}{numbers}  {row.unit} ({row.note})'
