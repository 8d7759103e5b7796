"""Runs programs that a model wrote, each in processes of its own behind several layers, and says which pass.

    with sandbox.Sandbox(workers=2) as box:
        for verdict in box.run(programs):
            ...

Two processes serve a program. One loads the candidate and answers calls of its entry point; the other runs the tests,
and only plain values pass between them. Both are forked from a small Python that never sees programs or tests. The
second knows a random nonce and tells it after the last test; nothing else counts as success.

Layers around either process: user, mount, pid, network, IPC, UTS and cgroup namespaces; a root folder that holds
Python and the system's libraries, read-only, and a private tmpfs; no capabilities and no way to gain any, as root's
child an unprivileged user; Landlock; a seccomp filter that lists what is allowed; limits of CPU time, wall-clock time,
addresses, files and threads. `Sandbox` tries each of them when it starts, and refuses where one is missing.

What a candidate can still do: read Python's own library (packages of others are covered, so that to import them fails),
use its CPU time and memory, see the arguments that the tests call it with, and answer from memory. As with HumanEval's
own `==`, True and 1.0 pass for 1. What differs from tests in the candidate's own interpreter: an answer arrives as a
plain copy (a Counter as a dict; an iterator, a Decimal or an object of a class of its own is no answer), and tests see
neither a change of an argument nor of a function that they use themselves. Against flaws of the kernel stands no more
than the shortness of the list of calls that the filter lets through. There is no audit hook: the candidate's process
holds nothing that frames, gc or ctypes could reach, and a hook against them would break namedtuple, typing, enum and
logging, which ask for the frame that called them.

Tried as root and as an ordinary user, who needs unprivileged user namespaces, with Linux 6.18 on x86_64 and version 7
of Landlock. The filter for aarch64 was checked by an interpreter of its instructions, never run.
"""

import dataclasses
import hmac
import json
import os
import pathlib
import re
import secrets
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator

from nca_jax.errors import UserError, check
from nca_jax.sandbox import layers, sides, wire

Limits = layers.Limits
ROOT = pathlib.Path(__file__).parents[2]
# Of the limit: the kernel stops a process by a count of clock ticks and accounts for it afterwards by a finer one, and
# that was seen to be an eighth lower on a busy machine.
LEAST_OF_LIMIT = 0.5
ADDRESS = re.compile(r'0x[0-9a-f]{6,}')  # of an object: another one in every run
PROBES = {  # bodies of a function that should add one
    'return x + 1': 'passed',
    'return x': 'wrong',
    'import os; os._exit(0)': 'exited: 0',
    'while True: pass': 'cpu time',
    'import time; time.sleep(2)': 'wall clock',
}


@dataclasses.dataclass(frozen=True)
class Program:
    """A candidate and its tests.

    source: the whole candidate, which defines `entry_point`. setup: what the tests' side runs before the tests, for the
    functions that these use besides. tests: define `check(candidate)`, which raises where the candidate is wrong.
    """

    source: str
    entry_point: str
    setup: str
    tests: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """why: passed, wrong, memory, cpu time, wall clock, closed its files, or one of these with more after it.

    killed: SIGNAL. exited: CODE. answer: what is wrong with its form. error: NAME: TEXT. tests: how these ended.
    """

    passed: bool
    why: str
    cpu_seconds: float


class Sandbox:
    """Workers that judge programs. A context manager; it can be used again and again until it is closed.

    workers: how many programs run at a time (one a core). UserError where a layer can't be had here, naming it.
    """

    def __init__(self, workers: int | None = None, limits: Limits | None = None):
        self.limits = limits or Limits()
        count = workers or len(os.sched_getaffinity(0)) if sys.platform == 'linux' else 1
        check(count > 0, 'workers', workers, 'must be positive')
        if problem := layers.platform_problem():
            raise UserError(f'sandbox: {problem}')
        self._workers, self._running = [], False
        try:
            for _ in range(count):
                self._workers.append(_Worker())
            for worker in self._workers:
                worker.wait_until_ready()
            self._prove()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> 'Sandbox':
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers and with them whatever they run."""
        for worker in self._workers:
            worker.close()
        self._workers = []

    @property
    def processes(self) -> list[int]:
        """Of the workers, as this process's children."""
        return [worker.process.pid for worker in self._workers]

    def _prove(self) -> None:
        """UserError unless every layer refuses what it must, and only a right answer passes."""
        for worker in self._workers:
            worker.try_layers(self.limits)
        quick = dataclasses.replace(self.limits, cpu_seconds=1, wall_seconds=60.0)
        limits = [quick, quick, quick, quick, dataclasses.replace(quick, wall_seconds=0.3)]
        for (body, expected), most in zip(PROBES.items(), limits, strict=True):
            program = Program(f'def f(x):\n    {body}\n', 'f', '', 'def check(f):\n    assert f(1) == 2\n')
            found = next(self.run([program], most)).why
            if found != expected:
                raise UserError(f'sandbox: self-test: {body!r} was judged {found!r} instead of {expected!r}')

    def judge(self, program: Program) -> Verdict:
        """Of one program."""
        return next(self.run([program]))

    def run(self, programs: Iterable[Program], limits: Limits | None = None) -> Iterator[Verdict]:
        """Verdicts in the programs' order, over all workers. `limits` replace the sandbox's own for these programs.

        Where it is left early, it waits for what runs; where it fails, `programs` included, the sandbox is closed.
        """
        if not self._workers:
            raise RuntimeError('sandbox: it is closed')
        if self._running:
            raise RuntimeError('sandbox: a run before this one is not at its end; close its iterator')
        idle, self._running = list(self._workers), True
        try:
            yield from self._run(enumerate(programs), limits or self.limits, idle)
        except GeneratorExit:
            try:
                for worker in set(self._workers) - set(idle):
                    worker.finish()  # else the next run would take this for an ending of its own
            except BaseException:
                self.close()
                raise
            raise
        except BaseException:
            self.close()
            raise
        finally:
            self._running = False

    def _run(self, source: Iterator[tuple[int, Program]], limits: Limits, idle: list['_Worker']) -> Iterator[Verdict]:
        """As `run`. In `idle` is at any time who runs nothing."""
        found, given = {}, 0
        with selectors.DefaultSelector() as selector:
            while True:
                while idle and (job := next(source, None)) is not None:
                    worker = idle.pop()
                    worker.start(job[0], job[1], limits)
                    selector.register(worker.control, selectors.EVENT_READ, worker)
                while given in found:
                    yield found.pop(given)
                    given += 1
                if len(idle) == len(self._workers):
                    return
                for key, _ in selector.select():
                    selector.unregister(key.fileobj)
                    number, verdict = key.data.finish()
                    found[number] = verdict
                    idle.append(key.data)


class _Worker:
    """One zygote and the program that it runs."""

    def __init__(self):
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, '-S', '-s', '-P', '-B', '-m', 'nca_jax.sandbox.zygote', str(theirs.fileno())],
                env={'PYTHONPATH': str(ROOT), 'PYTHONHASHSEED': '0'},  # the same order of sets in every run
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                cwd='/',
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        answer = self._answer()
        if 'refused' in answer:
            raise UserError(f'sandbox: this machine refuses a layer: {answer["refused"]}')

    def try_layers(self, limits: Limits) -> None:
        self.control.send(json.dumps(dataclasses.asdict(limits)).encode())
        answer = self._answer()
        if answer['missing'] is None:
            raise UserError(f'sandbox: the self-test ended early, {_ending(answer["status"])}')
        if answer['missing']:
            raise UserError(f'sandbox: not in force on this machine: {", ".join(answer["missing"])}')

    def start(self, number: int, program: Program, limits: Limits) -> None:
        self.number, self.limits, self.nonce = number, limits, secrets.token_hex(32)
        self.tests, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self.control, [json.dumps(dataclasses.asdict(limits)).encode()], [theirs.fileno()])
        request = {
            'program': program.source,
            'entry_point': program.entry_point,
            'setup': program.setup,
            'tests': program.tests,
            'nonce': self.nonce,
        }
        try:
            wire.send(self.tests.fileno(), json.dumps(request).encode())
        except (BrokenPipeError, ConnectionResetError):
            return  # its process is gone already, of which `finish` learns

    def finish(self) -> tuple[int, Verdict]:
        ended = self._answer()
        with self.tests:
            try:
                report = wire.receive(self.tests.fileno(), most=sides.REPORT_BYTES + 1)
            except ConnectionResetError:
                report = None
        why = 'passed' if _is_nonce(report, self.nonce) else _why(report, ended, self.limits)
        return self.number, Verdict(why == 'passed', why, ended['cpu_seconds'])

    def close(self) -> None:
        self.control.close()
        self.process.wait()

    def _answer(self) -> dict:
        data = self.control.recv(4096)
        if not data:
            raise RuntimeError(f'sandbox: a worker ended, exit code {self.process.wait()}')
        return json.loads(data)


def _is_nonce(report: bytes | None, nonce: str) -> bool:
    return report is not None and hmac.compare_digest(report, sides.PASSED + nonce.encode())


def _why(report: bytes | None, ended: dict, limits: Limits) -> str:
    """Why a program failed, from what its tests' side reports and how the two processes ended."""
    tests = os.waitstatus_to_exitcode(ended['tests'])
    # The candidate's own exit code says something of the sandbox only where it never came to run.
    for code in (tests, *([os.waitstatus_to_exitcode(ended['candidate'])] if tests == sides.NEVER_READY else [])):
        if layer := layers.failed_layer(code):
            raise RuntimeError(f'sandbox: a process could not be confined: {layer} failed')
    said = None if report is None else ADDRESS.sub('0x...', report[1:].decode('utf-8', 'ignore'))
    if ended['late']:
        return 'wall clock'
    if said not in (None, 'gone'):
        return said
    # The tests' own process died, as it may of an answer that is too large to compare.
    if said is None and tests != sides.NEVER_READY:
        return f'tests: {_ending(ended["tests"])}'
    # What its limits or the system kill dies of SIGKILL, which no process of its namespace could have sent it.
    killed = os.WIFSIGNALED(ended['candidate']) and os.WTERMSIG(ended['candidate']) == signal.SIGKILL
    if ended['ended'] and killed and ended['cpu_seconds'] > LEAST_OF_LIMIT * limits.cpu_seconds:
        return 'cpu time'
    return _ending(ended['candidate']) if ended['ended'] else 'closed its files'


def _ending(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        # Most real-time signals have no name, and Signals(number) raises for them.
        return f'killed: {next((named.name for named in signal.Signals if named == number), number)}'
    return f'exited: {os.WEXITSTATUS(status)}'
