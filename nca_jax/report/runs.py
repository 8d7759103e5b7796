"""Runs as their folders show them, and the study of one report: runs grouped by what may be compared.

A run's run.json describes it, and its metrics.jsonl holds what it measured. Runs that measured different things are
refused.
"""

import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Iterable, Mapping
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
# The fields of config.benchmark on which scores depend: a decoder's batches change no number.
PROTOCOL = ('limit', 'shots', 'samples', 'max_tokens', 'problems', 'stops', 'sampling')


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


# Runs that may be compared, by arm and seed. The baseline is the first arm.
Group = Mapping[str, Mapping[int, Run]]


@dataclasses.dataclass(frozen=True)
class Study:
    """All runs of a report."""

    # The text stage's runs.
    text: Group
    # The automata stage's runs, and those of other first stages (dyck, copy, noise).
    nca: tuple[Run, ...]
    controls: tuple[Run, ...]
    # By Run.benchmark the runs that answered its problems. A text run may be in `text` too.
    solved: Mapping[str, Group]
    # Runs that are missing from a table, and why.
    left_out: tuple[tuple[Run, str], ...]
    # The arm that all others are compared with.
    baseline: str

    @property
    def runs(self) -> list[Run]:
        """Every run whose numbers the report shows, once, parents' stages first."""
        groups = (self.text, *self.solved.values())
        runs = [*self.nca, *self.controls, *itertools.chain(*map(members, groups))]
        # A text run that answered problems is in two groups.
        return list({run.folder: run for run in runs}.values())

    @property
    def arms(self) -> list[str]:
        """The arms in the order in which figures colour them: an arm has one colour everywhere."""
        return list(dict.fromkeys(itertools.chain(self.text, *self.solved.values())))

    def parent_of(self, run: Run) -> Run | None:
        """The run whose weights this one started from, None if it has none or it isn't among the folders."""
        # A parent may have no results: its checkpoints are enough to start from.
        runs = (*self.runs, *(run for run, _ in self.left_out))
        return next((r for r in runs if run.parent and r.record['identity'] == run.parent['identity']), None)

    def earlier_tokens(self, run: Run) -> int | None:
        """Tokens that all ancestors of a run consumed before it; None if one of them isn't in the study."""
        if run.parent is None:
            return 0
        parent = self.parent_of(run)
        before = None if parent is None else self.earlier_tokens(parent)
        return None if before is None else before + run.parent['step'] * parent.record['tokens_per_step']


def members(group: Group) -> list[Run]:
    return [run for by_seed in group.values() for run in by_seed.values()]


def make_study(runs: Iterable[Run], baseline: str | None = None) -> Study:
    """Groups runs by arm and seed. UserError where two runs claim one place or compared runs aren't comparable.

    `baseline` None means scratch, if there is such an arm; a named one must exist.
    """
    first = baseline or 'scratch'
    trained: list[Run] = []
    answered: dict[str, list[Run]] = {}
    left_out: list[tuple[Run, str]] = []
    for run in runs:
        reason, unsolved = run.missing(run.evaluator), run.missing(BENCHMARK)
        if not unsolved:
            answered.setdefault(run.benchmark, []).append(run)
        if not reason and run.evaluator != BENCHMARK:
            trained.append(run)
        # Another stage's run may have been asked problems too, which alone may have failed.
        asked = run.evaluator != BENCHMARK and run.results(BENCHMARK)
        # One that only evaluated belongs to the problems solved alone.
        if reason and not (asked and not unsolved and not run.trained):
            left_out.append((run, reason))
        elif asked and unsolved:
            left_out.append((run, f'{unsolved} (missing from the problems solved only)'))
    text = _group([run for run in trained if run.stage == 'text'], first, '')
    solved = {name: _group(answered[name], first, f' on {name}') for name in sorted(answered)}
    # The baseline may have answered problems only.
    arms = set(text).union(*solved.values())
    if baseline not in (None, *arms):
        raise UserError(f'--baseline {baseline}: no finished run of it; arms: {", ".join(sorted(arms)) or "none"}')
    _check_alike(members(text), _training)
    for group in solved.values():
        _check_alike(members(group), _questions)
    nca = tuple(run for run in trained if run.stage == 'nca')
    controls = tuple(run for run in trained if run.stage not in ('nca', 'text'))
    return Study(text, nca, controls, solved, tuple(left_out), baseline=first)


def _group(runs: Iterable[Run], baseline: str, place: str) -> dict[str, dict[int, Run]]:
    """Runs by arm, the baseline first, and by seed, in order."""
    arms: dict[str, dict[int, Run]] = {}
    for run in sorted(runs, key=lambda run: (run.arm != baseline, run.arm, run.seed)):
        other = arms.setdefault(run.arm, {}).setdefault(run.seed, run)
        if other is not run:
            raise UserError(f'two runs are {run.arm} seed {run.seed}{place}: {other.folder} and {run.folder}')
    return arms


def _check_alike(runs: list[Run], facts: Callable[[Run], dict[str, Any]]) -> None:
    """Raises UserError, with the first fact that differs, unless all runs agree."""
    for run in runs[1:]:
        theirs, ours = facts(runs[0]), facts(run)
        for name in theirs | ours:
            pair = theirs.get(name, 'absent'), ours.get(name, 'absent')
            # Bytes per token are computed from recorded losses, so they agree to the digits that were recorded.
            close = all(isinstance(value, float) for value in pair) and math.isclose(*pair, rel_tol=1e-4)
            if pair[0] != pair[1] and not close:
                first, second = (f'{v:,.12g}' if isinstance(v, int | float) else v for v in pair)
                raise UserError(f"can't compare {runs[0]} with {run}: {name} {first} and {second}")


def _training(run: Run) -> dict[str, Any]:
    """The facts that must agree before final losses are compared: the text, its tokens, and the evaluated part."""
    final, data = run.final, run.record['data']
    # Loss in nats per token over bits per byte: it differs if the tokenizer or the evaluated text differs.
    bits = final.get('bits_per_byte')
    bytes_per_token = final['loss'] / math.log(2) / bits if bits else 0.0
    return {f'data.{name}': value for name, value in data.items() if name != BENCHMARK} | {
        'vocab_size': run.record['vocab_size'],
        'final tokens': final['tokens'],
        'scored tokens': final.get('scored_tokens', 0),
        'bytes per evaluated token': bytes_per_token,
    }


def _questions(run: Run) -> dict[str, Any]:
    """The facts that must agree before solved problems are compared."""
    data, solved = run.record['data'], run.solved
    facts = {f'data.{name}': data[name] for name in ('problems', BENCHMARK, 'tokenizer') if name in data}
    facts |= {'final tokens': solved['tokens'], 'problems': solved['problems'], 'samples': solved['samples']}
    protocol = flatten({name: run.protocol[name] for name in PROTOCOL}, 'benchmark.')
    # The same problems may lie elsewhere.
    facts |= {name: value for name, value in protocol.items() if name != 'benchmark.problems.path'}
    # A score that some runs lack (pass@k of another k, a task) can't be compared.
    return facts | dict.fromkeys((f'recorded {name}' for name in sorted(solved)), 'present')
