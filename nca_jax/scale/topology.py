"""TPU slices that aren't here: their names, the compiler's environment, and whether a program fits their memory.

It needs no TPU, only the package `libtpu`, whose compiler runs on any x86 machine.
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

GIB = 2**30

# Slices by generation; the compiler knows larger ones too, but these are what one can rent in one piece.
FLAT = ('2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
CUBES = ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8', '8x8x8')
SIZES = {'v4': CUBES, 'v5e': FLAT, 'v5p': CUBES, 'v6e': FLAT}
ACCELERATORS = {'v4': ('v4', 2), 'v5e': ('v5litepod', 1), 'v5p': ('v5p', 2), 'v6e': ('v6e', 1)}  # name, cores a chip

TOO_LARGE = 2**42  # bytes that no chip has


class DoesNotFitError(Exception):
    """The compiler refused a program: it needs `needed` bytes on each chip (None: unknown) of `limit`."""

    def __init__(self, program: str, needed: float | None, limit: float):
        super().__init__(program, needed, limit)
        self.program, self.needed, self.limit = program, needed, limit

    def __str__(self) -> str:
        needed = 'more than' if self.needed is None else f'{self.needed / GIB:.2f} GiB of'
        return f'the {self.program} needs {needed} the {self.limit / GIB:.2f} GiB of HBM that it may use on each chip'


@dataclasses.dataclass(frozen=True)
class Slice:
    """A TPU slice as its compiler sees it."""

    name: str
    devices: tuple[jax.Device, ...]
    # Bytes that a program may use on each chip.
    hbm_limit: float


def check_name(name: str) -> None:
    """Raises UserError unless `name` is a known slice and its compiler is installed. Starts nothing."""
    generation, _, size = name.partition(':')
    if size not in SIZES.get(generation, ()):
        known = ', '.join(f'{generation}:{size}' for generation, sizes in SIZES.items() for size in sizes)
        raise UserError(f'--topology={name}: unknown; known are {known}')
    if importlib.util.find_spec('libtpu') is None:
        raise UserError("the TPU compiler is not installed: pip install 'libtpu==0.0.42.*' (the extra `tpu` has it)")


@functools.cache
def open_slice(name: str) -> Slice:
    """The slice of a name that `check_name` accepts.

    Sets the environment and keeps JAX on the CPU, so call it before anything else starts a backend.
    """
    os.environ.update(environment(name))
    jax.config.update('jax_platforms', 'cpu')
    # By default a chip of v4 is two devices.
    whole_chips = {'chip_config_name': 'megacore'} if name.startswith('v4:') else {}
    described = topologies.get_topology_desc(platform='tpu', topology_name=name, **whole_chips)
    return Slice(name, tuple(described.devices), hbm_limit(described.devices))


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


def hbm_limit(devices: list[jax.Device]) -> float:
    """Bytes that a program may use on each chip, from the refusal of one that can't fit: no other interface has it."""
    mesh = jax.sharding.Mesh(devices, ('all',), axis_types=(jax.sharding.AxisType.Auto,))
    huge = jax.ShapeDtypeStruct((TOO_LARGE,), jnp.uint8, sharding=jax.NamedSharding(mesh, jax.P()))
    try:
        compile_program(jax.jit(lambda x: x + 1).lower(huge), 'probe')
    except DoesNotFitError as error:
        return error.limit
    raise UserError('this libtpu has no limit of memory')


def compile_program(lowered: jax.stages.Lowered, name: str) -> jax.stages.Compiled:
    """Raises DoesNotFitError where the chip's memory is too small."""
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        raise out_of_memory(error, name) from None


def out_of_memory(error: Exception, name: str) -> Exception:
    """The compiler's refusal as a DoesNotFitError, or `error` itself if it has another reason."""
    message = str(error)
    limit = re.search(r'available HBM \(([\d.]+)([KMGT])\)|of ([\d.]+)([KMGT]) hbm', message)
    if 'RESOURCE_EXHAUSTED' not in message or limit is None:
        return error
    needed = re.search(r'Used ([\d.]+)([KMGT]) of|required[^(]*\(([\d.]+)([KMGT])\)', message)
    return DoesNotFitError(name, needed and to_bytes(needed), to_bytes(limit))


def to_bytes(match: re.Match) -> float:
    number, unit = (group for group in match.groups() if group is not None)
    return float(number) * 1024 ** (1 + 'KMGT'.index(unit))
