"""Folders that are there whole or not at all, and never over what was there."""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator

from nca_jax.errors import UserError


@contextlib.contextmanager
def whole(path: pathlib.Path, flag: str) -> Iterator[pathlib.Path]:
    """A folder to fill, which becomes `path` when the block ends and vanishes if it raises.

    Raises UserError, naming the flag that gave the path, where it can't be written or something is there already.
    """
    path = path.resolve()
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f'{flag}={path}: is there already and not empty; name a new folder')
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=f'.{path.name}.', dir=path.parent)
    except OSError as error:
        raise UserError(f'{flag}={path}: {error.strerror}') from None
    with scratch:
        new = pathlib.Path(scratch.name, path.name)
        new.mkdir()  # inside, since the scratch folder itself is closed to others
        yield new
        try:
            new.replace(path)
        except OSError as error:
            raise UserError(f'{flag}={path}: {error.strerror}') from None
