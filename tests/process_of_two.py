"""One of two processes, run by tests/test_nca_processes.py: python -m tests.process_of_two ADDRESS PROCESS FOLDER."""

import functools
import pathlib
import sys

import jax
import numpy as np

from nca_jax import distributed
from nca_jax.data import controls, streams
from nca_jax.errors import UserError
from nca_jax.nca import score, stream
from tests.test_nca_bank import CONFIG

BRACKETS = functools.partial(controls.dyck_sequences, controls.DyckConfig(3, 4, 0.5, shuffle=False), 41)
EPOCHS, STEPS, BATCH, LENGTH = 2, (0, 1), 8, 40  # ten rules an epoch: step 1 is in both


def main(address: str, process: int, folder: pathlib.Path) -> None:
    jax.distributed.initialize(address, num_processes=2, process_id=process)
    mesh = jax.make_mesh((jax.device_count(),), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P('data'))
    blocks, score_block = [], score.score_block

    def counted(*asked):
        blocks.append(asked[-1])
        return score_block(*asked)

    score.score_block = counted
    rules = stream.Banks(CONFIG, 0, 'train', folder, EPOCHS)
    batches = stream.make_stream(CONFIG, 0, 'train', BATCH, LENGTH, sharding, rules)
    with jax.transfer_guard('disallow'):
        found = [batches(step).inputs_BxL for step in STEPS]
    rows = {
        f'{step}-{shard.index[0].start or 0}': np.asarray(shard.data)
        for step, inputs in zip(STEPS, found, strict=True)
        for shard in inputs.addressable_shards
    }
    words = streams.make_computed_stream(BRACKETS, 'dyck', 0, 'train', BATCH, LENGTH, sharding)(1).inputs_BxL
    rows |= {f'dyck-{shard.index[0].start or 0}': np.asarray(shard.data) for shard in words.addressable_shards}
    refusals = []
    for text in ('the same', f'process {process}'):
        try:
            distributed.agree(text, 'rules')
        except UserError as error:
            refusals.append(str(error))

    def broken() -> None:
        raise OSError('no disk')

    def broken_here_alone(error: type[Exception]) -> None:
        if process == 1:
            raise error('of process 1')

    asked = [(distributed.first, broken)]
    for error in (MemoryError, KeyError):
        own = functools.partial(broken_here_alone, error)
        asked.append((distributed.on_all, own, lambda error: isinstance(error, MemoryError)))
    for command, *arguments in asked:
        try:
            command(*arguments)
        except Exception as error:
            refusals.append(f'{type(error).__name__}: {error}')
    hashes = [rules(epoch).hash for epoch in range(EPOCHS)]
    np.savez(folder / f'process-{process}.npz', hashes=hashes, blocks=blocks, refusals=refusals, **rows)


if __name__ == '__main__':
    main(sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3]))
