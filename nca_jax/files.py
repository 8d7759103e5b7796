"""Files and folders that are whole or absent, locks, and JSON lines. Used by every room; imports no JAX."""

import contextlib
import errno
import fcntl
import gzip
import json
import os
import pathlib
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from nca_jax.errors import UserError


@contextlib.contextmanager
def as_user_error(place: object) -> Iterator[None]:
    """Within it, the system's errors become UserErrors that begin with `place` (a path, or a flag and its path)."""
    try:
        yield
    except OSError as error:
        raise UserError(f'{place}: {error.strerror}') from None


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
    """A file to write, which becomes `path` when the block ends: readers and crashes find the old or the new one."""
    # Named by host and process, since processes of several hosts may write into one shared folder.
    scratch = path.with_name(f'.{path.name}.{os.uname().nodename}.{os.getpid()}')
    try:
        with scratch.open('wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def write(path: pathlib.Path, content: bytes | str) -> None:
    """Writes a whole file (text as UTF-8), as `replacing` does."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def new_folder(path: pathlib.Path, flag: str) -> Iterator[pathlib.Path]:
    """A folder to fill, which becomes `path` when the block ends and vanishes if it raises.

    Raises UserError, naming the flag that gave the path, if the path can't be written or isn't an empty folder.
    """
    path = path.resolve()
    with as_user_error(f'{flag}={path}'):
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f'{flag}={path}: is there already and not empty; name a new folder')
        scratch = path.with_name(f'.{path.name}.{os.getpid()}')
        scratch.mkdir(parents=True)
    try:
        yield scratch
        with as_user_error(f'{flag}={path}'):
            scratch.replace(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def make_folder(path: pathlib.Path, flag: str) -> None:
    """Makes a folder that may exist, and proves that files can be written into it. Raises UserError naming the flag."""
    with as_user_error(f'{flag}={path}'):
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()


def list_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """All files below a folder, sorted by path. Raises UserError naming a folder that can't be read."""

    def fail(error: OSError) -> None:
        raise UserError(f'{error.filename}: {error.strerror}')

    # By itself os.walk leaves out what it can't read.
    return sorted(pathlib.Path(place, name) for place, _, names in os.walk(folder, onerror=fail) for name in names)


@contextlib.contextmanager
def lock(path: pathlib.Path, busy: Callable[[], object]) -> Iterator[BinaryIO]:
    """Holds an exclusive lock on `path`, which is made if missing, and yields the open file (to append and read).

    If another process holds it, calls `busy`, which raises, or says something and returns: then this waits.
    Raises UserError where the path can't be opened or its file system has no locks.
    """
    with contextlib.ExitStack() as held:
        with as_user_error(path):
            file = held.enter_context(path.open('a+b'))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                # Any other number says that this file system has no locks.
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
                busy()
                fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def read_lines(path: pathlib.Path) -> list[bytes]:
    """The whole lines of a file, without a last one that a killed writer left unfinished; none if no file exists.

    Raises UserError where the file can't be read.
    """
    with as_user_error(path):
        return path.read_bytes().split(b'\n')[:-1] if path.exists() else []


def cut_partial_line(path: pathlib.Path) -> None:
    """Makes the file (and its folder) if missing and cuts an unfinished last line, so that lines can be appended.

    Raises UserError where that fails.
    """
    with as_user_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open('a+b') as file:
            file.seek(0)
            file.truncate(file.read().rfind(b'\n') + 1)


def parse_object(text: bytes | str, place: str) -> dict[str, Any]:
    """A JSON object. Raises UserError, which begins with `place` (file, or file and line), for anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # errors of JSON and UTF-8; too many brackets
        raise UserError(f'{place}: not JSON ({error})') from None
    if not isinstance(value, dict):
        raise UserError(f'{place}: must be a JSON object, not {type(value).__name__}')
    return value


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The JSON object that a file holds. Raises UserError, with the path, for anything else."""
    with as_user_error(path):
        return parse_object(path.read_bytes(), str(path))


def read_records(path: pathlib.Path) -> list[dict[str, Any]]:
    """The JSON objects of a JSON-lines file, as `read_lines` cuts it. Raises UserError with the line's number."""
    return [parse_object(line, f'{path}:{number}') for number, line in enumerate(read_lines(path), 1)]


def read_rows(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields `path:line` and the JSON object of each line of a .jsonl or .jsonl.gz that a user wrote.

    Blank lines are skipped, and the last line may lack its end. Raises UserError, naming file and line.
    """
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == '.gz' else content
    except (OSError, EOFError, zlib.error) as error:
        # gzip's own errors have no strerror.
        raise UserError(f'{path}: {getattr(error, "strerror", None) or error}') from None
    # Not splitlines: a JSON string may hold characters at which that splits, too.
    for number, line in enumerate(content.split(b'\n'), 1):
        if line.strip():
            yield f'{path}:{number}', parse_object(line, f'{path}:{number}')
