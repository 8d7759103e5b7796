"""What a compiler says of a run on a slice: memory, FLOPs and traffic, and the largest batch that fits."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax

from nca_jax import mesh as meshes
from nca_jax.model.config import step_flops
from nca_jax.scale import collectives, programs
from nca_jax.scale.programs import Target
from nca_jax.scale.topology import GIB, DoesNotFitError, compile_program

# Remat policies, each of which keeps more activations than the one before.
POLICIES = ('full', 'projections', 'dots', 'none')


def describe_target(target: Target) -> dict[str, Any]:
    """What is known without compiling; `fits` is False until a compiler has said otherwise."""
    config = target.config
    shown = ('remat', 'unroll', 'attention', 'loss_chunks', 'dropout')
    return {
        'name': config.name,
        'topology': target.slice.name,
        'mesh': dict(target.mesh.shape),
        'batch': config.train.batch,
        'accumulate': config.train.accumulate,
        'sequences_per_chip': target.rows_per_chip,
        **{field: getattr(config.model, field) for field in shown},
        'fits': False,
        'hbm_bytes': None,
        'hbm_limit': target.slice.hbm_limit,
        'model_flops': step_flops(config.model, target.vocab, config.train.batch),
    }


def measure_step(target: Target) -> dict[str, Any]:
    """What the train step needs: bytes of one chip, FLOPs of all. Raises DoesNotFitError."""
    traced = target.trace_train_step()
    with meshes.use(target.mesh):
        compiled = compile_program(traced.lower(), 'train step')
    memory, state = compiled.memory_analysis(), target.state
    sizes = [
        sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))
        for tree in (state.params, state.opt_state, state.ema)
    ]
    # What lives from the program's beginning or to its end; a donated buffer is in both.
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return describe_target(target) | {
        'fits': True,
        # All that is alive at once: this the compiler compares with the limit. The space that it sets aside
        # for temporaries (`temp_size_in_bytes`) is larger, at times beyond the limit.
        'hbm_bytes': memory.peak_memory_in_bytes,
        'parameter_bytes': sizes[0],
        'optimizer_bytes': sizes[1],
        'average_bytes': sizes[2],
        'temporary_bytes': memory.peak_memory_in_bytes - kept,
        # Of the state, what is donated and updated in place. Padding of the compiler's tiles may take it above 1.
        'alias_share': memory.alias_size_in_bytes / sum(sizes),
        'flops': programs.product_flops(traced.jaxpr.jaxpr),
        # The compiler's own count, with each loop's body once.
        'bytes_accessed': compiled.cost_analysis()['bytes accessed'],
        'collective_bytes': collectives.volumes(compiled.as_text()),
    }


def measure_others(target: Target) -> dict[str, dict[str, Any]]:
    """Whether each of the run's other programs fits, and its bytes on one chip."""
    lower, sizes = {'evaluation': programs.lower_evaluation}, {}
    if target.config.benchmark is not None:
        lower['decoding'] = programs.lower_decode_step
    if target.config.stage == 'nca':
        lower['generator'] = programs.lower_generator
    for name, lower_program in lower.items():
        try:
            compiled = compile_program(lower_program(target), name)
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
