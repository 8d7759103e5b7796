"""Tasks in BIG-bench's published format: folders with a task.json, or with subfolders that have one."""

import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from nca_jax import files
from nca_jax.errors import UserError, check
from nca_jax.problems.problem import Problem, Sides, distinct, is_text

# The English tasks of BIG-bench Lite with at least 100 training rows, which the paper (arXiv 2603.10055) tunes on, by
# the names of their folders in BIG-bench.
LITE = (
    'bbq_lite_json', 'formal_fallacies_syllogisms_negation', 'logic_grid_puzzle', 'logical_deduction', 'operators',
    'play_dialog_same_or_different', 'strange_stories', 'strategyqa', 'symbol_interpretation',
    'vitaminc_fact_verification', 'winowhy',
)  # fmt: skip
# One row in five of a task is for evaluation, and no fewer than 16.
TEST_SHARE, LEAST_TEST = 5, 16


class Layout(NamedTuple):
    """The fields of a task.json that make its prompts, with BIG-bench's defaults."""

    task_prefix: str = ''
    example_input_prefix: str = '\nQ: '
    example_output_prefix: str = '\nA: '
    choice_prefix: str = '\n  choice: '
    append_choices_to_input: bool = True


def read(path: str, tasks: Iterable[str] = LITE) -> Sides:
    """The named tasks among the folders of `path`, see `divide`. Raises UserError for any other format."""
    root = Path(path).expanduser()
    check(bool(path) and root.is_dir(), 'path', path, 'must be the folder of the tasks')
    problems = []
    for task in tasks:
        # A task may have subtasks, at any depth.
        places = sorted((root / task).rglob('task.json'))
        check(bool(places), 'path', str(root), f'must have a folder {task} with a task.json in it')
        rows: list[Problem] = []
        for place in places:
            rows += rows_of(files.read_json(place), place.parent.relative_to(root).as_posix(), task, str(place))
        problems.append(rows)
    return divide(problems)


def divide(tasks: Iterable[Iterable[Problem]]) -> Sides:
    """Both sides of each task. The hash of a prompt decides; rows with equal prompts count once."""
    train, test = [], []
    for task in tasks:
        rows = distinct(task)
        count = max(LEAST_TEST, math.ceil(len(rows) / TEST_SHARE))
        test += rows[:count]
        train += rows[count:]
    return Sides(tuple(train), tuple(test))


def rows_of(content: dict[str, Any], name: str, task: str, place: str) -> list[Problem]:
    """The rows of a task.json's content, with ids NAME/NUMBER. `place` begins errors."""
    examples = content.get('examples')
    check(isinstance(examples, list) and bool(examples), f'{place}: examples', examples, 'must be a list, not empty')
    layout = Layout(**{field: content[field] for field in Layout._fields if field in content})
    for field, value, default in zip(Layout._fields, layout, Layout(), strict=True):
        check(type(value) is type(default), f'{place}: {field}', value, f'must be {type(default).__name__}')
    return [
        _problem(layout, f'{place}: examples[{number}]', f'{name}/{number}', task, example)
        for number, example in enumerate(examples)
    ]


def _problem(layout: Layout, place: str, identity: str, task: str, example: Any) -> Problem:
    """The right answers are the options of the highest score, or all targets of a row without options."""
    try:
        question, scores = example['input'], example.get('target_scores', {})
        # Beside options a target is of no use: strategyqa's is an option with a justification, which no answer equals.
        targets = [] if scores else example['target']
        targets = targets if isinstance(targets, list) else [targets]
        valid = all(map(is_text, (question, *scores, *targets))) and all(map(math.isfinite, scores.values()))
        # A single option would be right whatever the model answers.
        valid = valid and (len(scores) > 1 or bool(targets))
    except (AttributeError, KeyError, TypeError):
        valid = False
    if not valid:
        allowed = 'target (text, or a list of texts) or target_scores (two options or more, and their finite numbers)'
        raise UserError(f'{place}: must be an object with input (text), and {allowed}')
    # Several options may share the highest score.
    best = max(scores.values(), default=None)
    answers = tuple(option for option, score in scores.items() if score == best) or tuple(targets)
    options = ''
    # Some tasks list the options in their input already.
    if layout.append_choices_to_input:
        # This order shows neither an option's place in the file nor its score.
        row = [question, *sorted(scores)]
        order = sorted(scores, key=lambda option: hashlib.blake2b(json.dumps([row, option]).encode()).digest())
        options = ''.join(f'{layout.choice_prefix}{option}' for option in order)
    text = f'{layout.task_prefix}{layout.example_input_prefix}{question}{options}{layout.example_output_prefix}'
    # A byte-level tokenizer has a space at the beginning of a word, so it belongs to the target.
    prompt = text.rstrip(' ')
    target = text[len(prompt) :] + answers[0].strip()
    return Problem(identity, prompt.lstrip('\n'), target, answers, len(scores), task)


def same_text(text: str, answers: Iterable[str]) -> bool:
    """Whether `text` is one of the answers."""
    # White space around it and the case of letters say nothing; more words would.
    return text.strip().casefold() in {answer.strip().casefold() for answer in answers}
