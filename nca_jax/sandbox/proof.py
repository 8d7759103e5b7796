"""The self-test: a process walks through the layers and, after each, tries what that layer must refuse.

Layers overlap, so each is tried before the next one could hide that it is missing.
"""

import _thread
import errno
import json
import mmap
import os
import resource
import socket
from collections.abc import Callable, Sequence

from nca_jax.sandbox import kernel, layers, wire

UNREACHABLE = ('127.0.0.1', 9), ('192.0.2.1', 9)  # the second is nobody's, by RFC 5737
# Calls that the filter must refuse, by EPERM; with these arguments none does harm where it gets through.
FORBIDDEN = {
    'x86_64': dict(
        ptrace=101, process_vm_readv=310, process_vm_writev=311, mount=165, umount2=166, pivot_root=155, chroot=161,
        unshare=272, setns=308, fsopen=430, open_tree=428, add_key=248, keyctl=250, bpf=321, perf_event_open=298,
        userfaultfd=323, io_uring_setup=425, socket=41, socketpair=53, kexec_load=246, init_module=175,
        finit_module=313, open_by_handle_at=304, personality=135, fork=57, vfork=58, execve=59, execveat=322,
        memfd_create=319, shmget=29, pidfd_open=434, prctl=157, setpriority=141, sched_setscheduler=144,
        seccomp=317, capset=126, setuid=105, mknod=133, setsid=112, inotify_init=253, fanotify_init=300,
        mq_open=240, timer_create=222, signalfd4=289, landlock_create_ruleset=444, quotactl=179, syslog=103, flock=73,
    ),
    'aarch64': dict(
        ptrace=117, process_vm_readv=270, process_vm_writev=271, mount=40, umount2=39, pivot_root=41, chroot=51,
        unshare=97, setns=268, fsopen=430, open_tree=428, add_key=217, keyctl=219, bpf=280, perf_event_open=241,
        userfaultfd=282, io_uring_setup=425, socket=198, socketpair=199, kexec_load=104, init_module=105,
        finit_module=273, open_by_handle_at=265, personality=92, execve=221, execveat=281, memfd_create=279,
        shmget=194, pidfd_open=434, prctl=167, setpriority=140, sched_setscheduler=119, seccomp=277, capset=91,
        setuid=146, mknodat=33, setsid=157, inotify_init1=26, fanotify_init=262, mq_open=180, timer_create=107,
        signalfd4=74, landlock_create_ruleset=444, quotactl=60, syslog=116, flock=32,
    ),
}  # fmt: skip
PR_GET_DUMPABLE, PR_GET_NO_NEW_PRIVS = 3, 39
F_SETPIPE_SZ = 1031
MIB = layers.MIB


def prove(limits: layers.Limits, worker: layers.Worker, answer: int) -> None:
    """Confines this process, and sends into the file `answer` what was not refused, as a list in JSON."""
    missing: list[str] = []
    probes = {
        'mounts': lambda: [*namespaces(), *root_folder()],
        'limits': lambda: [*memory(limits), *files(limits), *folder(limits)],
        'privileges': lambda: [*privileges(), *processes(limits)],
        'Landlock': lambda: landlocked(worker.abi),
        'seccomp': filtered,
    }
    try:
        layers.confine(limits, [answer], worker, lambda layer: missing.extend(probes.pop(layer)()))
    except Exception as error:
        missing.append(f'{next(iter(probes), "end")}: {type(error).__name__}: {error}')
    else:
        missing += [f'{layer}: was never put in place' for layer in probes]
    wire.send(answer if 'mounts' in probes else 3, json.dumps(missing).encode())


def refusal(attempt: Callable[[], object]) -> int:
    """The error number that an attempt ends with, 0 where it succeeds."""
    try:
        attempt()
    except OSError as error:
        return error.errno
    return 0


def connect(address: tuple[str, int]) -> None:
    with socket.socket() as outwards:
        outwards.settimeout(1)
        outwards.connect(address)


def namespaces() -> list[str]:
    """Process, network and host name; that all are other than the machine's `layers.build` has compared itself."""
    found = [
        ('pid namespace', os.getpid() == 1),
        ('unprivileged user', 0 not in (*os.getresuid(), *os.getresgid())),
        ('uts namespace', os.uname().nodename == layers.HOST.decode()),
        ('network namespace', [name for _, name in socket.if_nameindex()] == ['lo']),
        (
            'network namespace: no route',
            all(refusal(lambda at=at: connect(at)) == errno.ENETUNREACH for at in UNREACHABLE),
        ),
    ]
    return [name for name, held in found if not held]


def root_folder() -> list[str]:
    expected = children([*layers.readable(), layers.PRIVATE, layers.EMPTY, '/tmp'])
    packages = layers.third_party(layers.readable())
    found = [
        ('mount namespace: its own root', set(os.listdir('/')) == expected['/']),
        ('mount namespace: no other folders', all(set(os.listdir(path)) == names for path, names in expected.items())),
        ('mount namespace: no packages', not any(os.listdir(path) for path in packages)),
        ('mount namespace: read-only', refusal(lambda: os.mkdir('/made')) == errno.EROFS),
        (
            'mount namespace: read-only library',
            refusal(lambda: os.mkdir(f'{layers.readable()[0]}/made')) == errno.EROFS,
        ),
    ]
    return [name for name, held in found if not held]


def children(paths: Sequence[str]) -> dict[str, set[str]]:
    """What each folder above some paths must hold: the way to them, and nothing else."""
    found: dict[str, set[str]] = {}
    for path in paths:
        while path != '/':
            path, name = os.path.split(path)
            found.setdefault(path, set()).add(name)
    return found


def memory(limits: layers.Limits) -> list[str]:
    try:
        bytearray((limits.memory_mb + 64) * MIB)
    except MemoryError:
        return []
    return ['limit of memory']


def files(limits: layers.Limits) -> list[str]:
    """How many are open, how large one gets, and that no core is dumped."""
    opened = []
    file = os.open('large', os.O_CREAT | os.O_RDWR)
    too_large = refusal(lambda: os.pwrite(file, b'x', limits.file_mb * MIB)) == errno.EFBIG
    os.close(file)
    os.unlink('large')
    too_many = refusal(lambda: [opened.append(os.dup(0)) for _ in range(limits.files + 1)]) == errno.EMFILE
    for number in opened:
        os.close(number)
    core = resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
    signals = resource.getrlimit(resource.RLIMIT_SIGPENDING) == (64, 64)
    found = [
        ('limit of file size', too_large),
        ('limit of open files', too_many),
        ('limit of core files', core),
        ('limit of signals that wait', signals),
    ]
    return [name for name, held in found if not held]


def folder(limits: layers.Limits) -> list[str]:
    """That the private folder takes so many bytes and names, and holds no programs."""

    def fill() -> None:
        for number in range(limits.disk_mb + 1):
            with open(f'bytes{number}', 'wb', buffering=0) as file:
                written = file.write(bytes(MIB))
                if written < MIB:
                    file.write(bytes(MIB))

    def name() -> None:
        for number in range(limits.inodes + 1):
            os.close(os.open(f'name{number}', os.O_CREAT | os.O_WRONLY))

    full, crowded = refusal(fill) == errno.ENOSPC, False
    for number in range(limits.disk_mb + 1):
        if os.path.exists(f'bytes{number}'):
            os.unlink(f'bytes{number}')
    crowded = refusal(name) == errno.ENOSPC
    for entry in os.listdir():
        os.unlink(entry)
    with open('program', 'wb+') as file:
        file.write(bytes(mmap.PAGESIZE))
        file.flush()
        run = refusal(lambda: mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ | mmap.PROT_EXEC)) == errno.EPERM
    found = [
        ('private folder: no programs', run),
        ('limit of disk', full),
        ('limit of names in the private folder', crowded),
    ]
    return [name for name, held in found if not held]


def privileges() -> list[str]:
    found = [
        ('no way back to root', refusal(lambda: os.setresuid(0, 0, 0)) != 0),
        ('no capabilities', refusal(lambda: kernel.call('sethostname', b'x', 1)) == errno.EPERM),
        ('no capabilities: mount', refusal(lambda: kernel.call('unshare', kernel.CLONE_NEWNS)) == errno.EPERM),
        ('no_new_privs', kernel.call('prctl', PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1),
        ('not dumpable', kernel.call('prctl', PR_GET_DUMPABLE, 0, 0, 0, 0) == 0),
    ]
    return [name for name, held in found if not held]


def processes(limits: layers.Limits) -> list[str]:
    """That no more of them than the limit can be, which the filter refuses later on; and that a thread can be."""
    running = _thread.allocate_lock()
    running.acquire()
    _thread.start_new_thread(running.release, ())
    running.acquire()
    started, (end, hold) = [], os.pipe()

    def fill() -> None:
        for _ in range(limits.threads + 1):
            started.append(os.fork())
            if started[-1] == 0:
                os.close(hold)
                os.read(end, 1)
                os._exit(0)

    held = refusal(fill) == errno.EAGAIN
    os.close(hold)
    os.close(end)
    for process in started:
        os.waitpid(process, 0)
    return [] if held else [f'limit of threads: {len(started)} processes were started']


def landlocked(abi: int) -> list[str]:
    """Reading the root folder's names, which only Landlock refuses, and on newer kernels the way to a port."""
    found = [
        ('Landlock: reading', refusal(lambda: os.listdir('/')) == errno.EACCES),
        ('Landlock: reading a file', refusal(lambda: open(layers.EMPTY).close()) == errno.EACCES),
        ('Landlock: private folder', refusal(lambda: os.mkdir('made')) == 0),
        ('Landlock: programs', refusal(lambda: os.mkfifo('pipe')) == errno.EACCES),
        ('Landlock: TCP', abi < 4 or refusal(lambda: connect(UNREACHABLE[0])) == errno.EACCES),
    ]
    return [name for name, held in found if not held]


def filtered() -> list[str]:
    def through(number: int) -> bool:
        return refusal(lambda: kernel.call_number(number, -1, 0, 0, 0, 0, 0)) != errno.EPERM

    calls = FORBIDDEN[os.uname().machine]
    pipes = refusal(lambda: kernel.call('fcntl', -1, F_SETPIPE_SZ, 0)) != errno.EPERM
    return [f'seccomp: {name}' for name, number in calls.items() if through(number)] + ['seccomp: fcntl'] * pipes
