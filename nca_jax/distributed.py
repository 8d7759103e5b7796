"""One program over several processes: how they find each other, and what they agree on besides arrays.

Who takes part is told by the environment, the first that is there:

    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID   anywhere: host:port of process 0, how many, which one
    NCA_CLUSTER=auto                                             TPU slices, GKE, MPI: JAX asks the cluster itself
    SLURM_NTASKS above 1, with SLURM_PROCID                      under srun: process 0 is the first node's first task
    none of them                                                 a single process; nothing is contacted

NCA_TIMEOUT, in seconds (300), bounds how long a process waits for the others at the start. One that dies later is
missed by JAX's heartbeats, which end the others within two minutes.
"""

import contextlib
import hashlib
import os
import re
import socket
import sys
import time
from collections.abc import Callable
from typing import NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from nca_jax.errors import UserError, check

LONGEST_LINE = 2048  # bytes of what process 0 tells the others
SHUTDOWN_SECONDS = 60
FAREWELL_SECONDS = 2.0  # in which others end before the service that process 0 runs for them does
RETRY_SECONDS = 0.2
HELLO_SECONDS = 5.0  # for the line of one that calls; whatever else finds the port keeps the others for no longer
GO, NO = 'go', 'no: '  # what process 0 answers
SLURM_PORTS = range(61_440, 65_536)
T = TypeVar('T')


class MachineError(RuntimeError):
    """Another process met trouble of its machine's, such as a disk that can't be read just now."""


def initialise() -> None:
    """Joins the other processes, if the environment tells of any. To be called before JAX starts a backend.

    Raises UserError where a variable makes no sense or processes are missing or too many: within NCA_TIMEOUT, which
    begins anew when process 0 is found. With NCA_CLUSTER=auto it's JAX that misses them, and ends this process after
    NCA_TIMEOUT with exit code 134.
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
    """host:port of the first task of a step on SLURM: its first node, and JAX_COORDINATOR_PORT or one of the job's."""
    nodes, job = os.environ.get('SLURM_STEP_NODELIST', ''), _number('SLURM_JOB_ID')
    first = re.match(r'([^,\[]+)(?:\[(\d+))?', nodes)  # node7,other or node[007-012,015],other
    check(first is not None, 'SLURM_STEP_NODELIST', nodes, 'must name nodes, as under srun')
    port = os.environ.get('JAX_COORDINATOR_PORT', SLURM_PORTS.start + job % len(SLURM_PORTS))
    return f'{first[1]}{first[2] or ""}:{port}'


def _join(**asked) -> None:
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    try:
        jax.distributed.initialize(**asked)
    except (ValueError, RuntimeError) as error:
        raise UserError(f'the processes did not find each other: {" ".join(str(error).split())[:300]}') from None


def _number(name: str, default: int | None = None) -> int:
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    check(text is not None and text.isdigit(), name, text, 'must be a whole number')
    return int(text)


def _call_roll(host: str, port: int, count: int, process: int, seconds: float) -> None:
    """Returns when all processes are there, before JAX takes over the port; its own service aborts where one isn't."""
    deadline = time.monotonic() + seconds
    if process == 0:
        _answer(port, count, deadline, seconds)
        return
    trouble = 'nobody is there'
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=left) as line:
                line.settimeout(seconds + HELLO_SECONDS)  # process 0 may have begun to wait later
                line.sendall(f'{process} {count}\n'.encode())
                answer = line.makefile(errors='replace').readline().strip()
        except OSError as error:
            trouble = error.strerror or str(error)
        else:
            if answer == GO:
                return
            if answer.startswith(NO):
                raise UserError(answer.removeprefix(NO))
            trouble = 'what is there waits for no process, or no longer'
        time.sleep(RETRY_SECONDS)
    raise UserError(f'process {process} of {count} found no process 0 at {host}:{port} in {seconds} s: {trouble}')


def _answer(port: int, count: int, deadline: float, seconds: float) -> None:
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
                called, of = map(int, line.makefile().readline().split())
            except (OSError, ValueError):
                continue  # nobody called, or something else that found the port
            if of != count or not 0 < called < of:
                _tell([line], f'{NO}process 0 waits for {count} processes, and this one is process {called} of {of}')
            elif called in lines:
                _tell([line], f'{NO}there are two processes {called} of {count}; this is the second')
            else:
                lines[called] = line
    missing = sorted(set(range(1, count)) - lines.keys())
    if missing:
        names = ', '.join(map(str, missing[:10])) + (', ...' if len(missing) > 10 else '')
        said = f'process {names} of {count} did not arrive in {seconds} s'
        _tell(lines.values(), NO + said)
        raise UserError(said)
    _tell(lines.values(), GO)


def _tell(lines, said: str) -> None:
    for line in lines:
        with line, contextlib.suppress(OSError):  # one that is gone is missed by JAX
            line.sendall(f'{said}\n'.encode())


def is_first() -> bool:
    """Whether this is process 0, which alone writes what is written once."""
    return jax.process_index() == 0


def first(work: Callable[[], T]) -> T:
    """`work()` of process 0 and, when it's done, of the others, who raise UserError where process 0 raised anything.

    For the main thread, outside of any other collective.
    """
    if jax.process_count() == 1:
        return work()
    result = error = None
    if is_first():
        try:
            result = work()
        except Exception as caught:  # whatever it is: the others wait for it
            error = caught
    said = '' if error is None else str(error) or type(error).__name__
    text = np.zeros(LONGEST_LINE, np.uint8)
    told = np.frombuffer(said.encode()[:LONGEST_LINE], np.uint8)
    text[: len(told)] = told
    with jax.transfer_guard('allow'):
        told = np.asarray(multihost_utils.broadcast_one_to_all(text)).tobytes().rstrip(b'\0')
    if error is not None:
        raise error
    if told:
        raise UserError(told.decode(errors='replace'))
    return result if is_first() else work()


def on_all(work: Callable[[], T], of_the_machine: Callable[[Exception], bool]) -> T:
    """`work()` of every process, which may be no collective itself. Where it fails on one, it raises on all.

    The others raise MachineError where the one's error is `of_the_machine`, else ValueError. For the main thread,
    outside of any other collective.
    """
    if jax.process_count() == 1:
        return work()
    result = error = None
    try:
        result = work()
    except Exception as caught:  # whatever it is: the others must not go on alone
        error = caught
    failed = _gather(np.array([error is not None, error is not None and of_the_machine(error)]))
    if error is not None:
        raise error
    for process, (any_error, machine) in enumerate(failed):
        if any_error:
            raise (MachineError if machine else ValueError)(f'process {process} failed at it')
    return result


def _gather(row: np.ndarray) -> np.ndarray:
    with jax.transfer_guard('allow'):
        return np.asarray(multihost_utils.process_allgather(row))


def agree(text: str, what: str) -> None:
    """Raises UserError, on every process, unless `text` is the same on all of them. For the main thread alone."""
    words_Nx8 = _gather(np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint32))
    other = np.flatnonzero((words_Nx8 != words_Nx8[0]).any(1))
    if other.size:
        raise UserError(f'{what}: process {other[0]} has others than process 0; do both run the same software?')


def leave(code: int) -> NoReturn:
    """Exits after an error: of several processes without the orderly end, in which each waits for the others."""
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        if is_first():
            time.sleep(FAREWELL_SECONDS)
        os._exit(code)
    sys.exit(code)
