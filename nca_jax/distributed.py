"""One program over several processes: how they find each other, and what they agree on besides arrays.

The environment says who takes part. The first line that applies decides:

    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID   anywhere: host:port of process 0, how many, which one
    NCA_CLUSTER=auto                                             TPU slices, GKE, MPI: JAX asks the cluster itself
    SLURM_NTASKS above 1, with SLURM_PROCID                      under srun: process 0 is the first node's first task
    otherwise                                                    a single process, which contacts nobody

A process waits at most NCA_TIMEOUT seconds (300) for the others at the start. If one dies later, JAX's heartbeats end
the others within two minutes.
"""

import contextlib
import hashlib
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterable
from typing import NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from nca_jax.errors import UserError, check

# Bytes of an error that process 0 sends to the others.
LONGEST_LINE = 2048
# JAX waits so long for processes that have not finished yet.
SHUTDOWN_SECONDS = 60
# After an error, process 0 leaves last, because it runs JAX's service for the others.
FAREWELL_SECONDS = 2.0
# Something else may find the port and say nothing: it delays the others by no more than this.
HELLO_SECONDS = 5.0
# The answers of process 0.
GO, NO = 'go', 'no: '
# Above Linux's ephemeral ports (32768 to 60999), so that no other program is given one by chance.
SLURM_PORTS = range(61_440, 65_536)
T = TypeVar('T')


class MachineError(RuntimeError):
    """Another process failed for a reason of its machine, such as a disk that can't be read just now."""


def initialise() -> None:
    """Joins the other processes, if the environment names any. Call it before JAX starts a backend.

    Raises UserError for an impossible variable, and where processes are missing or too many. After the roll call JAX's
    own start may take another NCA_TIMEOUT. NCA_CLUSTER=auto has no roll call: JAX aborts with exit code 134.
    """
    seconds = _number('NCA_TIMEOUT', 300)
    limits = {'initialization_timeout': seconds, 'shutdown_timeout_seconds': SHUTDOWN_SECONDS}
    address, cluster = os.environ.get('JAX_COORDINATOR_ADDRESS'), os.environ.get('NCA_CLUSTER')
    check(cluster in (None, 'auto'), 'NCA_CLUSTER', cluster, "must be 'auto' or not set")
    names = 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID'
    if address is None and cluster is not None:
        _join(**limits)
        return
    if address is None:
        if _number('SLURM_NTASKS', 1) == 1 or 'SLURM_PROCID' not in os.environ:
            return
        address, names = _slurm_address(), ('SLURM_NTASKS', 'SLURM_PROCID')
    count, process = map(_number, names)
    host, _, port = address.rpartition(':')
    valid = bool(host) and port.isdigit() and int(port) < 2**16
    check(valid, 'JAX_COORDINATOR_ADDRESS', address, 'must be host:port of process 0')
    check(process < count, names[1], process, f'must be below {names[0]} = {count}')
    if count > 1:
        _call_roll(host, int(port), count, process, seconds)
        _join(coordinator_address=address, num_processes=count, process_id=process, **limits)


def _slurm_address() -> str:
    """host:port of a SLURM step's first task: the first node, and JAX_COORDINATOR_PORT or a port of the job's own."""
    nodes, job = os.environ.get('SLURM_STEP_NODELIST', ''), _number('SLURM_JOB_ID')
    # Lists look like node7,other or node[007-012,015],other.
    first = re.match(r'([^,\[]+)(?:\[(\d+))?', nodes)
    check(first is not None, 'SLURM_STEP_NODELIST', nodes, 'must name nodes, as under srun')
    port = os.environ.get('JAX_COORDINATOR_PORT', SLURM_PORTS.start + job % len(SLURM_PORTS))
    return f'{first[1]}{first[2] or ""}:{port}'


def _join(**arguments) -> None:
    try:
        jax.distributed.initialize(**arguments)
    except (ValueError, RuntimeError) as error:
        raise UserError(f'the processes did not find each other: {" ".join(str(error).split())[:300]}') from None


def _number(name: str, default: int | None = None) -> int:
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    check(text is not None and text.isdigit(), name, text, 'must be a whole number')
    return int(text)


# The roll call. JAX's own start ends every process with a C++ stack if one is missing, so ours comes first.


def _call_roll(host: str, port: int, count: int, process: int, seconds: float) -> None:
    """Returns when all processes have called process 0, before JAX takes over the port. Raises UserError otherwise."""
    deadline = time.monotonic() + seconds
    if process == 0:
        _answer_calls(port, count, deadline, seconds)
        return
    trouble = 'nobody is there'
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=left) as line:
                # Process 0 counts from its own start, which may be later, so it may answer after our deadline.
                line.settimeout(seconds + HELLO_SECONDS)
                line.sendall(f'{process} {count}\n'.encode())
                answer = line.makefile(errors='replace').readline().strip()
        except OSError as error:
            trouble = error.strerror or str(error)
        else:
            if answer == GO:
                return
            if answer.startswith(NO):
                raise UserError(answer.removeprefix(NO))
            trouble = 'what is there waits for no process: another program, or process 0 after it gave up'
        time.sleep(0.2)
    raise UserError(f'process {process} of {count} found no process 0 at {host}:{port} in {seconds} s: {trouble}')


def _answer_calls(port: int, count: int, deadline: float, seconds: float) -> None:
    """Process 0's side: waits for one call of each other process, then tells all of them how it ended."""
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        listener = socket.create_server(('', port), family=family, backlog=1024, dualstack_ipv6=dual)
    except OSError as error:
        raise UserError(f'port {port}, on which process 0 waits for the others: {error.strerror}') from None
    lines: dict[int, socket.socket] = {}
    with listener:
        while len(lines) < count - 1 and (left := deadline - time.monotonic()) > 0:
            listener.settimeout(left)
            try:
                line, _ = listener.accept()
                line.settimeout(HELLO_SECONDS)
                process, processes = map(int, line.makefile().readline().split())
            except (OSError, ValueError):
                # Nobody called, or something else found the port.
                continue
            if processes != count or not 0 < process < count:
                wrong = f'this one is process {process} of {processes}'
                _tell([line], f'{NO}process 0 waits for {count} processes, and {wrong}')
            elif process in lines:
                _tell([line], f'{NO}there are two processes {process} of {count}; this is the second')
            else:
                lines[process] = line
    missing = sorted(set(range(1, count)) - lines.keys())
    if missing:
        names = ', '.join(map(str, missing[:10])) + (', ...' if len(missing) > 10 else '')
        message = f'process {names} of {count} did not arrive in {seconds} s'
        _tell(lines.values(), NO + message)
        raise UserError(message)
    _tell(lines.values(), GO)


def _tell(lines: Iterable[socket.socket], message: str) -> None:
    for line in lines:
        # JAX will notice a process that is gone by now.
        with line, contextlib.suppress(OSError):
            line.sendall(f'{message}\n'.encode())


# Agreement. All processes must call these in the same order, so only on the main thread: the collectives of two threads
# could meet in another order elsewhere and wait for each other.


def is_first() -> bool:
    """Whether this is process 0, which writes the files of the run."""
    return jax.process_index() == 0


def first(work: Callable[[], T]) -> T:
    """Runs `work()` on process 0, then on the others, and returns each one's result.

    If process 0 raises, the others raise UserError with its message.
    """
    if jax.process_count() == 1:
        return work()
    result, error = _attempt(work) if is_first() else (None, None)
    message = '' if error is None else str(error) or type(error).__name__
    padded = message.encode()[:LONGEST_LINE].ljust(LONGEST_LINE, b'\0')
    received = _gather(np.frombuffer(padded, np.uint8))[0].tobytes().rstrip(b'\0')
    if error is not None:
        raise error
    if received:
        raise UserError(received.decode(errors='replace'))
    return result if is_first() else work()


def on_all(work: Callable[[], T], is_of_the_machine: Callable[[Exception], bool]) -> T:
    """Runs `work()`, which calls no collective, on every process. If it raises on one, it raises on all.

    The others raise MachineError if `is_of_the_machine` says so of the error, else ValueError.
    """
    if jax.process_count() == 1:
        return work()
    result, error = _attempt(work)
    failures = _gather(np.array([error is not None, error is not None and is_of_the_machine(error)]))
    if error is not None:
        raise error
    for process, (failed, of_the_machine) in enumerate(failures):
        if failed:
            raise (MachineError if of_the_machine else ValueError)(f'process {process} failed to read its part')
    return result


def _attempt(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return work(), None
    # Any kind of error: the other processes wait for this one, and must not go on without it.
    except Exception as error:
        return None, error


def agree(text: str, name: str) -> None:
    """Raises UserError, on every process, unless `text` is the same on all of them.

    `multihost_utils.assert_equal` raises on the differing process alone, and the others would wait for it.
    """
    words_Nx8 = _gather(np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint32))
    different = np.flatnonzero((words_Nx8 != words_Nx8[0]).any(1))
    if different.size:
        raise UserError(f'{name}: process {different[0]} differs from process 0; do both run the same code?')


def _gather(row: np.ndarray) -> np.ndarray:
    # The loop forbids implicit transfers; this one is meant.
    with jax.transfer_guard('allow'):
        return np.asarray(multihost_utils.process_allgather(row))


def leave(code: int) -> NoReturn:
    """Exits after an error. One of several processes skips JAX's orderly end, in which each waits for the others."""
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        if is_first():
            time.sleep(FAREWELL_SECONDS)
        os._exit(code)
    sys.exit(code)
