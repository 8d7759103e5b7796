"""Problems that are made: by the package reasoning-gym with worked solutions, and here in BIG-bench's format."""

import itertools
import re
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from nca_jax.errors import UserError
from nca_jax.problems.bigbench import divide, rows_of
from nca_jax.problems.gsm8k import split_solution, worked
from nca_jax.problems.problem import Sides, digest

# Examples made for each problem, before a family or a task counts as used up.
TRIES = 30

# Example i of reasoning-gym depends on seed + i alone. Test examples are numbered from 0 and train's from here, so that
# the two sides never share one.
TRAIN_FROM = 2**31
# Dropped from a question: its answer begins with `Final Answer:`, which says as much.
GYM_REQUEST = ' Give the result as your final answer. Do not include units.'
DIGITS = {'min_terms': 2, 'max_terms': 4, 'min_digits': 1, 'max_digits': 1}
NUMBERS = {'min_numbers': 2, 'max_numbers': 4, 'max_decimals': 0, 'min_value': 0, 'max_value': 99}
APPLY = {'+': int.__add__, '-': int.__sub__, '*': int.__mul__}

# The tasks, and the first line of their prompts.
TASKS = {
    'largest': 'Choose the largest number.',
    'parity': 'Say whether a number is even or odd.',
    'next_number': 'Go on with the sequence.',
    'category': 'Choose the word of a kind.',
    'first_letter': 'Choose the word by its first letter.',
    'last_letter': 'Name a letter.',
}
WORDS = {
    'animal': ['cat', 'dog', 'horse', 'cow', 'sheep', 'goat', 'mouse', 'tiger', 'lion', 'whale', 'eagle', 'frog'],
    'colour': ['red', 'blue', 'green', 'yellow', 'black', 'white', 'pink', 'brown', 'grey', 'orange'],
    'fruit': ['apple', 'pear', 'plum', 'grape', 'lemon', 'cherry', 'melon', 'mango', 'fig', 'peach'],
    'tool': ['hammer', 'saw', 'drill', 'spade', 'axe', 'file', 'needle', 'brush', 'rake', 'knife'],
}
LETTERS = 'abcdefghijklmnopqrstuvwxyz'

# Question, reasoning and answer.
Solution = tuple[str, str, str]
# `dice(n)` is one of 0..n - 1.
Dice = Callable[[int], int]


def gsm_symbolic(size: tuple[int, int]) -> Sides:
    """`size` = (train, test) word problems in GSM8K's form. No question is on both sides."""
    return _sides('gsm_symbolic', size, 'gsm_symbolic', {}, _word_problem)


def arithmetic(size: tuple[int, int]) -> Sides:
    """`size` = (train, test) problems of each family, which a small model can learn.

    - sums: two to four digits added and subtracted; each step of the solution is a total.
    - products: the same, multiplied.
    - ordering: the largest or the smallest of two to four numbers; the solution goes through them.
    """
    families = [
        _sides('arithmetic/sums', size, 'chain_sum', DIGITS, _chain),
        _sides('arithmetic/products', size, 'products', DIGITS, _chain),
        _sides('arithmetic/ordering', size, 'number_sorting', NUMBERS, _ordering),
    ]
    return Sides(*(tuple(itertools.chain(*side)) for side in zip(*families, strict=True)))


def _sides(
    name: str, size: tuple[int, int], dataset: str, parameters: dict[str, Any], solve: Callable[[dict], Solution | None]
) -> Sides:
    """The first problems with different prompts of a dataset of reasoning-gym, with ids NAME/SIDE/NUMBER.

    `solve` returns None for an example to leave out. Raises UserError if reasoning-gym isn't installed or has too few.
    """
    try:
        # An extra of the package, which takes a second to import.
        import reasoning_gym
    except ModuleNotFoundError as error:
        raise UserError(f'{error.name} is not installed and makes these problems: pip install nca_jax[evals]') from None
    (train, test), task = size, name.split('/')[-1]
    seen: set[bytes] = set()
    sides = {}
    # Test comes first, so that it doesn't depend on train's size.
    for side, count, start in (('test', test, 0), ('train', train, TRAIN_FROM)):
        examples, problems = reasoning_gym.create_dataset(dataset, seed=start, size=TRIES * count, **parameters), []
        for number, example in enumerate(examples):
            if len(problems) == count:
                break
            if solution := solve(example):
                problem = worked(f'{name}/{side}/{number}', task, *solution)
                if digest(problem) not in seen:
                    seen.add(digest(problem))
                    problems.append(problem)
        if len(problems) < count:
            raise UserError(f'size = {size}: {name} has only {len(problems)} different {side} problems')
        sides[side] = tuple(problems)
    return Sides(**sides)


def _word_problem(example: dict) -> Solution | None:
    answer = example['answer']
    reasoning, last = split_solution(example['metadata']['answer_cot'], 'gsm_symbolic')
    # Some solutions end in another number than the answer, or in one that isn't whole.
    if last.removesuffix('.0') != answer or not re.fullmatch(r'-?\d+', answer):
        return None
    return example['question'].removesuffix(GYM_REQUEST), reasoning, answer


def _chain(example: dict) -> Solution:
    """An expression such as `4 - 7 + 1`, worked from left to right."""
    expression = example['metadata']['expression']
    first, *rest = expression.split()
    total, lines = int(first), []
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        result = APPLY[sign](total, int(term))
        lines.append(f'{total} {sign} {term} = {result}')
        total = result
    return expression, '\n'.join(lines), str(total)


def _ordering(example: dict) -> Solution | None:
    """`largest of 14 3 27`, worked as the largest so far."""
    numbers = [int(float(number)) for number in example['metadata']['original_numbers']]
    # With a repeated number the steps wouldn't show which one was kept.
    if len(set(numbers)) < len(numbers):
        return None
    word, better = {'ascending': ('smallest', min), 'descending': ('largest', max)}[example['metadata']['direction']]
    steps = ' '.join(map(str, itertools.accumulate(numbers, better)))
    return f'{word} of {" ".join(map(str, numbers))}', steps, str(better(numbers))


def choices(size: tuple[int, int]) -> Sides:
    """`size` = (rows, 0): different examples of each of six tasks, divided as BIG-bench's are, which they stand in for.

    Fewer rows are the first of more. Raises UserError if a task has too few.
    """
    contents = {task: {'task_prefix': prefix, 'examples': _examples(task, size)} for task, prefix in TASKS.items()}
    return divide(rows_of(content, task, task, task) for task, content in contents.items())


def _examples(task: str, size: tuple[int, int]) -> list[dict]:
    rows, _ = size
    # NumPy promises never to change a generator's raw numbers.
    source = np.random.Philox(key=zlib.crc32(f'choices/{task}'.encode()))
    examples: dict[str, dict] = {}
    for _ in range(TRIES * rows):
        example = _example(task, lambda below: int(source.random_raw()) % below)
        # The same question with other options is another example.
        key = f'{example["input"]} {sorted(example.get("target_scores", ()))}'
        examples.setdefault(key, example)
        if len(examples) == rows:
            return list(examples.values())
    raise UserError(f'size = {size}: task {task} has only {len(examples)} different examples')


def _example(task: str, dice: Dice) -> dict:
    """A row of a task.json."""
    words = sorted(word for kind in WORDS.values() for word in kind)
    match task:
        case 'largest':
            # Two to five options, so that chance differs between rows.
            options = _several(dice, [str(number) for number in range(100)], 2 + dice(4))
            question, right = 'Which number is the largest?', max(options, key=int)
        case 'parity':
            number, options = dice(2000), ['even', 'odd']
            question, right = f'Is {number} even or odd?', options[number % 2]
        case 'next_number':
            start, step, count = dice(30), 1 + dice(9), 3 + dice(3)
            shown = [str(start + step * place) for place in range(count)]
            after = start + step * count
            wrong = _several(dice, [str(after + off) for off in (-3, -2, -1, 1, 2, 3)], 3)
            question, right, options = f'What comes after {" ".join(shown)}?', str(after), [str(after), *wrong]
        case 'category':
            # The first kind is asked for, and each word is of another kind.
            kinds = _several(dice, sorted(WORDS), 2 + dice(3))
            options = [WORDS[kind][dice(len(WORDS[kind]))] for kind in kinds]
            question, right = f'Which is a kind of {kinds[0]}?', options[0]
        case 'first_letter':
            right = words[dice(len(words))]
            # No other option may begin with the letter.
            others = [word for word in words if word[0] != right[0]]
            question, options = f'Which word begins with {right[0]}?', [right, *_several(dice, others, 2)]
        case 'last_letter':
            letters = [LETTERS[dice(26)] for _ in range(2 + dice(3))]
            # An open answer, in either case.
            targets = [letters[-1], letters[-1].upper()]
            return {'input': f'What is the last letter of {" ".join(letters)}?', 'target': targets}
    # Sorted, so that the file's order doesn't tell the right one.
    return {'input': question, 'target_scores': {option: int(option == right) for option in sorted(options)}}


def _several(dice: Dice, pool: list[str], count: int) -> list[str]:
    """Different members of the pool."""
    left = list(pool)
    return [left.pop(dice(len(left))) for _ in range(count)]
