"""Runs programs that a model wrote, each in processes of its own behind several layers, and says which pass.

    with pool.Sandbox(workers=2) as box:
        for verdict in box.run(submissions):
            ...

Two processes serve a program. One loads the candidate and answers calls of its entry point. The other runs the tests
and, after the last one, reports a random nonce, which it alone knows; nothing else counts as success. Both are forked
from a small Python that never sees programs or tests.

Covered, and tried whenever a `Sandbox` starts, which refuses if one is missing:

- Namespaces for users, mounts, processes, network, IPC, host name and cgroups.
- A read-only root folder of Python's library and the system's, and a private folder in memory.
- An unprivileged user without capabilities, and no way to gain any.
- Landlock for files, TCP, signals and abstract sockets, as far as the kernel's version has it.
- A seccomp filter that lists the allowed system calls.
- Limits of CPU time, wall-clock time, addresses, files, disk and threads.

Not covered:

- Flaws of the kernel, but for the shortness of the list of calls.
- A candidate reads Python's own library, uses its share of CPU and memory, sees the arguments of the tests' calls, and
  may answer from memory. Packages of others aren't there to import.
- As with HumanEval's own `==`, True and 1.0 pass for 1.
- An answer arrives as a plain copy: a Counter as a dict. An iterator, a Decimal or an object of the candidate's own
  class is no answer.
- Tests don't see that a candidate changes its arguments, or a function that the tests use, too.
- Frames, gc and ctypes work as ever, since the candidate's process holds nothing to reach. An audit hook against them
  would break namedtuple, typing, enum and logging.
- Other systems and processors than Linux on x86_64: a `Sandbox` refuses to start.

Tried as root and as an ordinary user, who needs unprivileged user namespaces, with Linux 6.18 and Landlock's version 7.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import queue
import re
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from nca_jax.errors import UserError
from nca_jax.sandbox import layers, sides

Limits = layers.Limits
ROOT = pathlib.Path(__file__).parents[2]
# Started by exec, since a caller with JAX's threads must not fork. It sees no site-packages and nothing of the user's
# or the working folder, and it writes no bytecode.
ZYGOTE = sys.executable, '-S', '-s', '-P', '-B', '-m', 'nca_jax.sandbox.zygote'
# The kernel stops a process by a count of clock ticks and accounts for its time afterwards by a finer clock. On a busy
# machine that was an eighth lower than the limit.
LEAST_OF_LIMIT = 0.5
# An object's address differs from run to run.
ADDRESS = re.compile(r'0x[0-9a-f]{6,}')
# Bodies of a function that should add one, the expected reason, and the wall-clock limit.
PROBES = (
    ('return x + 1', 'passed', 60.0),
    ('return x', 'wrong', 60.0),
    ('import os; os._exit(0)', 'exited: 0', 60.0),
    ('while True: pass', 'cpu time', 60.0),
    ('import time; time.sleep(2)', 'wall clock', 0.3),
)


@dataclasses.dataclass(frozen=True)
class Submission:
    """A candidate and its tests."""

    # The whole candidate, which defines `entry_point`.
    source: str
    entry_point: str
    # Python that the tests' side runs first, for other functions that the tests use.
    setup: str
    # Python that defines `check(candidate)`, which raises if the candidate is wrong.
    tests: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether a submission passed, and why."""

    passed: bool
    # passed, wrong, memory, cpu time, wall clock, closed its files, killed: SIGNAL, exited: CODE, error: NAME: TEXT,
    # answer: or source: and why it can't be sent, or tests: and how their own process ended.
    why: str
    cpu_seconds: float


class Sandbox(contextlib.AbstractContextManager):
    """Workers that judge submissions, again and again until it is closed. A context manager.

    workers: how many submissions run at a time (one per core). Raises UserError, naming the layer, if this machine
    lacks one.
    """

    def __init__(self, workers: int | None = None, limits: Limits | None = None):
        # The numbers of system calls are those of this architecture.
        if (sys.platform, machine := os.uname().machine) != ('linux', 'x86_64'):
            raise UserError(f'sandbox: it needs Linux on x86_64, and this is {sys.platform} on {machine}')
        self.limits = limits or Limits()
        count = workers or len(os.sched_getaffinity(0))
        self.workers: list[WorkerProcess] = []
        self._idle: queue.SimpleQueue[WorkerProcess] = queue.SimpleQueue()
        self._threads = concurrent.futures.ThreadPoolExecutor(count)
        try:
            # All start before the first is waited for, since each takes a while.
            for _ in range(count):
                self.workers.append(WorkerProcess(self.limits))
            for worker in self.workers:
                if problem := worker.receive():
                    raise UserError(f'sandbox: {problem}')
                self._idle.put(worker)
            # Right and wrong answers, and endless ones, must get their verdicts.
            for body, expected, wall_seconds in PROBES:
                short = dataclasses.replace(self.limits, cpu_seconds=1, wall_seconds=wall_seconds)
                probe = Submission(f'def f(x):\n    {body}\n', 'f', '', 'def check(f):\n    assert f(1) == 2\n')
                (verdict,) = self.run([probe], short)
                if verdict.why != expected:
                    raise UserError(f'sandbox: self-test: {body!r} was judged {verdict.why!r} instead of {expected!r}')
        except BaseException:
            self.close()
            raise

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers and all that they run."""
        # First, so that nothing new starts on a worker that is left.
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self.workers:
            worker.close()

    def run(self, submissions: Iterable[Submission], limits: Limits | None = None) -> Iterator[Verdict]:
        """Yields verdicts in the submissions' order. `limits` replace the sandbox's own.

        If the caller leaves early, submissions that haven't started are dropped. If anything fails, `submissions`
        included, the sandbox is closed.
        """

        def judge(submission: Submission) -> Verdict:
            worker = self._idle.get()
            try:
                return worker.judge(submission, limits or self.limits)
            finally:
                self._idle.put(worker)

        try:
            yield from self._threads.map(judge, submissions)
        # Not GeneratorExit: the caller left early, and no worker failed.
        except Exception:
            # A worker that failed may hold an answer, which the next program must not get.
            self.close()
            raise


class WorkerProcess:
    """A zygote and the submission that it runs."""

    def __init__(self, limits: Limits):
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [*ZYGOTE, str(theirs.fileno()), json.dumps(dataclasses.asdict(limits))],
                # A fixed seed gives sets the same order in every run.
                env={'PYTHONPATH': str(ROOT), 'PYTHONHASHSEED': '0'},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                cwd='/',
                start_new_session=True,
            )

    def receive(self) -> Any:
        """Returns the zygote's next message: at first what this machine lacks, or None; then how a program ended."""
        data = self.control.recv(4096)
        if not data:
            raise RuntimeError(f'sandbox: a worker ended, exit code {self.process.wait()}')
        return json.loads(data)

    def judge(self, submission: Submission, limits: Limits) -> Verdict:
        nonce = secrets.token_hex(32)
        request = dataclasses.asdict(submission) | {'nonce': nonce}
        # The request and the report go past the zygote, whose memory every candidate inherits.
        tests, theirs = socket.socketpair()
        with tests:
            with theirs:
                order = json.dumps(dataclasses.asdict(limits)).encode()
                socket.send_fds(self.control, [order], [theirs.fileno()])
            # Raised if the tests' process ended before it read the request; its status says why.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sides.send(tests.fileno(), json.dumps(request).encode())
            ended, report = self.receive(), None
            with contextlib.suppress(ConnectionResetError):
                report = sides.receive(tests.makefile('rb'), most=sides.REPORT_BYTES + 1)
        # Only the tests' side has read the nonce, so nothing that a candidate sends can equal this.
        passed = report == sides.PASSED + nonce.encode()
        return Verdict(passed, 'passed' if passed else explain(report, ended, limits), ended['cpu_seconds'])

    def close(self) -> None:
        # Ends what runs, and wakes a thread that waits for it; raised if the worker is gone already.
        with contextlib.suppress(OSError):
            self.control.shutdown(socket.SHUT_RDWR)
        self.process.wait()
        self.control.close()


def explain(report: bytes | None, ended: dict, limits: Limits) -> str:
    """Returns why a submission failed, from the report of its tests' side and how its two processes ended."""
    tests, candidate = ended['tests'], ended['candidate']
    # The candidate's exit code tells of the sandbox only if the candidate never came to run; later it is its own.
    if tests == layers.FAILED or (tests == sides.NEVER_READY and candidate == layers.FAILED):
        raise RuntimeError('sandbox: a process could not be confined')
    reason = None if report is None else ADDRESS.sub('0x...', report[1:].decode('utf-8', 'ignore'))
    # Whatever else the end of time has cut short.
    if ended['late']:
        return 'wall clock'
    if reason not in (None, 'gone'):
        return reason
    # The tests' own process died, as it may of an answer that is too large to compare.
    if reason is None and tests != sides.NEVER_READY:
        return f'tests: {layers.describe_exit(tests)}'
    if not ended['ended']:
        return 'closed its files'
    # Its limits and the system kill by SIGKILL, which no process of its namespace could have sent it.
    if candidate == -signal.SIGKILL and ended['cpu_seconds'] > LEAST_OF_LIMIT * limits.cpu_seconds:
        return 'cpu time'
    return layers.describe_exit(candidate)
