"""The two processes of one program: the candidate's answers calls, the tests' makes the calls and judges the answers.

Only the tests' side ever sees tests and nonce. Only plain values pass between the two, as bytes:

- `decode` returns values of Python's own types alone, whatever the bytes are, and runs nothing. An answer whose class
  claims to be equal to everything arrives as the plain value it holds, or not at all.
- A subclass of a plain type (a Counter, a namedtuple) arrives as that type.
"""

import builtins
import json
import os
import struct
import sys
import types
from collections.abc import Callable
from typing import BinaryIO, NoReturn

# First byte of a report, before the nonce or the reason.
PASSED, FAILED = b'+', b'-'
REPORT_BYTES = 1024
# Characters of an error's message.
TEXT_LENGTH = 200
# Exceptions that aren't rebuilt: UnicodeErrors take other arguments, and the others would end an iteration, so that
# all(map(f, ...)) over calls would be over, and true, with the first of them.
NOT_REBUILT = UnicodeError, StopIteration, StopAsyncIteration
# A candidate's process sends this before it reads the program.
READY = b'confined'
# Exit codes of the tests' side: the candidate's process ended, it never got ready, or no report could be sent.
CANDIDATE_GONE, NEVER_READY, SPEECHLESS = 3, 4, 5


class RaisedError(Exception):
    """The name and the text of an exception that the candidate raised, in its own process."""


def candidate_side(calls: int, answers: int) -> None:
    """Loads the program, the first message of `calls`, then answers each call of its entry point, until its end."""
    send(answers, READY)
    messages = os.fdopen(calls, 'rb')
    source, entry_point = decode(receive(messages))
    module = types.ModuleType('candidate')
    sys.modules['candidate'] = module

    def load() -> None:
        exec(compile(source, '<candidate>', 'exec', dont_inherit=True), module.__dict__)
        if entry_point not in module.__dict__:
            raise NameError(f'name {entry_point!r} is not defined')

    def call(arguments: tuple, named: dict[str, object]) -> object:
        # Looked up at each call, since the program may bind the name anew.
        return module.__dict__[entry_point](*arguments, **named)

    send(answers, _answer(load))
    while (message := receive(messages)) is not None:
        send(answers, _answer(call, *decode(message)))


def _answer(work: Callable[..., object], *arguments: object) -> bytes:
    """Returns its value as a message, or the name and the text of the exception that it raised."""
    try:
        return encode(('value', work(*arguments)))
    except NotPlainError as error:
        return encode(('not plain', str(error)))
    except BaseException as error:
        return encode(('raised', type(error).__name__, _text(error)))


def _text(error: BaseException) -> str:
    try:
        return str(error)[:TEXT_LENGTH]
    # A candidate's own class may do anything in its __str__.
    except BaseException:
        return ''


def tests_side(judge: int, calls: int, answers: int) -> None:
    """Runs the tests that the judge sends against the candidate, and reports the nonce or the reason to the judge."""
    replies = os.fdopen(answers, 'rb')
    if receive(replies) != READY:
        os._exit(NEVER_READY)

    def leave(reason: str, code: int = 0) -> NoReturn:
        """Ends this process with a report. It raises nothing, since tests may catch all exceptions."""
        try:
            line = ' '.join(reason.split()).encode('utf-8', 'backslashreplace')
            send(judge, FAILED + line[:REPORT_BYTES])
        # No memory is left, or nobody listens.
        except BaseException:
            code = SPEECHLESS
        os._exit(code)

    def ask(message: bytes) -> object:
        """Sends a message to the candidate, and returns the value of its answer or raises RaisedError."""
        try:
            send(calls, message)
            reply = receive(replies)
        except BrokenPipeError:
            reply = None
        if reply is None:
            leave('gone', CANDIDATE_GONE)
        try:
            kind, *rest = decode(reply)
        except (NotPlainError, TypeError, ValueError):
            leave('answer: bytes of no plain value')
        if kind == 'value' and len(rest) == 1:
            return rest[0]
        if kind == 'raised' and len(rest) == 2 and all(type(part) is str for part in rest):
            raise RaisedError(*(part[:TEXT_LENGTH] for part in rest))
        # Only text is reported: Python refuses to write an integer of many digits.
        leave(f'answer: {rest[0][:TEXT_LENGTH] if rest and type(rest[0]) is str else ""}')

    try:
        request = json.loads(receive(os.fdopen(judge, 'rb', closefd=False), most=1 << 30))
        if reason := _judge(request, ask):
            leave(reason)
        send(judge, PASSED + request['nonce'].encode())
    # The candidate may send anything, so this is no failure of the sandbox itself, which has exit codes of its own.
    except BaseException as error:
        leave(_reason(type(error).__name__, _text(error)))


def _judge(request: dict[str, str], ask: Callable[[bytes], object]) -> str | None:
    """Returns why the program failed; None if it was loaded and every test passed."""
    try:
        ask(encode((request['source'], request['entry_point'])))
    except NotPlainError as error:
        return f'source: {error}'
    except RaisedError as error:
        return _reason(*error.args)

    def candidate(*arguments: object, **named: object) -> object:
        try:
            return ask(encode((arguments, named)))
        except RaisedError as error:
            # Tests may expect Python's own exception of that name.
            name, text = error.args
            kind = getattr(builtins, name, None)
            own = isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, NOT_REBUILT)
            raise (kind(text) if own else RuntimeError(f'{name}: {text}')) from error

    names = {'__name__': 'tests'}
    try:
        exec(compile(request['setup'], '<setup>', 'exec', dont_inherit=True), names)
        names[request['entry_point']] = candidate
        exec(compile(request['tests'], '<tests>', 'exec', dont_inherit=True), names)
        names['check'](candidate)
    except BaseException as error:
        # The candidate's own exception is reported as the candidate raised it.
        if isinstance(error.__cause__, RaisedError):
            return _reason(*error.__cause__.args)
        return 'wrong' if isinstance(error, AssertionError) else _reason(type(error).__name__, _text(error))
    return None


def _reason(name: str, text: str) -> str:
    return 'memory' if name == 'MemoryError' else f'error: {name}: {text}'


# Of values in values, so that no answer exhausts the reader's stack.
DEPTH = 100
# Of one value or frame.
MOST_BYTES = 8 << 20

# A string may hold half of a surrogate pair.
ENCODING = 'utf-8', 'surrogatepass'
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
    str: (b's', lambda value: str.encode(value, *ENCODING), lambda body: body.decode(*ENCODING)),
    bytes: (b'b', lambda value: bytes.__getitem__(value, slice(None)), bytes),
    bytearray: (b'y', lambda value: bytes(bytearray.__getitem__(value, slice(None))), bytearray),
}
GROUPS = {list: b'l', tuple: b't', dict: b'd', set: b'e', frozenset: b'z'}
_SCALAR_READERS = {tag: read for tag, _, read in SCALARS.values()}
_GROUP_TYPES = {tag: kind for kind, tag in GROUPS.items()}


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
