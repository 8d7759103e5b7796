"""The next epoch's rules, found in a process of its own while this epoch trains.

It works on the CPU at low priority, and knows nothing of the training process but what to look for; what it finds is
a file, which the training process reads when it gets there.
"""

import os
import pickle
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import nca_jax
from nca_jax.nca.config import NCAConfig

NICENESS = 10


class Search:
    """A search that runs beside this process, and ends when this process ends or lets go of it.

    Arguments as for `bank.bank`.
    """

    def __init__(
        self, config: NCAConfig, seed: int, split: str, epoch: int, folder: Path, process: int, processes: int
    ):
        packages = str(Path(nca_jax.__file__).parents[1])
        path = os.pathsep.join(filter(None, (os.environ.get('PYTHONPATH'), packages)))
        self._child = subprocess.Popen(
            [sys.executable, '-m', 'nca_jax.nca.ahead'],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # signals to this process's group, such as a scheduler's, are for this process
            env=os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': path},
        )
        self._stop = weakref.finalize(self, stop, self._child)
        pickle.dump((config, seed, split, epoch, Path(folder).absolute(), process, processes), self._child.stdin)
        self._child.stdin.flush()  # and left open: its end tells the child that its parent is gone

    def wait(self) -> None:
        """Returns when it has ended, with the file there or not: who needs it searches then, and finds out why."""
        self._child.wait()
        self._stop()


def stop(child: subprocess.Popen) -> None:
    child.kill()
    child.wait()
    child.stdin.close()


def main() -> None:
    """What the child does: reads its request, searches, saves."""
    from nca_jax.nca import bank  # the parent, which bank knows nothing of, needs none of it

    os.nice(NICENESS)
    config, seed, split, epoch, folder, process, processes = pickle.load(sys.stdin.buffer)
    threading.Thread(target=exit_with_parent, daemon=True).start()
    bank.bank(config, seed, split, epoch, folder, process=process, processes=processes)


def exit_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # returns when the parent's end of the pipe is closed
    os._exit(1)


if __name__ == '__main__':
    main()
