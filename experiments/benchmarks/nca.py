"""Tokens of automata a second: our stream against the same automaton written plainly in Flax.

    python -m experiments.benchmarks.nca [--json]

Both make sequences of 1,025 tokens (12 x 12 cells, 10 colours, 27 frames after 10 updates). Ours starts from rule
numbers and ends with Batches of 256; the plain one is given its rules' weights, convolves, samples with
`jax.random.categorical` and ends with patch tokens: in batches of 256, and in those that it is fastest with.
"""

import functools
import itertools
from collections.abc import Callable, Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from experiments.benchmarks import common
from nca_jax.nca import patches, stream
from nca_jax.nca.automaton import RuleSpec
from nca_jax.nca.config import ComplexityConfig, NCAConfig

BATCH, LENGTH, FRAMES = 256, 1024, 27
PLAIN_BATCHES = (1, 4, 16, 64, 1024)  # tried besides, to find the plain one's best
FLOOR, FLOOR_AT_BEST = 10.0, 6.0
ROUNDS = 5


class PlainRule(nn.Module):
    """Logits of every cell's next colour."""

    colours: int

    @nn.compact
    def __call__(self, grid_YxX: jax.Array) -> jax.Array:
        cells = nn.Conv(4, (3, 3), padding='CIRCULAR')(jax.nn.one_hot(grid_YxX, self.colours))
        return nn.Conv(self.colours, (1, 1))(nn.relu(nn.Conv(16, (1, 1))(cells)))


def paper_config(temperature: float, band: tuple[float, float] = (0.0, 2.0), rules: int = BATCH) -> NCAConfig:
    """The paper's automata; with the default band every rule is accepted."""
    return NCAConfig(
        rule=RuleSpec('random', 12, 12, 10, 4, 16, 'spatial', 0.0, temperature, 'uniform', 'inverse_cdf', 'table'),
        burn_in=10,
        stride=1,
        patch=2,
        complexity=ComplexityConfig(measure='gzip', frames=10, bytes_per_token=4, level=9),
        band=band,
        band_by='score',
        band_sample=4096,
        rules_per_epoch=rules,
        trajectories_per_rule=1,
        fresh_rules=False,
        held_out='rules',
        shuffle='none',
        mask_grids=1,
        candidates_per_rule=10,
        search_block=64,
        stream_block=16,
    )


def ours(config: NCAConfig) -> Callable[[], object]:
    """One call makes the next batch."""
    mesh = jax.make_mesh((1,), ('data',), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    sharding = NamedSharding(mesh, PartitionSpec('data'))
    rules = stream.Banks(config, 0, 'train', None, epochs=1)
    batch_of = stream.make_stream(config, 0, 'train', BATCH, LENGTH, sharding, rules)
    steps = itertools.count()
    return lambda: jax.block_until_ready(batch_of(next(steps)))


def plain_rules(config: NCAConfig, count: int) -> tuple[PlainRule, dict]:
    """The plain implementation's network and the weights of `count` rules."""
    rule = PlainRule(config.rule.colours)
    grid_YxX = jnp.zeros((config.rule.height, config.rule.width), jnp.int32)
    keys = jax.random.split(jax.random.key(0), count)
    return rule, jax.jit(jax.vmap(lambda key: rule.init(key, grid_YxX)))(keys)


def plain_frames(config: NCAConfig, rule: PlainRule, frames: int, params: dict, key: jax.Array) -> jax.Array:
    """One trajectory, written plainly."""
    start_key, update_key = jax.random.split(key)

    def update(grid_YxX, key):
        logits_YxXxC = rule.apply(params, grid_YxX) / config.rule.temperature
        grid_YxX = jax.random.categorical(key, logits_YxXxC)
        return grid_YxX, grid_YxX

    shape = (config.rule.height, config.rule.width)
    start_YxX = jax.random.randint(start_key, shape, 0, config.rule.colours)
    keys = jax.random.split(update_key, config.burn_in + frames - 1)
    return jax.lax.scan(update, start_YxX, keys)[1][-frames:]


def theirs(config: NCAConfig, batch: int) -> Callable[[], object]:
    """The plain implementation: one call makes 256 token sequences or more, `batch` at a time."""
    rule, params = plain_rules(config, batch)
    keys = jax.random.split(jax.random.key(0), batch)

    @jax.jit
    def sequences(params, keys):
        frames = jax.vmap(functools.partial(plain_frames, config, rule, FRAMES))(params, keys)
        return jax.vmap(functools.partial(patches.encode, config.vocab))(frames)[:, : LENGTH + 1]

    return lambda: [jax.block_until_ready(sequences(params, keys)) for _ in range(max(1, BATCH // batch))]


def rows() -> Iterator[common.Row]:
    """The paper's temperature and the release's, against the plain one in batches of 256 and in its best."""
    for temperature in (1e-3, 1e-4):
        config = paper_config(temperature)
        sides = {'ours': ours(config)} | {batch: theirs(config, batch) for batch in (*PLAIN_BATCHES, BATCH)}
        seconds = common.seconds_in_turn(sides, ROUNDS)
        rates = {batch: max(batch, BATCH) * LENGTH / seconds[batch] for batch in (*PLAIN_BATCHES, BATCH)}
        best = max(rates, key=rates.get)
        our_rate = BATCH * LENGTH / seconds['ours']
        for case, batch, floor in (('', BATCH, FLOOR), ('/best', best, FLOOR_AT_BEST)):
            name = f'nca/temperature={temperature:g}{case}/float32'
            note = f'plain Flax in batches of {batch}'
            yield common.Row(name, our_rate, rates[batch], our_rate / rates[batch], floor, 'tokens/s', note)


if __name__ == '__main__':
    common.main(rows(), __doc__.splitlines()[0])
