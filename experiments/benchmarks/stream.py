"""Does making the data keep up with training? Time to make a batch alone beside time of a step alone.

    python -m experiments.benchmarks.stream [--json]

For the quickstart's model, in both of its stages; the aim is a batch in under 1 % of a step, a ratio of 100. The
text is prepared in the quickstart's own cache if it wasn't before.
"""

import itertools
import pathlib
import tempfile
from collections.abc import Iterator

import jax

from experiments import quickstart
from experiments.benchmarks import common
from nca_jax import config as configs
from nca_jax import mesh as meshes
from nca_jax import run

ROUNDS = 50


def measure(arm: str, folder: pathlib.Path) -> common.Row:
    """Batch and step of one stage of the quickstart."""
    config = configs.resolve(quickstart.get_config(f'arm={arm}'))
    mesh = meshes.make_mesh(config.mesh)
    program = run.build(config, mesh, folder)
    with meshes.use(mesh):
        state, batch = program.init(), program.stream(0)
        numbers = itertools.count(1)

        def step():
            nonlocal state
            state, metrics = program.train_step(state, batch)
            jax.block_until_ready(metrics)

        sides = {'batch': lambda: jax.block_until_ready(program.stream(next(numbers))), 'step': step}
        seconds = common.seconds_in_turn(sides, ROUNDS)
    batch_s, step_s = seconds['batch'], seconds['step']
    note = f'batch and step; {batch_s / step_s:.2%} of a step'
    return common.Row(f'stream/{config.stage}/{config.model.dtype}', batch_s, step_s, step_s / batch_s, None, 's', note)


def rows() -> Iterator[common.Row]:
    with tempfile.TemporaryDirectory() as folder:
        for arm in ('automata', 'scratch'):
            yield measure(arm, pathlib.Path(folder) / arm)


if __name__ == '__main__':
    common.main(rows(), __doc__.splitlines()[0])
