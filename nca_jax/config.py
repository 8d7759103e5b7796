"""From an experiment file's ConfigDict to the frozen dataclasses that the modules own, once, at the edge."""

import ast
import dataclasses
import hashlib
import importlib.util
import json
import pathlib
import types
import typing
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import ml_collections

from nca_jax.checkpoint import graft
from nca_jax.data.controls import CopyConfig, NoiseConfig
from nca_jax.data.dyck import DyckConfig
from nca_jax.data.text import TextConfig
from nca_jax.errors import FieldError, UserError, check
from nca_jax.evals.held_out import EvalConfig
from nca_jax.mesh import MeshConfig
from nca_jax.model.config import ModelConfig
from nca_jax.nca.config import NCAConfig
from nca_jax.problems.config import BenchmarkConfig
from nca_jax.problems.instruct import InstructConfig
from nca_jax.train import profiler
from nca_jax.train.loop import LoopConfig
from nca_jax.train.optimizer import OptimizerConfig
from nca_jax.train.tracking import TRACKERS

# What `data` is in each stage.
DATA = {
    'nca': NCAConfig,
    'text': TextConfig,
    'dyck': DyckConfig,
    'copy': CopyConfig,
    'noise': NoiseConfig,
    'instruct': InstructConfig,
}
LANGUAGE = ('text', 'instruct')  # whose models have a tokenizer

# What an identity leaves out: where things lie on this machine. What they hold is in the manifest, by hash.
PATHS = (
    'data.path',
    'data.cache',
    'data.tokenizer',
    'data.problems.path',
    'benchmark.problems.path',
    'init_from.run',
)
# And what changes no result: a run may go on with other devices, in less memory, and watched in another way.
HOW_IT_RUNS = (
    *('mesh', 'profile', 'track', 'model.remat', 'model.unroll', 'model.loss_chunks'),
    *('benchmark.batch', 'benchmark.run_code'),
)


@dataclasses.dataclass(frozen=True)
class InitFrom:
    """The parent run: its folder, the step (None: its newest) and the plan, leaf by leaf (see checkpoint.graft).

    weights: what is carried, the parent's 'params' or its 'ema', the average that optimizer.ema keeps.
    """

    run: str
    step: int | None
    weights: str
    plan: tuple

    def __post_init__(self):
        check(bool(self.run), 'run', self.run, 'must be the folder of the parent run')
        check(self.weights in ('params', 'ema'), 'weights', self.weights, "must be 'params' or 'ema'")
        graft.parse(self.plan)


@dataclasses.dataclass(frozen=True)
class Config:
    """One run. stage says what `data` is; arm is the name that reports group seeds under.

    benchmark: problems that are put to the model at every evaluation, None for none.
    profile: the updates of which a trace is written ('10-12'), '' for none. track: 'wandb' shows the run in Weights &
    Biases too, '' doesn't.
    """

    name: str
    arm: str
    stage: str
    seed: int
    smoke: bool
    data: NCAConfig | TextConfig | DyckConfig | CopyConfig | NoiseConfig | InstructConfig
    model: ModelConfig
    optimizer: OptimizerConfig
    train: LoopConfig
    eval: EvalConfig
    benchmark: BenchmarkConfig | None
    mesh: MeshConfig
    profile: str
    track: str
    init_from: InitFrom | None

    def __post_init__(self):
        check(0 <= self.seed < 2**32, 'seed', self.seed, 'must be in 0..2^32 - 1')
        profiler.updates(self.profile)
        check(self.track in TRACKERS, 'track', self.track, 'must be one of ' + ', '.join(map(repr, TRACKERS)))
        batch, accumulate = self.train.batch, self.train.accumulate
        check(batch % accumulate == 0, 'train.accumulate', accumulate, f'must divide train.batch = {batch}')
        readable = self.benchmark is None or self.stage in LANGUAGE
        allowed = f'must be None in stage {self.stage}: its model reads no text'
        check(readable, 'benchmark', self.benchmark and self.benchmark.problems.task, allowed)


def load(chosen: str, changes: Iterable[tuple[str, str]] = ()) -> Config:
    """The experiment `FILE[:WORDS]` with some fields changed, e.g. ('optimizer.lr', '3e-4').

    Raises UserError for whatever is wrong with the file, a word, a field or a value.
    """
    return from_dict(load_values(chosen, changes))


def load_values(chosen: str, changes: Iterable[tuple[str, str]] = ()) -> dict:
    """`load` before its values are checked: plain nested dicts."""
    file, _, words = chosen.partition(':')
    values = get_config(load_module(pathlib.Path(file)), words, file).to_dict()
    for field, text in changes:
        *blocks, name = field.split('.')
        block = values
        for inner in blocks:
            block = block.get(inner)
            if not isinstance(block, dict):
                raise UserError(f'--config.{field}={text}: config has no block {".".join(blocks)}')
        # A field that is text stays text: '10' may be meant as a name.
        block[name] = text if isinstance(block.get(name), str) else literal(text)
    return values


def get_config(module: ModuleType, words: str, place: str) -> ml_collections.ConfigDict:
    """The experiment's get_config(words). Raises UserError, which begins with `place`."""
    if not hasattr(module, 'get_config'):
        raise UserError(f'{place}: has no get_config')
    try:
        return module.get_config(words)
    except Exception as error:  # whatever the file's own code raises
        raise mistake(place, error) from None


def load_module(file: pathlib.Path) -> ModuleType:
    """An experiment file as a module. UserError where it can't be read."""
    try:
        if not file.is_file():
            raise UserError(f'{file}: no such experiment file')
        spec = importlib.util.spec_from_file_location(file.stem, file)
        if spec is None:
            raise UserError(f'{file}: not a Python file')
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the file's own code raises
        hint = "; run it from the repository's root" if isinstance(error, ModuleNotFoundError) else ''
        raise mistake(file, error, hint) from None
    return module


def mistake(file: pathlib.Path | str, error: Exception, hint: str = '') -> UserError:
    """What an experiment file or its reading raised, in one line; only a ValueError's message speaks for itself."""
    if isinstance(error, UserError):
        return error
    said = error.strerror if isinstance(error, OSError) and error.strerror else ' '.join(str(error).split())
    kind = '' if isinstance(error, ValueError | OSError | ImportError) else f'{type(error).__name__}: '
    return UserError(f'{file}: {kind}{said}{hint}')


def literal(text: str) -> object:
    """A number, tuple, True, False or None as Python writes it, else the text itself."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return text


def resolve(experiment: ml_collections.ConfigDict) -> Config:
    """The whole tree of dataclasses. Raises FieldError for an unknown, missing or impossible field, with its path."""
    return from_dict(experiment.to_dict())


def from_dict(values: dict) -> Config:
    """`resolve` for plain nested dicts, such as a run.json holds."""
    stage = values.get('stage')
    known = isinstance(stage, str) and stage in DATA
    check(known, 'config.stage', stage, f'must be one of {", ".join(DATA)}')
    return _build(Config, values, 'config', data=DATA[stage])


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


def _build(cls: type, values: dict, path: str, **overrides: type) -> Any:
    fields = typing.get_type_hints(cls) | overrides
    for name in values:
        if name not in fields:
            raise FieldError(f'{path}.{name}', values[name], f'unknown field; {path} has {", ".join(fields)}')
    missing = [name for name in fields if name not in values]
    if missing:
        raise UserError(f'{path}.{missing[0]} is missing; {path} has {", ".join(fields)}')
    converted = {name: _convert(kind, values[name], f'{path}.{name}') for name, kind in fields.items()}
    try:
        return cls(**converted)
    except FieldError as error:
        raise FieldError(f'{path}.{error.field}', error.value, error.allowed) from None


def _convert(kind: Any, value: Any, path: str) -> Any:
    """`value` as the annotation `kind`, or FieldError. An int passes for a float; nothing else is converted."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in typing.get_args(kind):
            return None
        (kind,) = (option for option in typing.get_args(kind) if option is not type(None))
        return _convert(kind, value, path)
    if dataclasses.is_dataclass(kind):
        check(isinstance(value, dict), path, value, f'must be a block with {", ".join(typing.get_type_hints(kind))}')
        return _build(kind, value, path)
    if kind is tuple or origin is tuple:
        check(isinstance(value, list | tuple), path, value, 'must be a tuple')
        return _tuple(typing.get_args(kind), tuple(value), path)
    if kind is float and type(value) is int:
        return float(value)
    check(type(value) is kind, path, value, f'must be {kind.__name__}, not {type(value).__name__}')
    return value


def _tuple(kinds: tuple, values: tuple, path: str) -> tuple:
    if not kinds:
        return values
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(values)
    check(len(kinds) == len(values), path, values, f'must have {len(kinds)} entries')
    return tuple(
        _convert(kind, value, f'{path}[{i}]') for i, (kind, value) in enumerate(zip(kinds, values, strict=True))
    )
