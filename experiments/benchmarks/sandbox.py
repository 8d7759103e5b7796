"""Judging programs: how many a second, and what the sandbox adds to a program's bare process.

    python -m experiments.benchmarks.sandbox [--json]

"Theirs" is in turn 200 programs a second, the least that is demanded of two idle cores; `python -c` of the same program
and its test, as many at a time; and a bare fork that runs them in a small Python, which protects nobody. The programs
are HumanEval's 164 problems, 64 times, each answered at once and wrongly, so that nearly all of the time is the
sandbox's own.
"""

import concurrent.futures
import importlib
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from experiments.benchmarks import common
from nca_jax.sandbox import judge, zygote
from nca_jax.sandbox import pool as sandbox

TIMES = 64
DEMANDED = 200  # programs a second
COMPARED = 328  # programs of the other rows, which are slow
BODY = '    return None\n'


def rows() -> Iterator[common.Row]:
    programs = [task.submission(BODY) for task in judge.read_tasks(None).values()]
    cores = len(os.sched_getaffinity(0))
    with sandbox.Sandbox(cores) as box:
        several = list(itertools.islice(itertools.cycle(programs), COMPARED))
        seconds = common.seconds_in_turn(
            {
                'sandbox': lambda: count(verdict.passed for verdict in box.run(several)),
                'python': lambda: count(in_pool(cores, bare_python, several)),
                'fork': lambda: count(bare_fork(program) for program in several),
            },
            rounds=3,
        )
        start = time.perf_counter()
        judged = sum(1 for _ in box.run(programs * TIMES))
        rate = judged / (time.perf_counter() - start)
    note = f'{judged:,} programs on {cores} cores, theirs: the rate demanded'
    yield common.Row('sandbox/rate/-', rate, DEMANDED, rate / DEMANDED, 1.0, 'programs/s', note)
    # A fork runs one at a time, so its milliseconds are one core's; the others are made so.
    each = {name: 1000 * value / COMPARED * (1 if name == 'fork' else cores) for name, value in seconds.items()}
    for name, note in (('python', 'python -c of the same'), ('fork', 'a bare fork, unprotected, of the same')):
        ratio = each[name] / each['sandbox']
        yield common.Row(f'sandbox/against {name}/-', each['sandbox'], each[name], ratio, None, 'ms of a core', note)


def count(passed: Iterator[bool]) -> None:
    """Waits for all; none of these programs is right."""
    assert not any(list(passed))


def in_pool(
    workers: int, judge_one: Callable[[sandbox.Submission], bool], programs: list[sandbox.Submission]
) -> Iterator[bool]:
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        yield from pool.map(judge_one, programs)


def whole(program: sandbox.Submission) -> str:
    return f'{program.source}\n{program.tests}\ncheck({program.entry_point})\n'


def bare_python(program: sandbox.Submission) -> bool:
    command = [sys.executable, '-S', '-s', '-P', '-B', '-c', whole(program)]
    return subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0


def bare_fork(program: sandbox.Submission) -> bool:
    process = os.fork()
    if process == 0:
        code = 1
        try:
            exec(compile(whole(program), 'program', 'exec'), {})
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0


if __name__ == '__main__':
    for module in zygote.PRELOADED.split():
        importlib.import_module(module)
    common.main(rows(), __doc__.splitlines()[0])
