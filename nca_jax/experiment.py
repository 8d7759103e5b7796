"""From an experiment file to a Config: reads it, applies words and changed fields, and converts every value once."""

import ast
import contextlib
import dataclasses
import importlib.util
import pathlib
import types
import typing
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

import ml_collections

from nca_jax import files
from nca_jax.config import Config
from nca_jax.errors import FieldError, UserError, check
from nca_jax.stages import STAGES


def load(chosen: str, changes: Iterable[tuple[str, str]] = ()) -> Config:
    """The experiment `FILE[:WORDS]` with some fields changed, e.g. ('optimizer.lr', '3e-4').

    Raises UserError for whatever is wrong with the file, a word, a field or a value.
    """
    # No path of an experiment file has a colon, but words may.
    file, _, words = chosen.partition(':')
    values = get_config(load_module(pathlib.Path(file)), words, file)
    for field, text in changes:
        *blocks, name = field.split('.')
        block = values
        for inner in blocks:
            block = block.get(inner)
            if not isinstance(block, dict):
                raise UserError(f'--config.{field}={text}: config has no block {".".join(blocks)}')
        # A field that is text stays text: '10' may be meant as a name.
        block[name] = text if isinstance(block.get(name), str) else literal(text)
    return resolve(values)


def get_config(module: ModuleType, words: str, place: str) -> dict[str, Any]:
    """The ConfigDict of the experiment's get_config(words) as plain dicts. Raises UserError, beginning with `place`."""
    with _one_line(place):
        return module.get_config(words).to_dict()


def load_module(file: pathlib.Path) -> ModuleType:
    """An experiment file as a module. Raises UserError where it can't be read."""
    # A name may be too long, or lie in a folder that can't be entered.
    with files.as_user_error(file):
        if not file.is_file() or file.suffix != '.py':
            raise UserError(f'{file}: no such experiment file')
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    with _one_line(file):
        spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _one_line(place: pathlib.Path | str) -> Iterator[None]:
    """Within it, errors of an experiment file's own code become UserErrors of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # A ValueError's message is meant for the user, others need their kind.
        kind = '' if isinstance(error, ValueError) else f'{type(error).__name__}: '
        # Experiments import their neighbours.
        hint = "; run it from the repository's root" if isinstance(error, ModuleNotFoundError) else ''
        raise UserError(f'{place}: {kind}{" ".join(str(error).split())}{hint}') from None


def literal(text: str) -> object:
    """A number, tuple, True, False or None as Python writes it, else the text itself."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return text


def resolve(values: ml_collections.ConfigDict | dict) -> Config:
    """The Config of a ConfigDict, or of the plain dicts that a run.json holds.

    Raises FieldError for an unknown, missing or impossible field, with its path.
    """
    values = values.to_dict() if isinstance(values, ml_collections.ConfigDict) else values
    stage = values.get('stage')
    known = isinstance(stage, str) and stage in STAGES
    check(known, 'config.stage', stage, f'must be one of {", ".join(STAGES)}')
    # The annotation of `data` is Any, because only the stage says which dataclass it is.
    config = _build(Config, values, 'config', data=STAGES[stage].data)
    readable = config.benchmark is None or STAGES[stage].has_tokenizer
    allowed = f'must be None in stage {stage}: its model reads no text'
    check(readable, 'config.benchmark', config.benchmark and config.benchmark.problems.task, allowed)
    return config


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
    # The only unions of our configs are `X | None`.
    if isinstance(kind, types.UnionType):
        return None if value is None else _convert(typing.get_args(kind)[0], value, path)
    if dataclasses.is_dataclass(kind):
        check(isinstance(value, dict), path, value, f'must be a block with {", ".join(typing.get_type_hints(kind))}')
        return _build(kind, value, path)
    if kind is tuple or typing.get_origin(kind) is tuple:
        check(isinstance(value, list | tuple), path, value, 'must be a tuple')
        kinds = typing.get_args(kind)
        if not kinds:  # a bare `tuple` holds anything
            return tuple(value)
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(value)
        check(len(kinds) == len(value), path, tuple(value), f'must have {len(kinds)} entries')
        return tuple(_convert(kinds[i], item, f'{path}[{i}]') for i, item in enumerate(value))
    if kind is float and type(value) is int:
        return float(value)
    check(type(value) is kind, path, value, f'must be {kind.__name__}, not {type(value).__name__}')
    return value
