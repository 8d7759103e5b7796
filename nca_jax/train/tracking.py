"""Optional Weights & Biases logging. It never stops a run: a failure there is a warning."""

import contextlib
import importlib.util
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from nca_jax.errors import UserError

TRACKERS = ('', 'wandb')
# Seconds that a run waits for the server at its start, and for an upload at its end: SLURM kills 30 s after SIGTERM.
START_SECONDS, FINISH_SECONDS = 30.0, 20.0


def check_installed(track: str) -> None:
    """Raises UserError where the package of `config.track` is missing."""
    # Looked up without the import, which takes seconds.
    if track == 'wandb' and importlib.util.find_spec('wandb') is None:
        raise UserError("config.track = 'wandb': the package isn't installed; pip install wandb, or set it to ''")


class Wandb:
    """A run of Weights & Biases. Its id follows from our run's identity, so a resumed run continues it.

    - Offline unless WANDB_MODE is set: files in `folder/wandb`, which `wandb sync` uploads.
    - The project is nca_jax unless WANDB_PROJECT is set.
    - Offline, every start writes its own files. The same id joins them when they are uploaded.
    """

    def __init__(self, about: dict[str, Any], folder: pathlib.Path):
        """`about` is the run's record, with its identity and config."""
        self._run = None
        with self._never_fatal('start'):
            import wandb

            mode = os.environ.get('WANDB_MODE', 'offline')
            self._run = wandb.init(
                project=None if 'WANDB_PROJECT' in os.environ else 'nca_jax',
                id=about['identity'][:16],
                name=f'{about["name"]}/{about["arm"]}/{about["seed"]}',
                group=about['arm'],
                job_type=about['stage'],
                config=about['config'] | {name: value for name, value in about.items() if name != 'config'},
                dir=folder,
                mode=mode,
                # Only a server knows earlier starts.
                resume='allow' if mode == 'online' else None,
                # Quiet, and nothing but our numbers: the manifest has the code's version.
                settings=wandb.Settings(
                    silent=True,
                    console='off',
                    disable_git=True,
                    disable_code=True,
                    init_timeout=START_SECONDS,
                    finish_timeout=FINISH_SECONDS,
                ),
            )
            print(f'Weights & Biases: {pathlib.Path(self._run.dir).parent if self._run.offline else self._run.url}')

    def write(self, scalars: dict[str, float], step: int) -> None:
        if self._run is not None:
            with self._never_fatal('log'):
                self._run.log(scalars, step=step)

    def close(self, done: bool) -> None:
        """Waits a little for an upload. A run that isn't done shows as failed until it resumes."""
        if self._run is not None:
            with self._never_fatal('finish'):
                self._run.finish(exit_code=0 if done else 1)

    @contextlib.contextmanager
    def _never_fatal(self, action: str) -> Iterator[None]:
        try:
            yield
        # Any kind of error: the training run is worth more than its log.
        except Exception as error:
            self._run = None
            reason = ' '.join(str(error).split())
            print(f'warning: Weights & Biases failed to {action} and is left out from here: {reason}')
