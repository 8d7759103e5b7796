"""Six small tasks in BIG-bench's format, which stand in for its files: five multiple choice, one open."""

import zlib
from collections.abc import Callable

import numpy as np

from nca_jax.errors import UserError
from nca_jax.problems.bigbench import divide, rows_of
from nca_jax.problems.problem import Sides

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
# Examples made for each row, before a task counts as used up.
TRIES = 30

# `dice(n)` is one of 0..n - 1.
Dice = Callable[[int], int]


def make(rows: int) -> Sides:
    """`rows` different examples of each task, divided as BIG-bench's are.

    Depends on `rows` alone, and fewer rows are the first of more. Raises UserError if a task has too few.
    """
    contents = {task: {'task_prefix': prefix, 'examples': _examples(task, rows)} for task, prefix in TASKS.items()}
    return divide(rows_of(content, task, task, task) for task, content in contents.items())


def _examples(task: str, rows: int) -> list[dict]:
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
    raise UserError(f'size = ({rows}, 0): task {task} has only {len(examples)} different examples')


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
