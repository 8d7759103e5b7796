"""Tasks in BIG-bench's published format: folders with a task.json, or with folders of subtasks that have one."""

import hashlib
import json
import math
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from nca_jax.errors import UserError
from nca_jax.problems.problem import Problem, Sides, check_text, distinct

# The English tasks of BIG-bench Lite with at least 100 training rows, which the paper (arXiv 2603.10055) tunes on, by
# the names of their folders in BIG-bench.
LITE = (
    'bbq_lite_json',
    'formal_fallacies_syllogisms_negation',
    'logic_grid_puzzle',
    'logical_deduction',
    'operators',
    'play_dialog_same_or_different',
    'strange_stories',
    'strategyqa',
    'symbol_interpretation',
    'vitaminc_fact_verification',
    'winowhy',
)
HELD_OUT, HELD_OUT_LEAST = 5, 16  # of a task's rows: one in five, and no fewer than 16


class Layout(NamedTuple):
    """What a task.json says of its prompts; BIG-bench's own defaults where it doesn't."""

    task_prefix: str = ''
    example_input_prefix: str = '\nQ: '
    example_output_prefix: str = '\nA: '
    choice_prefix: str = '\n  choice: '
    append_choices_to_input: bool = True


def bigbench(path: str, tasks: Iterable[str]) -> Sides:
    """The named tasks among the folders of `path`. A task is all the task.json in its folder, at any depth.

    Each row's prompt begins with its task's prefix and ends where the answer stands; white space there belongs to the
    target, as a byte-level tokenizer has it. Options stand in an order by hash, so that neither their file nor their
    score shows in it. Right are the options of the highest score, or all targets of a row without options; the first
    is learnt. (A target beside options may be more than one: strategyqa's is its option with a justification, which no
    exact match could hope for.) A fifth of each task, 16 rows at least, is held out by the hash of the prompt: rows of
    equal prompts are one row.
    Raises UserError with the file, the field and the value for anything else than the published format.
    """
    root = Path(path).expanduser()
    if not path or not root.is_dir():
        raise UserError(f'path = {path!r}: must be the folder of the tasks')
    train, test = [], []
    for task in tasks:
        files = sorted((root / task).rglob('task.json'))
        if not files:
            which = "tasks, the paper's where they are (),"
            raise UserError(f'tasks = {task!r}: {which} must be folders in {root} with a task.json in them')
        rows = [problem for file in files for problem in read_task(file, task, root)]
        kept = distinct(rows)
        held_out = max(HELD_OUT_LEAST, math.ceil(len(kept) / HELD_OUT))
        test += kept[:held_out]
        train += kept[held_out:]
    return Sides(tuple(train), tuple(test))


def read_task(file: Path, task: str, root: Path) -> list[Problem]:
    """The rows of one task.json. An id is the file's folder below `root` and the number of the example."""
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f'{file}: unreadable ({str(error).splitlines()[0]})') from None
    if not isinstance(content, dict) or not isinstance(content.get('examples'), list) or not content['examples']:
        raise UserError(f'{file}: examples: must be a list of one or more, in a JSON object')
    given = {field: content[field] for field in Layout._fields if field in content}
    for field, value in given.items():
        kind = type(Layout._field_defaults[field])
        if type(value) is not kind:
            raise UserError(f'{file}: {field} = {value!r}: must be {kind.__name__}')
    layout, folder = Layout(**given), file.parent.relative_to(root).as_posix()
    return [
        _problem(layout, f'{file}: examples[{number}]', f'{folder}/{number}', task, example)
        for number, example in enumerate(content['examples'])
    ]


def _problem(layout: Layout, name: str, identity: str, task: str, example: object) -> Problem:
    if not isinstance(example, dict):
        raise UserError(f'{name} = {str(example)[:60]!r}: must be a JSON object')
    asked = example.get('input')
    check_text(name, 'input', asked)
    scores = _scores(name, example['target_scores']) if 'target_scores' in example else {}
    targets = _targets(name, example['target']) if 'target' in example else ()
    best = max(scores.values(), default=None)
    answers = tuple(option for option, score in scores.items() if score == best) or targets
    if not answers:
        raise UserError(f'{name}: must have target or target_scores, has {" ".join(example)}')
    options = ''
    if layout.append_choices_to_input:
        options = ''.join(f'{layout.choice_prefix}{option}' for option in _by_hash(asked, scores))
    before = f'{layout.task_prefix}{layout.example_input_prefix}{asked}{options}{layout.example_output_prefix}'
    prompt = before.lstrip('\n').rstrip(' ')
    space = before[len(before.rstrip(' ')) :]
    return Problem(identity, prompt, f'{space}{answers[0].strip()}', answers, len(scores), task)


def _targets(name: str, target: object) -> tuple[str, ...]:
    targets = target if isinstance(target, list) else [target]
    if not targets:
        raise UserError(f'{name}: target = []: must be text, or a list of one or more')
    for each in targets:
        check_text(name, 'target', each)
    return tuple(targets)


def _scores(name: str, scores: Any) -> dict[str, float]:
    if not isinstance(scores, dict) or len(scores) < 2:
        raise UserError(f'{name}: target_scores = {str(scores)[:60]!r}: must be an object of two options or more')
    for option, score in scores.items():
        check_text(name, 'target_scores', option)
        if type(score) not in (int, float) or not math.isfinite(score):
            raise UserError(f'{name}: target_scores[{option!r}] = {score!r}: must be a finite number')
    return scores


def _by_hash(asked: str, options: Collection[str]) -> list[str]:
    row = [asked, *sorted(options)]
    return sorted(options, key=lambda option: hashlib.blake2b(json.dumps([row, option]).encode()).digest())
