"""Progress callbacks and terminal bars."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich import console as rich_console
from rich import progress as rich_progress
from rich import text

# Arguments: stage, done, total (None: unknown).
Progress = Callable[[str, int, int | None], None]


def silent(stage: str, done: int, total: int | None) -> None:
    """Shows nothing."""


class RateColumn(rich_progress.ProgressColumn):
    """The recent rate per second, once it is known."""

    def render(self, task: rich_progress.Task) -> text.Text:
        rate = task.finished_speed or task.speed
        words = '' if not rate else f'{rate:,.0f}/s' if rate >= 10 else f'{rate:.2g}/s'
        return text.Text(words, style='progress.data.speed')


@contextlib.contextmanager
def bars() -> Iterator[Progress]:
    """A callback that shows a bar on stderr for each stage. A file gets a line a minute, and all of them at the end."""
    columns = (
        rich_progress.TextColumn('{task.description:>9}'),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        RateColumn(),
        rich_progress.TimeElapsedColumn(),
        rich_progress.TimeRemainingColumn(),
    )
    console = rich_console.Console(stderr=True)
    display = rich_progress.Progress(*columns, console=console)
    tasks: dict[str, rich_progress.TaskID] = {}
    last_line = time.monotonic()

    def show(stage: str, done: int, total: int | None) -> None:
        nonlocal last_line
        if stage not in tasks:
            tasks[stage] = display.add_task(stage, total=total)
        display.update(tasks[stage], completed=done, total=total)
        if not console.is_terminal and time.monotonic() - last_line > 60.0:
            last_line = time.monotonic()
            console.print(display.make_tasks_table([task for task in display.tasks if task.id == tasks[stage]]))

    with display if console.is_terminal else contextlib.nullcontext():
        yield show
    if not console.is_terminal and tasks:
        console.print(display)
