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

    A terminal shows one bar, above which evaluations scroll; a file or a pipe gets a line for each record.
    """

    def __init__(self, folder: pathlib.Path, step: int, stop: int, title: str, tracker: Wandb | None = None):
        self._title, self._stop, self._tracker, self._done = title, stop, tracker, False
        path = folder / 'metrics.jsonl'
        # Records past `step`, the checkpoint that training resumes from, are cut off: the file reads as if the run
        # had never stopped.
        files.write(path, ''.join(map(_line, _records_until(path, step))))
        self._file = path.open('a')
        self._board = tensorboardX.SummaryWriter(str(folder / 'tensorboard'), purge_step=step + 1)
        # Step and time of the first line, from which the time left is estimated.
        self._first: tuple[int, float] | None = None
        self._bar = rich_progress.Progress(
            rich_progress.TextColumn('{task.description}'),
            rich_progress.BarColumn(),
            rich_progress.MofNCompleteColumn(),
            rich_progress.TextColumn('{task.fields[status]}'),
            rich_progress.TimeRemainingColumn(),
            disable=not sys.stdout.isatty(),
        )
        self._task = self._bar.add_task(title, total=stop, completed=step, status='')
        self._bar.start()

    def write(self, record: dict) -> None:
        """Appends one record (with `kind` and `step`) everywhere; `sync` makes it last."""
        record = record | {'time': time.time()}
        self._file.write(_line(record))
        # Reports read the file while the run goes on.
        self._file.flush()
        self._done = record['kind'] == 'done'
        prefix = record.get('evaluator', record['kind'])
        measured = {name: value for name, value in record.items() if isinstance(value, float) and name != 'time'}
        scalars = {f'{prefix}/{name}': value for name, value in measured.items()}
        for name, value in scalars.items():
            self._board.add_scalar(name, value, record['step'])
        if self._tracker is not None and scalars:
            self._tracker.write(scalars, record['step'])
        if record['kind'] in ('train', 'eval'):
            self._show(record)

    def _show(self, record: dict) -> None:
        step, words = record['step'], describe(record)
        if self._bar.disable:
            self._first = self._first or (step, record['time'])
            done, seconds = step - self._first[0], record['time'] - self._first[1]
            left = f', {datetime.timedelta(seconds=round((self._stop - step) * seconds / done))} left' if done else ''
            print(f'{self._title}  step {step}/{self._stop}  {words}{left}', flush=True)
        elif record['kind'] == 'train':
            # Without "train: ", which the bar's title says.
            self._bar.update(self._task, status=words.partition(': ')[2])
        else:
            self._bar.console.print(f'step {step}  {words}', highlight=False)

    def advance(self, step: int) -> None:
        """Moves the progress bar."""
        self._bar.update(self._task, completed=step)

    def sync(self) -> None:
        """Returns when everything written so far would survive a power cut."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._bar.stop()
        self._board.close()
        self._file.close()
        if self._tracker is not None:
            self._tracker.close(self._done)


class SilentWriter:
    """A MetricWriter that does nothing, for all processes but the first."""

    def write(self, *_) -> None: ...

    advance = sync = close = write


def evaluated(folder: pathlib.Path, step: int) -> frozenset[str]:
    """The evaluators that have a record of a step in the folder's metrics.jsonl."""
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


def _line(record: dict) -> str:
    # NaN is no JSON, and no record of a healthy run.
    return json.dumps(record, allow_nan=False) + '\n'


def _records_until(path: pathlib.Path, step: int) -> list[dict]:
    # A run without a checkpoint starts anew and evaluates step 0 again, so it keeps none of its records.
    records = files.read_records(path) if step else []
    return [record for record in records if record['step'] <= step and record['kind'] != 'done']
