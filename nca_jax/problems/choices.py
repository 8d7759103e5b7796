"""Six small tasks in BIG-bench's format, which stand in for its files: five multiple choice, one open."""

import zlib
from collections.abc import Callable

import numpy as np

from nca_jax.errors import UserError
from nca_jax.problems.bigbench import divide, rows_of
from nca_jax.problems.problem import Sides

# Examples made for each row, before a task counts as used up.
TRIES = 30
WORDS = {
    'animal': ['cat', 'dog', 'horse', 'cow', 'sheep', 'goat', 'mouse', 'tiger', 'lion', 'whale', 'eagle', 'frog'],
    'colour': ['red', 'blue', 'green', 'yellow', 'black', 'white', 'pink', 'brown', 'grey', 'orange'],
    'fruit': ['apple', 'pear', 'plum', 'grape', 'lemon', 'cherry', 'melon', 'mango', 'fig', 'peach'],
    'tool': ['hammer', 'saw', 'drill', 'spade', 'axe', 'file', 'needle', 'brush', 'rake', 'knife'],
}
LETTERS = 'abcdefghijklmnopqrstuvwxyz'

# `dice(n)` is one of 0..n - 1.
Dice = Callable[[int], int]


def make(rows: int) -> Sides:
    """`rows` different examples of each task, divided as BIG-bench's are.

    Depends on `rows` alone, and fewer rows are the first of more. Raises UserError if a task has too few.
    """
    contents = {
        task: {'task_prefix': prefix, 'examples': _examples(task, example, rows)}
        for task, (prefix, example) in TASKS.items()
    }
    return divide(rows_of(content, task, task, task) for task, content in contents.items())


def _examples(task: str, make: Callable[[Dice], dict], rows: int) -> list[dict]:
    # NumPy promises never to change a generator's raw numbers.
    source = np.random.Philox(key=zlib.crc32(f'choices/{task}'.encode()))
    examples: dict[str, dict] = {}
    for _ in range(TRIES * rows):
        if len(examples) == rows:
            break
        example = make(lambda below: int(source.random_raw()) % below)
        key = f'{example["input"]} {sorted(example.get("target_scores", ()))}'
        examples.setdefault(key, example)
    if len(examples) < rows:
        raise UserError(f'size = ({rows}, 0): task {task} has only {len(examples)} different examples')
    return list(examples.values())


def _scored(question: str, options: list[str], right: str) -> dict:
    return {'input': question, 'target_scores': {option: int(option == right) for option in sorted(options)}}


def _several(dice: Dice, pool: list[str], count: int) -> list[str]:
    """Different members of the pool."""
    left = list(pool)
    return [left.pop(dice(len(left))) for _ in range(count)]


def _largest(dice: Dice) -> dict:
    """Two to five options, so that chance differs between rows."""
    numbers = _several(dice, [str(number) for number in range(100)], 2 + dice(4))
    return _scored('Which number is the largest?', numbers, max(numbers, key=int))


def _parity(dice: Dice) -> dict:
    number = dice(2000)
    return _scored(f'Is {number} even or odd?', ['even', 'odd'], 'odd' if number % 2 else 'even')


def _next_number(dice: Dice) -> dict:
    start, step, count = dice(30), 1 + dice(9), 3 + dice(3)
    shown = [start + step * place for place in range(count)]
    right = shown[-1] + step
    wrong = _several(dice, [str(right + off) for off in (-3, -2, -1, 1, 2, 3)], 3)
    return _scored(f'What comes after {" ".join(map(str, shown))}?', [str(right), *wrong], str(right))


def _category(dice: Dice) -> dict:
    kinds = _several(dice, sorted(WORDS), 2 + dice(3))
    words = [WORDS[kind][dice(len(WORDS[kind]))] for kind in kinds]
    return _scored(f'Which is a kind of {kinds[0]}?', words, words[0])


def _first_letter(dice: Dice) -> dict:
    words = sorted(word for kind in WORDS.values() for word in kind)
    right = words[dice(len(words))]
    others = [word for word in words if word[0] != right[0]]
    return _scored(f'Which word begins with {right[0]}?', [right, *_several(dice, others, 2)], right)


def _last_letter(dice: Dice) -> dict:
    """An open answer, in either case."""
    letters = [LETTERS[dice(26)] for _ in range(2 + dice(3))]
    return {'input': f'What is the last letter of {" ".join(letters)}?', 'target': [letters[-1], letters[-1].upper()]}


# Prefix of the prompt, and the maker of an example.
TASKS: dict[str, tuple[str, Callable[[Dice], dict]]] = {
    'largest': ('Choose the largest number.', _largest),
    'parity': ('Say whether a number is even or odd.', _parity),
    'next_number': ('Go on with the sequence.', _next_number),
    'category': ('Choose the word of a kind.', _category),
    'first_letter': ('Choose the word by its first letter.', _first_letter),
    'last_letter': ('Name a letter.', _last_letter),
}
