"""Where a run's records go: `metrics.jsonl` for programs, TensorBoard for browsing, a bar for the terminal."""

import datetime
import json
import os
import pathlib
import sys
import time

import tensorboardX
from rich import progress as rich_progress

from nca_jax import files
from nca_jax.train.tracking import Wandb

SHOWN = ('loss', 'perplexity', 'bits_per_byte', 'accuracy', 'cell_accuracy', 'grid_accuracy', 'pass@1')


class MetricWriter:
    """Owns the folder's `metrics.jsonl`, its TensorBoard files, the tracker and the terminal's progress.

    On opening it cuts off the records past `step`, the checkpoint that training resumes from: the file reads as if the
    run had never stopped.
    """

    def __init__(self, folder: pathlib.Path, step: int, stop: int, title: str, tracker: Wandb | None = None):
        self._tracker, self._done = tracker, False
        path = folder / 'metrics.jsonl'
        files.write(path, ''.join(map(_line, _records_until(path, step))))
        self._file = path.open('a')
        self._board = tensorboardX.SummaryWriter(str(folder / 'tensorboard'), purge_step=step + 1)
        self._terminal = _Bar(title, step, stop) if sys.stdout.isatty() else _Lines(title, stop)

    def write(self, record: dict) -> None:
        """Appends one record (with `kind` and `step`) everywhere; `sync` makes it last."""
        record = record | {'time': time.time()}
        self._file.write(_line(record))
        self._file.flush()
        self._done = record['kind'] == 'done'
        prefix = record.get('evaluator', record['kind'])
        measured = {name: value for name, value in record.items() if isinstance(value, float) and name != 'time'}
        scalars = {f'{prefix}/{name}': value for name, value in measured.items()}
        for name, value in scalars.items():
            self._board.add_scalar(name, value, record['step'])
        if self._tracker is not None and scalars:
            self._tracker.write(scalars, record['step'])
        self._terminal.show(record)

    def advance(self, step: int) -> None:
        """Moves the progress bar."""
        self._terminal.advance(step)

    def sync(self) -> None:
        """Returns when everything written so far would survive a power cut."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._terminal.close()
        self._board.close()
        self._file.close()
        if self._tracker is not None:
            self._tracker.close(self._done)


class SilentWriter:
    """A MetricWriter that does nothing, for all processes but the first."""

    def write(self, *_) -> None: ...

    advance = sync = close = write


def evaluated(folder: pathlib.Path, step: int) -> frozenset[str]:
    """The evaluators whose records of a step are in the folder's metrics.jsonl. Those of step 0 are made again."""
    records = _records_until(folder / 'metrics.jsonl', step)
    return frozenset(r['evaluator'] for r in records if r['kind'] == 'eval' and r['step'] == step)


def describe(record: dict) -> str:
    """A record in a few words: its loss and other scores, and its speed."""
    parts = [f'{name} {record[name]:.4f}' for name in SHOWN if name in record]
    if 'tokens_per_s' in record:
        parts.append(f'{record["tokens_per_s"]:,.0f} tokens/s')
    if 'mfu' in record:
        parts.append(f'MFU {record["mfu"]:.1%}')
    return f'{record.get("evaluator", record["kind"])}: ' + ', '.join(parts)


class _Bar:
    """For people: one bar with loss, tokens/s, MFU and time left; evaluations scroll above it."""

    def __init__(self, title: str, step: int, stop: int):
        self._progress = rich_progress.Progress(
            rich_progress.TextColumn('{task.description}'),
            rich_progress.BarColumn(),
            rich_progress.MofNCompleteColumn(),
            rich_progress.TextColumn('{task.fields[status]}'),
            rich_progress.TimeRemainingColumn(),
        )
        self._task = self._progress.add_task(title, total=stop, completed=step, status='')
        self._progress.start()

    def show(self, record: dict) -> None:
        if record['kind'] == 'train':
            self._progress.update(self._task, status=describe(record).partition(': ')[2])
        elif record['kind'] == 'eval':
            self._progress.console.print(f'step {record["step"]}  {describe(record)}', highlight=False)

    def advance(self, step: int) -> None:
        self._progress.update(self._task, completed=step)

    def close(self) -> None:
        self._progress.stop()


class _Lines:
    """For files and pipes: a line per record, with the time left."""

    def __init__(self, title: str, stop: int):
        self._title, self._stop = title, stop
        self._first: tuple[int, float] | None = None

    def show(self, record: dict) -> None:
        if record['kind'] not in ('train', 'eval'):
            return
        step = record['step']
        self._first = self._first or (step, record['time'])
        done, seconds = step - self._first[0], record['time'] - self._first[1]
        left = f', {datetime.timedelta(seconds=round((self._stop - step) * seconds / done))} left' if done else ''
        print(f'{self._title}  step {step}/{self._stop}  {describe(record)}{left}', flush=True)

    def advance(self, *_) -> None: ...

    close = advance


def _line(record: dict) -> str:
    return json.dumps(record, allow_nan=False) + '\n'


def _records_until(path: pathlib.Path, step: int) -> list[dict]:
    """The records of a run that resumes at `step`. One that starts anew evaluates step 0 again, and keeps none."""
    records = files.read_records(path) if step else []
    return [record for record in records if record['step'] <= step and record['kind'] != 'done']
