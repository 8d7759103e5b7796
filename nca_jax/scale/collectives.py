"""Bytes that a compiled program's collectives move, read from the compiler's text (`compiled.as_text()`).

XLA's own `cost_analysis` has no collectives, and counts the body of a loop once.
"""

import collections
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')


class Instruction(NamedTuple):
    """One line of a computation: `%name = shape opcode(rest`."""

    name: str
    shape: str
    opcode: str
    rest: str

    def attribute(self, name: str) -> str:
        return re.search(rf'{name}=%?([\w.-]+)', self.rest)[1]


Computations = dict[str, dict[str, Instruction]]


def volumes(text: str) -> dict[str, float]:
    """Bytes that each chip receives in one run of the program, by kind of collective.

    - Covered: the entry, fusions, and loops that count in ones from 0 to a constant, as all of a train step do.
    - Not covered: any other loop counts once, and a condition's branches not at all.
    """
    computations = parse(text)
    received = collections.Counter()
    for place, line, times in executed(computations, 'ENTRY', 1):
        kind = line.opcode.removesuffix('-done')
        if kind in KINDS:
            # The end of an asynchronous collective has the shape of its result, the start its members.
            start = line if kind == line.opcode else computations[place][re.match(r'%([\w.-]+)', line.rest)[1]]
            size = times * received_bytes(kind, line.shape, start.rest)
            # A fusion that keeps a piece of the sum does half of an all-reduce.
            if 'all-reduce-scatter' in place:
                kind, size = 'reduce-scatter', size / 2
            received[kind] += size
    return dict(sorted(received.items()))


def parse(text: str) -> Computations:
    """The instructions of each computation by name. The computation where the program begins is 'ENTRY'."""
    computations: Computations = {}
    # Comments, such as the numbers of a long tuple's parts, may stand anywhere.
    for line in re.sub(r'/\*.*?\*/', '', text).splitlines():
        if header := re.match(r'(ENTRY )?%?([\w.-]+) \(.*\{$', line):
            body = computations['ENTRY' if header[1] else header[2]] = {}
        elif match := re.match(r'  (?:ROOT )?%([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)', line):
            body[match[1]] = Instruction(*match.groups())
    return computations


def executed(computations: Computations, place: str, times: int) -> Iterator[tuple[str, Instruction, int]]:
    """(computation, instruction, how often) of what runs in the computation `place` and inside it."""
    for line in computations[place].values():
        yield place, line, times
        if line.opcode == 'while':
            condition = computations[line.attribute('condition')].values()
            constants = [re.match(r'(\d+)\)', inner.rest) for inner in condition if inner.opcode == 'constant']
            # The counter must stay below the largest constant.
            turns = max((int(match[1]) for match in constants if match), default=1)
            yield from executed(computations, line.attribute('body'), times * turns)
        elif line.opcode == 'fusion':
            called = line.attribute('calls')
            starts = any('AsyncCollectiveStart' in inner.rest for inner in computations[called].values())
            # Each fusion beside a collective that an earlier one began has a copy of it, which is no second one.
            if starts or 'async' not in line.name + called:
                yield from executed(computations, called, times)


def received_bytes(kind: str, result: str, groups: str) -> float:
    """Bytes that each member receives once, on a ring, for a result of this shape."""
    # Every member receives all of another's piece.
    if kind == 'collective-permute':
        return nbytes(result)
    count = members(groups)
    share = (count - 1) / count
    # An all-reduce is a reduce-scatter and an all-gather; a reduce-scatter's result is one member's piece.
    return nbytes(result) * {'all-reduce': 2 * share, 'reduce-scatter': count - 1}.get(kind, share)


def members(text: str) -> int:
    """The size of a collective's groups, from each of the three forms in which they are written."""
    # The members of the first group, listed.
    if listed := re.search(r'replica_groups=\{\{([\d,]+)\}', text):
        return len(listed[1].split(','))
    # (number of groups, members of each).
    if counted := re.search(r'replica_groups=\[\d+,(\d+)\]<=', text):
        return int(counted[1])
    # The sizes of a mesh's axes, and the axes that a group spans.
    axes, chosen = re.search(r'replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}', text).groups()
    return math.prod(int(size) for name, size in re.findall(r"('\w+')=(\d+)", axes) if name in chosen)


def nbytes(shape: str) -> float:
    """Bytes of all arrays in a shape such as `(f32[8,128], pred[64])`. The first number in a dtype is its bits."""
    total = 0.0
    for dtype, sizes in re.findall(r'(\w+)\[([\d,]*)\]', shape):
        bits = re.search(r'\d+', dtype)
        # `pred` is a byte.
        width = int(bits[0]) / 8 if bits else 1
        total += width * math.prod(int(size) for size in sizes.split(',') if size)
    return total
