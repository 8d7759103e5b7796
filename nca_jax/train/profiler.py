"""A trace of a few updates, for TensorBoard's profile plugin or Perfetto."""

import pathlib
from collections.abc import Callable

import jax

from nca_jax.train.step import TrainState


class Profiler:
    """Writes one trace of the updates `traced` under `folder`.

    - A run that resumes after the first of them traces none.
    - Of several processes only the first traces.
    """

    def __init__(self, traced: range, folder: pathlib.Path, say: Callable[[str], None]):
        self._traced = traced if jax.process_index() == 0 else range(0)
        self._folder, self._say = folder, say
        self._tracing = False

    def begins(self, update: int) -> bool:
        return bool(self._traced) and update == self._traced[0]

    def ends(self, update: int) -> bool:
        return self._tracing and update == self._traced[-1]

    def start(self, state: TrainState) -> None:
        """Call it before the first update's batch is made."""
        jax.block_until_ready(state)
        jax.profiler.start_trace(str(self._folder))
        self._tracing = True

    def stop(self, state: TrainState) -> None:
        """Waits for the updates and writes the trace."""
        jax.block_until_ready(state)
        self.close()

    def update(self, number: int) -> jax.profiler.StepTraceAnnotation:
        """A context that marks one update in the trace, its batch included."""
        return jax.profiler.StepTraceAnnotation('update', step_num=number)

    def close(self) -> None:
        """Writes the trace if training ended within it."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
            self._say(f'the trace that begins with update {self._traced[0]} is in {self._folder}')
