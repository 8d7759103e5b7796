"""Which problems: read or made, parted into what trains, what validates and what is asked at the end."""

import dataclasses
import hashlib
import json
from pathlib import Path

from nca_jax.errors import UserError, check
from nca_jax.problems import bigbench, choices
from nca_jax.problems import made as problems_made
from nca_jax.problems import problem as problems
from nca_jax.problems.problem import Problem, Sides

GSM8K = ('gsm8k', 'tfds:gsm8k')
READ = (*GSM8K, 'bigbench')  # from a path
MADE = ('gsm_symbolic', 'arithmetic', 'choices')
CODE = 'humaneval'  # from a path or the installed package; there is nothing to train on
SEVERAL = ('bigbench', 'arithmetic', 'choices')  # made of tasks, of which `tasks` chooses
TASKS = (*READ, *MADE, CODE)


@dataclasses.dataclass(frozen=True)
class ProblemsConfig:
    """Which problems.

    task: 'gsm8k' (path: the folder with train.jsonl and test.jsonl), 'tfds:gsm8k' (path: where TFDS has it
    prepared), 'bigbench' (path: the folder of its tasks), 'gsm_symbolic', 'arithmetic' and 'choices' (made: path ''),
    'humaneval' (path: its file, '' for the installed package's; test problems alone). tasks: which of several; () for
    all that are made, and for the paper's eleven of BIG-bench. calculator_marks: 'drop' or 'keep' GSM8K's `<<1+2=3>>`.
    train_rows: at most so many a task, 0 for all. least_rows: tasks with fewer for training are left out. valid_rows:
    of each task's training problems, kept for the held-out loss, so that test problems choose nothing. size: train and
    test problems that are made of each task; of 'choices' (rows, 0), of which a fifth is test's, as of BIG-bench's.
    """

    task: str
    path: str
    tasks: tuple[str, ...]
    calculator_marks: str
    train_rows: int
    least_rows: int
    valid_rows: int
    size: tuple[int, int]

    def __post_init__(self):
        check(self.task in TASKS, 'task', self.task, f'must be one of {", ".join(TASKS)}')
        check(self.task == CODE or bool(self.path) == (self.task in READ), 'path', self.path, _where(self.task))
        several = ', '.join(SEVERAL)
        check(not self.tasks or self.task in SEVERAL, 'tasks', self.tasks, f'must be () unless task is of {several}')
        marks = ('drop', 'keep') if self.task in GSM8K else ('drop',)
        check(self.calculator_marks in marks, 'calculator_marks', self.calculator_marks, f'must be of {marks}')
        for field in ('train_rows', 'least_rows'):
            check(getattr(self, field) >= 0, field, getattr(self, field), 'must be 0 or more')
        check(self.valid_rows >= 1, 'valid_rows', self.valid_rows, 'must be 1 or more')
        made, allowed = _sizes(self.task)
        sized = all(n >= 1 if has else n == 0 for n, has in zip(self.size, made, strict=True))
        check(sized, 'size', self.size, allowed)


@dataclasses.dataclass(frozen=True)
class Problems:
    """Problems of the splits train, valid and test, each in the order of its task and digest.

    A prefix of a task's is a random choice. left_out: how many tasks were too small, how many training problems
    repeated another's prompt, on whichever side. identity: hash of what is asked and answered, free of paths.
    """

    splits: dict[str, tuple[Problem, ...]]
    left_out: dict[str, int]

    @property
    def identity(self) -> str:
        content = {split: [_content(problem) for problem in found] for split, found in self.splits.items()}
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def load_problems(config: ProblemsConfig, folder: Path) -> Problems:
    """Reads or makes them; `folder` is for what must be built on the way.

    The same on every process, and quick: nothing of it is kept. UserError for unusable files.
    """
    return _choose(config, _open(config, folder))


def _sizes(task: str) -> tuple[tuple[bool, bool], str]:
    if task == 'choices':
        return (True, False), 'must be (rows of each task, 0)'
    if task in MADE:
        return (True, True), 'must be two numbers of problems, 1 or more'
    return (False, False), f'must be (0, 0), {task} is not made'


def _where(task: str) -> str:
    return f'must be the folder of {task}' if task in READ else f"must be '' for {task}, which is made"


def _open(config: ProblemsConfig, folder: Path) -> Sides:
    marks = config.calculator_marks
    readers = {
        'gsm8k': lambda: problems.gsm8k(config.path, marks),
        'tfds:gsm8k': lambda: problems.gsm8k_tfds(config.path, marks),
        'bigbench': lambda: bigbench.bigbench(config.path, config.tasks or bigbench.LITE),
        'choices': lambda: _choices(config, folder / 'choices'),
        'gsm_symbolic': lambda: problems_made.gsm_symbolic(config.size),
        'arithmetic': lambda: problems_made.arithmetic(config.size, config.tasks),
        CODE: lambda: Sides((), problems.human_eval(config.path)),
    }
    return readers[config.task]()


def _choices(config: ProblemsConfig, folder: Path) -> Sides:
    tasks = choices.write_choices(folder, config.size[0])
    return bigbench.bigbench(str(folder), config.tasks or tasks)


def _choose(config: ProblemsConfig, sides: Sides) -> Problems:
    """The splits, task by task. Test keeps all it has; what train shares with it or repeats is left out."""
    splits: dict[str, list[Problem]] = {'train': [], 'valid': [], 'test': []}
    small, repeated = {}, 0
    for task in sorted({problem.task for side in sides for problem in side}):
        test, train = ([problem for problem in side if problem.task == task] for side in (sides.test, sides.train))
        unique_test = problems.distinct(test)
        unique = problems.distinct(train, besides=sides.test)
        repeated += len(train) - len(unique) + len(test) - len(unique_test)
        if len(unique) < config.least_rows:
            small[task] = len(unique)
            continue
        valid, kept = unique[: config.valid_rows], unique[config.valid_rows :]
        kept = kept[: config.train_rows or None]
        for split, found in (('train', kept), ('valid', valid), ('test', unique_test)):
            splits[split] += found
    if not splits['test']:
        have = ', '.join(f'{task} {count}' for task, count in small.items())
        raise UserError(f'least_rows = {config.least_rows}: no task has as many training problems: {have}')
    counts = {'small tasks': len(small), 'repeated': repeated}
    return Problems({split: tuple(found) for split, found in splits.items()}, counts)


def _content(problem: Problem) -> list:
    return [problem.prompt, problem.target, problem.answers, problem.choices, problem.task]
