"""GSM8K: word problems with worked solutions, from the published files or from TFDS."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nca_jax import files
from nca_jax.data.corpora import open_tfds
from nca_jax.errors import UserError, check
from nca_jax.problems.problem import Problem, Sides, check_text

# Calls of a calculator, `<<48/2=24>>`. No model here has one, and they are a fifth to a third of an answer's tokens.
CALCULATION = re.compile(r'<<[^<>]*>>')


def read_published(path: str) -> Sides:
    """The problems of a folder with the published train.jsonl and test.jsonl."""
    root = Path(path).expanduser()
    check(bool(path) and root.is_dir(), 'path', path, 'must be the folder with train.jsonl and test.jsonl')
    return Sides(*(_problems(side, _read_lines(root / f'{side}.jsonl')) for side in Sides._fields))


def read_tfds(path: str) -> Sides:
    """The problems as TFDS has prepared them from the published files.

    TFDS shuffles, so the number in an id is the row of TFDS, not the line of a published file.
    """
    builder = open_tfds('gsm8k', path)

    def rows(side: str) -> Iterator[tuple[str, dict[str, str]]]:
        check(side in builder.info.splits, 'path', path, f'must have the split {side}')
        for number, example in enumerate(builder.as_data_source(side)):
            yield f'{path}/{side}/{number}', {name: example[name].decode() for name in ('question', 'answer')}

    return Sides(*(_problems(side, rows(side)) for side in Sides._fields))


def split_solution(solution: str, place: str) -> tuple[str, str]:
    """(reasoning without calculator calls, final answer) of a solution that ends in `#### answer`.

    Raises UserError, beginning with `place`, unless one word follows the mark.
    """
    reasoning, mark, answer = solution.rpartition('####')
    if not mark or len(answer.split()) != 1:
        raise UserError(f"{place}: answer = ...{solution[-40:]!r}: must end in '#### ' and one word")
    return CALCULATION.sub('', reasoning), answer.strip()


def worked(identity: str, task: str, question: str, reasoning: str, answer: str) -> Problem:
    """A question whose answer is the last word of a worked solution, as the paper sets GSM8K (arXiv 2603.10055)."""
    lines = [reasoning.strip(), f'Final Answer: {answer}']
    target = '\n'.join(line for line in lines if line)
    return Problem(identity, f'Question:\n{question.strip()}\nAnswer:\n', target, (answer,), 0, task)


def _read_lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of each line that isn't blank. Unlike in a file of ours, the last line may lack its end."""
    try:
        lines = file.read_bytes().split(b'\n')
    except OSError as error:
        raise UserError(f'{file}: {error.strerror}') from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield f'{file}:{number}', files.parse_object(line, f'{file}:{number}')


def _problems(side: str, rows: Iterator[tuple[str, dict[str, Any]]]) -> tuple[Problem, ...]:
    problems = []
    for number, (place, row) in enumerate(rows):
        for field in ('question', 'answer'):
            check_text(f'{place}: {field}', row.get(field))
        solution = split_solution(row['answer'], place)
        problems.append(worked(f'gsm8k/{side}/{number}', 'gsm8k', row['question'], *solution))
    if not problems:
        raise UserError(f'gsm8k: its {side} file is empty')
    return tuple(problems)
