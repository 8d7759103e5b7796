"""The two processes of one program: the candidate's answers calls, the tests' makes the calls and judges the answers.

Only the tests' side ever sees tests and nonce. Only plain values pass between the two; see wire.
"""

import builtins
import json
import os
import sys
import types
from collections.abc import Callable
from typing import NoReturn

from nca_jax.sandbox import wire

# The name of the module that a candidate is.
NAME = 'candidate'
# First byte of a report, before the nonce or the reason.
PASSED, FAILED = b'+', b'-'
REPORT_BYTES = 1024
# Characters of an error's message.
TEXT = 200
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
    wire.send(answers, READY)
    messages = os.fdopen(calls, 'rb')
    source, entry_point = wire.decode(wire.receive(messages))
    module = types.ModuleType(NAME)
    sys.modules[NAME] = module

    def load() -> None:
        exec(compile(source, f'<{NAME}>', 'exec', dont_inherit=True), module.__dict__)
        if entry_point not in module.__dict__:
            raise NameError(f'name {entry_point!r} is not defined')

    def call(arguments: tuple, named: dict[str, object]) -> object:
        # Looked up at each call, since the program may bind the name anew.
        return module.__dict__[entry_point](*arguments, **named)

    wire.send(answers, _answer(load))
    while (message := wire.receive(messages)) is not None:
        wire.send(answers, _answer(call, *wire.decode(message)))


def _answer(work: Callable[..., object], *arguments: object) -> bytes:
    """Returns its value as a message, or the name and the text of the exception that it raised."""
    try:
        return wire.encode(('value', work(*arguments)))
    except wire.NotPlainError as error:
        return wire.encode(('not plain', str(error)))
    except BaseException as error:
        return wire.encode(('raised', type(error).__name__, _text(error)))


def _text(error: BaseException) -> str:
    try:
        return str(error)[:TEXT]
    # A candidate's own class may do anything in its __str__.
    except BaseException:
        return ''


def tests_side(judge: int, calls: int, answers: int) -> None:
    """Runs the tests that the judge sends against the candidate, and reports the nonce or the reason to the judge."""
    replies = os.fdopen(answers, 'rb')
    if wire.receive(replies) != READY:
        os._exit(NEVER_READY)

    def leave(reason: str, code: int = 0) -> NoReturn:
        """Ends this process with a report. It raises nothing, since tests may catch all exceptions."""
        try:
            line = ' '.join(reason.split()).encode('utf-8', 'backslashreplace')
            wire.send(judge, FAILED + line[:REPORT_BYTES])
        # No memory is left, or nobody listens.
        except BaseException:
            code = SPEECHLESS
        os._exit(code)

    def ask(message: bytes) -> object:
        """Sends a message to the candidate, and returns the value of its answer or raises RaisedError."""
        try:
            wire.send(calls, message)
            reply = wire.receive(replies)
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
            raise RaisedError(*(part[:TEXT] for part in rest))
        # Only text is reported: Python refuses to write an integer of many digits.
        leave(f'answer: {rest[0][:TEXT] if rest and type(rest[0]) is str else ""}')

    try:
        request = json.loads(wire.receive(os.fdopen(judge, 'rb', closefd=False), most=1 << 30))
        if reason := _judge(request, ask):
            leave(reason)
        wire.send(judge, PASSED + request['nonce'].encode())
    # The candidate may send anything, so this is no failure of the sandbox itself, which has exit codes of its own.
    except BaseException as error:
        leave(_reason(type(error).__name__, _text(error)))


def _judge(request: dict[str, str], ask: Callable[[bytes], object]) -> str | None:
    """Returns why the program failed; None if it was loaded and every test passed."""
    try:
        ask(wire.encode((request['source'], request['entry_point'])))
    except wire.NotPlainError as error:
        return f'source: {error}'
    except RaisedError as error:
        return _reason(*error.args)
    raised = []

    def candidate(*arguments: object, **named: object) -> object:
        try:
            return ask(wire.encode((arguments, named)))
        except RaisedError as error:
            # Tests may expect Python's own exception of that name.
            name, text = error.args
            kind = getattr(builtins, name, None)
            own = isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, NOT_REBUILT)
            raised.append(kind(text) if own else RuntimeError(f'{name}: {text}'))
            raise raised[-1] from error

    names = {'__name__': 'tests'}
    try:
        exec(compile(request['setup'], '<setup>', 'exec', dont_inherit=True), names)
        names[request['entry_point']] = candidate
        exec(compile(request['tests'], '<tests>', 'exec', dont_inherit=True), names)
        names['check'](candidate)
    except BaseException as error:
        # The candidate's own exception, rather than one of the tests, is reported as the candidate raised it.
        cause = error.__cause__
        if isinstance(cause, RaisedError) and any(error is ours for ours in raised):
            return _reason(*cause.args)
        return 'wrong' if isinstance(error, AssertionError) else _reason(type(error).__name__, _text(error))
    return None


def _reason(name: str, text: str) -> str:
    return 'memory' if name == 'MemoryError' else f'error: {name}: {text}'
