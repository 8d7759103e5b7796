"""Files that are there whole or not at all."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write(path: Path, fill: Callable[[BinaryIO], object], keep: bool = False) -> None:
    """Makes `path` of what `fill(file)` writes: readers, and those after a crash, find the old file or the new one.

    With `keep`, a file that is there already stays: of several processes the first decides for all.
    """
    scratch = path.with_name(f'.{path.name}.{os.uname().nodename}.{os.getpid()}')
    with scratch.open('wb') as file:
        fill(file)
        file.flush()
        os.fsync(file.fileno())
    if not keep:
        scratch.replace(path)
        return
    with contextlib.suppress(FileExistsError):
        os.link(scratch, path)
    scratch.unlink()
