"""How long work tells how far it is: `progress(stage, done, total)`, and bars that show it."""

import contextlib
from collections.abc import Callable, Iterator

from rich import progress as rich_progress

Progress = Callable[[str, int, int | None], None]  # stage, done, total (None: unknown)


def silent(stage: str, done: int, total: int | None) -> None:
    """Shows nothing."""


@contextlib.contextmanager
def bars() -> Iterator[Progress]:
    """A bar on the terminal for each stage, with the time it took and has left; in a log, its last state alone."""
    columns = (
        rich_progress.TextColumn('{task.description:>9}'),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeElapsedColumn(),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns) as display:
        tasks: dict[str, rich_progress.TaskID] = {}

        def show(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = display.add_task(stage, total=total)
            display.update(tasks[stage], completed=done, total=total)

        yield show
