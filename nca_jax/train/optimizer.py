"""AdamW and Adam with the schedules of the paper's stages, assembled from optax."""

import dataclasses
import re

import optax

from nca_jax import trees
from nca_jax.errors import FieldError, check
from nca_jax.train.duration import to_steps


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Linear warm-up from 0, then cosine to `final` times the peak rate at `horizon`, constant from there.

    `horizon` is the length of the schedule, not of the run: the paper's NCA stage stops after 5,000 updates of a
    50,000-update schedule. Both are durations; `warmup` may be a share of the horizon ('10%').
    """

    warmup: str
    horizon: str
    final: float

    def __post_init__(self):
        check(0 <= self.final <= 1, 'final', self.final, 'must be in [0, 1], a share of the peak rate')


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """name 'adamw' or 'adam'. clip: bound on the gradient's global norm, None for none.

    clip_on 'mean' bounds the mean gradient (the paper). 'sum' feeds the optimizer the sum over micro-batches, as the
    release does: its clip then acts on 1/accumulate of the bound. decay: patterns of the leaves that decay.
    """

    name: str
    lr: float
    b1: float
    b2: float
    eps: float
    weight_decay: float
    decay: tuple[str, ...]
    clip: float | None
    clip_on: str
    schedule: ScheduleConfig

    def __post_init__(self):
        check(self.name in ('adamw', 'adam'), 'name', self.name, "must be 'adamw' or 'adam'")
        check(self.lr > 0, 'lr', self.lr, 'must be positive')
        check(0 <= self.b1 < 1 and 0 <= self.b2 < 1, 'b1, b2', (self.b1, self.b2), 'must be in [0, 1)')
        check(self.eps > 0, 'eps', self.eps, 'must be positive')
        check(self.weight_decay >= 0, 'weight_decay', self.weight_decay, 'must not be negative')
        check(self.name == 'adamw' or self.weight_decay == 0, 'weight_decay', self.weight_decay, "'adam' has none")
        check(self.clip is None or self.clip > 0, 'clip', self.clip, 'must be positive or None')
        for pattern in self.decay:
            try:
                re.compile(pattern)
            except re.error as error:
                raise FieldError('decay', pattern, f'not a regular expression: {error}') from None
        check(self.clip_on in ('mean', 'sum'), 'clip_on', self.clip_on, "must be 'mean' or 'sum'")


def make_schedule(config: OptimizerConfig, tokens_per_step: int) -> optax.Schedule:
    """Step (0-based count of updates done) to learning rate."""
    path = 'config.optimizer.schedule'
    horizon = to_steps(config.schedule.horizon, tokens_per_step, f'{path}.horizon')
    warmup = to_steps(config.schedule.warmup, tokens_per_step, f'{path}.warmup', whole=horizon)
    check(warmup < horizon, f'{path}.warmup', config.schedule.warmup, f'must end before the horizon ({horizon} steps)')
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup else config.lr,
        peak_value=config.lr,
        warmup_steps=warmup,
        decay_steps=horizon,
        end_value=config.lr * config.schedule.final,
    )


def make_optimizer(config: OptimizerConfig, tokens_per_step: int) -> optax.GradientTransformation:
    """Clipping, then the update rule. Its input is the gradient that `clip_on` names."""
    schedule = make_schedule(config, tokens_per_step)
    if config.name == 'adamw':
        rule = optax.adamw(
            schedule,
            config.b1,
            config.b2,
            config.eps,
            weight_decay=config.weight_decay,
            mask=lambda params: trees.mask(params, config.decay),
        )
    else:
        rule = optax.adam(schedule, config.b1, config.b2, config.eps)
    return optax.chain(optax.identity() if config.clip is None else optax.clip_by_global_norm(config.clip), rule)
