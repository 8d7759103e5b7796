"""AdamW, Adam and Muon, learning-rate schedules, and what is frozen or slowed down by path; assembled from optax."""

import dataclasses
import re
from collections.abc import Collection

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers

from nca_jax import trees
from nca_jax.errors import FieldError, check
from nca_jax.train.timetable import to_steps

# The kernels that Muon orthogonalises, and their axes into and out of the matrix. Axis 0 is the layers: each has a
# matrix of its own. Attention's has the heads side by side: D x (H Dh) and (H Dh) x D.
MATRICES = {
    'blocks/attn/[qkv]/kernel': MuonDimensionNumbers((1,), (2, 3)),
    'blocks/attn/o/kernel': MuonDimensionNumbers((1, 2), (3,)),
    'blocks/mlp/(gate|up|down)/kernel': MuonDimensionNumbers((1,), (2,)),
}


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Linear warm-up from 0 to the peak rate, then as `kind` says. Durations are steps or tokens."""

    # 'cosine': a half cosine to `final` times the peak at `horizon`, where it stays.
    # 'wsd' (warm-up, stable, decay; arXiv 2404.06395): the peak, then a straight line over the last `decay`.
    # 'constant': the peak.
    kind: str
    # May be a share of the horizon ('10%').
    warmup: str
    # The length of the schedule, not of the run: the paper's NCA stage stops after 5,000 updates of 50,000.
    horizon: str
    # Share of the peak at the horizon, for 'cosine' and 'wsd'.
    final: float
    # For 'wsd' alone; may be a share of the horizon.
    decay: str

    def __post_init__(self):
        check(self.kind in ('cosine', 'wsd', 'constant'), 'kind', self.kind, 'must be one of cosine, wsd, constant')
        check(0 <= self.final <= 1, 'final', self.final, 'must be in [0, 1], a share of the peak rate')


@dataclasses.dataclass(frozen=True)
class MuonConfig:
    """What `name` 'muon' alone reads."""

    # Decay of the (Nesterov) momentum.
    beta: float
    # Newton-Schulz iterations.
    steps: int
    # Learning rate of the leaves that are Adam's, as a multiple of `lr`.
    adam_lr: float
    # Scales a matrix's update by this times sqrt(max(in, out)), which gives its entries an RMS of about this, like
    # Adam's at 0.2 (arXiv 2502.16982). 0 scales by sqrt(max(1, out / in)) instead and needs a larger `lr`.
    consistent_rms: float

    def __post_init__(self):
        check(0 <= self.beta < 1, 'beta', self.beta, 'must be in [0, 1)')
        check(self.steps > 0, 'steps', self.steps, 'must be positive')
        check(self.adam_lr > 0, 'adam_lr', self.adam_lr, 'must be positive, a multiple of lr')
        check(self.consistent_rms >= 0, 'consistent_rms', self.consistent_rms, 'must not be negative')


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The update rule. Patterns match the whole path of a leaf, as in a plan (checkpoint.graft)."""

    # 'adamw', 'adam', or 'muon': Muon for the kernels in the blocks, AdamW for tables, head, norms and biases.
    name: str
    # The schedule's peak.
    lr: float
    b1: float
    b2: float
    eps: float
    weight_decay: float
    # The leaves that decay, by lr x weight_decay.
    decay: tuple[str, ...]
    # Bound on the gradient's global norm.
    clip: float | None
    # 'mean' bounds the mean gradient (the paper). 'sum' feeds the optimizer the sum over micro-batches, as the release
    # does: its clip then acts on 1/accumulate of the bound.
    clip_on: str
    schedule: ScheduleConfig
    # Of first moments (Adam's mean, Muon's momentum) from one update to the next. Adam's second moment is always
    # float32: at b2 = 0.999 it changes by less than bfloat16 can show. The arithmetic is float32 whatever the dtypes.
    state_dtype: str
    # Decay per update of an average of the weights, which begins at the initial weights.
    ema: float | None
    # (pattern, factor): the first that matches multiplies a leaf's update, decay included.
    lr_scale: tuple[tuple[str, float], ...]
    # The leaves that stay as they are, without gradient or optimizer state.
    frozen: tuple[str, ...]
    muon: MuonConfig

    def __post_init__(self):
        check(self.name in ('adamw', 'adam', 'muon'), 'name', self.name, 'must be one of adamw, adam, muon')
        check(self.lr > 0, 'lr', self.lr, 'must be positive')
        check(0 <= self.b1 < 1 and 0 <= self.b2 < 1, 'b1, b2', (self.b1, self.b2), 'must be in [0, 1)')
        check(self.eps > 0, 'eps', self.eps, 'must be positive')
        check(self.weight_decay >= 0, 'weight_decay', self.weight_decay, 'must not be negative')
        check(self.name != 'adam' or self.weight_decay == 0, 'weight_decay', self.weight_decay, "'adam' has none")
        check(self.clip is None or self.clip > 0, 'clip', self.clip, 'must be positive or None')
        check(self.clip_on in ('mean', 'sum'), 'clip_on', self.clip_on, "must be 'mean' or 'sum'")
        known = self.state_dtype in ('float32', 'bfloat16')
        check(known, 'state_dtype', self.state_dtype, "must be 'float32' or 'bfloat16'")
        check(self.ema is None or 0 < self.ema < 1, 'ema', self.ema, 'must be between 0 and 1, or None')
        for pattern, factor in self.lr_scale:
            check(factor > 0, 'lr_scale', (pattern, factor), "the factor must be positive; 'frozen' keeps leaves still")


def check_paths(config: OptimizerConfig, paths: Collection[str]) -> None:
    """Raises FieldError for a pattern without effect on a model of these paths, or where all leaves would be frozen."""
    scaled = [pattern for pattern, _ in config.lr_scale]
    for field, patterns in (('decay', config.decay), ('frozen', config.frozen), ('lr_scale', scaled)):
        for pattern in patterns:
            try:
                matched = any(re.fullmatch(pattern, path) for path in paths)
            except re.error as error:
                raise FieldError(f'config.optimizer.{field}', pattern, f'not a regular expression: {error}') from None
            check(matched, f'config.optimizer.{field}', pattern, 'must match the whole path of a parameter')
    free = [path for path in paths if not trees.matches(path, config.frozen)]
    check(bool(free), 'config.optimizer.frozen', config.frozen, 'must leave a parameter to train')
    # Frozen leaves and earlier entries may leave an entry nothing to scale.
    for entry in config.lr_scale:
        rest = [path for path in free if not trees.matches(path, entry[:1])]
        acts = len(rest) < len(free)
        check(acts, 'config.optimizer.lr_scale', entry, 'all that it matches is frozen or claimed by earlier entries')
        free = rest


def make_schedule(config: OptimizerConfig, tokens_per_step: int) -> optax.Schedule:
    """Step (0-based count of updates done) to learning rate."""
    path, schedule = 'optimizer.schedule', config.schedule
    horizon = to_steps(schedule.horizon, tokens_per_step, f'{path}.horizon')
    warmup = to_steps(schedule.warmup, tokens_per_step, f'{path}.warmup', whole=horizon)
    check(warmup < horizon, f'{path}.warmup', schedule.warmup, f'must end before the horizon ({horizon} steps)')
    peak, final = config.lr, config.lr * schedule.final
    # Without a warm-up, optax's schedules begin at this rate.
    start = 0.0 if warmup else peak
    # 'cosine' counts its horizon from step 0, warm-up included, as the paper does.
    if schedule.kind == 'cosine':
        return optax.warmup_cosine_decay_schedule(start, peak, warmup, horizon, final)
    stable = optax.warmup_constant_schedule(start, peak, warmup)
    if schedule.kind == 'constant':
        return stable
    decay = to_steps(schedule.decay, tokens_per_step, f'{path}.decay', whole=horizon)
    allowed = f'must be 1 to {horizon - warmup} steps, what the warm-up leaves of the horizon'
    check(0 < decay <= horizon - warmup, f'{path}.decay', schedule.decay, allowed)
    return optax.join_schedules([stable, optax.linear_schedule(peak, final, decay)], [horizon - decay])


def make_optimizer(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Clipping, the update rule, factors by path. Its input is the gradient that `clip_on` names."""
    if config.name == 'adam':
        rule = optax.adam(schedule, config.b1, config.b2, config.eps)
    else:
        rule = _adamw(config, schedule) if config.name == 'adamw' else _muon(config, schedule)

    def scale(path: str, update: jax.Array) -> jax.Array:
        # The first pattern that matches decides, as in a plan.
        return next((factor for pattern, factor in config.lr_scale if re.fullmatch(pattern, path)), 1.0) * update

    # Without a clip the chain keeps its place, so that checkpoints name their leaves alike.
    parts = [optax.identity() if config.clip is None else optax.clip_by_global_norm(config.clip), rule]
    if config.lr_scale:
        # Last, so that it scales weight decay as the rest of the update.
        parts.append(optax.stateless(lambda updates, _: trees.map_with_path(scale, updates)))
    optimizer = _in_float32(optax.chain(*parts), config.state_dtype)
    if not config.frozen:
        return optimizer

    def label(path: str, leaf: jax.Array) -> str:
        return 'frozen' if trees.matches(path, config.frozen) else 'trained'

    # Around all of it: what is frozen has no state and no part in the clip's norm.
    by_label = {'trained': optimizer, 'frozen': optax.set_to_zero()}
    return optax.partition(by_label, lambda params: trees.map_with_path(label, params))


def _adamw(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    decays, mask = config.weight_decay, lambda params: trees.mask(params, config.decay)
    return optax.adamw(schedule, config.b1, config.b2, config.eps, weight_decay=decays, mask=mask)


def _muon(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Muon for MATRICES, AdamW for the rest."""

    def axes(path: str, leaf: jax.Array) -> MuonDimensionNumbers | None:
        # None means that the leaf is Adam's.
        return next((axes for pattern, axes in MATRICES.items() if re.fullmatch(pattern, path)), None)

    def label(path: str, leaf: jax.Array) -> str:
        return 'adam' if axes(path, leaf) is None else 'muon'

    muon = optax.contrib.muon(
        schedule,
        ns_steps=config.muon.steps,
        beta=config.muon.beta,
        eps=config.eps,
        weight_decay=config.weight_decay,
        weight_decay_mask=lambda params: trees.mask(params, config.decay),
        muon_weight_dimension_numbers=lambda params: trees.map_with_path(axes, params),
        # optax's word for the other scale is None.
        consistent_rms=config.muon.consistent_rms or None,
    )
    # optax's muon brings an Adam too, but its decay knows no mask and its momentum is Nesterov's.
    adam = _adamw(config, lambda step: config.muon.adam_lr * schedule(step))
    return optax.partition({'muon': muon, 'adam': adam}, lambda params: trees.map_with_path(label, params))


def _in_float32(rule: optax.GradientTransformation, kept: str) -> optax.GradientTransformation:
    """`rule` in float32, whatever dtype the parameters have; between updates its first moments are kept as `kept`."""
    # optax's own `mu_dtype` also multiplies in that dtype: by a decay that is rounded, 0.9 to 0.8984 in bfloat16.

    def first_moments(state: optax.OptState, dtype: str) -> optax.OptState:
        # Adam's state and Muon's both call them `mu`.
        return trees.map_with_path(lambda path, x: x.astype(dtype) if 'mu' in path.split('/') else x, state)

    def init(params: trees.Tree) -> optax.OptState:
        return first_moments(rule.init(optax.tree.cast(params, jnp.float32)), kept)

    def update(grads: trees.Tree, state: optax.OptState, params: trees.Tree) -> tuple[trees.Tree, optax.OptState]:
        grads, params = optax.tree.cast((grads, params), jnp.float32)
        updates, state = rule.update(grads, first_moments(state, 'float32'), params)
        return updates, first_moments(state, kept)

    return optax.GradientTransformation(init, update)
