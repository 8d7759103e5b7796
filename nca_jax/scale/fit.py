"""What a compiler says of a run on an absent TPU slice: memory, FLOPs and traffic, and the largest batch that fits.

It needs no TPU, only the package `libtpu`, whose compiler runs on any x86 machine.
"""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.extend.core import Jaxpr, jaxprs_in_params

from nca_jax import keys, run, stages
from nca_jax import mesh as meshes
from nca_jax.batch import Batch, Vocab
from nca_jax.config import Config
from nca_jax.errors import UserError
from nca_jax.evals import held_out
from nca_jax.model.config import step_flops
from nca_jax.nca import stream
from nca_jax.scale import chips, collectives

GIB = 2**30
# Slices by generation; the compiler knows larger ones too, but these are what one can rent in one piece.
FLAT = ('2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
CUBES = ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8', '8x8x8')
SIZES = {'v4': CUBES, 'v5e': FLAT, 'v5p': CUBES, 'v6e': FLAT}
# Remat policies, each of which keeps more activations than the one before.
POLICIES = ('full', 'projections', 'dots', 'none')


@dataclasses.dataclass(frozen=True)
class Target:
    """A config on a slice: all that its programs are lowered from, without any data."""

    config: Config
    # The slice's name.
    topology: str
    mesh: jax.sharding.Mesh
    vocab: Vocab
    # Bytes that a program may use on each chip.
    hbm_limit: float

    @property
    def rows_per_chip(self) -> int:
        """Sequences that each shard of the batch holds in one piece of the accumulation."""
        return self.config.train.batch // self.config.train.accumulate // meshes.row_shards(self.mesh)


def check_name(name: str) -> None:
    """Raises UserError unless `name` is a known slice and its compiler is installed. Starts nothing."""
    generation, _, size = name.partition(':')
    if size not in SIZES.get(generation, ()):
        known = ', '.join(f'{generation}:{size}' for generation, sizes in SIZES.items() for size in sizes)
        raise UserError(f'--topology={name}: unknown; known are {known}')
    if importlib.util.find_spec('libtpu') is None:
        raise UserError("the TPU compiler is not installed: pip install 'libtpu==0.0.42.*' (the extra `tpu` has it)")


def open_slice(name: str) -> list[jax.Device]:
    """The devices of a slice, by a name that `check_name` accepts.

    Sets the environment and keeps JAX on the CPU, so call it before anything else starts a backend.
    """
    generation, _, size = name.partition(':')
    accelerator, cores = chips.SLICES[generation]
    # libtpu reads these when it is loaded.
    os.environ |= {
        # A machine outside of Google Cloud has no metadata server to ask.
        'TPU_SKIP_MDS_QUERY': '1',
        'TPU_WORKER_HOSTNAMES': 'localhost',
        'TPU_ACCELERATOR_TYPE': f'{accelerator}-{cores * math.prod(map(int, size.split("x")))}',
        # No device is taken, so processes needn't wait for each other's lock file.
        'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    }
    jax.config.update('jax_platforms', 'cpu')
    # By default a chip of v4 is two devices.
    whole_chips = {'chip_config_name': 'megacore'} if generation == 'v4' else {}
    return topologies.get_topology_desc(platform='tpu', topology_name=name, **whole_chips).devices


def hbm_limit(devices: list[jax.Device]) -> float:
    """Bytes that a program may use on each chip, from the refusal of one that can't fit: no other interface has it."""
    mesh = jax.sharding.Mesh(devices, ('all',), axis_types=(jax.sharding.AxisType.Auto,))
    # 4 TiB, which no chip has.
    huge = jax.ShapeDtypeStruct((2**42,), jnp.uint8, sharding=jax.NamedSharding(mesh, jax.P()))
    try:
        jax.jit(lambda x: x + 1).lower(huge).compile()
    except jax.errors.JaxRuntimeError as error:
        return parse_refusal(error)[1]
    raise UserError('this libtpu has no limit of memory')


def compile_program(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled | None, dict[str, Any]]:
    """(the program, None where it doesn't fit; whether it fits, and the bytes of memory that it needs on each chip)."""
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        return None, {'fits': False, 'hbm_bytes': parse_refusal(error)[0]}
    # All that is alive at once: this the compiler compares with the limit. The space that it sets aside for temporaries
    # (`temp_size_in_bytes`) is larger, at times beyond the limit.
    return compiled, {'fits': True, 'hbm_bytes': compiled.memory_analysis().peak_memory_in_bytes}


def parse_refusal(error: Exception) -> tuple[float, float]:
    """The bytes that a program needs on each chip, and those that it may use. Raises `error` if it says neither."""
    size = r'([\d.]+[KMGT])'
    # Of HBM alone: a kernel that is too large for the small memory beside it fits no batch.
    pattern = rf'Used {size} of {size} hbm|\({size}\) exceeds available HBM \({size}\)'
    match = re.search(pattern, str(error))
    if match is None:
        raise error
    needed, limit = (float(text[:-1]) * 1024 ** (1 + 'KMGT'.index(text[-1])) for text in match.groups() if text)
    return needed, limit


def make_target(config: Config, topology: str, devices: list[jax.Device], limit: float) -> Target:
    """Raises UserError where config and slice don't fit together."""
    mesh = meshes.make_mesh(config.mesh, devices)
    run.check_fit(config, mesh)
    return Target(config, topology, mesh, stages.STAGES[config.stage].vocabulary(config), limit)


def describe_target(target: Target) -> dict[str, Any]:
    """What is known without compiling; `fits` is False until a compiler has said otherwise."""
    config = target.config
    return {
        'name': config.name,
        'topology': target.topology,
        'mesh': dict(target.mesh.shape),
        'batch': config.train.batch,
        'accumulate': config.train.accumulate,
        'sequences_per_chip': target.rows_per_chip,
        'remat': config.model.remat,
        'fits': False,
        'hbm_bytes': None,
        'hbm_limit': target.hbm_limit,
        'model_flops': step_flops(config.model, target.vocab, config.train.batch),
    }


def measure_step(target: Target) -> dict[str, Any]:
    """What the very train step of `nca_jax train` needs: bytes of one chip, FLOPs of all; less if it doesn't fit."""
    state, _, train_step = run.make_update(target.config, target.mesh, target.vocab)
    with meshes.use(target.mesh):
        traced = train_step.trace(state, abstract_batch(target, target.config.train.batch))
        compiled, sizes = compile_program(traced.lower())
    record = describe_target(target) | sizes
    if compiled is None:
        return record
    parts = jax.tree.leaves((state.params, state.opt_state, state.ema))
    state_bytes = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in parts)
    return record | {
        'state_bytes': state_bytes,
        # Of the state, what is donated and updated in place. Padding of the compiler's tiles may take it above 1.
        'alias_share': compiled.memory_analysis().alias_size_in_bytes / state_bytes,
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
        sums = held_out.make_sums(config.model, vocab, lambda *_: {})
        lowered = {'evaluation': sums.lower(params, abstract_batch(target, config.eval.batch))}
        if config.stage == 'nca':
            # A batch is made from the seed's key and the names of its rows.
            key = jax.eval_shape(lambda: keys.key(0))
            root = jax.ShapeDtypeStruct((), key.dtype, sharding=meshes.replicated(mesh))
            names = jax.ShapeDtypeStruct((config.train.batch, 3), jnp.uint32, sharding=rows)
            sequences = stream.make_sequences(config.data, config.model.length + 1, 'train', rows)
            lowered['generator'] = sequences.lower(root, names)
    return {name: compile_program(program)[1] for name, program in lowered.items()}


def search(target: Target, say: Callable[[str], None]) -> tuple[Target, dict[str, Any]]:
    """The remat policy that recomputes least, with the most sequences a chip that fit, and its `measure_step`.

    Where nothing fits, the choice that needs least memory.
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
            choice = dataclasses.replace(target, config=changed)
            try:
                record = measure_step(choice)
                result = f'{record["hbm_bytes"] / GIB:6.2f} of {target.hbm_limit / GIB:.2f} GiB'
            # Other memories than HBM may be full, too.
            except jax.errors.JaxRuntimeError as error:
                record, result = describe_target(choice), str(error).splitlines()[0]
            say(f'{remat:12} {sizes[0]:4} a chip: {result}')
            if record['fits']:
                best = choice, record
                break
            sizes = sizes[1:]
    return best or (choice, record)


def in_words(name: str, value: Any) -> str:
    """A value of the record for people; a nested record in one line."""
    if isinstance(value, dict):
        return ', '.join(f'{key} {in_words(f"{name}.{key}", item)}' for key, item in value.items()) or 'none'
    # A part of a nested record has the name of the whole before its own, and so its unit.
    if 'bytes' in name or name == 'hbm_limit':
        return 'unknown' if value is None else f'{value / GIB:.4g} GiB'
    return f'{value:.4g}' if isinstance(value, float) else str(value)
