"""Searches the next epoch's bank in a process of its own while this epoch trains.

The child works on the CPU at low priority. Its result is a file, which the training process reads when it gets there.
"""

import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import nca_jax
from nca_jax.nca.score import Candidates

NICENESS = 10


def start_search(candidates: Candidates, folder: Path, process: int, processes: int) -> subprocess.Popen:
    """Starts a process that does what `bank.bank` does; it ends when this process ends or drops the result."""
    packages = str(Path(nca_jax.__file__).parents[1])
    path = os.pathsep.join(filter(None, (os.environ.get('PYTHONPATH'), packages)))
    child = subprocess.Popen(
        [sys.executable, '-m', 'nca_jax.nca.ahead'],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Signals to this process's group, such as a scheduler's, are meant for this process alone.
        start_new_session=True,
        env=os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': path},
    )
    pickle.dump((candidates, Path(folder).absolute(), process, processes), child.stdin)
    # The pipe stays open: its end tells the child that nobody waits for it.
    child.stdin.flush()
    return child


def exit_with_parent() -> None:
    # Returns when the parent's end of the pipe is closed.
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


if __name__ == '__main__':
    from nca_jax.nca import bank  # here, since the parent needs none of it

    os.nice(NICENESS)
    candidates, folder, process, processes = pickle.load(sys.stdin.buffer)
    threading.Thread(target=exit_with_parent, daemon=True).start()
    bank.bank(candidates, folder, process=process, processes=processes)
