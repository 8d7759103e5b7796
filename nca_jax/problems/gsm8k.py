"""GSM8K: word problems with worked solutions, from the published files, and whether a text ends in the right number.

Nothing that the model wrote is run. A small parser compares numbers exactly, as fractions. Libraries that know more
mathematics evaluate their input, and `9**9**9**9` never ends: their time limits are signals, which can't stop a
computation with huge integers. Here length and characters are limited first, and the grammar has no operation that
could grow past a few hundred digits.
"""

import operator
import re
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

from nca_jax import files
from nca_jax.errors import UserError, check
from nca_jax.problems.problem import Problem, Sides, is_text

# Calls of a calculator, `<<48/2=24>>`. No model here has one, and they are a fifth to a third of an answer's tokens.
CALCULATION = re.compile(r'<<[^<>]*>>')
# Of a number or an expression; every answer of GSM8K has 11 at most.
MAX_CHARACTERS = 64
# Of parentheses and signs.
MAX_DEPTH = 8
UNITS = '$€£¥%°'
# Emphasis and quotation marks.
AROUND = '*_`"\'\u2018\u2019\u201c\u201d'
# Minus sign, en dash, multiplication sign, middle dot and division sign.
SAME = str.maketrans({'\u2212': '-', '\u2013': '-', '\u00d7': '*', '\u00b7': '*', '\u00f7': '/'} | dict.fromkeys(UNITS))
TOKEN = re.compile(r'[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?(?![0-9,])|[0-9]+(?:\.[0-9]*)?(?![0-9,])|\.[0-9]+|[-+*/()]')
# How tightly an operator binds, and its function. A sign binds tighter than all of them.
OPERATORS = {'+': (1, operator.add), '-': (1, operator.sub), '*': (2, operator.mul), '/': (2, operator.truediv)}
SIGN = 3


def read(path: str) -> Sides:
    """The problems of a folder with the published train.jsonl and test.jsonl."""
    root = Path(path).expanduser()
    check(bool(path) and root.is_dir(), 'path', path, 'must be the folder with train.jsonl and test.jsonl')
    sides: dict[str, tuple[Problem, ...]] = {}
    for side in Sides._fields:
        problems = []
        for place, row in files.read_rows(root / f'{side}.jsonl'):
            for field in ('question', 'answer'):
                check(is_text(row.get(field)), f'{place}: {field}', row.get(field), 'must be text that is not blank')
            reasoning, answer = split_solution(row['answer'], place)
            # Answers are graded as numbers, so nothing could equal another one.
            check(number(answer) is not None, f'{place}: answer', answer, 'must be a number')
            # Numbered here, not by lines, since a file may hold blank ones.
            problems.append(worked(f'gsm8k/{side}/{len(problems)}', 'gsm8k', row['question'], reasoning, answer))
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


def same_number(text: str, answers: Iterable[str]) -> bool:
    """Whether the last word of `text` is one of the numbers."""
    # The paper sets the answer last in a worked solution (arXiv 2603.10055).
    value = number((text.split() or [''])[-1])
    return value is not None and value in map(number, answers)


def number(word: str) -> Fraction | None:
    """The number that a word spells, exactly; None if it isn't one.

    - Read: digits with or without thousands' commas, decimals, fractions, + - * / and parentheses; of `a=b`, b.
    - Dropped: currency, percent and degree signs, quotation marks, a full stop at the end. `50%` is 50, as in GSM8K.
    - None: powers, exponents, division by zero, more than MAX_CHARACTERS or MAX_DEPTH.
    """
    # Before anything reads it, so that no text takes long.
    if len(word) > MAX_CHARACTERS:
        return None
    text = word.rpartition('=')[2].strip(AROUND).rstrip('.,;:?').strip(AROUND).translate(SAME).strip()
    tokens = TOKEN.findall(text)
    # `findall` skips what is no token.
    if ''.join(tokens) != text:
        return None
    # Reversed, since a list is popped at its end.
    tokens.reverse()
    try:
        value = _expression(tokens, 0)
    # IndexError where the text ends too early.
    except (IndexError, ValueError, ZeroDivisionError):
        return None
    return None if tokens else value


def _expression(tokens: list[str], depth: int, above: int = 0) -> Fraction:
    """Takes an expression off the end of the reversed `tokens`, as far as operators bind tighter than `above`."""
    if depth > MAX_DEPTH:
        raise ValueError
    token = tokens.pop()
    if token in '+-':
        value = _expression(tokens, depth + 1, SIGN)
        value = -value if token == '-' else value
    elif token == '(':
        value = _expression(tokens, depth + 1)
        if tokens.pop() != ')':
            raise ValueError
    else:
        # ValueError for a token that can't begin an expression.
        value = Fraction(token.replace(',', ''))
    while tokens and tokens[-1] in OPERATORS and OPERATORS[tokens[-1]][0] > above:
        binding, apply = OPERATORS[tokens.pop()]
        value = apply(value, _expression(tokens, depth, binding))
    return value
