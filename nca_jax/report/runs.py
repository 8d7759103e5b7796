"""Reads run folders, and says which runs may be compared with which."""

import dataclasses
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nca_jax import errors
from nca_jax.report.records import read_json, read_metrics
from nca_jax.report.run import ASKED, EVALUATORS, Run

FIELDS = {
    **dict.fromkeys(('name', 'arm', 'stage', 'identity'), str),
    **dict.fromkeys(('seed', 'vocab_size', 'parameters', 'tokens_per_step'), int),
    **dict.fromkeys(('config', 'code', 'versions', 'device', 'data'), dict),
}
WITHIN = {'device': ('kind', 'count'), 'parent': ('identity', 'step', 'plan')}
HASHED = ('problems', 'benchmark', 'tokenizer')  # of `data`: what is tuned on, what is asked, and in which tokens


@dataclasses.dataclass(frozen=True)
class Study:
    """All runs of a report: `arms` of text by name and seed, the `nca` stage's runs, those of the `controls` in its
    place (dyck, copy, noise), and what was left out and why.

    `solved`: by benchmark (Run.benchmark), arm and seed, the runs that were asked problems; a text run may be in it and
    in `arms`.
    """

    arms: dict[str, dict[int, Run]]
    nca: tuple[Run, ...]
    controls: tuple[Run, ...]
    left_out: tuple[tuple[Run, str], ...]
    baseline: str
    solved: dict[str, dict[str, dict[int, Run]]]

    @property
    def runs(self) -> list[Run]:
        """Every run whose numbers the report shows, parents' stage first."""
        arms = [run for arm in self.arms.values() for run in arm.values()]
        solved = [run for group in self.solved.values() for arm in group.values() for run in arm.values()]
        asked_alone = [run for run in solved if run.folder not in {text.folder for text in arms}]
        return [*self.nca, *self.controls, *arms, *asked_alone]

    @property
    def arm_names(self) -> list[str]:
        """The arms of text, then those that were only asked problems: the order in which colours are dealt."""
        return list(dict.fromkeys([*self.arms, *(arm for group in self.solved.values() for arm in group)]))

    @property
    def smoke(self) -> bool:
        """Whether any run was a smoke test, whose numbers mean nothing."""
        return any(run.about['config'].get('smoke') for run in self.runs)

    def earlier_tokens(self, run: Run) -> int | None:
        """Tokens that all ancestors of a run consumed before it; None if one of them isn't in the study."""
        if run.parent is None:
            return 0
        parent = self.parent_of(run)
        before = None if parent is None else self.earlier_tokens(parent)
        return None if before is None else before + run.parent['step'] * parent.about['tokens_per_step']

    def parent_of(self, run: Run) -> Run | None:
        """The run whose weights this one started from, None if it has none or it isn't among the folders."""
        everyone = [*self.runs, *(left for left, _ in self.left_out)]
        return next((r for r in everyone if run.parent and r.identity == run.parent['identity']), None)


def read_run(folder: Path) -> Run:
    """Reads one run's folder; UserError if its run.json lacks a field or names another stage."""
    path = folder / 'run.json'
    about = read_json(path)
    for field in (*FIELDS, 'parent'):
        if field not in about:
            raise errors.UserError(f'{path}: field {field!r} is missing')
        kind = FIELDS.get(field, dict if about[field] is not None else type(None))
        if not isinstance(about[field], kind):
            raise errors.UserError(f'{path}: {field} = {about[field]!r}: must be of type {kind.__name__}')
    for field, needed in WITHIN.items():
        if about[field] is not None and (lacking := set(needed) - about[field].keys()):
            raise errors.UserError(f'{path}: {field} lacks {", ".join(sorted(lacking))}')
    if about['stage'] not in EVALUATORS:
        raise errors.UserError(f'{path}: stage = {about["stage"]!r}: one of {", ".join(sorted(EVALUATORS))}')
    if about['stage'] == 'instruct' and 'problems' not in about['data']:
        raise errors.UserError(f'{path}: data lacks problems')
    return Run(folder, about, read_metrics(folder / 'metrics.jsonl'))


def find_runs(folders: Iterable[str | os.PathLike]) -> list[Run]:
    """Every run in or below the folders, each once, in order of path. UserError if a folder or any run is missing."""
    found = {path.resolve(): path for folder in folders for path in _run_folders(Path(folder))}
    return [read_run(path) for _, path in sorted(found.items())]


def _run_folders(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise errors.UserError(f'{folder}: no such folder')
    found = False
    for here, below, files in os.walk(folder):
        if 'run.json' in files:
            found = True
            below.clear()  # checkpoints are many small files, and hold no runs
            yield Path(here)
    if not found:
        raise errors.UserError(f'{folder}: holds no run (no run.json at any depth)')


def make_study(runs: Iterable[Run], baseline: str | None = None) -> Study:
    """Groups runs by arm and seed. UserError where two runs claim one place or compared runs aren't comparable.

    `baseline` None means scratch, if there is such an arm; a named one must exist.
    """
    runs = list(runs)
    usable = [run for run in runs if not run.unusable]
    arms = _by_seed([run for run in usable if run.stage == 'text'], '')
    asked: dict[str, list[Run]] = {}
    for run in runs:
        if run.benchmarks and not run.unsolved:
            asked.setdefault(run.benchmark, []).append(run)
    solved = {name: _by_seed(asked[name], f' on {name}') for name in sorted(asked)}
    names = set(arms).union(*solved.values())
    if baseline is not None and baseline not in names:
        raise errors.UserError(
            f'--baseline {baseline}: no finished run of it; arms: {", ".join(sorted(names)) or "none"}'
        )
    baseline = baseline or 'scratch'
    study = Study(
        arms=_ordered(arms, baseline),
        nca=tuple(run for run in usable if run.stage == 'nca'),
        controls=tuple(run for run in usable if run.stage not in ('nca', 'text', 'instruct')),
        left_out=tuple((run, reason) for run in runs if (reason := _left_out(run))),
        baseline=baseline,
        solved={name: _ordered(group, baseline) for name, group in solved.items()},
    )
    _check_comparable([run for arm in study.arms.values() for run in arm.values()])
    for group in study.solved.values():
        _check_solved([run for arm in group.values() for run in arm.values()])
    return study


def _by_seed(runs: Iterable[Run], where: str) -> dict[str, dict[int, Run]]:
    arms: dict[str, dict[int, Run]] = {}
    for run in sorted(runs, key=lambda r: r.seed):
        other = arms.setdefault(run.arm, {}).setdefault(run.seed, run)
        if other is not run:
            raise errors.UserError(f'two runs are {run.arm} seed {run.seed}{where}: {other.folder} and {run.folder}')
    return arms


def _ordered(arms: dict[str, dict[int, Run]], baseline: str) -> dict[str, dict[int, Run]]:
    return {arm: arms[arm] for arm in sorted(arms, key=lambda arm: (arm != baseline, arm))}


def _left_out(run: Run) -> str | None:
    """Why a run is missing where it belongs, or None. One that was evaluated alone belongs to the problems solved."""
    if not run.benchmarks or run.stage == 'instruct':
        return run.unusable
    if run.unusable and (run.unsolved or run.trained):
        return run.unusable
    return run.unsolved and f'{run.unsolved} (missing from the problems solved only)'


def _check_comparable(runs: list[Run]) -> None:
    for run in runs[1:]:
        ours, theirs = ({k: v for k, v in each.about['data'].items() if k != 'benchmark'} for each in (run, runs[0]))
        if ours != theirs:
            raise errors.UserError(f"can't compare {runs[0]} with {run}: they were trained on different text")
        for what, ours, theirs in (
            ('vocab_size', run.about['vocab_size'], runs[0].about['vocab_size']),
            ('final tokens', run.final['tokens'], runs[0].final['tokens']),
            ('scored tokens', run.final.get('scored_tokens', 0), runs[0].final.get('scored_tokens', 0)),
            ('bytes per evaluated token', _bytes_per_token(run), _bytes_per_token(runs[0])),
        ):
            if not math.isclose(ours, theirs, rel_tol=1e-4 if isinstance(ours, float) else 0):
                raise errors.UserError(f"can't compare {runs[0]} with {run}: {what} {theirs:,.12g} and {ours:,.12g}")


def _check_solved(runs: list[Run]) -> None:
    for run in runs[1:]:
        pair = f"can't compare {runs[0]} with {run}"
        hashes = [
            [each.about['data'].get(name) for name in HASHED] for each in (run, runs[0])
        ]  # a stage has some of them
        if hashes[0] != hashes[1]:
            raise errors.UserError(f'{pair}: their problems or their tokenizers differ')
        ours, theirs = _protocol(run), _protocol(runs[0])
        for what in theirs | ours:
            if ours.get(what) != theirs.get(what):
                raise errors.UserError(f'{pair}: {what} {theirs.get(what)} and {ours.get(what)}')
        if other := run.solved.keys() ^ runs[0].solved.keys():
            raise errors.UserError(f'{pair}: only one of them recorded {", ".join(sorted(other))}')


def _protocol(run: Run) -> dict[str, Any]:
    """What must agree where solved problems are compared. Batches of a decoder change no number, nor do paths."""
    fields = {'final tokens': run.solved['tokens']} | {name: run.solved[name] for name in ('problems', 'samples')}
    for name in ASKED:
        value = run.asked[name]
        parts = value.items() if isinstance(value, dict) else [('', value)]
        fields |= {f'benchmark.{name}.{part}'.rstrip('.'): what for part, what in parts if part != 'path'}
    return fields


def _bytes_per_token(run: Run) -> float:
    """What joins nats per token to bits per byte: it differs if the tokenizer or the evaluated text differs."""
    final = run.final
    return final['loss'] / math.log(2) / final['bits_per_byte'] if final.get('bits_per_byte') else 0.0
