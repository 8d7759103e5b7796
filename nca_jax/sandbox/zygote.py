"""A worker: a small Python, started by exec, that forks two confined processes for each program.

    python -S -s -P -B -m nca_jax.sandbox.zygote FD LIMITS

It talks with the judge in packets of JSON through the socket FD. First it tries the layers with LIMITS and says what is
missing. Then each order holds the limits of a program, and a socket on which the judge talks to the tests' side; the
worker answers how both processes ended. So programs and tests never pass through this process, whose memory every
candidate inherits.
"""

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable

from nca_jax.sandbox import kernel, layers, proof, sides

# The modules that solutions import most. The rest of the standard library is read when a program imports it. Not
# threading, with which a fork takes twice as long.
PRELOADED = (
    'array bisect cmath collections collections.abc copy dataclasses datetime decimal enum fractions functools heapq '
    'hashlib itertools json math operator re statistics string struct sys textwrap time types typing unicodedata'
)
# A candidate whose pipes are closed gets this long to end by itself, which its exit code tells of.
LINGER_SECONDS = 1.0


def main() -> None:
    """Serves until the judge hangs up."""
    control, limits = socket.socket(fileno=int(sys.argv[1])), layers.Limits(**json.loads(sys.argv[2]))
    # `random` would draw a new seed in each fork, which takes time and makes every run another one.
    register, os.register_at_fork = os.register_at_fork, lambda **hooks: None
    importlib.import_module('random').seed(0)
    os.register_at_fork = register
    for name in PRELOADED.split():
        importlib.import_module(name)
    # Programs find neither this checkout nor the settings of the machine.
    sys.path[:] = [path for path in sys.path if path != os.environ.get('PYTHONPATH')]
    os.environ.clear()
    os.environ['TMPDIR'] = layers.PRIVATE
    try:
        shared = layers.build()
    except OSError as error:
        control.send(json.dumps(f'this machine refuses a layer: {error}').encode())
        return
    # The new pid namespace begins with the first child, so this process only waits outside.
    if inside := os.fork():
        control.close()
        os.waitpid(inside, 0)
        return
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    # Objects made so far stay out of the garbage collections of forked processes, which would copy their memory.
    gc.collect()
    gc.freeze()
    here = os.pidfd_open(os.getpid())
    # The self-test, in a process that is confined like a program's. It tells the judge itself what is missing.
    tester = fork(lambda: proof.prove(limits, shared, control.fileno()), here)
    # Readable once it has ended by itself.
    select.select([tester[1]], [], [])
    status, _ = bury(tester)
    if status:
        control.send(json.dumps(f'the self-test ended early, {layers.describe_status(status)}').encode())
        return
    while True:
        order, files, _, _ = socket.recv_fds(control, 4096, 1)
        if not order:
            return
        control.send(json.dumps(run(control, files[0], layers.Limits(**json.loads(order)), here, shared)).encode())


def run(control: socket.socket, judge: int, limits: layers.Limits, here: int, shared: layers.Shared) -> dict:
    """Runs both processes of one program, from fork to burial. Returns how they ended."""
    calls, answers = os.pipe(), os.pipe()

    def confined(side: Callable[..., None], *files: int) -> None:
        done = 0
        try:
            for _ in layers.confine(limits, files, shared):
                done += 1
        except BaseException:
            os._exit(layers.FAILED + done)
        side(*range(3, 3 + len(files)))

    candidate = fork(lambda: confined(sides.candidate_side, calls[0], answers[1]), here)
    tests = fork(lambda: confined(sides.tests_side, judge, calls[1], answers[0]), here)
    for file in (*calls, *answers, judge):
        os.close(file)
    # Either the tests' side ends, or the judge hangs up, or the time is over.
    poll = select.poll()
    poll.register(tests[1], select.POLLIN)
    poll.register(control, select.POLLRDHUP)
    events = dict(poll.poll(limits.wall_seconds * 1000))
    if control.fileno() in events:
        # All processes below end with this one, the first of its pid namespace.
        os._exit(0)
    tests_status, _ = bury(tests)
    gone = os.waitstatus_to_exitcode(tests_status) in (sides.CANDIDATE_GONE, sides.NEVER_READY)
    ended = bool(select.select([candidate[1]], [], [], LINGER_SECONDS if gone else 0)[0])
    status, cpu_seconds = bury(candidate)
    return {'late': not events, 'ended': ended, 'candidate': status, 'tests': tests_status, 'cpu_seconds': cpu_seconds}


def fork(work: Callable[[], None], here: int) -> tuple[int, int]:
    """Runs `work` in a process with a pid namespace of its own. Returns its number and pidfd."""
    kernel.unshare('pid')
    process = os.fork()
    if process == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    # Children begin in this namespace again: the new one ends with its first process, and no fork enters it then.
    kernel.call('setns', here, kernel.NAMESPACES['pid'])
    return process, os.pidfd_open(process)


def bury(process: tuple[int, int]) -> tuple[int, float]:
    """Kills a process, if it still lives, and all that it started. Returns its wait status and CPU seconds."""
    signal.pidfd_send_signal(process[1], signal.SIGKILL)
    _, status, usage = os.wait4(process[0], 0)
    os.close(process[1])
    return status, usage.ru_utime + usage.ru_stime


if __name__ == '__main__':
    main()
