"""TPU slices that nobody here has: their names, the compiler's environment, and what calibrates an estimate.

Nothing in this module needs a TPU, only the package `libtpu`, whose compiler runs on any x86 machine.
"""

import dataclasses
import functools
import importlib.util
import math
import os
import re

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from nca_jax.errors import UserError
from nca_jax.scale import chips, hlo

# Slices by generation; the compiler knows larger ones too, but these are what one can rent in one piece.
FLAT = ('2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
CUBES = ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8', '8x8x8')
SIZES = {'v4': CUBES, 'v5e': FLAT, 'v5p': CUBES, 'v6e': FLAT}
ACCELERATORS = {'v4': ('v4', 2), 'v5e': ('v5litepod', 1), 'v5p': ('v5p', 2), 'v6e': ('v6e', 1)}  # name, cores a chip
MEMORY = {'v4': 1228e9, 'v5e': 819e9, 'v5p': 2765e9, 'v6e': 1640e9}  # bytes a second of HBM, as Google publishes it

SQUARE = 8192  # of the product that calibrates the clock
TOO_LARGE = 2**42  # bytes that no chip has


@dataclasses.dataclass(frozen=True)
class Slice:
    """A TPU slice as its compiler sees it.

    clock: cycles a second at which the product of two 8192 x 8192 bfloat16 matrices reaches the published peak.
    hbm_limit: bytes that a program may use on each chip. memory: bytes a second of HBM.
    """

    name: str
    chip: chips.Chip
    devices: tuple[jax.Device, ...]
    clock: float
    hbm_limit: float
    memory: float

    @property
    def replicated(self) -> jax.sharding.NamedSharding:
        mesh = jax.sharding.Mesh(self.devices, ('all',), axis_types=(jax.sharding.AxisType.Auto,))
        return jax.NamedSharding(mesh, jax.P())


def known() -> str:
    return ', '.join(f'{generation}:{size}' for generation, sizes in SIZES.items() for size in sizes)


def check_name(name: str) -> None:
    """Raises UserError unless `name` is a known slice and its compiler is installed. Starts nothing."""
    generation, _, size = name.partition(':')
    if size not in SIZES.get(generation, ()):
        raise UserError(f'--topology={name}: unknown; known are {known()}')
    if importlib.util.find_spec('libtpu') is None:
        raise UserError("the TPU compiler is not installed: pip install 'libtpu==0.0.42.*' (the extra `tpu` has it)")


def environment(name: str) -> dict[str, str]:
    """What libtpu must find in the environment before it is loaded, to compile for a slice without being on one."""
    generation, _, size = name.partition(':')
    accelerator, cores = ACCELERATORS[generation]
    return {
        'TPU_SKIP_MDS_QUERY': '1',  # there is no metadata server to ask
        'TPU_WORKER_HOSTNAMES': 'localhost',
        'TPU_ACCELERATOR_TYPE': f'{accelerator}-{cores * math.prod(map(int, size.split("x")))}',
        'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # no device is taken, so processes needn't wait for each other's lock file
    }


@functools.cache
def open_slice(name: str) -> Slice:
    """The slice, its clock calibrated and its memory's limit asked for (seconds of compiling).

    Raises UserError for an unknown name or where libtpu is missing. Sets the environment and keeps JAX on the CPU, so
    it must come before anything else that starts a backend.
    """
    check_name(name)
    os.environ.update(environment(name))
    jax.config.update('jax_platforms', 'cpu')
    generation = name.partition(':')[0]
    whole_chips = {'chip_config_name': 'megacore'} if generation == 'v4' else {}  # else a v4 chip is two devices
    described = topologies.get_topology_desc(platform='tpu', topology_name=name, **whole_chips)
    bare = Slice(name, chips.TPUS[generation], tuple(described.devices), 0.0, 0.0, MEMORY[generation])
    return dataclasses.replace(bare, clock=_clock(bare), hbm_limit=_hbm_limit(bare))


def _clock(bare: Slice) -> float:
    square = jax.ShapeDtypeStruct((SQUARE, SQUARE), jnp.bfloat16, sharding=bare.replicated)
    compiled = jax.jit(jnp.matmul).lower(square, square).compile()
    return hlo.read(compiled.as_text()).cycles / (2 * SQUARE**3 / bare.chip.flops)


def _hbm_limit(bare: Slice) -> float:
    """What the compiler says when it refuses a program that can't fit: no other interface tells it."""
    huge = jax.ShapeDtypeStruct((TOO_LARGE,), jnp.uint8, sharding=bare.replicated)
    try:
        jax.jit(lambda x: x + 1).lower(huge).compile()
    except jax.errors.JaxRuntimeError as error:
        return out_of_memory(error)[1]
    raise UserError(f'{bare.name}: this libtpu tells no limit of memory')


def out_of_memory(error: Exception) -> tuple[float | None, float]:
    """Bytes that the refused program wants (None where the compiler doesn't say) and may use, from the refusal.

    Raises the error again if it is another.
    """
    said = str(error)
    limit = re.search(r'available HBM \(([\d.]+)([KMGT])\)|of ([\d.]+)([KMGT]) hbm', said)
    if 'RESOURCE_EXHAUSTED' not in said or limit is None:
        raise error
    wanted = re.search(r'Used ([\d.]+)([KMGT]) of|required[^(]*\(([\d.]+)([KMGT])\)', said)
    return wanted and _bytes(wanted), _bytes(limit)


def _bytes(found: re.Match) -> float:
    number, unit = (group for group in found.groups() if group is not None)
    return float(number) * 1024 ** (1 + 'KMGT'.index(unit))
