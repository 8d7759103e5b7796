"""What becomes of the loop's metrics: when they are read, and where the records go.

`metrics.jsonl` is for programs, TensorBoard and Weights & Biases are for browsing, and the terminal gets a line each.
"""

import contextlib
import importlib.util
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tensorboardX

from nca_jax import files
from nca_jax.errors import NotFiniteError, UserError
from nca_jax.progress import Progress, silent
from nca_jax.scale import chips
from nca_jax.train.step import Metrics, TrainState
from nca_jax.train.timetable import Timetable

SHOWN = ('loss', 'perplexity', 'bits_per_byte', 'accuracy', 'cell_accuracy', 'grid_accuracy', 'pass@1')
# Seconds that a run waits for Weights & Biases at its start, and for an upload at its end: SLURM kills 30 s after
# SIGTERM.
START_SECONDS, FINISH_SECONDS = 30.0, 20.0
# A moment of the loop: updates known to be done, the time, and the seconds that the loop had waited for data.
Mark = tuple[int, float, float]


def make_observe(schedule: Callable[[jax.Array], jax.Array]) -> Callable[[TrainState], Metrics]:
    """`observe(state)` -> float32 scalars: `param_norm`, over all parameters, and `lr`, of the update just done.

    Only records need them, so this is a program apart from the update, queued behind it.
    """

    def observe(state: TrainState) -> Metrics:
        # In bfloat16 a sum of many squares would stop growing.
        params32 = optax.tree.cast(state.params, jnp.float32)
        lr = jnp.asarray(schedule(state.step - 1), jnp.float32)
        return {'param_norm': optax.tree.norm(params32), 'lr': lr}

    return jax.jit(observe)


class Logger:
    """Reads each update's metrics one update late, checks them, and writes a record every `log_every` updates.

    A record holds the update's `loss`, `grad_norm`, `param_norm` and `lr`, and since the record before:

    - tokens_per_s: tokens trained on a second, over all devices, pauses left out.
    - mfu: the model's FLOPs (`model.config.step_flops`) a second over the peak of all devices in dense bfloat16,
      whatever the config's dtype; absent for a device that isn't in `scale.chips`.
    - data_wait: the share of the time in which the loop waited for the stream, 0 to 1.
    - hbm_peak_bytes: the most memory so far on this process's fullest device; absent where the backend doesn't count.
    """

    def __init__(
        self, timetable: Timetable, flops: float, observe: Callable[[TrainState], Metrics], writer: 'MetricWriter'
    ):
        """`flops`: those that the model needs for one update."""
        self._every, self._tokens = timetable.log_every, timetable.tokens_per_step
        self._flops, self._observe, self._writer = flops, observe, writer
        # The last update's number and metrics, which may still be on their way.
        self._pending: tuple[int, Metrics] | None = None
        self._waited = 0.0
        peak = chips.PEAKS.get(jax.devices()[0].device_kind)
        self._peak = None if peak is None else peak * jax.device_count()

    def start(self, step: int) -> None:
        """Time counts from here, with nothing in flight. Call it after each pause: evaluation, checkpoint, trace."""
        self._begin: Mark = step, time.perf_counter(), self._waited
        # Reads that have one update in flight behind them: only such are a whole number of updates apart in time.
        self._reads: list[Mark] = []

    def queue(self, step: int, state: TrainState, metrics: Metrics, waited: float) -> None:
        """Takes the results of update `step`, which may still be running, and reads those of the update before.

        `waited`: seconds that the loop waited for the update's batch.
        """
        self._waited += waited
        if step % self._every == 0:
            metrics = metrics | self._observe(state)
        previous, self._pending = self._pending, (step, metrics)
        if previous is not None:
            self._read(*previous, in_flight=True)

    def flush(self) -> None:
        """Reads the last update's results: every loss up to this step is then known to be finite."""
        if self._pending is not None:
            self._read(*self._pending, in_flight=False)
            self._pending = None

    def _read(self, step: int, metrics: Metrics, in_flight: bool) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not all(map(np.isfinite, values.values())):
            raise NotFiniteError(
                f'step {step}: {values}; its batch is stream({step - 1}). Checkpoints are of earlier steps; '
                'a lower optimizer.lr or a clip may help.'
            )
        now = step, time.perf_counter(), self._waited
        if in_flight:
            self._reads.append(now)
        if step % self._every:
            return
        # Between two reads that both have an update behind them; without two such, since the last pause.
        first, last = (self._reads[0], self._reads[-1]) if len(self._reads) > 1 else (self._begin, now)
        updates, seconds, waited = (after - before for before, after in zip(first, last, strict=True))
        rate = updates / seconds
        record = {'kind': 'train', 'step': step, 'tokens': step * self._tokens, **values}
        record |= {'tokens_per_s': rate * self._tokens, 'data_wait': min(waited / seconds, 1.0)}
        if self._peak is not None:
            record['mfu'] = rate * self._flops / self._peak
        self._writer.write(record | memory())
        # The next record's first read.
        self._reads = self._reads[-1:]


def memory() -> dict[str, float]:
    """`hbm_peak_bytes` of the fullest local device; nothing where the backend doesn't count."""
    peaks = [stats['peak_bytes_in_use'] for device in jax.local_devices() if (stats := device.memory_stats())]
    return {'hbm_peak_bytes': float(max(peaks))} if peaks else {}


class MetricWriter:
    """Owns the folder's `metrics.jsonl`, its TensorBoard files and the tracker, and prints a line for each record."""

    def __init__(
        self,
        folder: pathlib.Path,
        step: int,
        stop: int,
        title: str,
        tracker: 'Wandb | None' = None,
        progress: Progress = silent,
    ):
        self._title, self._stop, self._tracker, self._progress, self._done = title, stop, tracker, progress, False
        path = folder / 'metrics.jsonl'
        # Records past `step`, the checkpoint that training resumes from, are cut off: the file reads as if the run
        # had never stopped.
        files.write(path, ''.join(map(_line, _records_until(path, step))))
        self._file = path.open('a')
        self._board = tensorboardX.SummaryWriter(str(folder / 'tensorboard'), purge_step=step + 1)

    def write(self, record: dict) -> None:
        """Appends one record (with `kind` and `step`) everywhere; `sync` makes it last."""
        step, kind = record['step'], record['kind']
        self._file.write(_line(record | {'time': time.time()}))
        # Reports read the file while the run goes on.
        self._file.flush()
        self._done = kind == 'done'
        prefix = record.get('evaluator', kind)
        scalars = {f'{prefix}/{name}': value for name, value in record.items() if isinstance(value, float)}
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)
        if self._tracker is not None and scalars:
            self._tracker.write(scalars, step)
        if kind in ('train', 'eval'):
            print(f'{self._title}  step {step}/{self._stop}  {describe(record)}', flush=True)
            # The bar, or in a file a line a minute, tells the time left.
            self._progress('updates', step, self._stop)

    def sync(self) -> None:
        """Returns when everything written so far would survive a power cut."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._board.close()
        self._file.close()
        if self._tracker is not None:
            self._tracker.close(self._done)


class SilentWriter:
    """A MetricWriter that does nothing, for all processes but the first."""

    def write(self, *_) -> None: ...

    sync = close = write


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


def check_installed(track: str) -> None:
    """Raises UserError where the package of `config.track` is missing."""
    # Looked up without the import, which takes seconds.
    if track == 'wandb' and importlib.util.find_spec('wandb') is None:
        raise UserError("config.track = 'wandb': the package isn't installed; pip install wandb, or set it to ''")


class Wandb:
    """A run of Weights & Biases, which never stops ours: a failure there is a warning.

    - Its id follows from our run's identity, so a resumed run continues it.
    - Offline unless WANDB_MODE is set: files in `folder/wandb`, which `wandb sync` uploads.
    - The project is nca_jax unless WANDB_PROJECT is set.
    - Offline, every start writes its own files. The same id joins them when they are uploaded.
    """

    def __init__(self, about: dict[str, Any], folder: pathlib.Path):
        """`about` is the run's record, with its identity and config."""
        self._run = None
        with self._never_fatal('start'):
            import wandb

            mode = os.environ.get('WANDB_MODE', 'offline')
            self._run = wandb.init(
                project=None if 'WANDB_PROJECT' in os.environ else 'nca_jax',
                id=about['identity'][:16],
                name=f'{about["name"]}/{about["arm"]}/{about["seed"]}',
                group=about['arm'],
                job_type=about['stage'],
                config=about['config'] | {name: value for name, value in about.items() if name != 'config'},
                dir=folder,
                mode=mode,
                # Only a server knows earlier starts.
                resume='allow' if mode == 'online' else None,
                # Quiet, and nothing but our numbers: the manifest has the code's version.
                settings=wandb.Settings(
                    silent=True,
                    console='off',
                    disable_git=True,
                    disable_code=True,
                    init_timeout=START_SECONDS,
                    finish_timeout=FINISH_SECONDS,
                ),
            )
            print(f'Weights & Biases: {pathlib.Path(self._run.dir).parent if self._run.offline else self._run.url}')

    def write(self, scalars: dict[str, float], step: int) -> None:
        if self._run is not None:
            with self._never_fatal('log'):
                self._run.log(scalars, step=step)

    def close(self, done: bool) -> None:
        """Waits a little for an upload. A run that isn't done shows as failed until it resumes."""
        if self._run is not None:
            with self._never_fatal('finish'):
                self._run.finish(exit_code=0 if done else 1)

    @contextlib.contextmanager
    def _never_fatal(self, action: str) -> Iterator[None]:
        try:
            yield
        # Any kind of error: the training run is worth more than its log.
        except Exception as error:
            self._run = None
            reason = ' '.join(str(error).split())
            print(f'warning: Weights & Biases failed to {action} and is left out from here: {reason}')
