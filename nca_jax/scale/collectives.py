"""What chips send to each other in a program, and which of them: by kind, bytes and members."""

import dataclasses
import math
import re

from nca_jax.scale.program import Computations, Instruction, nbytes

COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')


@dataclasses.dataclass(frozen=True)
class Collective:
    """kind; bytes that each chip receives, once; members of one group of chips; times; whether it runs beside work."""

    kind: str
    bytes: float
    members: tuple[int, ...]
    times: float
    beside: bool


def begun(computations: Computations, one: Instruction) -> list[Collective]:
    """What an instruction begins. Of an asynchronous one every fusion up to its end has a clone; the first counts."""
    if one.opcode == 'fusion':
        called = one.called('calls')
        inside = computations[called].values()
        found = [collective for each in inside for collective in begun(computations, each)]
        if asynchronous(one):
            starts = any('AsyncCollectiveStart' in each.text for each in inside)
            return [dataclasses.replace(collective, beside=True) for collective in found] if starts else []
        if 'all-reduce-scatter' in called:
            return [dataclasses.replace(each, kind='reduce-scatter', bytes=each.bytes / 2) for each in found]
        return found
    kind = one.opcode.removesuffix('-start')
    if kind not in COLLECTIVES:
        return []
    beside = one.opcode.endswith('-start')
    members = group(one.text)
    size, count = nbytes(one.shape), len(members)
    if beside:  # the shape is of operand and result, but for an all-reduce
        of_result = {'all-gather': count / (count + 1), 'reduce-scatter': 1 / (count + 1), 'all-reduce': 1.0}
        size *= of_result.get(kind, 1 / 2)
    share = (count - 1) / count
    factor = {'all-reduce': 2 * share, 'reduce-scatter': count - 1, 'collective-permute': 1.0}
    return [Collective(kind, size * factor.get(kind, share), members, 1.0, beside)]


def asynchronous(one: Instruction) -> bool:
    return 'async' in one.name or 'async' in one.called('calls')


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
