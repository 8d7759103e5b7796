"""The record of one run's configuration, its identity, and what follows from it alone (timetable, schedule)."""

import dataclasses
import functools
import hashlib
import json
from typing import Any

import optax

from nca_jax.checkpoint import graft
from nca_jax.errors import check
from nca_jax.evals.held_out import EvalConfig
from nca_jax.mesh import MeshConfig
from nca_jax.model.config import ModelConfig
from nca_jax.problems.benchmark import BenchmarkConfig
from nca_jax.train.optimizer import OptimizerConfig, make_schedule
from nca_jax.train.timetable import LoopConfig, Timetable, make_timetable

# Fields outside a run's identity: places on this machine. The manifest holds the hashes of their contents.
PATHS = ('data.path', 'data.cache', 'data.tokenizer', 'data.problems.path', 'benchmark.problems.path', 'init_from.run')
# Fields outside a run's identity: they change results by rounding at most, so a run may resume with other values.
HOW_IT_RUNS = (
    *('mesh', 'profile', 'track', 'benchmark.batch', 'benchmark.run_code'),
    *('model.remat', 'model.unroll', 'model.loss_chunks'),
)


@dataclasses.dataclass(frozen=True)
class InitFrom:
    """The parent run, and what is carried from it."""

    # The parent's folder.
    run: str
    # A checkpoint of the parent; None takes its newest, which must be its last.
    step: int | None
    # The parent's 'params' or its 'ema', the average that optimizer.ema keeps.
    weights: str
    # What is carried, leaf by leaf: see checkpoint.graft.
    plan: tuple

    def __post_init__(self):
        check(bool(self.run), 'run', self.run, 'must be the folder of the parent run')
        check(self.weights in ('params', 'ema'), 'weights', self.weights, "must be 'params' or 'ema'")
        _ = self.entries  # raises UserError for an impossible plan

    @functools.cached_property
    def entries(self) -> tuple[graft.Entry, ...]:
        return graft.parse(self.plan)


@dataclasses.dataclass(frozen=True)
class Config:
    """One run. `experiment.load` reads it from an experiment file."""

    name: str
    # Reports compare arms and average over the seeds of one.
    arm: str
    # A key of stages.STAGES, which says what type `data` has.
    stage: str
    seed: int
    smoke: bool
    data: Any
    model: ModelConfig
    optimizer: OptimizerConfig
    train: LoopConfig
    eval: EvalConfig
    # Problems that the model answers at every evaluation.
    benchmark: BenchmarkConfig | None
    mesh: MeshConfig
    # Updates to trace, such as '10-12'; '' for none.
    profile: str
    # 'wandb' shows the run in Weights & Biases too; '' doesn't.
    track: str
    init_from: InitFrom | None

    def __post_init__(self):
        check(0 <= self.seed < 2**32, 'seed', self.seed, 'must be in 0..2^32 - 1')
        check(self.track in ('', 'wandb'), 'track', self.track, "must be one of '', 'wandb'")
        _ = self.timetable, self.schedule  # raise FieldError for impossible durations

    # Both are cached: they are built once, here, and everyone else reads them.
    @functools.cached_property
    def timetable(self) -> Timetable:
        return make_timetable(self.train, self.profile, self.model.length)

    @functools.cached_property
    def schedule(self) -> optax.Schedule:
        return make_schedule(self.optimizer, self.timetable.tokens_per_step)


def to_dict(config: Config) -> dict:
    """Plain nested dicts and lists, as run.json and manifests keep them."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def identity(config: Config, parent: dict | None) -> str:
    """sha256 of the config without PATHS and HOW_IT_RUNS; the parent's identity and step stand for its folder."""
    content = to_dict(config)
    for path in PATHS + HOW_IT_RUNS:
        *blocks, field = path.split('.')
        holder: Any = content
        for block in blocks:  # some stages have none of these
            holder = holder[block] if isinstance(holder, dict) and block in holder else None
        if isinstance(holder, dict):
            holder.pop(field, None)
    content['parent'] = parent and {'identity': parent['identity'], 'step': parent['step']}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
