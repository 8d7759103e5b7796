"""What an optimised program costs on a chip, by what the TPU compiler wrote into it, without running anything.

Every instruction counts as often as the loops around it run. `read` refuses a kernel that it doesn't know instead of
leaving it out.
"""

import dataclasses
import functools
import math
import re

from nca_jax.errors import UserError
from nca_jax.scale.collectives import Collective, asynchronous, begun
from nca_jax.scale.program import Computations, Instruction, dims, executed, nbytes, parse

# Without cycles and without cost: names for what is there, and both ends of a copy that runs beside other work.
FREE = {'get-tuple-element', 'tuple', 'parameter', 'constant', 'bitcast', 'partition-id', 'replica-id', 'after-all'}
FREE_CALLS = {'AllocateBuffer', 'ConcatBitcast', 'AssumeGatherIndicesInBound', 'Sharding', 'SPMDFullToShardShape'}
SLICES = ('dynamic-slice', 'slice', 'gather')
KERNELS = {'splash_mha_fwd': 'forward', 'splash_mha_dkv': 'backward'}
KERNEL_PRODUCTS = {'forward': 2, 'backward': 5}  # of L x L x Dh for each row and head


@dataclasses.dataclass(frozen=True)
class Kernel:
    """An attention kernel, without cycles of its own: 'forward' or 'backward', (B, H, L, Dh), dtype, times."""

    direction: str
    shape: tuple[int, int, int, int]
    dtype: str
    times: float

    @property
    def flops(self) -> float:
        """Of one call, nothing left out for the mask: at these lengths a kernel's block is the whole square."""
        rows, heads, length, width = self.shape
        return KERNEL_PRODUCTS[self.direction] * 2.0 * rows * heads * length**2 * width


@dataclasses.dataclass(frozen=True)
class Reading:
    """Costs of one program on one chip.

    cycles: the compiler's, of all that it estimates; cycles_by_part says whose they are. flops: of products, kernels
    too. bytes: moved from or to HBM. uncounted: those of instructions that have no cycles and must be charged by them.
    """

    cycles: float
    cycles_by_part: dict[str, float]
    flops: float
    bytes: float
    uncounted: float
    collectives: tuple[Collective, ...]
    kernels: tuple[Kernel, ...]


def read(text: str, unknown_trips: float = 1.0) -> Reading:
    """The costs of an optimised program (`compiled.as_text()`).

    `unknown_trips` is how often a loop runs whose length is no constant. Raises UserError for an unknown kernel.
    """
    computations = parse(text)
    cycles, flops, moved, uncounted = 0.0, 0.0, 0.0, 0.0
    parts, collectives, kernels = {}, [], []
    for at, one, times in executed(computations, unknown_trips):
        body = computations[at]
        collectives += [dataclasses.replace(found, times=times) for found in begun(computations, one)]
        kernel = _kernel(one)
        if kernel:
            kernels.append(dataclasses.replace(kernel, times=times))
        own = one.cycles
        size = _hbm_bytes(computations, body, one)
        moved += size * times
        flops += times * (products(computations, at, one) + (kernel.flops if kernel else 0.0))
        if own is not None:
            cycles += own * times
            parts[one.part] = parts.get(one.part, 0.0) + own * times
        elif not (kernel or _free(computations, one)):
            uncounted += size * times
    return Reading(cycles, parts, flops, moved, uncounted, tuple(collectives), tuple(kernels))


def products(computations: Computations, at: str, one: Instruction) -> float:
    """FLOPs of an instruction's products, those inside a fusion too. An overlapped part of a collective has none."""
    if one.opcode == 'fusion':
        inside = one.called('calls')
        return sum(products(computations, inside, each) for each in computations[inside].values())
    if one.opcode not in ('convolution', 'dot'):
        return 0.0
    left, right = (dims(computations[at][name].shape) for name in one.operands[:2])
    out = dims(one.shape)
    if one.opcode == 'dot':
        contracted = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', one.text)[1].split(',')
        return 2.0 * math.prod(out) * math.prod(left[int(axis)] for axis in contracted if axis)
    return _convolution_flops(one.text, left, right, out)


def _convolution_flops(text: str, left: tuple, right: tuple, out: tuple) -> float:
    """A TPU's products are convolutions; batch axes are windows of which dilation leaves one place that counts."""
    in_labels, kernel_labels, out_labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', text).groups()
    window = dict(re.findall(r'(size|stride|pad|lhs_dilate|rhs_dilate)=([\dx_-]+)', _window(text)))
    places = 1
    for axis in (label for label in kernel_labels if label.isdigit()):
        number = int(axis)
        field = {name: values.split('x')[number] for name, values in window.items()}
        low = int(field['pad'].split('_')[0]) if 'pad' in field else 0
        stride, base_step, tap_step = (int(field.get(n, '1')) for n in ('stride', 'lhs_dilate', 'rhs_dilate'))
        size, taps = left[in_labels.index(axis)], right[kernel_labels.index(axis)]
        places *= _places(size, taps, out[out_labels.index(axis)], low, stride, base_step, tap_step)
    others = out[out_labels.index('b')] * out[out_labels.index('f')] * right[kernel_labels.index('i')]
    groups = re.search(r'batch_group_count=(\d+)', text)
    return 2.0 * others * places / (int(groups[1]) if groups else 1)


@functools.cache
def _places(size: int, taps: int, outs: int, low: int, stride: int, base_step: int, tap_step: int) -> int:
    """Pairs of an output position and a tap of the window that meet an input, not padding nor a gap of dilation."""
    if taps == 1 and low == 0 and base_step == 1:
        return outs
    reach = (size - 1) * base_step
    positions = (o * stride + k * tap_step - low for o in range(outs) for k in range(taps))
    return sum(0 <= position <= reach and position % base_step == 0 for position in positions)


def _window(text: str) -> str:
    found = re.search(r'window=\{(.*?)\}', text)
    return found[1] if found else ''


def _kernel(one: Instruction) -> Kernel | None:
    if one.opcode != 'custom-call' or 'custom_call_target="tpu_custom_call"' not in one.text:
        return None
    direction = next((direction for prefix, direction in KERNELS.items() if one.name.startswith(prefix)), None)
    found = re.search(r'operand_layout_constraints=\{.*?\b(bf16|f32)\[(\d+),(\d+),(\d+),(\d+)\]', one.text)
    if direction is None or found is None:
        raise UserError(f'the program calls a kernel, {one.name}, for which there is no estimate')
    return Kernel(direction, tuple(int(size) for size in found.groups()[1:]), found[1], 1.0)


def _free(computations: Computations, one: Instruction) -> bool:
    if one.opcode == 'custom-call':
        return re.search(r'custom_call_target="(\w+)"', one.text)[1] in FREE_CALLS
    if one.opcode == 'fusion' and asynchronous(one):
        return True
    return one.opcode in FREE or one.opcode.endswith(('-start', '-done')) or bool(begun(computations, one))


def _hbm_bytes(computations: Computations, body: dict[str, Instruction], one: Instruction) -> float:
    """Bytes read and written in HBM; of an operand that a fusion only slices, the slices."""
    if one.opcode in FREE or one.opcode.endswith('-start'):
        return 0.0
    if one.opcode.endswith('-done'):
        return nbytes(one.shape)
    written = nbytes(one.shape, hbm_only=True)
    inside = computations[one.called('calls')] if one.opcode == 'fusion' else None
    root = list(inside.values())[-1] if inside else one
    if root.opcode == 'dynamic-update-slice':  # in place: the rest isn't touched
        update = (inside or body)[root.operands[1]]
        return 2 * nbytes(update.shape)
    read_bytes = 0.0
    for number, name in enumerate(one.operands):
        size = nbytes(body[name].shape, hbm_only=True) if name in body else 0.0
        if size and inside:
            size = min(size, _used(inside, number, size))
        elif size and one.opcode in SLICES:
            size = nbytes(one.shape)
        read_bytes += size
    return read_bytes + written


def _used(inside: dict[str, Instruction], number: int, whole: float) -> float:
    parameter = next(
        (i.name for i in inside.values() if i.opcode == 'parameter' and i.text.startswith(f'{number})')), ''
    )
    users = [each for each in inside.values() if parameter in each.operands]
    if users and all(each.opcode in SLICES and each.operands[0] == parameter for each in users):
        return sum(nbytes(each.shape) for each in users)
    return whole
