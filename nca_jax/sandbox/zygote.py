"""A worker: a small Python, started by exec, that forks two confined processes for each program.

    python -S -s -P -B -m nca_jax.sandbox.zygote FD LIMITS

It talks with the judge in packets of JSON through the socket FD. First it tries the layers with LIMITS and says what is
missing, see `prove`. Then each order holds the limits of a program, and a socket on which the judge talks to the tests'
side; the worker answers how both processes ended. So programs and tests never pass through this process, whose memory
every candidate inherits.
"""

import _thread
import errno
import gc
import importlib
import json
import mmap
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence

from nca_jax.sandbox import kernel, layers, sides

# The modules that solutions import most. The rest of the standard library is read when a program imports it. Not
# threading, with which a fork takes twice as long.
PRELOADED = (
    'array bisect cmath collections collections.abc copy dataclasses datetime decimal enum fractions functools heapq '
    'hashlib itertools json math operator re statistics string struct sys textwrap time types typing unicodedata'
)
# A candidate whose pipes are closed gets this long to end by itself, which its exit code tells of.
LINGER_SECONDS = 1.0

# What a probe tries, and whether its layer did its work.
Probe = tuple[str, bool]
# The second is nobody's, by RFC 5737.
UNREACHABLE = ('127.0.0.1', 9), ('192.0.2.1', 9)
FORBIDDEN = kernel.SETUP | kernel.FORBIDDEN
F_SETPIPE_SZ = 1031


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
        confine = layers.build()
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
    tester = fork(lambda: prove(limits, confine, control.fileno()), here)
    # Readable once it has ended by itself.
    select.select([tester[1]], [], [])
    code, _ = bury(tester)
    if code:
        control.send(json.dumps(f'the self-test ended early, {layers.describe_exit(code)}').encode())
        return
    while True:
        order, files, _, _ = socket.recv_fds(control, 4096, 1)
        if not order:
            return
        control.send(json.dumps(run(control, files[0], layers.Limits(**json.loads(order)), here, confine)).encode())


def run(control: socket.socket, judge: int, limits: layers.Limits, here: int, confine: layers.Confine) -> dict:
    """Runs both processes of one program, from fork to burial. Returns how they ended."""
    calls, answers = os.pipe(), os.pipe()

    def confined(side: Callable[..., None], *files: int) -> None:
        try:
            # Each step puts a layer in place.
            list(confine(limits, files))
        except BaseException:
            os._exit(layers.FAILED)
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
    tests_code, _ = bury(tests)
    gone = tests_code in (sides.CANDIDATE_GONE, sides.NEVER_READY)
    ended = bool(select.select([candidate[1]], [], [], LINGER_SECONDS if gone else 0)[0])
    code, cpu_seconds = bury(candidate)
    return {'late': not events, 'ended': ended, 'candidate': code, 'tests': tests_code, 'cpu_seconds': cpu_seconds}


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
    """Kills a process, if it still lives, and all that it started. Returns its exit code (-SIGNAL) and CPU seconds."""
    signal.pidfd_send_signal(process[1], signal.SIGKILL)
    _, status, usage = os.wait4(process[0], 0)
    os.close(process[1])
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime


def prove(limits: layers.Limits, confine: layers.Confine, answer: int) -> None:
    """The self-test: puts this process behind one layer after another and, after each, tries what it must refuse.

    Layers overlap, so each is tried before the next one could hide that it is missing. Writes into the socket `answer`
    which probes failed, or null, as JSON.
    """
    missing: list[str] = []
    # Generators: the probes of a layer run once it is in place.
    probes = mounts(), memory_and_files(limits), privileges(limits), landlock_rules(), system_calls()
    try:
        for _, attempts in zip(confine(limits, [answer]), probes, strict=True):
            # The layer of the mounts moved the socket there.
            answer = 3
            missing += [name for name, works in attempts if not works]
    except Exception as error:
        missing.append(f'{type(error).__name__}: {error}')
    problem = f'not in force on this machine: {", ".join(missing)}' if missing else None
    os.write(answer, json.dumps(problem).encode())


def refusal(attempt: Callable[[], object]) -> int:
    """Returns the error number that an attempt ends with, 0 if it succeeds."""
    try:
        attempt()
    except MemoryError:
        return errno.ENOMEM
    except OSError as error:
        return error.errno
    return 0


def mounts() -> Iterator[Probe]:
    """Probes namespaces and the root folder. `layers.build` itself compares namespaces with the machine's."""
    yield 'pid namespace', os.getpid() == 1
    yield 'unprivileged user', 0 not in (*os.getresuid(), *os.getresgid())
    yield 'uts namespace', os.uname().nodename == layers.HOST
    yield 'network namespace', [name for _, name in socket.if_nameindex()] == ['lo']
    for address in UNREACHABLE:
        refused = refusal(lambda address=address: socket.create_connection(address, 1))
        yield 'network namespace: no route', refused == errno.ENETUNREACH
    library, *others = layers.readable()
    expected = children([library, *others, layers.PRIVATE, layers.EMPTY, '/tmp'])
    packages = layers.third_party([library, *others])
    yield 'mount namespace: its own root', set(os.listdir('/')) == expected['/']
    yield 'mount namespace: no other folders', all(set(os.listdir(path)) == expected[path] for path in expected)
    yield 'mount namespace: no packages', not any(os.listdir(path) for path in packages)
    yield 'mount namespace: read-only', refusal(lambda: os.mkdir('/made')) == errno.EROFS
    yield 'mount namespace: read-only library', refusal(lambda: os.mkdir(f'{library}/made')) == errno.EROFS


def children(paths: Sequence[str]) -> dict[str, set[str]]:
    """Returns what each folder above `paths` must hold: the way to them, and nothing else."""
    names: dict[str, set[str]] = {}
    for path in paths:
        while path != '/':
            path, name = os.path.split(path)
            names.setdefault(path, set()).add(name)
    return names


def memory_and_files(limits: layers.Limits) -> Iterator[Probe]:
    """Probes memory, files, and how many bytes and names the private folder takes, and that it holds no programs."""
    too_much = (limits.memory_mb + 64) * layers.MIB
    yield 'limit of memory', refusal(lambda: bytearray(too_much)) == errno.ENOMEM
    opened = [os.open('large', os.O_CREAT | os.O_RDWR)]
    os.unlink('large')
    yield 'limit of file size', refusal(lambda: os.pwrite(opened[0], b'x', limits.file_mb * layers.MIB)) == errno.EFBIG
    too_many = refusal(lambda: [opened.append(os.dup(0)) for _ in range(limits.files + 1)]) == errno.EMFILE
    for number in opened:
        os.close(number)
    yield 'limit of open files', too_many
    # A probe can cause neither, so their numbers are compared.
    yield 'limit of core files', resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
    yield 'limit of signals that wait', resource.getrlimit(resource.RLIMIT_SIGPENDING) == (64, 64)

    def fill_bytes() -> None:
        for number in range(limits.disk_mb + 1):
            with open(f'bytes{number}', 'wb') as file:
                os.posix_fallocate(file.fileno(), 0, layers.MIB)

    def fill_names() -> None:
        for number in range(limits.inodes + 1):
            os.close(os.open(f'name{number}', os.O_CREAT | os.O_WRONLY))

    for limit, fill in (('disk', fill_bytes), ('names in the private folder', fill_names)):
        yield f'limit of {limit}', refusal(fill) == errno.ENOSPC
        for name in os.listdir():
            os.unlink(name)
    with open('program', 'wb+') as file:
        file.write(bytes(mmap.PAGESIZE))
        file.flush()
        executed = refusal(lambda: mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ | mmap.PROT_EXEC))
    yield 'private folder: no programs', executed == errno.EPERM


def privileges(limits: layers.Limits) -> Iterator[Probe]:
    # All three would work for a process that kept a capability.
    yield 'no way back to root', refusal(lambda: os.setresuid(0, 0, 0)) != 0
    yield 'no capabilities', refusal(lambda: socket.sethostname('x')) == errno.EPERM
    yield 'no capabilities: mount', refusal(lambda: kernel.unshare('mnt')) == errno.EPERM
    yield 'no_new_privs', kernel.prctl(kernel.PR_GET_NO_NEW_PRIVS) == 1
    yield 'not dumpable', kernel.prctl(kernel.PR_GET_DUMPABLE) == 0
    # One thread starts, and no more processes than the limit. The filter will refuse processes altogether.
    running = _thread.allocate_lock()
    running.acquire()
    _thread.start_new_thread(running.release, ())
    running.acquire()
    started, (end, hold) = [], os.pipe()

    def fill() -> None:
        for _ in range(limits.threads + 1):
            started.append(os.fork())
            if started[-1] == 0:
                # Waits until the parent closes `hold`.
                os.close(hold)
                os.read(end, 1)
                os._exit(0)

    refused = refusal(fill) == errno.EAGAIN
    os.close(hold)
    os.close(end)
    for process in started:
        os.waitpid(process, 0)
    yield f'limit of threads: {len(started)} processes were started', refused


def landlock_rules() -> Iterator[Probe]:
    # Everyone's permissions allow both, so EACCES comes from Landlock alone.
    yield 'Landlock: reading', refusal(lambda: os.listdir('/')) == errno.EACCES
    yield 'Landlock: reading a file', refusal(lambda: open(layers.EMPTY).close()) == errno.EACCES
    # This must work.
    yield 'Landlock: private folder', refusal(lambda: os.mkdir('made')) == 0
    yield 'Landlock: programs', refusal(lambda: os.mkfifo('pipe')) == errno.EACCES
    # Landlock knows TCP from version 4 on. The namespace has nothing to reach either way.
    if kernel.landlock_version() >= 4:
        yield 'Landlock: TCP', refusal(lambda: socket.create_connection(UNREACHABLE[0], 1)) == errno.EACCES


def system_calls() -> Iterator[Probe]:
    # With these arguments no call does harm where it gets through.
    for name in FORBIDDEN:
        refused = refusal(lambda name=name: kernel.call(name, -1, 0, 0, 0, 0, 0))
        yield f'seccomp: {name}', refused == errno.EPERM
    yield 'seccomp: fcntl', refusal(lambda: kernel.call('fcntl', -1, F_SETPIPE_SZ, 0)) == errno.EPERM


if __name__ == '__main__':
    main()
