"""What a run says of itself: `metrics.jsonl` for programs, TensorBoard for browsing, a bar for the terminal."""

import datetime
import json
import os
import pathlib
import sys
import time

import rich.console
import rich.progress
import tensorboardX

from nca_jax.train.tracking import Tracker

SHOWN = ('loss', 'perplexity', 'bits_per_byte', 'accuracy', 'cell_accuracy', 'grid_accuracy', 'pass@1')


class MetricWriter:
    """Owns the folder's `metrics.jsonl`, its TensorBoard files, the tracker and the terminal's progress.

    On opening, records past `step` (the checkpoint that training resumes from) are cut off, so that the file reads as
    if the run had never stopped; a half-written last line goes with them.
    """

    def __init__(self, folder: pathlib.Path, step: int, stop: int, title: str, tracker: Tracker | None = None):
        self._tracker, self._done = tracker, False
        self._path = folder / 'metrics.jsonl'
        kept = _records_until(self._path, step)
        _replace_text(self._path, ''.join(kept))
        self._file = self._path.open('a')
        self._board = tensorboardX.SummaryWriter(str(folder / 'tensorboard'), purge_step=step + 1)
        self._terminal = _Bar(title, step, stop) if sys.stdout.isatty() else _Lines(title, stop)

    def write(self, record: dict) -> None:
        """Appends one record (with `kind` and `step`) everywhere; `sync` makes it last."""
        record = record | {'time': time.time()}
        self._file.write(json.dumps(record, allow_nan=False) + '\n')
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
    """In place of a MetricWriter, on all processes but the first."""

    def write(self, record: dict) -> None:
        """Writes nothing."""

    def advance(self, step: int) -> None:
        """Shows nothing."""

    def sync(self) -> None:
        """There is nothing to wait for."""

    def close(self) -> None:
        """There is nothing to close."""


def evaluated(folder: pathlib.Path, step: int) -> frozenset[str]:
    """The evaluators whose records of a step are in the folder's metrics.jsonl. Those of step 0 are made again."""
    records = map(json.loads, _records_until(folder / 'metrics.jsonl', step))
    return frozenset(r['evaluator'] for r in records if r['kind'] == 'eval' and r['step'] == step)


def describe(record: dict) -> str:
    """A record in a few words: loss and what else its kind has to tell."""
    parts = [f'{name} {record[name]:.4f}' for name in SHOWN if name in record]
    if 'tokens_per_s' in record:
        parts.append(f'{record["tokens_per_s"]:,.0f} tokens/s')
    if 'mfu' in record:
        parts.append(f'MFU {record["mfu"]:.1%}')
    return f'{record.get("evaluator", record["kind"])}: ' + ', '.join(parts)


class _Bar:
    """For people: one bar with loss, tokens/s, MFU and time left; evaluations scroll above it."""

    def __init__(self, title: str, step: int, stop: int):
        progress = rich.progress
        self._progress = progress.Progress(
            progress.TextColumn('{task.description}'),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn('{task.fields[status]}'),
            progress.TimeRemainingColumn(),
        )
        self._task = self._progress.add_task(title, total=stop, completed=step, status='')
        self._progress.start()

    def show(self, record: dict) -> None:
        if record['kind'] == 'train':
            self._progress.update(self._task, status=describe(record).partition(': ')[2])
        elif record['kind'] == 'eval':
            self.say(f'step {record["step"]}  {describe(record)}')

    def say(self, line: str) -> None:
        self._progress.console.print(line, highlight=False)

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
        self.say(f'{self._title}  step {step}/{self._stop}  {describe(record)}{left}')

    def say(self, line: str) -> None:
        print(line, flush=True)

    def advance(self, step: int) -> None:
        pass

    def close(self) -> None:
        pass


def _records_until(path: pathlib.Path, step: int) -> list[str]:
    if step == 0 or not path.exists():  # the evaluation at step 0 is made again, too
        return []
    whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith('\n')]
    return [line for line in whole if (record := json.loads(line))['step'] <= step and record['kind'] != 'done']


def _replace_text(path: pathlib.Path, text: str) -> None:
    new = path.with_suffix('.new')
    new.write_text(text)
    os.replace(new, path)
