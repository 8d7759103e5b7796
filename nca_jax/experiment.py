"""Experiment files as the commands read them that don't go through absl's flags."""

import ast
import importlib.util
import pathlib
import re
from collections.abc import Sequence
from types import ModuleType

from nca_jax.errors import UserError


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


def load_values(chosen: str, changes: Sequence[str]) -> dict:
    """The experiment `FILE[:words]` with changes `--config.a.b=c`, as plain dicts for `config.from_dict` to check."""
    file, _, words = chosen.partition(':')
    module = load_module(pathlib.Path(file))
    if not hasattr(module, 'get_config'):
        raise UserError(f'{file}: has no get_config')
    try:
        values = module.get_config(words).to_dict()
    except Exception as error:
        raise mistake(file, error) from None
    for change in changes:
        named = re.fullmatch(r'--config\.([\w.]+)=(.*)', change)
        if not named:
            raise UserError(f'unexpected argument {change!r}; a change of the config is --config.FIELD=VALUE')
        *blocks, field = named[1].split('.')
        block = values
        for name in blocks:
            block = block.get(name)
            if not isinstance(block, dict):
                raise UserError(f'{change}: config has no block {".".join(blocks)}')
        block[field] = literal(named[2])
    return values


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
