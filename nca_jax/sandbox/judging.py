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

    A process with JAX's threads must not fork programs, so this starts one by exec. It passes on its stderr, and it
    ends with the thread that calls this. Raises UserError if the command refuses, RuntimeError if it fails.
    """
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
    """Returns the file that `judge` writes unless it is told another: SAMPLES.judged.jsonl."""
    return samples.with_name(samples.name.removesuffix('.gz').removesuffix('.jsonl') + '.judged.jsonl')


def judge(
    completions: Sequence[Completion], out: pathlib.Path, limits: pool.Limits, workers: int | None
) -> list[dict[str, Any]]:
    """Returns the record of every completion. Those that are in `out` already stay; the others are run and appended."""
    hashes = [completion.hash(limits) for completion in completions]

    def busy() -> NoReturn:
        raise UserError(f'{out}: another judge is writing it')

    with files.lock(out, busy) as file:
        records = judged_before(out, completions, hashes)
        done = len(records)
        if done == len(completions):
            return records
        with pool.Sandbox(workers, limits) as box, progress.bars() as show:
            verdicts = box.run(completion.submission for completion in completions[done:])
            for completion, hash, verdict in zip(completions[done:], hashes[done:], verdicts, strict=True):
                names = {'task_id': completion.task_id, 'sample': completion.sample}
                records.append(names | {'passed': verdict.passed, 'why': verdict.why, 'hash': hash})
                # Line by line, so that little is lost if this process is killed.
                file.write(json.dumps(records[-1]).encode() + b'\n')
                file.flush()
                show('judged', len(records), len(completions))
    return records


def judged_before(out: pathlib.Path, completions: Sequence[Completion], hashes: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the records that a stopped judge left, and cuts an unfinished last line.

    Raises UserError, and cuts nothing, if the file holds anything else, since somebody may need it.
    """
    *lines, partial = out.read_bytes().split(b'\n')
    names = [{'task_id': completion.task_id, 'sample': completion.sample} for completion in completions]
    starts = [json.dumps(record).encode()[:-1] + b',' for record in names]
    ends = [f'"hash": "{hash}"}}'.encode() for hash in hashes]
    pairs = zip(lines, starts, ends, strict=False)
    same = len(lines) <= len(starts) and all(
        line.startswith(start) and line.endswith(end) for line, start, end in pairs
    )
    # A killed writer can only have left the beginning of the next record.
    if same and partial:
        start = next(iter(starts[len(lines) :]), None)
        same = start is not None and (partial.startswith(start) or start.startswith(partial))
    if not same:
        place = f'{out}: holds verdicts of other samples, problems or limits'
        raise UserError(f'{place}; remove it or choose another --out')
    files.cut_partial_line(out)
    return files.read_records(out)


def summary(records: Sequence[Mapping[str, Any]]) -> str:
    """Returns one line: the share that passed, and the reasons of the others."""
    passed = sum(record['passed'] for record in records)
    reasons = collections.Counter(record['why'].split(':')[0] for record in records if not record['passed'])
    failed = ''.join(f', {reason} {count:,}' for reason, count in reasons.most_common())
    tasks = len({record['task_id'] for record in records})
    return f'pass@1 {passed / len(records):.4f}: {passed:,} of {len(records):,} samples of {tasks:,} problems{failed}'
