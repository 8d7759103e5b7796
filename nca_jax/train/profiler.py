"""A trace of a few updates, for TensorBoard's profile plugin or Perfetto."""

import pathlib
import re
from collections.abc import Callable

import jax

from nca_jax.errors import check
from nca_jax.train.state import TrainState


def updates(text: str, field: str = 'profile') -> range:
    """The updates that '10-12' or '10' names, counted from 1; none for ''. Raises FieldError naming `field`."""
    if not text:
        return range(0)
    allowed = "must be updates, first-last, such as '10-12', or '' for none"
    match = re.fullmatch(r'(\d+)(?:-(\d+))?', text)
    check(match is not None, field, text, allowed)
    first, last = int(match[1]), int(match[2] or match[1])
    check(1 <= first <= last, field, text, allowed + '; the first is 1 and comes before the last')
    return range(first, last + 1)


class Profiler:
    """Owns the trace of `traced`, which is written under `folder` when the last of them is done.

    A run that is resumed after the first of them traces none, and neither do other processes than the first.
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
        """Waits for the updates, writes the trace and says where it is."""
        jax.block_until_ready(state)
        self.close()

    def update(self, number: int) -> jax.profiler.StepTraceAnnotation:
        """A context that marks one update in the trace, batch included."""
        return jax.profiler.StepTraceAnnotation('update', step_num=number)

    def close(self) -> None:
        """Writes what there is, if training ends within the traced updates."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
            self._say(f'the trace that begins with update {self._traced[0]} is in {self._folder}')
