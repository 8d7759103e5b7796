"""Tokens of automata a second: our stream against the same automaton written plainly in Flax.

    python -m experiments.benchmarks.nca [--json]

Both make 256 sequences of 1,025 tokens (12 x 12 cells, 10 colours, 27 frames after 10 updates). Ours starts from rule
numbers and ends with Batches; the plain one is given its rules' weights, convolves, samples with
`jax.random.categorical` and ends with patch tokens.
"""

import itertools
from collections.abc import Callable, Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from experiments.benchmarks import common
from nca_jax.nca import patches, stream
from nca_jax.nca.complexity import ComplexityConfig
from nca_jax.nca.config import NCAConfig
from nca_jax.nca.rule import RuleSpec

BATCH, LENGTH, FRAMES = 256, 1024, 27
FLOOR = 5.0  # at the paper's temperature


class PlainRule(nn.Module):
    """Logits of every cell's next colour."""

    colours: int

    @nn.compact
    def __call__(self, grid_YxX: jax.Array) -> jax.Array:
        cells = nn.Conv(4, (3, 3), padding='CIRCULAR')(jax.nn.one_hot(grid_YxX, self.colours))
        return nn.Conv(self.colours, (1, 1))(nn.relu(nn.Conv(16, (1, 1))(cells)))


def paper_config(temperature: float) -> NCAConfig:
    """The paper's automata, with every rule accepted: the search isn't timed."""
    return NCAConfig(
        rule=RuleSpec(12, 12, 10, 4, 16, 'spatial', 0.0, temperature, 'uniform', 'inverse_cdf', 'table'),
        burn_in=10,
        stride=1,
        patch=2,
        complexity=ComplexityConfig(frames=10, bytes_per_token=4, level=9),
        band=(0.0, 2.0),
        rules_per_epoch=BATCH,
        trajectories_per_rule=1,
        fresh_rules=False,
        mask_grids=1,
        candidates_per_rule=10,
        search_block=64,
        stream_block=16,
    )


def ours(config: NCAConfig) -> Callable[[], object]:
    """One call makes the next batch."""
    mesh = jax.make_mesh((1,), ('data',), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    sharding = NamedSharding(mesh, PartitionSpec('data'))
    batch_of = stream.make_stream(config, 0, 'train', BATCH, LENGTH, sharding, None)
    steps = itertools.count()
    return lambda: jax.block_until_ready(batch_of(next(steps)))


def theirs(config: NCAConfig) -> Callable[[], object]:
    """The plain implementation: one call makes a batch of token sequences."""
    rule = PlainRule(config.rule.colours)
    shape = (config.rule.height, config.rule.width)

    def sequence(params, key):
        start_key, update_key = jax.random.split(key)

        def update(grid_YxX, key):
            logits_YxXxC = rule.apply(params, grid_YxX) / config.rule.temperature
            grid_YxX = jax.random.categorical(key, logits_YxXxC)
            return grid_YxX, grid_YxX

        start_YxX = jax.random.randint(start_key, shape, 0, config.rule.colours)
        keys = jax.random.split(update_key, config.burn_in + FRAMES - 1)
        _, grid_TxYxX = jax.lax.scan(update, start_YxX, keys)
        return patches.encode(config.vocab, grid_TxYxX[-FRAMES:])[: LENGTH + 1]

    keys = jax.random.split(jax.random.key(0), BATCH)
    params = jax.jit(jax.vmap(lambda key: rule.init(key, jnp.zeros(shape, jnp.int32))))(keys)
    batched = jax.jit(jax.vmap(sequence))
    return lambda: jax.block_until_ready(batched(params, keys))


def rows() -> Iterator[common.Row]:
    """The paper's temperature, which has the floor, and the release's."""
    for temperature, floor in ((1e-3, FLOOR), (1e-4, None)):
        config = paper_config(temperature)
        yield common.throughput_row(
            f'nca/temperature={temperature:g}/float32',
            ours(config),
            theirs(config),
            amount=BATCH * LENGTH,
            unit='tokens/s',
            floor=floor,
            note='plain Flax',
        )


if __name__ == '__main__':
    common.main(rows(), __doc__.splitlines()[0])
