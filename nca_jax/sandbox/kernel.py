"""The kernel's calls that the sandbox makes and those it allows, by number and without a compiler.

Numbers are of x86_64 and aarch64 (from the kernel's own headers); no other processor is served.
"""

import ctypes
import os
import platform
import struct

MACHINES = ('x86_64', 'aarch64')  # the columns of the tables below; '-' is a call that a processor lacks

# What a running Python needs: files, its own memory, time, signals, waiting, threads. Nothing that reaches out of a
# process (sockets, other processes' memory, keys, shared memory), starts a program or asks for a privilege.
ALLOWED = """
    read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, pwrite64 18 68, preadv 295 69, pwritev 296 70,
    close 3 57, close_range 436 436, lseek 8 62, open 2 -, openat 257 56, creat 85 -, stat 4 -, fstat 5 80,
    lstat 6 -, newfstatat 262 79, statx 332 291, access 21 -, faccessat 269 48, faccessat2 439 439, statfs 137 43,
    fstatfs 138 44, getdents 78 -, getdents64 217 61, readlink 89 -, readlinkat 267 78, getcwd 79 17, chdir 80 49,
    fchdir 81 50, mkdir 83 -, mkdirat 258 34, rmdir 84 -, unlink 87 -, unlinkat 263 35, rename 82 -, renameat 264 38,
    renameat2 316 276, link 86 -, linkat 265 37, symlink 88 -, symlinkat 266 36, chmod 90 -, fchmod 91 52,
    fchmodat 268 53, utime 132 -, utimes 235 -, futimesat 261 -, utimensat 280 88, umask 95 166, truncate 76 45,
    ftruncate 77 46, fallocate 285 47, fadvise64 221 223, fsync 74 82, fdatasync 75 83, sendfile 40 71,
    copy_file_range 326 285, dup 32 23, dup2 33 -, dup3 292 24, pipe 22 -, pipe2 293 59,
    eventfd2 290 19, poll 7 -, ppoll 271 73, select 23 -, pselect6 270 72, epoll_create 213 -, epoll_create1 291 20,
    epoll_ctl 233 21, epoll_wait 232 -, epoll_pwait 281 22, brk 12 214, mmap 9 222, munmap 11 215, mprotect 10 226,
    mremap 25 216, madvise 28 233, msync 26 227, mincore 27 232, rt_sigaction 13 134, rt_sigprocmask 14 135,
    rt_sigreturn 15 139, rt_sigpending 127 136, rt_sigsuspend 130 133, rt_sigtimedwait 128 137, sigaltstack 131 132,
    alarm 37 -, pause 34 -, setitimer 38 103, getitimer 36 102, nanosleep 35 101, clock_nanosleep 230 115,
    clock_gettime 228 113, clock_getres 229 114, gettimeofday 96 169, time 201 -, times 100 153, kill 62 129,
    tkill 200 130, tgkill 234 131, exit 60 93, exit_group 231 94, wait4 61 260, waitid 247 95,
    restart_syscall 219 128, getpid 39 172, getppid 110 173, gettid 186 178, getpgid 121 155, getpgrp 111 -,
    getsid 124 156, getuid 102 174, geteuid 107 175, getgid 104 176, getegid 108 177, getresuid 118 148,
    getresgid 120 150, getgroups 115 158, uname 63 160, sysinfo 99 179, getrusage 98 165, getrlimit 97 163,
    setrlimit 160 164, prlimit64 302 261, sched_yield 24 124, sched_getaffinity 204 123, getcpu 309 168,
    getrandom 318 278, futex 202 98, set_tid_address 218 96, set_robust_list 273 99, get_robust_list 274 100,
    rseq 334 293, membarrier 324 283, arch_prctl 158 -
"""
# Those allowed with certain arguments only (see seccomp), then those made before the filter is there.
OTHERS = """
    clone 56 220, clone3 435 435, ioctl 16 29, fcntl 72 25, unshare 272 97, setns 308 268, mount 165 40, umount2 166 39,
    pivot_root 155 41, open_tree 428 428, move_mount 429 429, mount_setattr 442 442, capset 126 91, prctl 157 167,
    seccomp 317 277, landlock_create_ruleset 444 444, landlock_add_rule 445 445, landlock_restrict_self 446 446,
    setgroups 116 159, setresuid 117 147, setresgid 119 149, sethostname 170 161, pidfd_open 434 434
"""


def numbers(table: str, machine: str) -> dict[str, int]:
    """The calls of a table that a processor has, with their numbers."""
    column = 1 + MACHINES.index(machine)
    rows = [words.split() for words in table.replace('\n', ' ').split(',')]
    return {row[0]: int(row[column]) for row in rows if row[column] != '-'}


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_NUMBERS = numbers(f'{ALLOWED},{OTHERS}', platform.machine()) if platform.machine() in MACHINES else {}

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_NEWTIME = 0x00000080
CLONE_THREAD = 0x00010000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 0x20, 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
AT_FDCWD, AT_RECURSIVE = -100, 0x8000

PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4
PR_SET_SECUREBITS, PR_SET_NO_NEW_PRIVS = 28, 38
LOCKED_SECUREBITS = 0b11101111  # no powers by user number, no ambient ones; all but keep_caps, and locked
CAPABILITY_HEADER = struct.pack('=Ii', 0x20080522, 0)  # version, and this process
NO_CAPABILITIES = bytes(24)


Argument = int | bytes | ctypes.Array | ctypes.Structure | None


def call(name: str, *arguments: Argument) -> int:
    """A system call by name. OSError, with the call's name in it, where the kernel refuses."""
    return call_number(_NUMBERS[name], *arguments, name=name)


def call_number(number: int, *arguments: Argument, name: str = 'system call') -> int:
    """One by number, as `call`."""
    words = []
    for argument in arguments:
        if isinstance(argument, int):
            words.append(ctypes.c_long(argument))
        elif isinstance(argument, ctypes.Structure):
            words.append(ctypes.byref(argument))
        else:
            words.append(argument)  # bytes, arrays and None pass as pointers
    result = _libc.syscall(ctypes.c_long(number), *words)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f'{name}: {os.strerror(error)}')
    return result


def drop_capabilities() -> None:
    """Gives up every capability of this process, and locks that being root of its namespace is worth nothing."""
    call('prctl', PR_SET_SECUREBITS, LOCKED_SECUREBITS, 0, 0, 0)
    call('capset', CAPABILITY_HEADER, NO_CAPABILITIES)
