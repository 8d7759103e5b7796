"""What a compiler says of a run on a slice: memory, FLOPs and traffic, and the largest batch that fits."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

from nca_jax import mesh as meshes
from nca_jax.config import Config
from nca_jax.model.config import step_flops
from nca_jax.scale import collectives
from nca_jax.scale.programs import Target, lower_others, product_flops
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
    sizes = [local_bytes(tree) for tree in (state.params, state.opt_state, state.ema)]
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
        'flops': product_flops(traced.jaxpr.jaxpr),
        # The compiler's own count, with each loop's body once.
        'bytes_accessed': compiled.cost_analysis()['bytes accessed'],
        'collective_bytes': collectives.volumes(compiled.as_text()),
    }


def local_bytes(tree: Any) -> int:
    """Bytes of one device's shards."""
    shards = [(leaf.sharding.shard_shape(leaf.shape), leaf.dtype) for leaf in jax.tree.leaves(tree)]
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in shards)


def measure_others(target: Target) -> dict[str, dict[str, Any]]:
    """Of the evaluation, decoding and the generator: whether each fits, and its bytes on one chip."""
    sizes = {}
    for name, lower in lower_others(target).items():
        try:
            compiled = compile_program(lower(), name)
            sizes[name] = {'fits': True, 'hbm_bytes': compiled.memory_analysis().peak_memory_in_bytes}
        except DoesNotFitError as error:
            sizes[name] = {'fits': False, 'hbm_bytes': error.needed}
    return sizes


def search(target: Target, say: Callable[[str], None]) -> list[tuple[Target, dict[str, Any]]]:
    """For each remat policy that fits, the most sequences a chip, with their `measure_step`: the last recomputes least.

    Raises DoesNotFitError where nothing fits.
    """
    fitting, sizes = [], sequences_a_chip(target)
    for remat in POLICIES:
        # A policy that keeps more never fits more sequences, so it starts with as many as fitted before.
        while sizes:
            choice = dataclasses.replace(target, config=choose(target, sizes[0], remat))
            if record := attempt(choice, say):
                fitting.append((choice, record))
                break
            sizes = sizes[1:]
    if not fitting:
        raise DoesNotFitError('train step', None, target.slice.hbm_limit)
    return fitting


def attempt(target: Target, say: Callable[[str], None]) -> dict[str, Any] | None:
    """`measure_step`, or None if it does not fit."""
    label = f'{target.config.model.remat:12} {target.rows_per_chip:4} a chip'
    try:
        record = measure_step(target)
    except (DoesNotFitError, jax.errors.JaxRuntimeError) as error:  # other memories than HBM may be full, too
        say(f'{label}: {str(error).splitlines()[0]}')
        return None
    say(f'{label}: {record["hbm_bytes"] / GIB:6.2f} GiB')
    return record


def sequences_a_chip(target: Target) -> list[int]:
    """The numbers of sequences that divide a chip's part of the batch, the largest first."""
    most = target.config.train.batch // meshes.row_shards(target.mesh)
    return [rows for rows in range(most, 0, -1) if most % rows == 0]


def choose(target: Target, rows: int, remat: str) -> Config:
    """The config with `rows` sequences a chip at a time and another remat policy."""
    config = target.config
    accumulate = config.train.batch // meshes.row_shards(target.mesh) // rows
    train = dataclasses.replace(config.train, accumulate=accumulate)
    return dataclasses.replace(config, train=train, model=dataclasses.replace(config.model, remat=remat))


def report(record: dict[str, Any]) -> Iterator[str]:
    """The record in lines for people."""
    return (f'{name:20}{in_words(name, value)}' for name, value in record.items())


def in_words(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return ', '.join(f'{key} {in_words(f"{name}.{key}", item)}' for key, item in value.items()) or 'none'
    if 'bytes' in name or name == 'hbm_limit':
        return 'unknown' if value is None else f'{value / GIB:.4g} GiB'
    return f'{value:.4g}' if isinstance(value, float) else str(value)
