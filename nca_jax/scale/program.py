"""The TPU compiler's optimised program as data: its computations, instructions, and how often each of them runs.

It is read from the text, `compiled.as_text()`: names there are the compiler's own and may change with its version.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

WIDTHS = {'pred': 1, 'bf16': 2, 'f16': 2, 's16': 2, 'u16': 2, 's64': 8, 'u64': 8, 'f64': 8, 's8': 1, 'u8': 1}

# The part of a step that an instruction belongs to, by the name that JAX gave it; the first that fits.
PARTS = (
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


Computations = dict[str, dict[str, Instruction]]


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
            trips = _trips(computations, one, unknown_trips)
            yield from executed(computations, unknown_trips, one.called('body'), times * trips)
        elif one.opcode == 'conditional':
            for branch in re.findall(r'%([\w.-]+)', re.search(r'branch_computations=\{(.*?)\}', one.text)[1]):
                yield from executed(computations, unknown_trips, branch, times)
        elif one.opcode == 'call':
            yield from executed(computations, unknown_trips, one.called('to_apply'), times)
        else:
            yield at, one, times


def _trips(computations: Computations, loop: Instruction, unknown: float) -> float:
    """How often a loop runs that counts from 0 to the constant in its condition."""
    condition, body = (computations[loop.called(attribute)] for attribute in ('condition', 'body'))
    limits = []
    for one in condition.values():
        inner = computations[one.called('calls')].values() if one.opcode == 'fusion' else ()
        limits += [number for each in (one, *inner) if (number := _constant(each)) is not None]
    return float(math.ceil(max(limits) / _step(condition, body))) if limits else unknown


def _step(condition: dict[str, Instruction], body: dict[str, Instruction]) -> int:
    """What a loop adds to its counter: more than 1 where the compiler has written several turns into one."""
    counter = next((one for one in condition.values() if one.opcode == 'get-tuple-element'), None)
    carried = list(body.values())[-1].operands
    place = re.search(r'index=(\d+)', counter.text) if counter else None
    if place is None or int(place[1]) >= len(carried) or carried[int(place[1])] not in body:
        return 1
    added = body[carried[int(place[1])]]
    steps = [_constant(body[name]) for name in added.operands if name in body] if added.opcode == 'add' else []
    return max((step for step in steps if step), default=1)


def _constant(one: Instruction) -> int | None:
    found = re.match(r'(\d+)\)', one.text) if one.opcode == 'constant' else None
    return int(found[1]) if found else None


def _closing(text: str) -> int:
    """Where the bracket closes that was opened just before `text`."""
    depth = 1
    for place, character in enumerate(text):
        depth += (character == '(') - (character == ')')
        if not depth:
            return place
    return len(text)


def dims(shape: str) -> tuple[int, ...]:
    """Of the first array in a shape."""
    found = re.search(r'\w+\[([\d,]*)\]', shape)[1]
    return tuple(int(size) for size in found.split(',') if size)


def nbytes(shape: str, hbm_only: bool = False) -> float:
    """Bytes of all arrays in a shape; with `hbm_only` without those that live in the chip's own memories."""
    total = 0.0
    for dtype, sizes, layout in re.findall(r'(\w+)\[([\d,]*)\](\{[^}]*\})?', shape):
        if not (hbm_only and re.search(r'S\(\d+\)', layout)):
            total += math.prod(int(size) for size in sizes.split(',') if size) * WIDTHS.get(dtype, 4)
    return total
