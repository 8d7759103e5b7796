"""Small tasks of several choices, written in BIG-bench's format for whoever hasn't its files at hand."""

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from nca_jax import files
from nca_jax.errors import UserError

TRIES = 30  # an example that is wanted, before the task is taken to have no more
WORDS = {
    'animal': ['cat', 'dog', 'horse', 'cow', 'sheep', 'goat', 'mouse', 'tiger', 'lion', 'whale', 'eagle', 'frog'],
    'colour': ['red', 'blue', 'green', 'yellow', 'black', 'white', 'pink', 'brown', 'grey', 'orange'],
    'fruit': ['apple', 'pear', 'plum', 'grape', 'lemon', 'cherry', 'melon', 'mango', 'fig', 'peach'],
    'tool': ['hammer', 'saw', 'drill', 'spade', 'axe', 'file', 'needle', 'brush', 'rake', 'knife'],
}
LETTERS = 'abcdefghijklmnopqrstuvwxyz'

Dice = Callable[[int], int]  # `dice(n)` is one of 0..n - 1


def write_choices(folder: Path, rows: int) -> tuple[str, ...]:
    """Writes `folder/TASK/task.json` for each of TASKS, `rows` different examples each; the names of the tasks.

    A function of `rows` alone; fewer rows are the first of more. UserError where a task hasn't as many.
    """
    for task, (prefix, make) in TASKS.items():
        content = {
            'name': task,
            'description': prefix,
            'keywords': ['multiple choice'],
            'metrics': ['exact_str_match', 'multiple_choice_grade'],
            'preferred_score': 'multiple_choice_grade',
            'task_prefix': prefix,
            'examples': _examples(task, make, rows),
        }
        file = folder / task / 'task.json'
        file.parent.mkdir(parents=True, exist_ok=True)
        written = json.dumps(content, indent=1).encode()
        files.write(file, written)
    return tuple(TASKS)


def _examples(task: str, make: Callable[[Dice], dict], rows: int) -> list[dict]:
    """From a generator's raw numbers, which NumPy promises never to change."""
    source = np.random.Philox(key=zlib.crc32(f'choices/{task}'.encode()))
    found: dict[str, dict] = {}
    for _ in range(TRIES * rows):
        if len(found) == rows:
            break
        example = make(lambda below: int(source.random_raw()) % below)
        key = f'{example["input"]} {sorted(example.get("target_scores", ()))}'
        found.setdefault(key, example)
    if len(found) < rows:
        raise UserError(f'size = ({rows}, 0): task {task} has only {len(found)} different examples')
    return list(found.values())


def _scored(asked: str, options: list[str], right: str) -> dict:
    return {'input': asked, 'target_scores': {option: int(option == right) for option in sorted(options)}}


def _several(dice: Dice, pool: list[str], count: int) -> list[str]:
    left = list(pool)
    return [left.pop(dice(len(left))) for _ in range(count)]


def _largest(dice: Dice) -> dict:
    """Two to five options: chance differs from row to row."""
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
    """An open answer, right in either case."""
    letters = [LETTERS[dice(26)] for _ in range(2 + dice(3))]
    return {'input': f'What is the last letter of {" ".join(letters)}?', 'target': [letters[-1], letters[-1].upper()]}


TASKS: dict[str, tuple[str, Callable[[Dice], dict]]] = {
    'largest': ('Choose the largest number.', _largest),
    'parity': ('Say whether a number is even or odd.', _parity),
    'next_number': ('Go on with the sequence.', _next_number),
    'category': ('Choose the word of a kind.', _category),
    'first_letter': ('Choose the word by its first letter.', _first_letter),
    'last_letter': ('Name a letter.', _last_letter),
}
