"""When the loop's metrics are read, and what becomes of them: a record every `log_every` updates."""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nca_jax.errors import NotFiniteError
from nca_jax.scale import chips
from nca_jax.train.metrics import MetricWriter
from nca_jax.train.step import Metrics, TrainState


class Mark(NamedTuple):
    """A moment of the loop."""

    # Updates known to be done.
    step: int
    time: float
    # Seconds that the loop had waited for data.
    waited: float


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
    - hbm_bytes, hbm_peak_bytes: in use now, and the most so far, on this process's fullest device; absent where the
      backend doesn't count.
    """

    def __init__(
        self, *, every: int, tokens: int, flops: float, observe: Callable[[TrainState], Metrics], writer: MetricWriter
    ):
        """`tokens` and the model's `flops` are those of one update."""
        self._every, self._tokens, self._flops, self._observe, self._writer = every, tokens, flops, observe, writer
        # The last update's number and metrics, which may still be on their way.
        self._pending: tuple[int, Metrics] | None = None
        self._waited = 0.0
        peak = chips.PEAKS.get(jax.devices()[0].device_kind)
        self._peak = None if peak is None else peak * jax.device_count()

    def start(self, step: int) -> None:
        """Time counts from here, with nothing in flight. Call it after each pause: evaluation, checkpoint, trace."""
        self._begin = Mark(step, time.perf_counter(), self._waited)
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
        self._writer.advance(step)
        now = Mark(step, time.perf_counter(), self._waited)
        if in_flight:
            self._reads.append(now)
        if step % self._every:
            return
        # Between two reads that both have an update behind them; without two such, since the last pause.
        first, last = (self._reads[0], self._reads[-1]) if len(self._reads) > 1 else (self._begin, now)
        seconds = max(last.time - first.time, 1e-9)
        rate = (last.step - first.step) / seconds
        record = {'kind': 'train', 'step': step, 'tokens': step * self._tokens, **values}
        record |= {'tokens_per_s': rate * self._tokens, 'data_wait': min((last.waited - first.waited) / seconds, 1.0)}
        if self._peak is not None:
            record['mfu'] = rate * self._flops / self._peak
        self._writer.write(record | memory())
        # The next record's first read.
        self._reads = self._reads[-1:]


def memory() -> dict[str, float]:
    """`hbm_bytes` and `hbm_peak_bytes` of the fullest local device; nothing where the backend doesn't count."""
    counts = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    fields = {'hbm_bytes': 'bytes_in_use', 'hbm_peak_bytes': 'peak_bytes_in_use'} if counts else {}
    return {name: float(max(stats[field] for stats in counts)) for name, field in fields.items()}
