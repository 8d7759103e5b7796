"""Judges completions by the tests of their tasks, and writes a record of each as soon as all before it are written."""

import collections
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from nca_jax import files, progress
from nca_jax.errors import UserError
from nca_jax.sandbox import pool
from nca_jax.sandbox.human_eval import Completion


def judge_file(samples: pathlib.Path, problems: pathlib.Path | None, *flags: str) -> list[dict[str, Any]]:
    """Returns the records that the command `judge` writes, run with these flags as a process of its own.

    It passes on that process's stderr. Raises UserError if the command refuses, RuntimeError if it fails.
    """
    # A process with JAX's threads must not fork programs, so the judge is started by exec. It ends with its parent.
    command = [sys.executable, '-m', 'nca_jax', 'judge', str(samples), f'--parent={os.getpid()}', *flags]
    command += [f'--problems={problems}'] if problems else []
    last = ''
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            last = line.strip() or last
            print(line, end='', file=sys.stderr)
    if process.returncode == 2:
        raise UserError(last.removeprefix('error: '))
    if process.returncode:
        raise RuntimeError(f'the judge failed, exit code {process.returncode}: {last}')
    return files.read_records(out_file(samples))


def out_file(samples: pathlib.Path) -> pathlib.Path:
    """Returns the file that `judge` writes without --out."""
    return samples.with_name(samples.name.removesuffix('.gz').removesuffix('.jsonl') + '.judged.jsonl')


def judge(
    completions: Sequence[Completion], out: pathlib.Path, limits: pool.Limits, workers: int | None
) -> list[dict[str, Any]]:
    """Returns the record of every completion. Those that are in `out` already stay; the others are run and appended."""
    # What a record begins with. The hash stands for the program, its tests and the limits.
    names = [{'task_id': c.task_id, 'sample': c.sample, 'hash': c.hash(limits)} for c in completions]

    def busy() -> NoReturn:
        raise UserError(f'{out}: another judge is writing it')

    with files.lock(out, busy) as file:
        records = judged_before(out, names)
        left = completions[len(records) :]
        # A finished file needs no sandbox, and may be read where none would start.
        if not left:
            return records
        with pool.Sandbox(workers, limits) as box, progress.bars() as show:
            for verdict in box.run(completion.submission for completion in left):
                records.append(names[len(records)] | {'passed': verdict.passed, 'why': verdict.why})
                # Line by line, so that little is lost if this process is killed.
                file.write(json.dumps(records[-1]).encode() + b'\n')
                file.flush()
                show('judged', len(records), len(completions))
    return records


def judged_before(out: pathlib.Path, names: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the records that a stopped judge left, and cuts an unfinished last line.

    Raises UserError, and cuts nothing, if the file holds anything else, since somebody may need it.
    """
    *lines, partial = out.read_bytes().split(b'\n')
    starts = [json.dumps(name).encode()[:-1] + b',' for name in names]
    ours = len(lines) <= len(starts) and all(map(bytes.startswith, lines, starts))
    if partial:
        # A killed writer can only have left the beginning of the next record.
        following = starts[len(lines) : len(lines) + 1]
        ours = ours and any(partial.startswith(start) or start.startswith(partial) for start in following)
    if not ours:
        raise UserError(
            f'{out}: holds verdicts of other samples, problems or limits; remove it or choose another --out'
        )
    files.cut_partial_line(out)
    return files.read_records(out)


def summary(records: Sequence[Mapping[str, Any]]) -> str:
    """Returns one line: the share that passed, and the reasons of the others."""
    passed = sum(record['passed'] for record in records)
    reasons = collections.Counter(record['why'].split(':')[0] for record in records if not record['passed'])
    failed = ''.join(f', {reason} {count:,}' for reason, count in reasons.most_common())
    tasks = len({record['task_id'] for record in records})
    return f'pass@1 {passed / len(records):.4f}: {passed:,} of {len(records):,} samples of {tasks:,} problems{failed}'
