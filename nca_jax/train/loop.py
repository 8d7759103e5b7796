"""The only training loop. Evaluation alone is this loop with zero updates."""

import dataclasses
import pathlib
import signal
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from nca_jax.batch import Batch, Vocab
from nca_jax.checkpoint.store import Store
from nca_jax.errors import INTERRUPTED, PREEMPTED, NotFiniteError
from nca_jax.train.metrics import Logger, MetricWriter, make_observe
from nca_jax.train.step import TrainState
from nca_jax.train.timetable import Timetable

PHASES = ('prepare', 'data', 'compile', 'train', 'eval', 'checkpoint')


@dataclasses.dataclass(frozen=True)
class Data:
    """What a stage brings to a run. `nca_jax.stages` prepares it."""

    vocab: Vocab
    # None where the run only evaluates.
    stream: Callable[[int], Batch] | None
    # `evaluate(params, step)` -> metrics. The first one's loss (or score) is the run's result.
    evaluators: dict[str, Callable[[Any, int], dict]]
    # Hashes of what the streams read, for the manifest.
    hashes: dict[str, Any]
    # Writes files about the data into the run's folder, at each start, for the report and for later stages.
    write_files: Callable[[pathlib.Path], None] = lambda folder: None


@dataclasses.dataclass(frozen=True)
class Program:
    """What a config determines: a run without its state. `nca_jax.run.build` makes it."""

    data: Data
    timetable: Timetable
    # Shapes, dtypes and shardings of the train state.
    abstract: TrainState
    init: Callable[[], TrainState]
    train_step: Callable[[TrainState, Batch], tuple[TrainState, dict]]
    # Learning rate by update, for the log.
    schedule: Callable[[int], float]
    # FLOPs that the model needs for one update.
    flops: float


class Preemption:
    """Within `deferred`, SIGTERM and Ctrl-C set a flag, so that the loop saves first; elsewhere they raise SystemExit.

    A second Ctrl-C ends at once. Of several processes, JAX itself notes SIGTERM and stops all of them after the same
    update, the first that none has begun.
    """

    def __init__(self):
        self._exit_code: int | None = None
        self._deferred = False
        self._polls = 0
        # Of several processes JAX's own handler must stay, so the flag below is never set there.
        self._alone = jax.process_count() == 1
        if self._alone:
            signal.signal(signal.SIGTERM, self._on_signal)
            signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, number: int, *_) -> None:
        again = self._exit_code is not None and number == signal.SIGINT
        # The first signal decides: Ctrl-C in a terminal may bring a launcher's SIGTERM after it.
        self._exit_code = self._exit_code or (INTERRUPTED if number == signal.SIGINT else PREEMPTED)
        if again or not self._deferred:
            raise SystemExit(self._exit_code)

    def reached(self) -> bool:
        """Whether to stop after the update just queued. Call it once after each update."""
        if self._alone:
            return self._exit_code is not None
        # JAX stops at one value of this counter: 1 if the signal came before the first call. So it counts from here,
        # not from the step at which a resumed run begins.
        self._polls += 1
        return multihost_utils.reached_preemption_sync_point(self._polls)

    def stop(self) -> None:
        """Ends the process, with the exit code of the signal."""
        raise SystemExit(self._exit_code or PREEMPTED)

    @contextmanager
    def deferred(self, deferred: bool = True) -> Iterator[None]:
        """Within it a signal only sets the flag; if not `deferred`, it ends the process, an earlier one included."""
        if not deferred and self._exit_code is not None:
            self.stop()
        before, self._deferred = self._deferred, deferred
        try:
            yield
        finally:
            self._deferred = before


def train(
    state: TrainState,
    program: Program,
    *,
    about: dict[str, Any],
    store: Store,
    writer: MetricWriter,
    traces: pathlib.Path,
    preemption: Preemption,
    seconds: dict[str, float],
    evaluated: Collection[str] = (),
) -> TrainState:
    """Trains from `state.step` to the timetable's stop, then writes the `done` record.

    about: what every manifest says of the run. traces: where the timetable's traced updates go. seconds: time spent
    before the loop, by phase. evaluated: evaluators whose records of `state.step` exist; the others that are due there
    run first. Raises NotFiniteError, or SystemExit with everything saved.
    """
    timetable, step = program.timetable, int(state.step)
    seconds = dict.fromkeys(PHASES, 0.0) | seconds
    # One process suffices for a trace; a run that resumes after the first of the updates traces none.
    traced = timetable.traced if jax.process_index() == 0 else range(0)

    @contextmanager
    def timed(phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[phase] += time.perf_counter() - start

    def tokens() -> int:
        return step * timetable.tokens_per_step

    def evaluate(skip: Collection[str] = ()) -> None:
        weights = {'': state.params} | ({} if state.ema is None else {'_ema': state.ema})
        for suffix, params in weights.items():
            for name, evaluator in program.data.evaluators.items():
                if name + suffix in skip:
                    continue
                result = evaluator(params, step)
                # Scores have no loss.
                if 'loss' in result and not np.isfinite(result['loss']):
                    raise NotFiniteError(f'step {step}: the loss of {name + suffix} is {result["loss"]}')
                writer.write({'kind': 'eval', 'evaluator': name + suffix, 'step': step, 'tokens': tokens()} | result)

    train_step, observe = program.train_step, make_observe(program.schedule)
    # Until the first update everything is saved, so a signal may end the process at once.
    with jax.transfer_guard('disallow'):
        if timetable.evaluates(step):
            # A crash between saving and evaluating loses only time: what it left out is done here.
            with timed('eval'):
                evaluate(skip=evaluated)
        if step < timetable.stop:
            # Compiled ahead of the loop: the first record's speed holds no compilation, and a signal that comes
            # meanwhile ends the process at once.
            with timed('compile'):
                train_step = train_step.lower(state, program.data.stream(step)).compile()
                observe = observe.lower(state).compile()
    # The stack closes a trace even if training ends within it.
    with preemption.deferred(), jax.transfer_guard('disallow'), ExitStack() as trace:
        logger = Logger(timetable, program.flops, observe, writer)
        logger.start(step)
        while step < timetable.stop:
            if step + 1 in traced[:1]:
                trace.callback(print, f'the trace that begins with update {step + 1} is in {traces}')
                # Waits for the last update: a trace holds whole updates and no others.
                logger.flush()
                trace.enter_context(jax.profiler.trace(traces))
                logger.start(step)
            # Marks the update in the trace, its batch included.
            with jax.profiler.StepTraceAnnotation('update', step_num=step + 1):
                waited = seconds['data']
                with timed('data'):
                    batch = program.data.stream(step)
                with timed('train'):
                    state, metrics = train_step(state, batch)
                    step += 1
                    # The logger reads these metrics after the next update is queued, so that the device never waits.
                    logger.queue(step, state, metrics, seconds['data'] - waited)
            if step in traced[-1:]:
                logger.flush()
                trace.close()
                logger.start(step)
            stopping = preemption.reached()
            saving, evaluating = stopping or timetable.saves(step), timetable.evaluates(step)
            if saving or evaluating:
                # The order is metrics, checkpoint, evaluation: a crash between two of them loses only time.
                with timed('train'):
                    logger.flush()
                if saving:
                    with timed('checkpoint'):
                        # Metrics first: a checkpoint must not be ahead of them.
                        writer.sync()
                        # A save goes on in the background. An evaluation may run out of memory or be killed, and a stop
                        # ends the process, so both wait until the checkpoint is complete.
                        store.save(step, state, about | {'tokens': tokens()}, wait=stopping or evaluating)
                if stopping:
                    preemption.stop()
                if evaluating:
                    # Right after a save nothing would be lost, so a signal need not wait.
                    with preemption.deferred(not saving), timed('eval'):
                        evaluate()
                # The pause is in no record's speed.
                logger.start(step)
        writer.write({'kind': 'done', 'step': step, 'tokens': tokens(), 'seconds': seconds})
    return state
