"""A worker: a small Python, started by exec, that forks two confined processes for each program.

    python -S -s -P -B -m nca_jax.sandbox.zygote FD

Orders come through the socket FD, one packet each: the limits as JSON, with the socket to the judge through which the
tests' side is then spoken to. So programs and tests never pass through this process, whose memory every candidate
inherits. The answer says how both processes ended.
"""

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable

from nca_jax.sandbox import kernel, landlock, layers, proof, seccomp, sides, wire

# What solutions import most; the rest of the standard library is found where it lies, only later. Not threading, with
# which a fork takes twice as long.
PRELOADED = (
    'array bisect cmath collections collections.abc copy dataclasses datetime decimal enum fractions functools heapq '
    'hashlib itertools json math operator re statistics string struct sys textwrap time types typing unicodedata'
)
CRASHED = 1  # exit code of a process that raised once it was confined
LINGER_SECONDS = 1.0  # for a candidate that closed its pipes to end


def main() -> None:
    """Serves until the judge hangs up."""
    control = socket.socket(fileno=int(sys.argv[1]))
    preload()
    sys.path[:] = [path for path in sys.path if path != os.environ.get('PYTHONPATH')]
    os.environ.clear()
    os.environ['TMPDIR'] = layers.PRIVATE
    abi, mapped = landlock.version(), layers.addresses()
    try:
        layers.build()
        rules = landlock.rules(layers.readable(), layers.AROUND, abi)
    except OSError as error:
        control.send(json.dumps({'refused': str(error)}).encode())
        return
    if inside := os.fork():  # this one stays outside, as the new pid namespace begins with its first child
        control.close()
        os.waitpid(inside, 0)
        return
    worker = layers.Worker(mapped, abi, rules, seccomp.Filter.of(seccomp.program(os.uname().machine)))
    kernel.call('prctl', kernel.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    control.send(json.dumps({'ready': True}).encode())
    gc.collect()
    gc.freeze()
    serve(control, worker)


def preload() -> None:
    """Imports what most programs want, and seeds `random` for all of them."""
    # It would have each process draw a seed of its own, which takes time and makes every run another one.
    register, os.register_at_fork = os.register_at_fork, lambda **hooks: None
    import random

    os.register_at_fork = register
    random.seed(0)
    for name in PRELOADED.split():
        importlib.import_module(name)


def serve(control: socket.socket, worker: layers.Worker) -> None:
    """One order after another."""
    here = kernel.call('pidfd_open', os.getpid(), 0)
    while True:
        data, files, _, _ = socket.recv_fds(control, 4096, 1)
        if not data:
            return
        limits = layers.Limits(**json.loads(data))
        # Without a judge's socket to speak to, the layers themselves are on trial.
        answer = run(control, files[0], limits, here, worker) if files else trial(limits, here, worker)
        control.send(json.dumps(answer).encode())


def trial(limits: layers.Limits, here: int, worker: layers.Worker) -> dict:
    """What the layers failed to refuse (see proof); `missing` is None where that process died."""
    ours, theirs = os.pipe()

    process = fork(lambda: proof.prove(limits, worker, theirs), here)
    os.close(theirs)
    missing = wire.receive(ours)
    os.close(ours)
    status, _ = bury(process)
    return {'missing': None if missing is None else json.loads(missing), 'status': status}


def run(control: socket.socket, judge: int, limits: layers.Limits, here: int, worker: layers.Worker) -> dict:
    """Both processes of one program, from fork to burial."""
    calls, answers = os.pipe(), os.pipe()

    def confined(side: Callable[..., None], *files: int) -> Callable[[], None]:
        def work() -> None:
            done = []
            try:
                layers.confine(limits, files, worker, done.append)
            except BaseException:
                os._exit(layers.FAILED + len(done))
            side(*range(3, 3 + len(files)))

        return work

    candidate = fork(confined(sides.candidate_side, calls[0], answers[1]), here)
    tests = fork(confined(sides.tests_side, judge, calls[1], answers[0]), here)
    for file in (*calls, *answers, judge):
        os.close(file)
    late = watch(control, tests, time.monotonic() + limits.wall_seconds)
    tests_status, _ = bury(tests)
    if os.WIFEXITED(tests_status) and os.WEXITSTATUS(tests_status) in (sides.CANDIDATE_GONE, sides.NEVER_READY):
        select.select([candidate[1]], [], [], LINGER_SECONDS)
    ended = bool(select.select([candidate[1]], [], [], 0)[0])
    status, cpu_seconds = bury(candidate)
    return {'late': late, 'ended': ended, 'candidate': status, 'tests': tests_status, 'cpu_seconds': cpu_seconds}


def fork(work: Callable[[], None], here: int) -> tuple[int, int]:
    """A process of its own pid namespace, as number and pidfd. It never returns here."""
    kernel.call('unshare', kernel.CLONE_NEWPID)
    process = os.fork()
    if process == 0:
        code = CRASHED
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    kernel.call('setns', here, kernel.CLONE_NEWPID)
    return process, kernel.call('pidfd_open', process, 0)


def watch(control: socket.socket, tests: tuple[int, int], deadline: float) -> bool:
    """Waits for the end of the tests' side; True where the deadline came first. Leaves when the judge hangs up."""
    poll = select.poll()
    poll.register(tests[1], select.POLLIN)
    poll.register(control, select.POLLRDHUP)
    found = dict(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
    if control.fileno() in found:
        os._exit(0)  # and with this process, the first of its pid namespace, all below it end
    return not found


def bury(process: tuple[int, int]) -> tuple[int, float]:
    """Kills what is still alive, with all that it started; its status and CPU seconds."""
    signal.pidfd_send_signal(process[1], signal.SIGKILL)
    _, status, usage = os.wait4(process[0], 0)
    os.close(process[1])
    return status, usage.ru_utime + usage.ru_stime


if __name__ == '__main__':
    main()
