"""What the TPU compiler's optimised program says about its cost: a reader of its text, without running anything.

Every instruction counts as often as the loops around it run. Names of this text are the compiler's own and may change
with its version; `read` refuses a kernel that it doesn't know instead of leaving it out.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

from nca_jax.errors import UserError

WIDTHS = {'pred': 1, 'bf16': 2, 'f16': 2, 's16': 2, 'u16': 2, 's64': 8, 'u64': 8, 'f64': 8, 's8': 1, 'u8': 1}
COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
# Without cycles and without cost: names for what is there, and both ends of a copy that runs beside other work.
FREE = {'get-tuple-element', 'tuple', 'parameter', 'constant', 'bitcast', 'partition-id', 'replica-id', 'after-all'}
FREE_CALLS = {'AllocateBuffer', 'ConcatBitcast', 'AssumeGatherIndicesInBound', 'Sharding', 'SPMDFullToShardShape'}
SLICES = ('dynamic-slice', 'slice', 'gather')
KERNELS = {'splash_mha_fwd': 'forward', 'splash_mha_dkv': 'backward'}
KERNEL_PRODUCTS = {'forward': 2, 'backward': 5}  # of L x L x Dh for each row and head

# The part of a step that an instruction belongs to, by the name that JAX gave it; the first that fits.
PARTS = (
    ('dropout', r'[Dd]ropout|random_bits|threefry|rng'),
    ('projections', r'/attn/(q|k|v|o)/'),
    ('attention', r'/attn/'),
    ('mlp', r'/mlp/'),
    ('norms', r'norm/'),
    ('head', r'blv|cross_entropy|logsumexp'),
    ('embedding', r'/embed/'),
)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation. shape: of its result, as written; text: everything after the opcode."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    text: str

    def called(self, attribute: str) -> str:
        return re.search(rf'{attribute}=%?([\w.-]+)', self.text)[1]

    @property
    def cycles(self) -> float | None:
        found = re.search(r'"estimated_cycles":"(\d+)"', self.text)
        return float(found[1]) if found else None

    @property
    def part(self) -> str:
        named = re.search(r'op_name="([^"]*)"', self.text)
        return next((part for part, pattern in PARTS if named and re.search(pattern, named[1])), 'rest')


@dataclasses.dataclass(frozen=True)
class Collective:
    """kind; bytes that each chip receives, once; members of one group of chips; times; whether it runs beside work."""

    kind: str
    bytes: float
    members: tuple[int, ...]
    times: float
    beside: bool


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


Computations = dict[str, dict[str, Instruction]]


def read(text: str, unknown_trips: float = 1.0) -> Reading:
    """The costs of an optimised program (`compiled.as_text()`).

    `unknown_trips` is how often a loop runs whose length is no constant. Raises UserError for an unknown kernel.
    """
    computations = parse(text)
    cycles, flops, moved, uncounted = 0.0, 0.0, 0.0, 0.0
    parts, collectives, kernels = {}, {}, []
    for at, one, times in executed(computations, unknown_trips):
        body = computations[at]
        for channel, found in _collectives(computations, one).items():
            seen = collectives.get(channel)
            beside = found.beside or (seen is not None and seen.beside)
            collectives[channel] = dataclasses.replace(found, times=times, beside=beside)
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
    return Reading(cycles, parts, flops, moved, uncounted, tuple(collectives.values()), tuple(kernels))


def parse(text: str) -> Computations:
    """Instructions by computation and name; the entry is called 'ENTRY'."""
    computations, body = {}, {}
    for line in re.sub(r'\n(?![%\w}]|  (?:%|ROOT)|\n)', ' ', text).splitlines():
        header = re.match(r'(ENTRY )?%?([\w.-]+) \(.*\{$', line)
        if header:
            body = computations['ENTRY' if header[1] else header[2]] = {}
            continue
        found = re.match(r'  (?:ROOT )?%([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)', line)
        if found:
            name, shape, opcode, rest = found.groups()
            inside = rest[: _closing(rest)]
            body[name] = Instruction(name, shape, opcode, tuple(re.findall(r'%([\w.-]+)', inside)), rest)
    return computations


def executed(
    computations: Computations, unknown_trips: float, at: str = 'ENTRY', times: float = 1.0
) -> Iterator[tuple[str, Instruction, float]]:
    """(computation, instruction, how often) of all that runs, fusions as one. Of branches all are taken."""
    for one in computations[at].values():
        if one.opcode == 'while':
            trips = _trips(computations, one.called('condition'), unknown_trips)
            yield from executed(computations, unknown_trips, one.called('body'), times * trips)
        elif one.opcode == 'conditional':
            for branch in re.findall(r'%([\w.-]+)', re.search(r'branch_computations=\{(.*?)\}', one.text)[1]):
                yield from executed(computations, unknown_trips, branch, times)
        elif one.opcode == 'call':
            yield from executed(computations, unknown_trips, one.called('to_apply'), times)
        else:
            yield at, one, times


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
        contracted = [int(axis) for axis in re.search(r'lhs_contracting_dims=\{([\d,]*)\}', one.text)[1].split(',')]
        return 2.0 * math.prod(out) * math.prod(left[axis] for axis in contracted)
    return _convolution_flops(one.text, left, right, out)


def dims(shape: str) -> tuple[int, ...]:
    """Of the first array in a shape."""
    found = re.search(r'\w+\[([\d,]*)\]', shape)[1]
    return tuple(int(size) for size in found.split(',') if size)


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


def _collectives(computations: Computations, one: Instruction) -> dict[str, Collective]:
    """By channel: an asynchronous one is a clone in every fusion from its start to its end."""
    if one.opcode == 'fusion':
        found = {}
        for each in computations[one.called('calls')].values():
            found |= _collectives(computations, each)
        if one.shape and 'all-reduce-scatter' in one.called('calls'):
            return {c: dataclasses.replace(f, kind='reduce-scatter', bytes=f.bytes / 2) for c, f in found.items()}
        beside = 'async' in one.name or 'async' in one.called('calls')
        return {channel: dataclasses.replace(f, beside=f.beside or beside) for channel, f in found.items()}
    kind = one.opcode.removesuffix('-start')
    if kind not in COLLECTIVES:
        return {}
    channel = re.search(r'channel_id=(\d+)', one.text)
    members = group(one.text)
    size = nbytes(one.shape) / (2 if one.opcode.endswith('-start') and kind != 'all-reduce' else 1)
    share = (len(members) - 1) / len(members)
    factor = {'all-reduce': 2 * share, 'reduce-scatter': len(members) - 1, 'collective-permute': 1.0}
    volume = size * factor.get(kind, share)
    return {channel[1] if channel else one.name: Collective(kind, volume, members, 1.0, one.opcode.endswith('-start'))}


def group(text: str) -> tuple[int, ...]:
    """The devices of a collective's first group, as positions in the mesh."""
    pairs = re.search(r'source_target_pairs=\{\{(\d+),(\d+)\}', text)
    if pairs:
        return int(pairs[1]), int(pairs[2])
    listed = re.search(r'replica_groups=\{\{([\d,]+)\}', text)
    if listed:
        return tuple(int(number) for number in listed[1].split(','))
    counted = re.search(r'replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', text)
    if counted:
        sizes = [int(size) for size in counted[3].split(',')]
        order = [int(axis) for axis in counted[4].split(',')] if counted[4] else range(len(sizes))
        return tuple(_numbered(sizes, order)[: int(counted[2])])
    axes, chosen = re.search(r'replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}', text).groups()
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", axes)}
    names, inner = list(sizes), re.findall(r"'(\w+)'", chosen)
    order = [*(i for i, name in enumerate(names) if name not in inner), *(names.index(name) for name in inner)]
    return tuple(_numbered(list(sizes.values()), order)[: math.prod(sizes[name] for name in inner)])


def _numbered(sizes: list[int], order) -> list[int]:
    """Row-major numbers of a grid of `sizes`, read with its axes in another `order`."""
    strides = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    numbers = [0]
    for axis in order:
        numbers = [number + strides[axis] * place for number in numbers for place in range(sizes[axis])]
    return numbers


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
    return one.opcode in FREE or one.opcode.endswith(('-start', '-done')) or bool(_collectives(computations, one))


def nbytes(shape: str, hbm_only: bool = False) -> float:
    """Bytes of all arrays in a shape; with `hbm_only` without those that live in the chip's own memories."""
    total = 0.0
    for dtype, sizes, layout in re.findall(r'(\w+)\[([\d,]*)\](\{[^}]*\})?', shape):
        if not (hbm_only and re.search(r'S\(\d+\)', layout)):
            total += math.prod(int(size) for size in sizes.split(',') if size) * WIDTHS.get(dtype, 4)
    return total


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


def _trips(computations: Computations, condition: str, unknown: float) -> float:
    """The constant in a loop's condition: these loops count from 0 in ones."""
    constants = []
    for one in computations[condition].values():
        inner = computations[one.called('calls')].values() if one.opcode == 'fusion' else ()
        for each in (one, *inner):
            if each.opcode == 'constant':
                constants += [int(number) for number in re.findall(r'^(\d+)\)', each.text)]
    return float(max(constants)) if constants else unknown


def _closing(text: str) -> int:
    """Where the bracket closes that was opened just before `text`."""
    depth = 1
    for place, character in enumerate(text):
        depth += (character == '(') - (character == ')')
        if not depth:
            return place
    return len(text)
