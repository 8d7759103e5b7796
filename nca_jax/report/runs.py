"""Reads run folders: what each run is, what it measured, and which runs may be compared with which."""

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nca_jax import errors

FIELDS = {
    **dict.fromkeys(('name', 'arm', 'stage', 'identity'), str),
    **dict.fromkeys(('seed', 'vocab_size', 'parameters', 'tokens_per_step'), int),
    **dict.fromkeys(('config', 'code', 'versions', 'device', 'data'), dict),
}
WITHIN = {'device': ('kind', 'count'), 'parent': ('identity', 'step', 'plan')}
EVALUATORS = {'text': 'perplexity', 'nca': 'nca_grid', **dict.fromkeys(('dyck', 'copy', 'noise'), 'held_out')}


@dataclasses.dataclass(frozen=True)
class Run:
    """One run's folder: the fields of its run.json (`about`) and the lines of its metrics.jsonl (`records`)."""

    folder: Path
    about: dict[str, Any]
    records: tuple[dict[str, Any], ...]

    arm = property(lambda self: self.about['arm'])
    seed = property(lambda self: self.about['seed'])
    stage = property(lambda self: self.about['stage'])
    identity = property(lambda self: self.about['identity'])
    parent = property(lambda self: self.about['parent'])

    @property
    def name(self) -> str:
        """What tables call the run: its folder's name, since seeds of one experiment may share the config's name."""
        return self.folder.resolve().name

    def __str__(self) -> str:
        return f'{self.arm} seed {self.seed} ({self.folder})'

    @property
    def evals(self) -> list[dict[str, Any]]:
        """The evaluations that belong to the stage, in order of tokens; of several at one step the last counts."""
        chosen = (r for r in self.records if r['kind'] == 'eval' and r['evaluator'] == EVALUATORS[self.stage])
        return sorted({r['tokens']: r for r in chosen}.values(), key=lambda r: r['tokens'])

    @property
    def done(self) -> dict[str, Any] | None:
        """The line a finished run ends with; None for one that is still running or was killed."""
        return self.records[-1] if self.records and self.records[-1]['kind'] == 'done' else None

    @property
    def final(self) -> dict[str, Any]:
        """The last evaluation; of a usable run it was made at its last step."""
        return self.evals[-1]

    @property
    def unusable(self) -> str | None:
        """Why the run has no final number, or None."""
        if self.done is None:
            steps = [r['step'] for r in self.records]
            return f'not finished (last record: step {steps[-1]:,})' if steps else 'not finished (nothing recorded yet)'
        if not self.evals or self.final['step'] != self.done['step']:
            return f'no {EVALUATORS[self.stage]} evaluation at its last step {self.done["step"]:,}'
        if self.final['tokens'] == 0:
            return 'evaluated only, not trained'
        return None if math.isfinite(self.final['loss']) else f'its final loss is {self.final["loss"]}'

    def curve(self, name: str = 'loss') -> tuple[np.ndarray, np.ndarray]:
        """(tokens, values) of one evaluated quantity."""
        return np.array([r['tokens'] for r in self.evals], float), np.array([r[name] for r in self.evals], float)

    def json(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the run's folder, None if the run wrote none."""
        path = self.folder / name
        return _read_json(path) if path.is_file() else None


@dataclasses.dataclass(frozen=True)
class Study:
    """All runs of a report: `arms` of text by name and seed, the `nca` stage's runs, those of the `controls` in its
    place (dyck, copy, noise), and what was left out and why."""

    arms: dict[str, dict[int, Run]]
    nca: tuple[Run, ...]
    controls: tuple[Run, ...]
    left_out: tuple[tuple[Run, str], ...]
    baseline: str

    @property
    def runs(self) -> list[Run]:
        """Every run whose numbers the report shows, parents' stage first."""
        return [*self.nca, *self.controls, *(run for arm in self.arms.values() for run in arm.values())]

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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text('utf-8'))
    except ValueError as error:
        raise errors.UserError(f'{path}: not JSON ({error})') from error
    except OSError as error:
        raise errors.UserError(f'{path}: {error.strerror}') from error
    if not isinstance(content, dict):
        raise errors.UserError(f'{path}: expected a JSON object, found {type(content).__name__}')
    return content


def read_metrics(path: Path) -> tuple[dict[str, Any], ...]:
    """The records of a metrics.jsonl.

    A killed writer leaves at most a last line without its newline: that one line is ignored if it doesn't parse.
    Any other line that isn't a record raises UserError with its number.
    """
    if not path.is_file():
        return ()
    *lines, last = path.read_bytes().split(b'\n')
    records = [_record(line, f'{path} line {number}') for number, line in enumerate(lines, 1)]
    if last:
        with contextlib.suppress(errors.UserError):  # the half-written line of a killed run
            records.append(_record(last, f'{path} line {len(lines) + 1}'))
    return tuple(records)


def _record(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise errors.UserError(f'{where}: not JSON ({error}); only an unfinished last line is forgiven') from error
    if not isinstance(record, dict) or 'kind' not in record:
        raise errors.UserError(f'{where}: not a metrics record, it has no field "kind"')
    missing = {'step', 'tokens'} - record.keys() | (
        {'evaluator', 'loss'} if record['kind'] == 'eval' else set()
    ) - record.keys()
    if record['kind'] in ('train', 'eval', 'done') and missing:
        raise errors.UserError(f'{where}: a record of kind {record["kind"]!r} without {", ".join(sorted(missing))}')
    for field in record.keys() & {'step', 'tokens', 'loss'}:
        if not isinstance(record[field], int | float):
            raise errors.UserError(f'{where}: {field} = {record[field]!r}: must be a number')
    return record


def read_run(folder: Path) -> Run:
    """Reads one run's folder; UserError if its run.json lacks a field or names another stage."""
    path = folder / 'run.json'
    about = _read_json(path)
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
    left_out = tuple((run, run.unusable) for run in runs if run.unusable)
    usable = [run for run in runs if not run.unusable]
    arms: dict[str, dict[int, Run]] = {}
    for run in sorted((r for r in usable if r.stage == 'text'), key=lambda r: r.seed):
        other = arms.setdefault(run.arm, {}).setdefault(run.seed, run)
        if other is not run:
            raise errors.UserError(f'two runs are {run.arm} seed {run.seed}: {other.folder} and {run.folder}')
    if baseline is not None and baseline not in arms:
        raise errors.UserError(
            f'--baseline {baseline}: no finished run of it; arms: {", ".join(sorted(arms)) or "none"}'
        )
    baseline = baseline or 'scratch'
    order = sorted(arms, key=lambda arm: (arm != baseline, arm))
    nca = tuple(run for run in usable if run.stage == 'nca')
    controls = tuple(run for run in usable if run.stage not in ('nca', 'text'))
    study = Study({arm: arms[arm] for arm in order}, nca, controls, left_out, baseline)
    _check_comparable([run for arm in study.arms.values() for run in arm.values()])
    return study


def _check_comparable(runs: list[Run]) -> None:
    for run in runs[1:]:
        if run.about['data'] != runs[0].about['data']:
            raise errors.UserError(f"can't compare {runs[0]} with {run}: they were trained on different text")
        for what, ours, theirs in (
            ('vocab_size', run.about['vocab_size'], runs[0].about['vocab_size']),
            ('final tokens', run.final['tokens'], runs[0].final['tokens']),
            ('scored tokens', run.final.get('scored_tokens', 0), runs[0].final.get('scored_tokens', 0)),
            ('bytes per evaluated token', _bytes_per_token(run), _bytes_per_token(runs[0])),
        ):
            if not math.isclose(ours, theirs, rel_tol=1e-4 if isinstance(ours, float) else 0):
                raise errors.UserError(f"can't compare {runs[0]} with {run}: {what} {theirs:,.12g} and {ours:,.12g}")


def _bytes_per_token(run: Run) -> float:
    """What joins nats per token to bits per byte: it differs if the tokenizer or the evaluated text differs."""
    final = run.final
    return final['loss'] / math.log(2) / final['bits_per_byte'] if final.get('bits_per_byte') else 0.0
