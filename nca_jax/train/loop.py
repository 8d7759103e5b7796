"""The only training loop. Evaluation alone is this loop with zero steps."""

import dataclasses
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from nca_jax.batch import Batch
from nca_jax.checkpoint.store import Store
from nca_jax.errors import NotFiniteError, check
from nca_jax.train.logger import Logger, make_observe
from nca_jax.train.metrics import MetricWriter
from nca_jax.train.profiler import Profiler
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


class Preempted(SystemExit):
    """SIGTERM arrived and everything worth keeping is saved; the process exits with code 75."""

    def __init__(self):
        super().__init__(EXIT_PREEMPTED)


class Preemption:
    """SIGTERM as a flag while training, which saves first, and as an immediate exit 75 anywhere else.

    Of several processes JAX itself notes the signal, and has all of them stop after the same step, the first that none
    has begun; before training it waits for that.
    """

    def __init__(self):
        self._requested = self._deferred = False
        self._asked = 0
        self._alone = jax.process_count() == 1
        if self._alone:
            signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, *_):
        self._requested = True
        if not self._deferred:
            raise Preempted

    def reached(self) -> bool:
        """Whether to stop after the update just queued; to be asked once after each."""
        if self._alone:
            return self._requested
        # JAX stops at one number alone, which is 1 if the signal came before any was asked for: so count from here.
        self._asked += 1
        return multihost_utils.reached_preemption_sync_point(self._asked)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        with self._deferring(True):
            yield

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within `deferred`: nothing would be lost here, so a signal needn't wait, nor one that came before."""
        if self._alone and self._requested:
            raise Preempted
        with self._deferring(False):
            yield

    @contextmanager
    def _deferring(self, deferred: bool) -> Iterator[None]:
        before, self._deferred = self._deferred, deferred
        try:
            yield
        finally:
            self._deferred = before


def train(
    state: TrainState,
    *,
    plan: Plan,
    train_step: Callable[[TrainState, Batch], tuple[TrainState, dict]],
    stream: Callable[[int], Batch],
    evaluators: dict[str, Callable[[Any, int], dict]],
    schedule: Callable[[int], float],
    flops: float,
    store: Store,
    manifest: Callable[[int], dict],
    writer: MetricWriter,
    profiler: Profiler,
    preemption: Preemption,
    before: dict[str, float],
    evaluated: frozenset[str] = frozenset(),
) -> TrainState:
    """Trains from `state.step` to `plan.stop`, then writes the `done` record. Raises NotFiniteError or Preempted.

    Metrics of a step are read after the next one is queued, so that reading never stalls the device. At a boundary
    the order is: metrics, checkpoint, evaluation. A crash between any two of them loses nothing but time: what is due
    at `state.step` is evaluated at the start, but for those of the evaluators that have been `evaluated` there. The
    `done` record says where this process spent its seconds, those that were spent `before` the loop included. `flops`
    are those that the model needs for one update.
    """
    seconds = dict.fromkeys(('prepare', 'data', 'compile', 'train', 'eval', 'checkpoint'), 0.0) | before
    step = int(state.step)

    @contextmanager
    def timed(phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[phase] += time.perf_counter() - start

    def due() -> bool:
        return step % plan.eval_every == 0 or step == plan.stop

    def evaluate(evaluated: frozenset[str] = frozenset()) -> None:
        with timed('eval'):
            scored = [(name, evaluator, state.params) for name, evaluator in evaluators.items()]
            if state.ema is not None:
                scored += [(f'{name}_ema', evaluator, state.ema) for name, evaluator in evaluators.items()]
            for name, evaluator, params in scored:
                if name in evaluated:
                    continue
                result = evaluator(params, step)
                if 'loss' in result and not np.isfinite(result['loss']):  # scores have none
                    raise NotFiniteError(f'step {step}: the loss of {name} is {result["loss"]}')
                writer.write(
                    {'kind': 'eval', 'evaluator': name, 'step': step, 'tokens': step * plan.tokens_per_step} | result
                )

    def save(wait: bool) -> None:
        with timed('checkpoint'):
            writer.sync()
            store.save(step, state, manifest(step), wait=wait)

    def trace(turn: Callable[[TrainState], None]) -> None:
        with timed('train'):
            logger.flush()
            turn(state)
            logger.start(step)

    observe = make_observe(schedule)
    with jax.transfer_guard('disallow'):  # nothing is trained that isn't saved: SIGTERM may end it at once
        if due():
            evaluate(evaluated)
        if step < plan.stop:
            with timed('compile'):
                train_step = train_step.lower(state, stream(step)).compile()
                observe = observe.lower(state).compile()
    with preemption.deferred(), jax.transfer_guard('disallow'):
        logger = Logger(every=plan.log_every, tokens=plan.tokens_per_step, flops=flops, observe=observe, writer=writer)
        logger.start(step)
        while step < plan.stop:
            if profiler.begins(step + 1):
                trace(profiler.start)
            with profiler.update(step + 1):
                waited = seconds['data']
                with timed('data'):
                    batch = stream(step)
                with timed('train'):
                    state, metrics = train_step(state, batch)
                    step += 1
                    logger.queue(step, state, metrics, seconds['data'] - waited)
            if profiler.ends(step):
                trace(profiler.stop)
            stopping = preemption.reached()
            saving = stopping or step % plan.save_every == 0 or step == plan.stop or step in plan.keep
            if due() or saving:
                with timed('train'):
                    logger.flush()
                if saving:
                    save(wait=stopping or due())
                if stopping:
                    raise Preempted
                if due():
                    with preemption.at_once() if saving else nullcontext():
                        evaluate()
                logger.start(step)
        writer.write({'kind': 'done', 'step': step, 'tokens': step * plan.tokens_per_step, 'seconds': seconds})
    return state
