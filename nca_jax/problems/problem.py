"""Problems with known answers, in one form whatever they were published as: GSM8K and HumanEval here, others beside."""

import dataclasses
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import tensorflow_datasets as tfds

from nca_jax.data.documents import decode
from nca_jax.errors import UserError
from nca_jax.sandbox import human_eval as human_eval_file

MARK = re.compile(r'<<[^<>]*>>')  # GSM8K's calls of a calculator, `<<48/2=24>>`


@dataclasses.dataclass(frozen=True)
class Problem:
    """A question and what counts as a right answer.

    id: names it, whatever is read beside it. prompt: all that stands before the answer. target: what tuning learns, the
    end of text comes on top; '' where there is none. answers: every right final answer. choices: how many options, the
    answers among them, this very row offers; 0 for open answers. task: what scores are averaged within.
    """

    id: str
    prompt: str
    target: str
    answers: tuple[str, ...]
    choices: int
    task: str


class Sides(NamedTuple):
    """What may be learnt from and what is kept for evaluation."""

    train: tuple[Problem, ...]
    test: tuple[Problem, ...]


def digest(problem: Problem) -> bytes:
    """16 bytes of what is asked. Problems of equal prompts are the same, whatever their answers and ids."""
    return hashlib.blake2b(problem.prompt.strip().encode(), digest_size=16).digest()


def distinct(problems: Iterable[Problem], besides: Iterable[Problem] = ()) -> tuple[Problem, ...]:
    """Each prompt once and none that `besides` has, in the order of their digests: a prefix is a random choice.

    The result is a function of the set of problems: of equal prompts the one with the least id stays.
    """
    seen = {digest(problem) for problem in besides}
    kept: dict[bytes, Problem] = {}
    for problem in sorted(problems, key=lambda problem: problem.id):
        if digest(problem) not in seen:
            kept.setdefault(digest(problem), problem)
    return tuple(kept[key] for key in sorted(kept))


def worked(identity: str, task: str, question: str, reasoning: str, answer: str) -> Problem:
    """A question whose answer is the last word of a worked solution, as the paper sets GSM8K (arXiv 2603.10055)."""
    lines = [reasoning.strip(), f'Final Answer: {answer}']
    target = '\n'.join(line for line in lines if line)
    return Problem(identity, f'Question:\n{question.strip()}\nAnswer:\n', target, (answer,), 0, task)


def split_solution(text: str, marks: str, name: str) -> tuple[str, str]:
    """Reasoning and final answer of a solution that ends in `#### answer`.

    marks: 'drop' takes out `<<...>>`, which call a calculator that no model here has and cost a fifth to a third of an
    answer's tokens; 'keep' leaves them in the reasoning. UserError, with `name` in it, where no answer of one word is.
    """
    reasoning, mark, answer = text.rpartition('####')
    if not mark or len(answer.split()) != 1:
        raise UserError(f"{name}: answer = ...{text[-40:]!r}: must end in '#### ' and one word")
    return MARK.sub('', reasoning) if marks == 'drop' else reasoning, answer.strip()


def gsm8k(path: str, marks: str) -> Sides:
    """GSM8K as published: a folder with train.jsonl and test.jsonl of the fields `question` and `answer`."""
    root = Path(path).expanduser()
    if not path or not root.is_dir():
        raise UserError(f'path = {path!r}: must be the folder with train.jsonl and test.jsonl')
    sides = {}
    for side in Sides._fields:
        rows = read_rows(root / f'{side}.jsonl', ('question', 'answer'))
        sides[side] = tuple(_gsm8k(f'gsm8k/{side}/{number}', marks, *row) for number, row in enumerate(rows))
    return Sides(**sides)


def gsm8k_tfds(path: str, marks: str) -> Sides:
    """GSM8K as TFDS has prepared it, as ArrayRecord: `path` is TFDS's data folder, or the dataset's own.

    It is read only: TFDS builds this dataset from the very files that `gsm8k` reads.
    TFDS shuffles: a problem's id has the row of TFDS, not the line of the published file.
    """
    root = Path(path).expanduser()
    found = sorted([*root.glob('dataset_info.json'), *root.glob('gsm8k/*/dataset_info.json')]) if path else []
    if not found:
        raise UserError(f'path = {path!r}: must be the folder in which TFDS has prepared gsm8k, with dataset_info.json')
    folder = str(found[-1].parent)
    builder = tfds.builder_from_directory(folder)
    kind = builder.info.file_format.value
    if kind != 'array_record':
        raise UserError(f'path = {path!r}: prepared as {kind}, which needs TensorFlow; it must be array_record')
    sides = {}
    for side in Sides._fields:
        if side not in builder.info.splits:
            raise UserError(f'path = {path!r}: no split {side}, has {" ".join(builder.info.splits)}')
        sides[side] = tuple(
            _gsm8k(f'gsm8k/{side}/{number}', marks, f'{folder}/{side}/{number}', row)
            for number, row in enumerate(_tfds_rows(builder.as_data_source(side), folder, side))
        )
    return Sides(**sides)


def human_eval(path: str) -> tuple[Problem, ...]:
    """HumanEval's problems, in order; a problem's id is its task_id, by which the judge finds its tests.

    path: the published .jsonl or .jsonl.gz; '' is the one that the package human-eval brings, of which the contents are
    checked. Nothing of that package is imported. Raises UserError for a missing, changed or malformed file.
    """
    file = Path(path).expanduser() if path else human_eval_file.installed()
    problems = []
    for name, row in read_rows(file, ('task_id', 'prompt', 'canonical_solution', 'test', 'entry_point')):
        if f'def {row["entry_point"]}' not in row['prompt']:
            raise UserError(f'{name}: entry_point = {row["entry_point"]!r}: must be a function that the prompt begins')
        problems.append(Problem(row['task_id'], row['prompt'], row['canonical_solution'], (), 0, 'humaneval'))
    repeated = len(problems) - len({problem.id for problem in problems})
    if repeated:
        raise UserError(f'{file}: task_id: {repeated} of {len(problems)} are repeated, each must be there once')
    return tuple(problems)


def read_rows(file: Path, fields: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """`file:line` and the fields of each JSON line, all of them text that isn't blank. UserError names the line.

    Blank lines are passed over.
    """
    count = 0
    try:
        with gzip.open(file, 'rb') if file.suffix == '.gz' else file.open('rb') as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    count += 1
                    yield f'{file}:{number}', _row(line, f'{file}:{number}', fields)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f'{file}: unreadable ({error})') from error
    if not count:
        raise UserError(f'{file}: empty, must have a JSON object a line')


def _row(line: bytes, name: str, fields: tuple[str, ...]) -> dict[str, str]:
    text, _ = decode(line, name, 'refuse')
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f'{name}: not JSON ({str(error).splitlines()[0]})') from None
    if not isinstance(row, dict):
        raise UserError(f'{name}: {type(row).__name__}, must be a JSON object')
    for field in fields:
        if field not in row:
            raise UserError(f'{name}: no field {field}, has {" ".join(row)}')
        check_text(name, field, row[field])
    return {field: row[field] for field in fields}


def check_text(name: str, field: str, value: object) -> None:
    """UserError unless `value` is text that isn't blank and that UTF-8 can hold."""
    if not isinstance(value, str) or not value.strip():
        raise UserError(f'{name}: {field} = {str(value)[:60]!r}: must be text that is not blank')
    if any('\ud800' <= character <= '\udfff' for character in value):  # half a pair, which JSON can spell
        raise UserError(f'{name}: {field}: must be text without lone surrogates')


def _tfds_rows(source: Sequence[dict], folder: str, side: str) -> Iterator[dict[str, str]]:
    for number, example in enumerate(source):
        name = f'{folder}/{side}/{number}'
        row = {field: decode(example[field], name, 'refuse')[0] for field in ('question', 'answer')}
        for field, value in row.items():
            check_text(name, field, value)
        yield row


def _gsm8k(identity: str, marks: str, name: str, row: dict[str, str]) -> Problem:
    reasoning, answer = split_solution(row['answer'], marks, name)
    return worked(identity, 'gsm8k', row['question'], reasoning, answer)
