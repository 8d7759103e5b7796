"""A run on a slice: its programs, lowered without any data, and the FLOPs of what is traced."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, jaxprs_in_params

from nca_jax import keys, run, stages
from nca_jax import mesh as meshes
from nca_jax.batch import Batch, Vocab, to_batch
from nca_jax.config import Config
from nca_jax.decode.decoder import lower_decoding
from nca_jax.evals import held_out
from nca_jax.nca import stream
from nca_jax.scale.topology import Slice
from nca_jax.train.step import TrainState


@dataclasses.dataclass(frozen=True)
class Target:
    """A config on a slice: all that its programs are lowered from."""

    config: Config
    slice: Slice
    mesh: jax.sharding.Mesh
    vocab: Vocab

    @property
    def rows_per_chip(self) -> int:
        """Sequences that each shard of the batch holds in one piece of the accumulation."""
        return self.config.train.batch // self.config.train.accumulate // meshes.row_shards(self.mesh)

    @functools.cached_property
    def _update(self) -> tuple:
        return run.make_update(self.config, self.mesh, self.vocab)

    @property
    def state(self) -> TrainState:
        """Shapes, dtypes and shardings."""
        return self._update[0]

    def trace_train_step(self) -> jax.stages.Traced:
        """The very train step of `nca_jax train`."""
        with meshes.use(self.mesh):
            return self._update[2].trace(self.state, abstract_batch(self, self.config.train.batch))


def make_target(config: Config, opened: Slice) -> Target:
    """Raises UserError where config and slice don't fit together."""
    mesh = meshes.make_mesh(config.mesh, list(opened.devices))
    run.check_fit(config, mesh)
    return Target(config, opened, mesh, stages.STAGES[config.stage].vocabulary(config))


def lower_evaluation(target: Target) -> jax.stages.Lowered:
    sums = held_out.make_sums(target.config.model, target.vocab)
    with meshes.use(target.mesh):
        return sums.lower(target.state.params, abstract_batch(target, target.config.eval.batch))


def lower_decode_step(target: Target) -> jax.stages.Lowered:
    benchmark, model = target.config.benchmark, target.config.model
    with meshes.use(target.mesh):
        return lower_decoding(
            model, target.vocab, target.mesh, benchmark.batch, benchmark.sampling, benchmark.max_tokens
        )


def lower_generator(target: Target) -> jax.stages.Lowered:
    """One batch of automata, from the names of its rows."""
    data, rows = target.config.data, meshes.batch_sharding(target.mesh)
    sequences = stream.make_sequences(data, target.config.model.length + 1, 'train', rows)
    names = jax.ShapeDtypeStruct((target.config.train.batch, 3), jnp.uint32, sharding=rows)
    root = jax.ShapeDtypeStruct((), jax.eval_shape(lambda: keys.key(0)).dtype, sharding=meshes.replicated(target.mesh))

    def generate(root: jax.Array, names: jax.Array) -> Batch:
        return to_batch(sequences(root, names), data.first_loss_at)

    with meshes.use(target.mesh):
        return jax.jit(generate, out_shardings=rows).lower(root, names)


def abstract_batch(target: Target, size: int) -> Batch:
    shape, rows = (size, target.config.model.length), meshes.batch_sharding(target.mesh)
    return Batch(*(jax.ShapeDtypeStruct(shape, kind, sharding=rows) for kind in (jnp.int32, jnp.int32, jnp.float32)))


def product_flops(jaxpr: Jaxpr) -> float:
    """FLOPs of all matrix products of a traced program, over all chips.

    - Counted: loops as often as they turn, what remat computes again, and what an attention mask throws away.
    - Not counted: a `while` of unknown length more than once.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        params, times = equation.params, 1
        match equation.primitive.name:
            case 'dot_general':
                ((contracted, _), _), left = params['dimension_numbers'], equation.invars[0].aval.shape
                total += 2.0 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
            # Its body is traced once.
            case 'scan':
                times = params['length']
            # Traced for one shard.
            case 'shard_map':
                times = params['mesh'].size
            # Traced for one cell of its grid.
            case 'pallas_call':
                times = math.prod(params['grid_mapping'].grid)
        total += times * sum(map(product_flops, jaxprs_in_params(params)))
    return total
