"""A seccomp filter that lets a program make the calls of kernel.ALLOWED and no others.

A refused call gives EPERM, so that Python raises an error instead of dying. Calls of another processor's or of the x32
interface would be numbered otherwise, and kill the process.
"""

import ctypes
import dataclasses
import errno
import struct
from collections.abc import Sequence

from nca_jax.sandbox import kernel

AUDIT_ARCH = {'x86_64': 0xC000003E, 'aarch64': 0xC00000B7}
X32_BIT = 0x40000000
SECCOMP_SET_MODE_FILTER = 1

LOAD, JUMP_EQUAL, JUMP_NOT_BELOW, JUMP_ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCH, FIRST, SECOND = 0, 4, 16, 24  # offsets in seccomp_data; of 64-bit arguments the low half
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000

NAMESPACES = (
    kernel.CLONE_NEWNS
    | kernel.CLONE_NEWCGROUP
    | kernel.CLONE_NEWUTS
    | kernel.CLONE_NEWIPC
    | kernel.CLONE_NEWUSER
    | kernel.CLONE_NEWPID
    | kernel.CLONE_NEWNET
    | kernel.CLONE_NEWTIME
)
# What Python asks of files: whether they are terminals (they aren't), closing on exec, blocking, bytes that wait.
IOCTLS = (0x5401, 0x5450, 0x5451, 0x5421, 0x541B)

# Copies of files and their flags; not locks, owners, leases, or how large a pipe is: that is memory of the kernel's.
FCNTLS = (0, 1, 2, 3, 4, 1030)  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC


def instruction(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    """One of struct sock_filter; `yes` and `no` are how many to skip."""
    return struct.pack('=HBBI', code, yes, no, value)


def program(machine: str) -> bytes:
    """The filter for a processor, as an array of struct sock_filter."""
    others = kernel.numbers(kernel.OTHERS, machine)
    lines = [
        instruction(LOAD, ARCH),
        instruction(JUMP_EQUAL, AUDIT_ARCH[machine], yes=1),
        instruction(RETURN, KILL),
        instruction(LOAD, NUMBER),
    ]
    if machine == 'x86_64':
        lines += [instruction(JUMP_NOT_BELOW, X32_BIT, no=1), instruction(RETURN, KILL)]
    # A thread of this process is allowed, another process is not. The C library falls back from clone3, whose flags lie
    # in memory where a filter can't look, to clone.
    lines += [
        instruction(JUMP_EQUAL, others['clone3'], no=1),
        instruction(RETURN, REFUSE | errno.ENOSYS),
        instruction(JUMP_EQUAL, others['clone'], no=5),
        instruction(LOAD, FIRST),
        instruction(JUMP_ANY_BIT, NAMESPACES, yes=2),
        instruction(JUMP_ANY_BIT, kernel.CLONE_THREAD, no=1),
        instruction(RETURN, ALLOW),
        instruction(RETURN, REFUSE | errno.EPERM),
    ]
    for name, requests in (('ioctl', IOCTLS), ('fcntl', FCNTLS)):
        lines += [instruction(JUMP_EQUAL, others[name], no=2 + 2 * len(requests)), instruction(LOAD, SECOND)]
        for request in requests:
            lines += [instruction(JUMP_EQUAL, request, no=1), instruction(RETURN, ALLOW)]
        lines.append(instruction(RETURN, REFUSE | errno.EPERM))
    allowed = set(kernel.numbers(kernel.ALLOWED, machine).values())
    borders = [number for number in range(max(allowed) + 2) if (number in allowed) != (number - 1 in allowed)]
    return b''.join([*lines, *search(borders, inside=False)])


def search(borders: Sequence[int], inside: bool) -> list[bytes]:
    """A binary search: whether a number is allowed changes at each of `borders`, and is `inside` below the first.

    The kernel runs a filter for every call there is when it is put in place, so a list one by one would take a
    millisecond of each program.
    """
    if not borders:
        return [instruction(RETURN, ALLOW if inside else REFUSE | errno.EPERM)]
    middle = len(borders) // 2
    below = search(borders[:middle], inside)
    above = search(borders[middle + 1 :], inside ^ (middle % 2 == 0))
    return [instruction(JUMP_NOT_BELOW, borders[middle], yes=len(below)), *below, *above]


@dataclasses.dataclass(frozen=True)
class Filter:
    """A program where the kernel can read it: made once, since each process would pay for it otherwise."""

    code: ctypes.Array
    header: bytes

    @classmethod
    def of(cls, code: bytes) -> 'Filter':
        buffer = ctypes.create_string_buffer(code, len(code))
        return cls(buffer, struct.pack('@HxxxxxxQ', len(code) // 8, ctypes.addressof(buffer)))


def restrict(program: Filter) -> None:
    """Puts this process behind a filter for good. It must have no_new_privs. OSError where the kernel can't."""
    kernel.call('seccomp', SECCOMP_SET_MODE_FILTER, 0, program.header)
