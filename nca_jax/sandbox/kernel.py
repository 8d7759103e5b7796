"""The kernel's interfaces that Python 3.11 has no functions for: system calls by name, Landlock and seccomp.

Numbers are those of x86_64.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Iterable, Sequence

# What a running Python needs: files, its own memory, time, signals, waiting, threads. Nothing that reaches out of a
# process (sockets, other processes' memory, keys, shared memory), starts a program or asks for a privilege.
ALLOWED = dict(
    read=0, write=1, readv=19, writev=20, pread64=17, pwrite64=18, preadv=295, pwritev=296, close=3, close_range=436,
    lseek=8, open=2, openat=257, creat=85, stat=4, fstat=5, lstat=6, newfstatat=262, statx=332, access=21,
    faccessat=269, faccessat2=439, statfs=137, fstatfs=138, getdents=78, getdents64=217, readlink=89, readlinkat=267,
    getcwd=79, chdir=80, fchdir=81, mkdir=83, mkdirat=258, rmdir=84, unlink=87, unlinkat=263, rename=82, renameat=264,
    renameat2=316, link=86, linkat=265, symlink=88, symlinkat=266, chmod=90, fchmod=91, fchmodat=268, utime=132,
    utimes=235, futimesat=261, utimensat=280, umask=95, truncate=76, ftruncate=77, fallocate=285, fadvise64=221,
    fsync=74, fdatasync=75, sendfile=40, copy_file_range=326, dup=32, dup2=33, dup3=292, pipe=22, pipe2=293,
    eventfd2=290, poll=7, ppoll=271, select=23, pselect6=270, epoll_create=213, epoll_create1=291, epoll_ctl=233,
    epoll_wait=232, epoll_pwait=281, brk=12, mmap=9, munmap=11, mprotect=10, mremap=25, madvise=28, msync=26,
    mincore=27, rt_sigaction=13, rt_sigprocmask=14, rt_sigreturn=15, rt_sigpending=127, rt_sigsuspend=130,
    rt_sigtimedwait=128, sigaltstack=131, alarm=37, pause=34, setitimer=38, getitimer=36, nanosleep=35,
    clock_nanosleep=230, clock_gettime=228, clock_getres=229, gettimeofday=96, time=201, times=100, kill=62, tkill=200,
    tgkill=234, exit=60, exit_group=231, wait4=61, waitid=247, restart_syscall=219, getpid=39, getppid=110, gettid=186,
    getpgid=121, getpgrp=111, getsid=124, getuid=102, geteuid=107, getgid=104, getegid=108, getresuid=118,
    getresgid=120, getgroups=115, uname=63, sysinfo=99, getrusage=98, getrlimit=97, setrlimit=160, prlimit64=302,
    sched_yield=24, sched_getaffinity=204, getcpu=309, getrandom=318, futex=202, set_tid_address=218,
    set_robust_list=273, get_robust_list=274, rseq=334, membarrier=324, arch_prctl=158,
)  # fmt: skip
# The filter allows these with certain arguments only.
BY_ARGUMENTS = dict(clone=56, clone3=435, ioctl=16, fcntl=72)
# The sandbox makes these itself, before the filter is in place.
SETUP = dict(
    unshare=272, setns=308, mount=165, umount2=166, pivot_root=155, mount_setattr=442, capset=126, prctl=157,
    seccomp=317, landlock_create_ruleset=444, landlock_add_rule=445, landlock_restrict_self=446,
)  # fmt: skip
# The self-test tries these and those of SETUP; see zygote. Not every number that is left: calls to come may do harm.
FORBIDDEN = dict(
    ptrace=101, process_vm_readv=310, process_vm_writev=311, chroot=161, fsopen=430, open_tree=428, move_mount=429,
    add_key=248, keyctl=250, bpf=321, perf_event_open=298, userfaultfd=323, io_uring_setup=425, socket=41,
    socketpair=53, kexec_load=246, init_module=175, finit_module=313, open_by_handle_at=304, personality=135, fork=57,
    vfork=58, execve=59, execveat=322, memfd_create=319, shmget=29, pidfd_open=434, setpriority=141,
    sched_setscheduler=144, setuid=105, mknod=133, setsid=112, inotify_init=253, fanotify_init=300, mq_open=240,
    timer_create=222, signalfd4=289, quotactl=179, syslog=103, flock=73, setgroups=116, setresuid=117, setresgid=119,
    sethostname=170,
)  # fmt: skip
NUMBERS = ALLOWED | BY_ARGUMENTS | SETUP | FORBIDDEN

# Kinds of namespaces, by their names in /proc, and the flags that make new ones.
NAMESPACES = dict(
    mnt=0x00020000, cgroup=0x02000000, uts=0x04000000, ipc=0x08000000, user=0x10000000, pid=0x20000000, net=0x40000000,
    time=0x00000080,
)  # fmt: skip
CLONE_THREAD = 0x00010000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 0x20, 0x1000, 0x4000, 0x40000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
MNT_DETACH = 2
AT_FDCWD, AT_RECURSIVE = -100, 0x8000

PR_SET_PDEATHSIG, PR_GET_DUMPABLE, PR_SET_DUMPABLE = 1, 3, 4
PR_SET_SECUREBITS, PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS = 28, 38, 39
# Root has no capabilities by its user number, and no ambient ones. All bits but keep_caps are set and locked.
LOCKED_SECUREBITS = 0b11101111
# Version, and this process.
CAPABILITY_HEADER = struct.pack('=Ii', 0x20080522, 0)
NO_CAPABILITIES = bytes(24)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def call(name: str, *arguments: object) -> int:
    """Makes a system call of integers and pointers. Raises OSError, with its name, where the kernel refuses it."""
    # A plain int would pass as 32 bits.
    values = [argument.encode() if isinstance(argument, str) else argument for argument in arguments]
    words = [ctypes.c_long(value) if isinstance(value, int) else value for value in values]
    result = _libc.syscall(ctypes.c_long(NUMBERS[name]), *words)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f'{name}: {os.strerror(error)}')
    return result


def unshare(*names: str) -> None:
    # A new pid namespace begins with the next child.
    call('unshare', sum(NAMESPACES[name] for name in names))


def prctl(option: int, value: int = 0) -> int:
    # The kernel wants zeros where an option has no further arguments.
    return call('prctl', option, value, 0, 0, 0)


# Landlock: a program reads certain folders, writes into one, and reaches no TCP port, signal or socket outside.
WRITE_FILE, READ_FILE, READ_DIR = 1 << 1, 1 << 2, 1 << 3
REMOVE_DIR, REMOVE_FILE, MAKE_DIR, MAKE_REG, MAKE_SYM = 1 << 4, 1 << 5, 1 << 7, 1 << 8, 1 << 12
REFER, TRUNCATE = 1 << 13, 1 << 14
READ = READ_FILE | READ_DIR
# The private folder, too, gets no right to run programs or to make devices, pipes and sockets.
WRITE = READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SYM | REFER | TRUNCATE
# How many file rights each version of the interface has.
FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}
# Bind and connect of TCP, from version 4.
NETWORK = 0b11
# Abstract Unix sockets and signals, from version 6.
SCOPES = 0b11
CREATE_VERSION, PATH_BENEATH = 1, 1


def landlock_version() -> int:
    """Returns the version of the kernel's Landlock. Raises OSError if it has none (Linux 5.13) or it is off."""
    return call('landlock_create_ruleset', None, 0, CREATE_VERSION)


def landlock_ruleset(read: Iterable[str], write: str) -> int:
    """Returns a file number of rules: read below `read`, read and write below `write`, all else refused."""
    # The version of the interface decides how much else that is.
    abi = landlock_version()
    rights = (1 << FILE_RIGHTS[max(version for version in FILE_RIGHTS if version <= abi)]) - 1
    # struct landlock_ruleset_attr. An older kernel takes a longer structure than its own if the rest is zero.
    ruleset = struct.pack('=QQQ', rights, NETWORK if abi >= 4 else 0, SCOPES if abi >= 6 else 0)
    number = call('landlock_create_ruleset', ruleset, len(ruleset), 0)
    for path, allowed in [*((path, READ) for path in read), (write, WRITE & rights)]:
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        # struct landlock_path_beneath_attr, which has no padding.
        call('landlock_add_rule', number, PATH_BENEATH, struct.pack('=Qi', allowed, folder), 0)
        os.close(folder)
    return number


# Seccomp: a program makes the calls of ALLOWED and no others. A refused call gives EPERM, so that Python raises an
# error instead of dying. A call through the 32-bit or the x32 interface has other numbers, and kills the process.
AUDIT_ARCH_X86_64 = 0xC000003E
X32_BIT = 0x40000000
SECCOMP_SET_MODE_FILTER = 1
LOAD, JUMP_EQUAL, JUMP_NOT_BELOW, JUMP_ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
# Offsets in seccomp_data; of 64-bit arguments the low half.
NUMBER, ARCH, FIRST, SECOND = 0, 4, 16, 24
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000
# Python asks whether a file is a terminal (none is), sets close-on-exec and non-blocking, and counts waiting bytes.
IOCTLS = (0x5401, 0x5450, 0x5451, 0x5421, 0x541B)
# Copies of files, and their flags. No locks, owners or leases, and no size of a pipe, which is the kernel's memory.
# F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC.
FCNTLS = (0, 1, 2, 3, 4, 1030)


class SeccompFilter(ctypes.Structure):
    """struct sock_fprog: how many instructions a program has, and the program."""

    _fields_ = (('count', ctypes.c_ushort), ('program', ctypes.c_char_p))


def instruction(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    """Returns a struct sock_filter; `yes` and `no` are how many instructions to skip."""
    return struct.pack('=HBBI', code, yes, no, value)


def seccomp_program() -> bytes:
    lines = [
        instruction(LOAD, ARCH),
        instruction(JUMP_EQUAL, AUDIT_ARCH_X86_64, yes=1),
        instruction(RETURN, KILL),
        instruction(LOAD, NUMBER),
        instruction(JUMP_NOT_BELOW, X32_BIT, no=1),
        instruction(RETURN, KILL),
        # clone3 has its flags in memory, where a filter can't look. Without it the C library falls back to clone.
        instruction(JUMP_EQUAL, BY_ARGUMENTS['clone3'], no=1),
        instruction(RETURN, REFUSE | errno.ENOSYS),
        # A thread of this process is allowed, another process is not.
        instruction(JUMP_EQUAL, BY_ARGUMENTS['clone'], no=5),
        instruction(LOAD, FIRST),
        instruction(JUMP_ANY_BIT, sum(NAMESPACES.values()), yes=2),
        instruction(JUMP_ANY_BIT, CLONE_THREAD, no=1),
        instruction(RETURN, ALLOW),
        instruction(RETURN, REFUSE | errno.EPERM),
    ]
    for name, requests in (('ioctl', IOCTLS), ('fcntl', FCNTLS)):
        lines += [instruction(JUMP_EQUAL, BY_ARGUMENTS[name], no=2 + 2 * len(requests)), instruction(LOAD, SECOND)]
        for request in requests:
            lines += [instruction(JUMP_EQUAL, request, no=1), instruction(RETURN, ALLOW)]
        lines.append(instruction(RETURN, REFUSE | errno.EPERM))
    allowed = set(ALLOWED.values())
    borders = [number for number in range(max(allowed) + 2) if (number in allowed) != (number - 1 in allowed)]
    return b''.join([*lines, *search(borders, inside=False)])


def search(borders: Sequence[int], inside: bool) -> list[bytes]:
    """Returns a binary search. Numbers below the first border are allowed if `inside`; each border changes that."""
    # The kernel runs a new filter once for every possible call, so trying numbers one by one would take a millisecond
    # of each program.
    if not borders:
        return [instruction(RETURN, ALLOW if inside else REFUSE | errno.EPERM)]
    middle = len(borders) // 2
    below = search(borders[:middle], inside)
    above = search(borders[middle + 1 :], inside ^ (middle % 2 == 0))
    return [instruction(JUMP_NOT_BELOW, borders[middle], yes=len(below)), *below, *above]
