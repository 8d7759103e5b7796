"""What runs in the two processes of one program: the candidate's answers calls, the tests' makes and judges them.

Only the tests' side ever sees tests and nonce; only plain values pass between them (see wire).
"""

import builtins
import functools
import json
import os
import sys
import types
from collections.abc import Callable

from nca_jax.sandbox import wire

NAME = 'candidate'  # of the module that a candidate is
REPORT_BYTES = 1024
PASSED, FAILED = b'+', b'-'  # first byte of a report, before the nonce or what failed
TEXT = 200  # characters of an error's message
NOT_BUILTIN = UnicodeError, StopIteration, StopAsyncIteration  # made otherwise, or taken for an end
READY = b'confined'  # what a candidate's process says before it reads the program
# Exit codes of the tests' side: the candidate went, was never ready, or it couldn't even say what went wrong.
CANDIDATE_GONE, NEVER_READY, SPEECHLESS = 3, 4, 5


def candidate_side(calls: int, answers: int) -> None:
    """Loads the program that comes first through `calls`, then answers each call of its entry point, until its end."""
    wire.send(answers, READY)
    source, entry_point = wire.decode(wire.receive(calls))
    module = types.ModuleType(NAME)
    sys.modules[NAME] = module

    def load() -> None:
        exec(compile(source, f'<{NAME}>', 'exec', dont_inherit=True), module.__dict__)
        if entry_point not in module.__dict__:
            raise NameError(f'name {entry_point!r} is not defined')

    wire.send(answers, _answer(load))
    while (call := wire.receive(calls)) is not None:
        wire.send(answers, _answer(functools.partial(_call, module.__dict__[entry_point], *wire.decode(call))))


def _call(function: Callable[..., object], arguments: tuple, named: dict[str, object]) -> object:
    return function(*arguments, **named)


def _answer(work: Callable[[], object]) -> bytes:
    """Its plain value, or the name and the message of what it raised."""
    try:
        return wire.encode(('value', work()))
    except wire.NotPlainError as error:
        return wire.encode(('not plain', str(error)))
    except BaseException as error:
        return wire.encode(('raised', type(error).__name__, _text(error)))


def _text(error: BaseException) -> str:
    try:
        return str(error)[:TEXT]
    except BaseException:  # a candidate's own class may do anything here
        return ''


def tests_side(judge: int, calls: int, answers: int) -> None:
    """Runs the tests that the judge sends against the candidate, and answers with the nonce or with a report.

    From the candidate's first word on nothing that goes wrong here is the sandbox's own fault: the candidate may have
    sent anything, so every exception becomes a report, and the exit codes of a failed confinement aren't used.
    """
    if wire.receive(answers) != READY:
        os._exit(NEVER_READY)
    leave = functools.partial(_leave, judge)
    try:
        request = json.loads(wire.receive(judge, most=1 << 30))
        verdict = _judge(request, _asker(calls, answers, leave))
        if verdict is not None:
            leave(verdict)
        wire.send(judge, PASSED + request['nonce'].encode())
    except BaseException as error:
        leave(_why(type(error).__name__, _text(error)))


def _leave(judge: int, why: str, code: int = 0) -> None:
    """Ends this process with a report. No exception, since tests may catch all there are."""
    try:
        line = ' '.join(why.split()).encode('utf-8', 'backslashreplace')
        wire.send(judge, FAILED + line[:REPORT_BYTES])
    except BaseException:  # no memory is left, or nobody listens
        code = SPEECHLESS
    os._exit(code)


def _asker(calls: int, answers: int, leave: Callable[..., None]) -> Callable[[bytes], object]:
    """A function that hands a message to the candidate and gives the value of its answer."""

    def ask(message: bytes) -> object:
        try:
            wire.send(calls, message)
            reply = wire.receive(answers)
        except BrokenPipeError:
            reply = None
        if reply is None:
            leave('gone', CANDIDATE_GONE)
        try:
            kind, *rest = wire.decode(reply)
        except (wire.NotPlainError, TypeError, ValueError):
            leave('answer: bytes of no plain value')
        if kind == 'value' and len(rest) == 1:
            return rest[0]
        if kind == 'raised' and len(rest) == 2 and all(type(part) is str for part in rest):
            raise _RaisedError(*rest)
        # Text of another type may be long in the making: Python refuses to write integers of many digits at all.
        leave(f'answer: {rest[0][:TEXT] if rest and type(rest[0]) is str else ""}')

    return ask


def _judge(request: dict[str, str], ask: Callable[[bytes], object]) -> str | None:
    """None where the program was loaded and every test passed, else why not."""
    try:
        program = wire.encode((request['program'], request['entry_point']))
    except wire.NotPlainError as error:
        return f'source: {error}'
    try:
        ask(program)
    except _RaisedError as error:
        return _why(error.name, error.text)
    raised = []

    def candidate(*arguments: object, **named: object) -> object:
        try:
            return ask(wire.encode((arguments, named)))
        except _RaisedError as error:
            raised.append(error.as_builtin())
            raise raised[-1] from error

    return _run_tests(request, candidate, raised)


def _run_tests(request: dict[str, str], candidate: Callable, raised: list[BaseException]) -> str | None:
    """None where every test passed, else why not."""
    names = {'__name__': 'tests'}
    try:
        exec(compile(request['setup'], '<setup>', 'exec', dont_inherit=True), names)
        names[request['entry_point']] = candidate
        exec(compile(request['tests'], '<tests>', 'exec', dont_inherit=True), names)
        names['check'](candidate)
    except BaseException as error:
        cause = error.__cause__
        if isinstance(cause, _RaisedError) and any(error is one for one in raised):
            return _why(cause.name, cause.text)
        return 'wrong' if isinstance(error, AssertionError) else _why(type(error).__name__, _text(error))
    return None


def _why(name: str, text: str) -> str:
    return 'memory' if name == 'MemoryError' else f'error: {name}: {text}'


class _RaisedError(Exception):
    """What the candidate raised, in its own process."""

    def __init__(self, name: str, text: str):
        super().__init__(name, text)
        self.name, self.text = name[:TEXT], text[:TEXT]

    def as_builtin(self) -> Exception:
        """Python's own exception of that name where there is one, since tests may expect it.

        Never one that ends an iteration: all(map(...)) over calls would be over, and true, with the first of them.
        """
        kind = getattr(builtins, self.name, None)
        if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, NOT_BUILTIN):
            return kind(self.text)
        return RuntimeError(f'{self.name}: {self.text}')
