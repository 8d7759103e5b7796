"""The self-test: a process enters one layer after another and, after each, tries what that layer must refuse.

Layers overlap, so each is tried before the next one could hide that it is missing. A probe is a name, and whether the
layer did its work.
"""

import _thread
import errno
import json
import mmap
import os
import resource
import socket
from collections.abc import Callable, Iterator, Sequence

from nca_jax.sandbox import kernel, layers

Probe = tuple[str, bool]

# The second is nobody's, by RFC 5737.
UNREACHABLE = ('127.0.0.1', 9), ('192.0.2.1', 9)
FORBIDDEN = kernel.SETUP | kernel.FORBIDDEN
F_SETPIPE_SZ = 1031


def prove(limits: layers.Limits, shared: layers.Shared, answer: int) -> None:
    """Confines this process, and writes into the socket `answer` which probes failed, or null, as JSON."""
    missing: list[str] = []
    probes = {
        'mounts': mounts,
        'limits': lambda: memory_and_files(limits),
        'privileges': lambda: privileges(limits),
        'Landlock': landlock_rules,
        'seccomp': system_calls,
    }
    try:
        for layer in layers.confine(limits, [answer], shared):
            missing += [name for name, works in probes.pop(layer)() if not works]
    except Exception as error:
        missing.append(f'{next(iter(probes), "end")}: {type(error).__name__}: {error}')
    else:
        missing += [f'{layer}: was never put in place' for layer in probes]
    problem = f'not in force on this machine: {", ".join(missing)}' if missing else None
    # The layer of the mounts moves the socket to number 3.
    os.write(answer if 'mounts' in probes else 3, json.dumps(problem).encode())


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
