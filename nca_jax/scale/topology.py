"""TPU slices that aren't here: their names, the compiler's environment, and whether a program fits their memory.

It needs no TPU, only the package `libtpu`, whose compiler runs on any x86 machine.
"""

import dataclasses
import importlib.util
import math
import os
import re

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from nca_jax.errors import UserError
from nca_jax.scale import chips

GIB = 2**30

# Slices by generation; the compiler knows larger ones too, but these are what one can rent in one piece.
FLAT = ('2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
CUBES = ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8', '8x8x8')
SIZES = {'v4': CUBES, 'v5e': FLAT, 'v5p': CUBES, 'v6e': FLAT}


class DoesNotFitError(Exception):
    """The compiler refused a program: it needs `needed` bytes on each chip (None: unknown) of `limit`."""

    def __init__(self, program: str, needed: float | None, limit: float):
        amount = 'more than' if needed is None else f'{needed / GIB:.2f} GiB of'
        super().__init__(f'the {program} needs {amount} the {limit / GIB:.2f} GiB of HBM that it may use on each chip')
        self.program, self.needed, self.limit = program, needed, limit


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


def open_slice(name: str) -> Slice:
    """The slice of a name that `check_name` accepts.

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
    devices = topologies.get_topology_desc(platform='tpu', topology_name=name, **whole_chips).devices
    return Slice(name, tuple(devices), hbm_limit(devices))


def hbm_limit(devices: list[jax.Device]) -> float:
    """Bytes that a program may use on each chip, from the refusal of one that can't fit: no other interface has it."""
    mesh = jax.sharding.Mesh(devices, ('all',), axis_types=(jax.sharding.AxisType.Auto,))
    # 4 TiB, which no chip has.
    huge = jax.ShapeDtypeStruct((2**42,), jnp.uint8, sharding=jax.NamedSharding(mesh, jax.P()))
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
    size = r'([\d.]+[KMGT])'
    # Of HBM alone: a kernel that is too large for the small memory beside it fits no batch.
    pattern = rf'Used {size} of {size} hbm|\({size}\) exceeds available HBM \({size}\)'
    match = re.search(pattern, str(error))
    if match is None:
        return error
    needed, limit = (
        float(text[:-1]) * 1024 ** (1 + 'KMGT'.index(text[-1])) for text in match.groups() if text is not None
    )
    return DoesNotFitError(name, needed, limit)
