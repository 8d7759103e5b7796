"""Problems that are made, not downloaded: word problems and arithmetic from the package reasoning-gym, worked out."""

import itertools
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

from nca_jax.errors import UserError, check
from nca_jax.problems.problem import Problem, Sides, digest, split_solution, worked

# Problem i is a function of seed + i alone; test problems are made below TRAIN_FROM and train problems from there on.
TRAIN_FROM = 2**31
TRIES = 30  # a problem that is wanted, before the family is taken to have no more
GYM_CHARGE = ' Give the result as your final answer. Do not include units.'  # Final Answer: says as much


def gsm_symbolic(size: tuple[int, int]) -> Sides:
    """Word problems like GSM8K's, `size` of (train, test), in its form. No question is on both sides.

    Those whose worked solution ends in another number than their answer, or whose answer is no whole number, are left
    out. UserError where reasoning-gym isn't installed or has too few.
    """

    def make(identity: str, example: dict) -> Problem | None:
        answer, solution = example['answer'], example['metadata']['answer_cot']
        reasoning, last = split_solution(solution, 'keep', identity)
        if last.removesuffix('.0') != answer or not re.fullmatch(r'-?\d+', answer):
            return None
        return worked(identity, 'gsm_symbolic', example['question'].removesuffix(GYM_CHARGE), reasoning, answer)

    return _sides('gsm_symbolic', size, 'gsm_symbolic', {}, make)


def arithmetic(size: tuple[int, int], tasks: tuple[str, ...]) -> Sides:
    """Arithmetic that a model of a million parameters can begin to learn, `size` of (train, test) for each of `tasks`.

    sums: two to four digits added and subtracted, with each total on the way. products: two to four digits multiplied,
    likewise. ordering: the largest or the smallest of two to four numbers, found by going through them. () is all.
    """
    for task in tasks:
        check(task in FAMILIES, 'tasks', task, f'must be of {", ".join(FAMILIES)}')
    found = [_sides(f'arithmetic/{task}', size, *FAMILIES[task]) for task in tasks or FAMILIES]
    return Sides(*(tuple(itertools.chain(*side)) for side in zip(*found, strict=True)))


def _chain(task: str) -> Callable[[str, dict], Problem]:
    """`4 - 7 + 1` from left to right: every result on the way is a step."""
    apply = {'+': int.__add__, '-': int.__sub__, '*': int.__mul__}

    def make(identity: str, example: dict) -> Problem:
        expression = example['metadata']['expression']
        first, *rest = expression.split()
        total, lines = int(first), []
        for sign, term in zip(rest[::2], rest[1::2], strict=True):
            result = apply[sign](total, int(term))
            lines.append(f'{total} {sign} {term} = {result}')
            total = result
        return _checked(identity, task, expression, lines, str(total), example['answer'])

    return make


def _ordering(identity: str, example: dict) -> Problem | None:
    """`largest of 14 3 27`: the largest so far is a step. Repeated numbers are left out."""
    metadata = example['metadata']
    numbers = [int(float(number)) for number in metadata['original_numbers']]
    if len(set(numbers)) < len(numbers):
        return None
    word, better = {'ascending': ('smallest', min), 'descending': ('largest', max)}[metadata['direction']]
    steps = itertools.accumulate(numbers, better)
    lines = [' '.join(map(str, steps))]
    question = f'{word} of {" ".join(map(str, numbers))}'
    first = str(int(float(metadata['sorted_numbers'][0])))
    return _checked(identity, 'ordering', question, lines, str(better(numbers)), first)


def _checked(identity: str, task: str, question: str, lines: list[str], answer: str, expected: str) -> Problem:
    if answer != expected:
        raise UserError(f'{identity}: {question}: worked out as {answer}, reasoning-gym has {expected}')
    return worked(identity, task, question, '\n'.join(lines), answer)


DIGITS = {'min_terms': 2, 'max_terms': 4, 'min_digits': 1, 'max_digits': 1}
NUMBERS = {'min_numbers': 2, 'max_numbers': 4, 'max_decimals': 0, 'min_value': 0, 'max_value': 99}
# Name of the dataset in reasoning-gym, its parameters, and how one of its examples becomes a problem.
Family = tuple[str, dict[str, Any], Callable[[str, dict], Problem | None]]
FAMILIES: dict[str, Family] = {
    'sums': ('chain_sum', DIGITS, _chain('sums')),
    'products': ('products', DIGITS, _chain('products')),
    'ordering': ('number_sorting', NUMBERS, _ordering),
}


def _sides(
    name: str, size: tuple[int, int], dataset: str, parameters: dict, make: Callable[[str, dict], Problem | None]
) -> Sides:
    """The first problems of each side that aren't on it yet; train has none of test's. Test doesn't depend on train."""
    gym = _reasoning_gym()
    train, test = size
    seen: set[bytes] = set()
    sides = {}
    for side, wanted, start in (('test', test, 0), ('train', train, TRAIN_FROM)):
        tries = TRIES * wanted
        examples = gym.create_dataset(dataset, seed=start, size=max(tries, 1), **parameters)
        found = []
        for number in range(tries):
            if len(found) == wanted:
                break
            problem = make(f'{name}/{side}/{number}', examples[number])
            if problem and digest(problem) not in seen:
                seen.add(digest(problem))
                found.append(problem)
        if len(found) < wanted:
            few = f'{name} has only {len(found)} different {side} problems in {tries} tries'
            raise UserError(f'size = {size}: {few}')
        sides[side] = tuple(found)
    return Sides(**sides)


def _reasoning_gym() -> ModuleType:
    try:
        import reasoning_gym
    except ModuleNotFoundError as error:
        raise UserError(
            f'{error.name} is not installed, which makes these problems: pip install nca_jax[evals]'
        ) from None
    return reasoning_gym
