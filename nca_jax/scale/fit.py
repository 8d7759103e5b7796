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
        lowered = traced.lower()
    compiled = compile_program(lowered, 'train step')
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


def search(target: Target, say: Callable[[str], None]) -> list[Target]:
    """For each remat policy that fits, the most sequences a chip: the last recomputes least.

    A policy that saves more never fits more sequences, so each starts with as many as fitted before.
    Raises DoesNotFitError where nothing fits.
    """
    fitting, sizes = [], sequences_a_chip(target)
    for remat in POLICIES:
        while sizes:
            choice = dataclasses.replace(target, config=choose(target, sizes[0], remat))
            if fits(choice, say):
                fitting.append(choice)
                break
            sizes = sizes[1:]
    if not fitting:
        raise DoesNotFitError('train step', None, target.slice.hbm_limit)
    return fitting


def fits(target: Target, say: Callable[[str], None]) -> bool:
    label = f'{target.config.model.remat:12} {target.rows_per_chip:4} a chip'
    try:
        needed = measure_step(target)['hbm_bytes']
    except (DoesNotFitError, jax.errors.JaxRuntimeError) as error:  # other memories than HBM may be full, too
        say(f'{label}: {str(error).splitlines()[0]}')
        return False
    say(f'{label}: {needed / GIB:6.2f} GiB')
    return True


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
    """`measure_step`, with `measure_others` as its field `programs`, in lines for people."""
    mesh = ' x '.join(f'{axis} {size}' for axis, size in record['mesh'].items())
    model = ', '.join(f'{name} {record[name]}' for name in ('remat', 'attention', 'unroll', 'loss_chunks', 'dropout'))
    yield f'{record["name"]} on {record["topology"]} as {mesh}'
    yield (
        f'{record["batch"]} sequences a step in {record["accumulate"]} pieces, '
        f'{record["sequences_per_chip"]} a chip at a time; {model}'
    )
    yield ''
    yield 'The train step as compiled, on each chip'
    parts = {name: record[f'{name}_bytes'] for name in ('parameter', 'optimizer', 'average', 'temporary')}
    parts |= {'rest': record['hbm_bytes'] - sum(parts.values()), 'all at its peak': record['hbm_bytes']}
    parts |= {'may be used': record['hbm_limit'], 'accessed, loops once': record['bytes_accessed']}
    for name, size in (parts | record['collective_bytes']).items():
        yield f'  {name:22}{size / GIB:10.2f} GiB'
    yield f'  {"updated in place":22}{record["alias_share"]:10.1%} of the state, padding of its tiles included'
    ratio = record['flops'] / record['model_flops']
    yield f'  {"FLOPs, all chips":22}{record["flops"]:10.3g}, {ratio:.2f} x those that the model needs'
    for name, program in record['programs'].items():
        size = 'more' if program['hbm_bytes'] is None else f'{program["hbm_bytes"] / GIB:.2f} GiB'
        yield f'  {name:22}{size:>14}{"" if program["fits"] else ", which does not fit"}'
