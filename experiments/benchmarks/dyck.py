"""Tokens of Dyck words a second: our stream against a plain generator in Python.

    python -m experiments.benchmarks.dyck [--json]

The paper's setting: 64 kinds, depth 16, p_open 0.5, rows of 1,024 inputs. Ours are Batches of 32 rows, and of 256, on
the device; the plain side makes lists of such tokens, one after another. Shuffle-Dyck takes four times the random bits.
"""

import functools
import itertools
import random
from collections.abc import Callable, Iterator

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from experiments.benchmarks import common
from nca_jax.data import controls, streams

LENGTH, KINDS, DEPTH, P_OPEN = 1024, 64, 16, 0.5
ROWS = 8192  # in one call of our side: several blocks
PLAIN_ROWS = 128
FLOOR = 50.0


def ours(shuffle: bool, batch: int) -> Callable[[], object]:
    """One call makes the next ROWS rows, batch after batch."""
    mesh = jax.make_mesh((1,), ('data',), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    sharding = NamedSharding(mesh, PartitionSpec('data'))
    config = controls.DyckConfig(KINDS, DEPTH, P_OPEN, shuffle)
    sequences = functools.partial(controls.dyck_sequences, config, LENGTH + 1)
    stream = streams.make_computed_stream(sequences, 'dyck', 0, 'train', batch, LENGTH, sharding)
    steps = itertools.count()

    def run():
        for _ in range(ROWS // batch):
            made = stream(next(steps))
        jax.block_until_ready(made)

    return run


def theirs(shuffle: bool) -> Callable[[], object]:
    """One call makes PLAIN_ROWS rows."""
    return lambda: [plain_row(LENGTH + 1, shuffle) for _ in range(PLAIN_ROWS)]


def plain_row(length: int, shuffle: bool) -> list[int]:
    """The first `length` tokens of Dyck words, with a list as the stack."""
    stack, tokens = [], []
    for _ in range(length):
        if not stack or (len(stack) < DEPTH and random.random() < P_OPEN):
            kind = random.randrange(KINDS)
            stack.append(kind)
            tokens.append(kind)
        else:
            kind = stack.pop(random.randrange(len(stack))) if shuffle else stack.pop()
            tokens.append(kind + KINDS)
    return tokens


def rows() -> Iterator[common.Row]:
    """Batches of a training step, and large ones; the floor is for the paper's setting."""
    for shuffle, batch in itertools.product((False, True), (32, 256)):
        sides = {'ours': ours(shuffle, batch), 'theirs': theirs(shuffle)}
        seconds = common.seconds_in_turn(sides, rounds=7)
        rates = [ROWS * LENGTH / seconds['ours'], PLAIN_ROWS * LENGTH / seconds['theirs']]
        name = f'dyck/{"shuffle" if shuffle else "plain"}-batch-{batch}/uint8'
        yield common.Row(name, *rates, rates[0] / rates[1], None if shuffle else FLOOR, 'tokens/s', 'plain Python')


if __name__ == '__main__':
    common.main(rows(), __doc__.splitlines()[0])
