"""GSM8K: word problems with worked solutions, from the published files."""

import re
from pathlib import Path

from nca_jax import files
from nca_jax.errors import UserError, check
from nca_jax.problems import answers
from nca_jax.problems.problem import Problem, Sides, is_text

# Calls of a calculator, `<<48/2=24>>`. No model here has one, and they are a fifth to a third of an answer's tokens.
CALCULATION = re.compile(r'<<[^<>]*>>')


def read(path: str) -> Sides:
    """The problems of a folder with the published train.jsonl and test.jsonl."""
    root = Path(path).expanduser()
    check(bool(path) and root.is_dir(), 'path', path, 'must be the folder with train.jsonl and test.jsonl')
    sides: dict[str, tuple[Problem, ...]] = {}
    for side in Sides._fields:
        problems = []
        # Numbered here, not by lines, since a file may hold blank ones.
        for number, (place, row) in enumerate(files.read_rows(root / f'{side}.jsonl')):
            for field in ('question', 'answer'):
                check(is_text(row.get(field)), f'{place}: {field}', row.get(field), 'must be text that is not blank')
            reasoning, answer = split_solution(row['answer'], place)
            # Answers are graded as numbers, so nothing could equal another one.
            check(answers.number(answer) is not None, f'{place}: answer', answer, 'must be a number')
            problems.append(worked(f'gsm8k/{side}/{number}', 'gsm8k', row['question'], reasoning, answer))
        if not problems:
            raise UserError(f'gsm8k: its {side} file is empty')
        sides[side] = tuple(problems)
    return Sides(**sides)


def split_solution(solution: str, place: str) -> tuple[str, str]:
    """(reasoning without calculator calls, final answer) of a solution that ends in `#### answer`.

    Raises UserError, beginning with `place`, unless one word follows the mark.
    """
    # The last mark counts, since reasoning may hold one.
    reasoning, mark, answer = solution.rpartition('####')
    if not mark or len(answer.split()) != 1:
        raise UserError(f"{place}: answer = ...{solution[-40:]!r}: must end in '#### ' and one word")
    return CALCULATION.sub('', reasoning), answer.strip()


def worked(identity: str, task: str, question: str, reasoning: str, answer: str) -> Problem:
    """A question whose answer is the last word of a worked solution, as the paper sets GSM8K (arXiv 2603.10055)."""
    # Reasoning may be blank: then the answer is all of the target.
    target = f'{reasoning.strip()}\nFinal Answer: {answer}'.lstrip('\n')
    return Problem(identity, f'Question:\n{question.strip()}\nAnswer:\n', target, (answer,), 0, task)
