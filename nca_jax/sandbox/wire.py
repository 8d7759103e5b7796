"""Plain values as bytes: all that passes between a candidate's process and that of its tests.

Only values of Python's own types can come out of `decode`, whatever bytes go in, and nothing is run. So an answer that
claims to be equal to everything arrives as what it holds, or not at all. A subclass of a built-in type (a Counter, a
namedtuple) arrives as the plain value it holds.
"""

import os
import struct
from collections.abc import Callable

DEPTH = 100  # of values in values
MOST_BYTES = 8 << 20  # of one value or frame


class NotPlainError(ValueError):
    """A value that has no plain form, or bytes that are of none."""


def encode(value: object) -> bytes:
    """NotPlainError for other types, for values nested deeper than DEPTH, and above MOST_BYTES."""
    parts: list[bytes] = []
    _write(value, parts, [MOST_BYTES], DEPTH)
    return b''.join(parts)


def decode(data: bytes) -> object:
    """The value of `encode`. NotPlainError for bytes that are of none."""
    try:
        value, end = _read(data, 0, DEPTH)
    except NotPlainError:
        raise
    except (struct.error, KeyError, TypeError, ValueError) as error:
        raise NotPlainError(f'bytes of no plain value: {type(error).__name__}') from None
    if end != len(data):
        raise NotPlainError('bytes after a value')
    return value


def send(file: int, data: bytes) -> None:
    """A frame: length and bytes."""
    left = memoryview(struct.pack('<I', len(data)) + data)
    while left:
        left = left[os.write(file, left) :]


def receive(file: int, most: int = MOST_BYTES) -> bytes | None:
    """The next frame; None where the other side is gone, cuts a frame short or announces more than `most` bytes."""
    header = _exactly(file, 4)
    if header is None or (size := struct.unpack('<I', header)[0]) > most:
        return None
    return _exactly(file, size)


def _exactly(file: int, size: int) -> bytes | None:
    parts = []
    while size:
        part = os.read(file, min(size, 1 << 20))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b''.join(parts)


def _write(value: object, parts: list[bytes], left: list[int], depth: int) -> None:
    kind = type(value)
    if kind not in _TAGS:
        kind = next((kind for kind in _TAGS if isinstance(value, kind)), None)
        if kind is None:
            raise NotPlainError(f'a {type(value).__name__} is no plain value')
    if depth == 0:
        raise NotPlainError(f'values nested more than {DEPTH} deep')
    body = _BODIES[kind](value) if kind in _BODIES else b''
    items = _ITEMS[kind](value) if kind in _ITEMS else ()
    size = len(items) if kind in _ITEMS else len(body)
    left[0] -= 5 + len(body)
    if left[0] < 0:
        raise NotPlainError(f'more than {MOST_BYTES} bytes')
    parts.append(struct.pack('<cI', _TAGS[kind], size) + body)
    for item in items:
        _write(item, parts, left, depth - 1)


def _read(data: bytes, start: int, depth: int) -> tuple[object, int]:
    tag, size = struct.unpack_from('<cI', data, start)
    start += 5
    if depth == 0:
        raise NotPlainError(f'values nested more than {DEPTH} deep')
    if tag in _SCALARS:
        if start + size > len(data):
            raise NotPlainError('bytes are missing')
        return _SCALARS[tag](data[start : start + size]), start + size
    items = []
    for _ in range(size):
        item, start = _read(data, start, depth - 1)
        items.append(item)
    return _GROUPS[tag](items), start


def _whole(value: int) -> bytes:
    return int.to_bytes(value, int.bit_length(value) // 8 + 1, 'little', signed=True)


def _flat(value: dict) -> list:
    return [part for pair in dict.items(value) for part in pair]


def _pairs(items: list) -> dict:
    return dict(zip(items[::2], items[1::2], strict=True))


_TAGS: dict[type, bytes] = {
    type(None): b'n',
    bool: b'o',
    int: b'i',
    float: b'f',
    complex: b'c',
    str: b's',
    bytes: b'b',
    bytearray: b'y',
    list: b'l',
    tuple: b't',
    dict: b'd',
    set: b'e',
    frozenset: b'z',
}
_BODIES: dict[type, Callable[[object], bytes]] = {
    bool: lambda value: b'\1' if value else b'',
    int: _whole,
    float: lambda value: struct.pack('<d', value),
    complex: lambda value: struct.pack('<dd', value.real, value.imag),
    str: lambda value: str.encode(value, 'utf-8', 'surrogatepass'),
    bytes: lambda value: bytes.__getitem__(value, slice(None)),
    bytearray: lambda value: bytes(bytearray.__getitem__(value, slice(None))),
}
_ITEMS: dict[type, Callable[[object], list]] = {
    list: lambda value: list(list.__iter__(value)),
    tuple: lambda value: list(tuple.__iter__(value)),
    dict: _flat,
    set: lambda value: list(set.__iter__(value)),
    frozenset: lambda value: list(frozenset.__iter__(value)),
}
_SCALARS: dict[bytes, Callable[[bytes], object]] = {
    b'n': lambda body: None,
    b'o': bool,
    b'i': lambda body: int.from_bytes(body, 'little', signed=True),
    b'f': lambda body: struct.unpack('<d', body)[0],
    b'c': lambda body: complex(*struct.unpack('<dd', body)),
    b's': lambda body: body.decode('utf-8', 'surrogatepass'),
    b'b': bytes,
    b'y': bytearray,
}
_GROUPS: dict[bytes, Callable[[list], object]] = {
    b'l': list,
    b't': tuple,
    b'd': _pairs,
    b'e': set,
    b'z': frozenset,
}
