"""Plain values as bytes: all that passes between a candidate's process and that of its tests.

- `decode` returns values of Python's own types alone, whatever the bytes are, and runs nothing. An answer whose class
  claims to be equal to everything arrives as the plain value it holds, or not at all.
- A subclass of a plain type (a Counter, a namedtuple) arrives as that type.
"""

import os
import struct
from typing import BinaryIO

# Of values in values, so that no answer exhausts the reader's stack.
DEPTH = 100
# Of one value or frame.
MOST_BYTES = 8 << 20


class NotPlainError(ValueError):
    """The value has no plain form, or the bytes hold no plain value."""


def encode(value: object) -> bytes:
    """Raises NotPlainError for other types, for values nested deeper than DEPTH, and above MOST_BYTES."""
    data = bytearray()
    _write(value, data, DEPTH)
    return bytes(data)


def decode(data: bytes) -> object:
    """Raises NotPlainError for bytes of no plain value."""
    try:
        value, end = _read(data, 0, DEPTH)
    # KeyError for an unknown tag, TypeError for a list as a key.
    except (struct.error, KeyError, TypeError, ValueError) as error:
        raise NotPlainError(f'bytes of no plain value: {type(error).__name__}') from None
    if end != len(data):
        raise NotPlainError('bytes after a value')
    return value


def send(file: int, data: bytes) -> None:
    """Writes a frame: length and bytes."""
    left = memoryview(struct.pack('<I', len(data)) + data)
    # A pipe takes a part of a large frame at a time.
    while left:
        left = left[os.write(file, left) :]


def receive(file: BinaryIO, most: int = MOST_BYTES) -> bytes | None:
    """Returns the next frame; None if the other side is gone, cuts it short or announces more than `most` bytes."""
    header = file.read(4)
    if len(header) < 4 or (size := struct.unpack('<I', header)[0]) > most:
        return None
    data = file.read(size)
    return data if len(data) == size else None


# A string may hold half of a surrogate pair.
TEXT = 'utf-8', 'surrogatepass'
# Tag, and how a body is written and read. Unbound methods, so that a subclass's own don't run.
SCALARS = {
    type(None): (b'n', lambda value: b'', lambda body: None),
    bool: (b'o', lambda value: b'\1' if value else b'', bool),
    int: (b'i', lambda value: b'%x' % value, lambda body: int(body, 16)),
    float: (b'f', lambda value: struct.pack('<d', value), lambda body: struct.unpack('<d', body)[0]),
    complex: (
        b'c',
        lambda value: struct.pack('<dd', value.real, value.imag),
        lambda body: complex(*struct.unpack('<dd', body)),
    ),
    str: (b's', lambda value: str.encode(value, *TEXT), lambda body: body.decode(*TEXT)),
    bytes: (b'b', lambda value: bytes.__getitem__(value, slice(None)), bytes),
    bytearray: (b'y', lambda value: bytes(bytearray.__getitem__(value, slice(None))), bytearray),
}
GROUPS = {list: b'l', tuple: b't', dict: b'd', set: b'e', frozenset: b'z'}
_SCALAR_READERS = {tag: read for tag, _, read in SCALARS.values()}
_GROUP_TYPES = {tag: kind for kind, tag in GROUPS.items()}


def _write(value: object, data: bytearray, depth: int) -> None:
    """Appends a value: tag, size and body. The size of a group is the number of its items, which follow."""
    # The nearest plain type, as which a subclass is sent.
    kind = next((kind for kind in type(value).__mro__ if kind in SCALARS or kind in GROUPS), None)
    if kind is None:
        raise NotPlainError(f'a {type(value).__name__} is no plain value')
    if depth == 0:
        raise NotPlainError(f'values nested more than {DEPTH} deep')
    if kind in SCALARS:
        tag, write, _ = SCALARS[kind]
        body, items = write(value), []
    else:
        items = [part for pair in dict.items(value) for part in pair] if kind is dict else list(kind.__iter__(value))
        tag, body = GROUPS[kind], b''
    if len(data) + 5 + len(body) > MOST_BYTES:
        raise NotPlainError(f'more than {MOST_BYTES} bytes')
    data += struct.pack('<cI', tag, len(body) or len(items))
    data += body
    for item in items:
        _write(item, data, depth - 1)


def _read(data: bytes, start: int, depth: int) -> tuple[object, int]:
    """Returns the value that begins at `start`, and where it ends."""
    tag, size = struct.unpack_from('<cI', data, start)
    start += 5
    if depth == 0:
        raise NotPlainError(f'values nested more than {DEPTH} deep')
    if tag in _SCALAR_READERS:
        # A slice beyond the end would be shorter, without an error.
        if start + size > len(data):
            raise NotPlainError('bytes are missing')
        return _SCALAR_READERS[tag](data[start : start + size]), start + size
    kind, items = _GROUP_TYPES[tag], []
    for _ in range(size):
        item, start = _read(data, start, depth - 1)
        items.append(item)
    if kind is dict:
        return dict(zip(items[::2], items[1::2], strict=True)), start
    return kind(items), start
