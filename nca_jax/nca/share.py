"""Several processes, on one host or many, score candidates together: by files in a folder that all of them see.

No device takes part, so that a search may run beside training, where a collective would come in another order on each
process.
"""

import dataclasses
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nca_jax import files
from nca_jax.errors import UserError
from nca_jax.nca import score
from nca_jax.nca.config import NCAConfig

PATIENCE_S = 600.0  # for one block of another process, which takes milliseconds
POLL_S = 0.02


@dataclasses.dataclass(frozen=True)
class Together:
    """Process `process` of `processes`, whose scores lie in `folder`."""

    folder: Path
    process: int
    processes: int


def scores(config: NCAConfig, seed: int, split: str, epoch: int, together: Together) -> Iterator[np.ndarray]:
    """The scores of all blocks in order.

    Block k is computed by process k modulo `processes` and read by the others. Raises UserError if another process's
    scores don't come.
    """
    together.folder.mkdir(parents=True, exist_ok=True)
    own_blocks = itertools.count(together.process, together.processes)
    own = score.score_blocks(config, seed, split, epoch, own_blocks)
    for block in itertools.count():
        path = together.folder / f'{block:06d}.npy'
        if block % together.processes == together.process:
            _, _, scores_R = next(own)
            with files.replacing(path) as file:
                np.save(file, scores_R)
            yield scores_R
        else:
            yield wait_for(path, block % together.processes)


def wait_for(path: Path, process: int) -> np.ndarray:
    deadline = time.monotonic() + PATIENCE_S
    while not path.exists():
        if time.monotonic() > deadline:
            raise UserError(
                f'{path}: process {process} has not written it in {PATIENCE_S:g} s; '
                'does it run, see this folder, and have the same software?'
            )
        time.sleep(POLL_S)
    try:
        return np.load(path)
    except (EOFError, ValueError) as error:
        raise UserError(f'{path}: not the scores of process {process} ({error}); delete the folder') from None
