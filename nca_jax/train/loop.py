"""The only training loop. Evaluation alone is this loop with zero steps."""

import dataclasses
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from nca_jax.batch import Batch
from nca_jax.checkpoint.store import Store
from nca_jax.errors import check
from nca_jax.train.metrics import MetricWriter
from nca_jax.train.state import TrainState

EXIT_PREEMPTED = 75  # what sysexits.h calls a temporary failure: start the same command again


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How long to train and how often to say, try and keep something; durations are steps or tokens.

    batch: sequences per update over all devices, in `accumulate` micro-batches. keep: named durations whose
    checkpoints are never deleted (at the nearest step); besides them the newest `keep_last` stay.
    """

    batch: int
    accumulate: int
    stop: str
    log_every: str
    eval_every: str
    save_every: str
    keep: tuple[str, ...]
    keep_last: int

    def __post_init__(self):
        check(self.batch > 0, 'batch', self.batch, 'must be positive')
        check(self.accumulate > 0, 'accumulate', self.accumulate, 'must be positive')
        check(self.keep_last > 0, 'keep_last', self.keep_last, 'must be positive')


@dataclasses.dataclass(frozen=True)
class Plan:
    """A LoopConfig in steps."""

    stop: int
    log_every: int
    eval_every: int
    save_every: int
    keep: frozenset[int]
    tokens_per_step: int


class NotFiniteError(RuntimeError):
    """A loss was NaN or infinite; what checkpoints there are come from before it."""


class Preempted(SystemExit):
    """SIGTERM arrived and everything worth keeping is saved; the process exits with code 75."""

    def __init__(self):
        super().__init__(EXIT_PREEMPTED)


class Preemption:
    """SIGTERM as a flag while training, which saves first, and as an immediate exit 75 anywhere else."""

    def __init__(self):
        self.requested = False
        self._deferred = False
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, *_):
        self.requested = True
        if not self._deferred:
            raise Preempted

    @contextmanager
    def deferred(self) -> Iterator[None]:
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False


def train(
    state: TrainState,
    *,
    plan: Plan,
    train_step: Callable[[TrainState, Batch], tuple[TrainState, dict]],
    stream: Callable[[int], Batch],
    evaluators: dict[str, Callable[[Any, int], dict]],
    schedule: Callable[[int], float],
    store: Store,
    manifest: Callable[[int], dict],
    writer: MetricWriter,
    preemption: Preemption,
    before: dict[str, float],
) -> TrainState:
    """Trains from `state.step` to `plan.stop`, then writes the `done` record. Raises NotFiniteError or Preempted.

    Metrics of a step are read after the next one is queued, so that reading never stalls the device. At a boundary
    the order is: metrics, evaluation, checkpoint. A crash between any two of them loses nothing but time. The `done`
    record says where this process spent its seconds, those that were spent `before` the loop included.
    """
    seconds = dict.fromkeys(('prepare', 'data', 'compile', 'train', 'eval', 'checkpoint'), 0.0) | before
    step = int(state.step)

    @contextmanager
    def timed(phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[phase] += time.perf_counter() - start

    def evaluate() -> None:
        with timed('eval'):
            for name, evaluator in evaluators.items():
                result = evaluator(state.params, step)
                if not np.isfinite(result['loss']):
                    raise NotFiniteError(f'step {step}: the loss of {name} is {result["loss"]}')
                writer.write(
                    {'kind': 'eval', 'evaluator': name, 'step': step, 'tokens': step * plan.tokens_per_step} | result
                )

    def save(wait: bool) -> None:
        with timed('checkpoint'):
            writer.sync()
            store.save(step, state, manifest(step), wait=wait)

    logger = _Logger(plan, schedule, writer)
    with jax.transfer_guard('disallow'):  # nothing is trained that isn't saved: SIGTERM may end it at once
        if step == 0:
            evaluate()
        if step < plan.stop:
            with timed('compile'):
                train_step = train_step.lower(state, stream(step)).compile()
    with preemption.deferred(), jax.transfer_guard('disallow'):
        logger.start()
        while step < plan.stop:
            with timed('data'):
                batch = stream(step)
            with timed('train'):
                state, metrics = train_step(state, batch)
                step += 1
                logger.queue(step, metrics)
            evaluating = step % plan.eval_every == 0 or step == plan.stop
            saving = step % plan.save_every == 0 or step == plan.stop or step in plan.keep
            if evaluating or saving or preemption.requested:
                with timed('train'):
                    logger.flush()
                if evaluating:
                    evaluate()
                if saving or preemption.requested:
                    save(wait=preemption.requested or step == plan.stop)
                if preemption.requested:
                    raise Preempted
                logger.start()
        writer.write({'kind': 'done', 'step': step, 'tokens': step * plan.tokens_per_step, 'seconds': seconds})
    return state


class _Logger:
    """Reads each step's metrics one step late, checks them, and writes a record every `log_every` steps."""

    def __init__(self, plan: Plan, schedule: Callable[[int], float], writer: MetricWriter):
        self._plan, self._schedule, self._writer = plan, schedule, writer
        self._pending: tuple[int, dict] | None = None
        self.start()

    def start(self) -> None:
        """The rate counts from here: evaluations and checkpoints are not training time."""
        self._reads: list[tuple[int, float]] = []  # step and time of each, with one step in flight behind it

    def queue(self, step: int, metrics: dict) -> None:
        previous, self._pending = self._pending, (step, metrics)
        if previous is not None:
            self._read(*previous, in_flight=True)

    def flush(self) -> None:
        """Reads what is pending; afterwards every loss up to this step is known to be finite."""
        if self._pending is not None:
            self._read(*self._pending, in_flight=False)
            self._pending = None

    def _read(self, step: int, metrics: dict, in_flight: bool) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not all(np.isfinite(value) for value in values.values()):
            raise NotFiniteError(
                f'step {step}: {values}; its batch is stream({step - 1}). Checkpoints are of earlier steps; '
                'a lower optimizer.lr or a clip may help.'
            )
        self._writer.advance(step)
        if in_flight:
            self._reads.append((step, time.perf_counter()))
        if step % self._plan.log_every == 0:
            with jax.transfer_guard('allow'):
                lr = float(self._schedule(step - 1))
            tokens = step * self._plan.tokens_per_step
            self._writer.write({'kind': 'train', 'step': step, 'tokens': tokens, **values, 'lr': lr} | self._rate())
            self._reads = self._reads[-1:]

    def _rate(self) -> dict[str, float]:
        """`tokens_per_s` since the last record; nothing where fewer than two reads can be compared."""
        if len(self._reads) < 2:
            return {}
        (first, start), (last, end) = self._reads[0], self._reads[-1]
        return {'tokens_per_s': (last - first) * self._plan.tokens_per_step / max(end - start, 1e-9)}
