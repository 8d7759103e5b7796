"""What a compiler says of a run on a slice: memory, FLOPs and traffic, and the largest batch that fits."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, jaxprs_in_params

from nca_jax import keys, run, stages
from nca_jax import mesh as meshes
from nca_jax.batch import Batch, Vocab
from nca_jax.config import Config
from nca_jax.evals import held_out
from nca_jax.model.config import step_flops
from nca_jax.nca import stream
from nca_jax.scale import collectives
from nca_jax.scale.topology import GIB, DoesNotFitError, Slice, compile_program

# Remat policies, each of which keeps more activations than the one before.
POLICIES = ('full', 'projections', 'dots', 'none')


@dataclasses.dataclass(frozen=True)
class Target:
    """A config on a slice: all that its programs are lowered from, without any data."""

    config: Config
    slice: Slice
    mesh: jax.sharding.Mesh
    vocab: Vocab

    @property
    def rows_per_chip(self) -> int:
        """Sequences that each shard of the batch holds in one piece of the accumulation."""
        return self.config.train.batch // self.config.train.accumulate // meshes.row_shards(self.mesh)


def make_target(config: Config, opened: Slice) -> Target:
    """Raises UserError where config and slice don't fit together."""
    mesh = meshes.make_mesh(config.mesh, list(opened.devices))
    run.check_fit(config, mesh)
    return Target(config, opened, mesh, stages.STAGES[config.stage].vocabulary(config))


def describe_target(target: Target) -> dict[str, Any]:
    """What is known without compiling; `fits` is False until a compiler has said otherwise."""
    config = target.config
    return {
        'name': config.name,
        'topology': target.slice.name,
        'mesh': dict(target.mesh.shape),
        'batch': config.train.batch,
        'accumulate': config.train.accumulate,
        'sequences_per_chip': target.rows_per_chip,
        'remat': config.model.remat,
        'fits': False,
        'hbm_bytes': None,
        'hbm_limit': target.slice.hbm_limit,
        'model_flops': step_flops(config.model, target.vocab, config.train.batch),
    }


def measure_step(target: Target) -> dict[str, Any]:
    """What the very train step of `nca_jax train` needs: bytes of one chip, FLOPs of all. Raises DoesNotFitError."""
    state, _, train_step = run.make_update(target.config, target.mesh, target.vocab)
    with meshes.use(target.mesh):
        traced = train_step.trace(state, abstract_batch(target, target.config.train.batch))
        compiled = compile_program(traced.lower(), 'train step')
    memory = compiled.memory_analysis()
    parts = jax.tree.leaves((state.params, state.opt_state, state.ema))
    state_bytes = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in parts)
    return describe_target(target) | {
        'fits': True,
        # All that is alive at once: this the compiler compares with the limit. The space that it sets aside
        # for temporaries (`temp_size_in_bytes`) is larger, at times beyond the limit.
        'hbm_bytes': memory.peak_memory_in_bytes,
        'state_bytes': state_bytes,
        # Of the state, what is donated and updated in place. Padding of the compiler's tiles may take it above 1.
        'alias_share': memory.alias_size_in_bytes / state_bytes,
        'flops': product_flops(traced.jaxpr.jaxpr),
        # The compiler's own count, with each loop's body once.
        'bytes_accessed': compiled.cost_analysis()['bytes accessed'],
        'collective_bytes': collectives.volumes(compiled.as_text()),
    }


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


def measure_others(target: Target) -> dict[str, dict[str, Any]]:
    """Whether the evaluation's step and the generator of a batch of automata fit, and their bytes on one chip."""
    config, mesh, vocab = target.config, target.mesh, target.vocab
    params, rows = run.make_update(config, mesh, vocab)[0].params, meshes.batch_sharding(mesh)
    with meshes.use(mesh):
        sums = held_out.make_sums(config.model, vocab)
        lowered = {'evaluation': sums.lower(params, abstract_batch(target, config.eval.batch))}
        if config.stage == 'nca':
            # A batch is made from the seed's key and the names of its rows.
            key = jax.eval_shape(lambda: keys.key(0))
            root = jax.ShapeDtypeStruct((), key.dtype, sharding=meshes.replicated(mesh))
            names = jax.ShapeDtypeStruct((config.train.batch, 3), jnp.uint32, sharding=rows)
            sequences = stream.make_sequences(config.data, config.model.length + 1, 'train', rows)
            lowered['generator'] = sequences.lower(root, names)
    sizes = {}
    for name, program in lowered.items():
        try:
            compiled = compile_program(program, name)
            sizes[name] = {'fits': True, 'hbm_bytes': compiled.memory_analysis().peak_memory_in_bytes}
        except DoesNotFitError as error:
            sizes[name] = {'fits': False, 'hbm_bytes': error.needed}
    return sizes


def search(target: Target, say: Callable[[str], None]) -> tuple[Target, dict[str, Any]]:
    """The remat policy that recomputes least, with the most sequences a chip that fit, and its `measure_step`.

    Raises DoesNotFitError where nothing fits.
    """
    best, config = None, target.config
    most = config.train.batch // meshes.row_shards(target.mesh)
    # Pieces of the accumulation are equal, so their sequences divide a chip's part of the batch.
    sizes = [rows for rows in range(most, 0, -1) if most % rows == 0]
    for remat in POLICIES:
        # A policy that keeps more never fits more sequences, so it starts with as many as fitted before.
        while sizes:
            train = dataclasses.replace(config.train, accumulate=most // sizes[0])
            changed = dataclasses.replace(config, train=train, model=dataclasses.replace(config.model, remat=remat))
            choice, label = dataclasses.replace(target, config=changed), f'{remat:12} {sizes[0]:4} a chip'
            try:
                best = choice, measure_step(choice)
                say(f'{label}: {best[1]["hbm_bytes"] / GIB:6.2f} GiB')
                break
            # Other memories than HBM may be full, too.
            except (DoesNotFitError, jax.errors.JaxRuntimeError) as error:
                say(f'{label}: {str(error).splitlines()[0]}')
                sizes = sizes[1:]
    if best is None:
        raise DoesNotFitError('train step', None, target.slice.hbm_limit)
    return best


def in_words(name: str, value: Any) -> str:
    """A value of the record for people; a nested record in one line."""
    if isinstance(value, dict):
        return ', '.join(f'{key} {in_words(f"{name}.{key}", item)}' for key, item in value.items()) or 'none'
    # A part of a nested record has the name of the whole before its own, and so its unit.
    if 'bytes' in name or name == 'hbm_limit':
        return 'unknown' if value is None else f'{value / GIB:.4g} GiB'
    return f'{value:.4g}' if isinstance(value, float) else str(value)
