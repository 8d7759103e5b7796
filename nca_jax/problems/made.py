"""Word problems and arithmetic with worked solutions, made by the package reasoning-gym."""

import functools
import itertools
import re
from collections.abc import Callable
from typing import Any

from nca_jax.errors import UserError
from nca_jax.problems.gsm8k import split_solution, worked
from nca_jax.problems.problem import Problem, Sides, digest

# Example i of reasoning-gym depends on seed + i alone. Test examples are numbered from 0 and train's from here, so that
# the two sides never share one.
TRAIN_FROM = 2**31
# Examples made for each problem, before a family counts as used up.
TRIES = 30
# Dropped from a question: its answer begins with `Final Answer:`, which says as much.
GYM_REQUEST = ' Give the result as your final answer. Do not include units.'

DIGITS = {'min_terms': 2, 'max_terms': 4, 'min_digits': 1, 'max_digits': 1}
NUMBERS = {'min_numbers': 2, 'max_numbers': 4, 'max_decimals': 0, 'min_value': 0, 'max_value': 99}
APPLY = {'+': int.__add__, '-': int.__sub__, '*': int.__mul__}

# Makes a problem of an id and an example of reasoning-gym; None where the example is left out.
Make = Callable[[str, dict], Problem | None]


def gsm_symbolic(size: tuple[int, int]) -> Sides:
    """`size` = (train, test) word problems in GSM8K's form. No question is on both sides."""
    return _sides('gsm_symbolic', size, 'gsm_symbolic', {}, _word_problem)


def arithmetic(size: tuple[int, int]) -> Sides:
    """`size` = (train, test) problems of each family, which a small model can learn.

    - sums: two to four digits added and subtracted; each step of the solution is a total.
    - products: the same, multiplied.
    - ordering: the largest or the smallest of two to four numbers; the solution goes through them.
    """
    families = {
        'sums': ('chain_sum', DIGITS, functools.partial(_chain, 'sums')),
        'products': ('products', DIGITS, functools.partial(_chain, 'products')),
        'ordering': ('number_sorting', NUMBERS, _ordering),
    }
    sides = [_sides(f'arithmetic/{task}', size, *family) for task, family in families.items()]
    return Sides(*(tuple(itertools.chain(*side)) for side in zip(*sides, strict=True)))


def _word_problem(identity: str, example: dict) -> Problem | None:
    answer = example['answer']
    reasoning, last = split_solution(example['metadata']['answer_cot'], identity)
    # Some solutions end in another number than the answer, or in one that isn't whole.
    if last.removesuffix('.0') != answer or not re.fullmatch(r'-?\d+', answer):
        return None
    return worked(identity, 'gsm_symbolic', example['question'].removesuffix(GYM_REQUEST), reasoning, answer)


def _chain(task: str, identity: str, example: dict) -> Problem:
    """A problem such as `4 - 7 + 1`, worked from left to right."""
    expression = example['metadata']['expression']
    first, *rest = expression.split()
    total, lines = int(first), []
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        result = APPLY[sign](total, int(term))
        lines.append(f'{total} {sign} {term} = {result}')
        total = result
    return worked(identity, task, expression, '\n'.join(lines), str(total))


def _ordering(identity: str, example: dict) -> Problem | None:
    """`largest of 14 3 27`, worked as the largest so far."""
    numbers = [int(float(number)) for number in example['metadata']['original_numbers']]
    # With a repeated number the steps wouldn't show which one was kept.
    if len(set(numbers)) < len(numbers):
        return None
    word, better = {'ascending': ('smallest', min), 'descending': ('largest', max)}[example['metadata']['direction']]
    steps = ' '.join(map(str, itertools.accumulate(numbers, better)))
    return worked(identity, 'ordering', f'{word} of {" ".join(map(str, numbers))}', steps, str(better(numbers)))


def _sides(name: str, size: tuple[int, int], dataset: str, parameters: dict[str, Any], make: Make) -> Sides:
    """The first problems with different prompts of a dataset of reasoning-gym, with ids NAME/SIDE/NUMBER.

    Raises UserError if reasoning-gym isn't installed or has too few.
    """
    try:
        # An extra of the package, which takes a second to import.
        import reasoning_gym
    except ModuleNotFoundError as error:
        raise UserError(f'{error.name} is not installed and makes these problems: pip install nca_jax[evals]') from None
    train, test = size
    seen: set[bytes] = set()
    sides: dict[str, tuple[Problem, ...]] = {}
    # Test comes first, so that it doesn't depend on train's size.
    for side, count, start in (('test', test, 0), ('train', train, TRAIN_FROM)):
        tries = TRIES * count
        examples = reasoning_gym.create_dataset(dataset, seed=start, size=tries, **parameters)
        problems = []
        for number in range(tries):
            problem = make(f'{name}/{side}/{number}', examples[number])
            if problem and digest(problem) not in seen:
                seen.add(digest(problem))
                problems.append(problem)
            if len(problems) == count:
                break
        else:
            few = f'{name} has only {len(problems)} different {side} problems in {tries} tries'
            raise UserError(f'size = {size}: {few}')
        sides[side] = tuple(problems)
    return Sides(**sides)
