"""A run as its folder shows it: run.json, which describes it, and metrics.jsonl, which holds what it measured."""

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nca_jax import files
from nca_jax.errors import UserError

# The evaluator that counts solved problems.
BENCHMARK = 'benchmark'
# What a report reads from run.json, and its types.
RECORD = {
    **dict.fromkeys(('arm', 'stage', 'evaluator', 'identity'), str),
    **dict.fromkeys(('seed', 'vocab_size', 'parameters', 'tokens_per_step'), int),
    **dict.fromkeys(('config', 'code', 'versions', 'device', 'data'), dict),
    'parent': dict | None,
}
# What it reads from each line of metrics.jsonl, by kind.
COUNTS = {'step': int, 'tokens': int}
LINE = {'train': COUNTS, 'eval': COUNTS | {'evaluator': str}, 'done': COUNTS | {'seconds': dict}}


@dataclasses.dataclass(frozen=True)
class Run:
    """One run: the object in its run.json (`record`) and those in its metrics.jsonl (`metrics`)."""

    folder: Path
    record: dict[str, Any]
    metrics: list[dict[str, Any]]

    arm = property(lambda self: self.record['arm'])
    seed = property(lambda self: self.record['seed'])
    stage = property(lambda self: self.record['stage'])
    parent = property(lambda self: self.record['parent'])
    # Its last result stands for the run: the count of solved problems for stage instruct, a loss for the others.
    evaluator = property(lambda self: self.record['evaluator'])
    # The folder's name, since seeds of one experiment may share the config's name.
    name = property(lambda self: self.folder.resolve().name)
    # The last result of the run's own evaluator, and the last count of solved problems.
    final = property(lambda self: self.results(self.evaluator)[-1])
    solved = property(lambda self: self.results(BENCHMARK)[-1])
    # Which problems the model was given, and how.
    protocol = property(lambda self: self.record['config']['benchmark'])
    # Whether a finished run made any update; else it only evaluated.
    trained = property(lambda self: self.done['step'] > 0)

    def __str__(self) -> str:
        return f'{self.arm} seed {self.seed} ({self.folder})'

    def results(self, evaluator: str) -> list[dict[str, Any]]:
        """The records of one evaluator in order of tokens."""
        records = (r for r in self.metrics if r['kind'] == 'eval' and r['evaluator'] == evaluator)
        # A run that resumed evaluates some steps again: the last record of a step counts.
        return sorted({r['tokens']: r for r in records}.values(), key=lambda r: r['tokens'])

    @property
    def done(self) -> dict[str, Any] | None:
        """The record that ends a finished run; None for one that still runs or was killed."""
        return self.metrics[-1] if self.metrics and self.metrics[-1]['kind'] == 'done' else None

    @property
    def solved_before(self) -> dict[str, Any] | None:
        """The count at step 0 of a run that trained; None if it wasn't made or the programs weren't judged."""
        first = self.results(BENCHMARK)[0]
        return first if self.trained and first['step'] == 0 and ks(first) else None

    @property
    def benchmark(self) -> str:
        """The name of the table to which the run's solved problems belong. Runs of two kinds are never compared."""
        task = self.protocol['problems']['task']
        # Answers before training, after it, and after another stage measure different things.
        if self.evaluator == BENCHMARK:
            return task if self.trained else f'{task} as carried'
        return f'{task} in the {self.stage} stage' if self.trained else f'{task} without training'

    def curve(self, least_tokens: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, losses) of the run's own evaluator, from so many tokens on."""
        results = [r for r in self.results(self.evaluator) if r['tokens'] >= least_tokens]
        return np.array([r['tokens'] for r in results], float), np.array([r['loss'] for r in results], float)

    def missing(self, evaluator: str) -> str | None:
        """Why the run has no usable result of the evaluator at its end; None if it has one."""
        if self.done is None:
            last = f'last record: step {self.metrics[-1]["step"]:,}' if self.metrics else 'nothing recorded yet'
            return f'not finished ({last})'
        results = self.results(evaluator)
        # An earlier result isn't the end's: more training followed it.
        if not results or results[-1]['step'] != self.done['step']:
            return f'no {evaluator} evaluation at its last step {self.done["step"]:,}'
        final = results[-1]
        if evaluator == BENCHMARK:
            return None if ks(final) else 'its programs are not judged yet'
        # A loss is the end of a training curve, while problems may be solved without training.
        if final['tokens'] == 0:
            return 'evaluated only, not trained'
        return None if math.isfinite(final['loss']) else f'its final loss is {final["loss"]}'


def ks(record: Mapping[str, Any]) -> list[int]:
    """The numbers k for which a count of solved problems has pass@k, in order. Programs not yet judged have none."""
    numbers = (name.removeprefix('pass@') for name in record if name.startswith('pass@'))
    # The bounds of pass@k's interval end in _low and _high.
    return sorted(int(number) for number in numbers if number.isdecimal())


def flatten(record: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """The values of nested objects, each under its dotted name."""
    flat = {}
    for name, value in record.items():
        flat |= flatten(value, f'{prefix}{name}.') if isinstance(value, dict) else {prefix + name: value}
    return flat


def find_runs(folders: Iterable[str | os.PathLike]) -> list[Run]:
    """Every run in or below the folders, each once, in order of path. UserError if a folder or any run is missing."""
    paths = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise UserError(f'{folder}: no such folder')
        empty = True
        for path, below, names in os.walk(folder):
            if 'run.json' in names:
                empty = False
                # Checkpoints are many small files, and hold no runs.
                below.clear()
                # Folders may hold one another, or be links: the resolved path tells the same run.
                paths[Path(path).resolve()] = Path(path)
        if empty:
            raise UserError(f'{folder}: holds no run (no run.json at any depth)')
    return [read_run(path) for _, path in sorted(paths.items())]


def read_run(folder: Path) -> Run:
    """Reads one run's folder. Raises UserError where a file isn't what a run writes."""
    path, metrics = folder / 'run.json', folder / 'metrics.jsonl'
    run = Run(folder, files.read_json(path), files.read_records(metrics))
    require(run.record, RECORD, f'{path}')
    for number, line in enumerate(run.metrics, 1):
        require(line, {'kind': str} | LINE.get(str(line.get('kind')), {}), f'{metrics}:{number}')
    return run


def require(record: Mapping[str, Any], types: Mapping[str, Any], place: str) -> None:
    """Raises UserError where a record lacks typed fields: another program or another version may have written it."""
    if wrong := [field for field, kind in types.items() if not isinstance(record.get(field, ...), kind)]:
        raise UserError(f'{place}: lacks {", ".join(wrong)}, or it has another type')
