"""When a run logs, evaluates, saves and stops: the config's durations, counted in updates."""

import dataclasses
import re

from nca_jax.errors import FieldError, check

UNITS = {'': 1, 'K': 10**3, 'M': 10**6, 'B': 10**9}


def to_steps(text: str, tokens_per_step: int, field: str, whole: int | None = None) -> int:
    """The updates in '5000 steps' or '164M tokens', rounded; with `whole`, '10%' is a share of so many updates.

    Raises FieldError naming `field`.
    """
    if whole is not None and (share := re.fullmatch(r'(\d+(?:\.\d+)?) ?%', text)):
        return round(float(share[1]) / 100 * whole)
    duration = re.fullmatch(r'(\d+(?:\.\d+)?) ?([KMB]?) ?(steps|tokens)', text)
    if duration is None:
        allowed = "must be a duration such as '5000 steps', '164M tokens' or '9.03B tokens'"
        raise FieldError(field, text, allowed + ('' if whole is None else ", or a share such as '10%'"))
    amount = float(duration[1]) * UNITS[duration[2]]
    # Rounded, so that a length given in tokens and one in steps agree.
    return round(amount if duration[3] == 'steps' else amount / tokens_per_step)


def to_updates(text: str) -> range:
    """The updates in '10-12' or '10', counted from 1; none in ''. Raises FieldError naming `profile`."""
    if not text:
        return range(0)
    match = re.fullmatch(r'(\d+)(?:-(\d+))?', text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    check(1 <= first <= last, 'profile', text, "must be updates, first-last, such as '10-12', or '' for none")
    return range(first, last + 1)


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
        for field in ('batch', 'accumulate', 'keep_last'):
            check(getattr(self, field) > 0, field, getattr(self, field), 'must be positive')
        divides = self.batch % self.accumulate == 0
        check(divides, 'accumulate', self.accumulate, f'must divide train.batch = {self.batch}')


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

    # The last step is always scored and saved: it is the run's result.
    def evaluates(self, step: int) -> bool:
        return step % self.eval_every == 0 or step == self.stop

    def saves(self, step: int) -> bool:
        return step % self.save_every == 0 or step == self.stop or step in self.keep


def make_timetable(config: LoopConfig, profile: str, length: int) -> Timetable:
    """The timetable for sequences of `length` tokens. Raises FieldError naming the field."""
    tokens_per_step = config.batch * length
    steps = {}
    # Zero updates are evaluation alone.
    for name, least in {'stop': 0, 'log_every': 1, 'eval_every': 1, 'save_every': 1}.items():
        duration, field = getattr(config, name), f'train.{name}'
        steps[name] = to_steps(duration, tokens_per_step, field)
        check(steps[name] >= least, field, duration, 'at least one step')
    stop, traced = steps['stop'], to_updates(profile)
    keep = {to_steps(duration, tokens_per_step, 'train.keep'): duration for duration in config.keep}
    for step, duration in keep.items():
        check(step <= stop, 'train.keep', duration, f'step {step} comes after the last, {stop}')
    check(max(traced, default=0) <= stop, 'profile', profile, f'the last update is {stop}')
    return Timetable(keep=frozenset(keep), traced=traced, tokens_per_step=tokens_per_step, **steps)
