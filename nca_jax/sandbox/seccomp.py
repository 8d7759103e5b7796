"""A seccomp filter that lets a program make the calls of kernel.ALLOWED and no others.

A refused call gives EPERM, so that Python raises an error instead of dying. A call through the 32-bit or the x32
interface has other numbers, and kills the process.
"""

import ctypes
import errno
import struct
from collections.abc import Sequence

from nca_jax.sandbox import kernel

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


class Filter(ctypes.Structure):
    """struct sock_fprog: the number of instructions of `program`, and where they lie."""

    _fields_ = (('count', ctypes.c_ushort), ('code', ctypes.c_char_p))

    def __init__(self):
        code = program()
        super().__init__(len(code) // 8, code)


def instruction(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    """Returns a struct sock_filter; `yes` and `no` are how many instructions to skip."""
    return struct.pack('=HBBI', code, yes, no, value)


def program() -> bytes:
    special = kernel.BY_ARGUMENTS
    lines = [
        instruction(LOAD, ARCH),
        instruction(JUMP_EQUAL, AUDIT_ARCH_X86_64, yes=1),
        instruction(RETURN, KILL),
        instruction(LOAD, NUMBER),
        instruction(JUMP_NOT_BELOW, X32_BIT, no=1),
        instruction(RETURN, KILL),
        # clone3 has its flags in memory, where a filter can't look. Without it the C library falls back to clone.
        instruction(JUMP_EQUAL, special['clone3'], no=1),
        instruction(RETURN, REFUSE | errno.ENOSYS),
        # A thread of this process is allowed, another process is not.
        instruction(JUMP_EQUAL, special['clone'], no=5),
        instruction(LOAD, FIRST),
        instruction(JUMP_ANY_BIT, sum(kernel.NAMESPACES.values()), yes=2),
        instruction(JUMP_ANY_BIT, kernel.CLONE_THREAD, no=1),
        instruction(RETURN, ALLOW),
        instruction(RETURN, REFUSE | errno.EPERM),
    ]
    for name, requests in (('ioctl', IOCTLS), ('fcntl', FCNTLS)):
        lines += [instruction(JUMP_EQUAL, special[name], no=2 + 2 * len(requests)), instruction(LOAD, SECOND)]
        for request in requests:
            lines += [instruction(JUMP_EQUAL, request, no=1), instruction(RETURN, ALLOW)]
        lines.append(instruction(RETURN, REFUSE | errno.EPERM))
    allowed = set(kernel.ALLOWED.values())
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
