"""When a run logs, evaluates, saves and stops: the config's durations, counted in updates."""

import dataclasses
from collections.abc import Collection

from nca_jax.errors import check
from nca_jax.train import profiler
from nca_jax.train.duration import to_steps


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """The config block `train`. Durations are steps or tokens, such as '5000 steps' or '164M tokens'."""

    # Sequences per update, over all devices and micro-batches.
    batch: int
    # Micro-batches per update.
    accumulate: int
    stop: str
    log_every: str
    eval_every: str
    save_every: str
    # Checkpoints (at the nearest step) that are never deleted; besides them the newest `keep_last` stay.
    keep: tuple[str, ...]
    keep_last: int

    def __post_init__(self):
        check(self.batch > 0, 'batch', self.batch, 'must be positive')
        check(self.accumulate > 0, 'accumulate', self.accumulate, 'must be positive')
        divides = self.batch % self.accumulate == 0
        check(divides, 'accumulate', self.accumulate, f'must divide train.batch = {self.batch}')
        check(self.keep_last > 0, 'keep_last', self.keep_last, 'must be positive')


@dataclasses.dataclass(frozen=True)
class Timetable:
    """A LoopConfig in updates."""

    stop: int
    log_every: int
    eval_every: int
    save_every: int
    keep: frozenset[int]
    # Updates to trace, counted from 1.
    traced: range
    tokens_per_step: int

    def evaluates(self, step: int) -> bool:
        return step % self.eval_every == 0 or step == self.stop

    def saves(self, step: int) -> bool:
        return step % self.save_every == 0 or step == self.stop or step in self.keep


def make_timetable(config: LoopConfig, profile: str, length: int) -> Timetable:
    """The timetable for sequences of `length` tokens. Raises FieldError naming the field."""
    tokens_per_step = config.batch * length

    def steps(field: str, least: int = 1) -> int:
        count = to_steps(getattr(config, field), tokens_per_step, f'train.{field}')
        check(count >= least, f'train.{field}', getattr(config, field), 'at least one step')
        return count

    stop = steps('stop', least=0)  # zero updates: evaluation alone
    traced = profiler.updates(profile)
    check(not traced or traced[-1] <= stop, 'profile', profile, f'the last update is {stop}')
    return Timetable(
        stop=stop,
        log_every=steps('log_every'),
        eval_every=steps('eval_every'),
        save_every=steps('save_every'),
        keep=_kept(config.keep, tokens_per_step, stop),
        traced=traced,
        tokens_per_step=tokens_per_step,
    )


def _kept(durations: Collection[str], tokens_per_step: int, stop: int) -> frozenset[int]:
    kept = {duration: to_steps(duration, tokens_per_step, 'train.keep') for duration in durations}
    for duration, step in kept.items():
        check(step <= stop, 'train.keep', duration, f'step {step} comes after the last, {stop}')
    return frozenset(kept.values())
