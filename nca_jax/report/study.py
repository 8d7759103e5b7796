"""The runs of one report, grouped by what may be compared; runs that measured different things are refused."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nca_jax.errors import UserError
from nca_jax.report.runs import BENCHMARK, Run, flatten

# Runs that may be compared, by arm and seed. The baseline is the first arm.
Group = Mapping[str, Mapping[int, Run]]
# The fields of config.benchmark on which scores depend: a decoder's batches change no number.
PROTOCOL = ('limit', 'shots', 'samples', 'max_tokens', 'problems', 'stops', 'sampling')


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
    """What must agree where final losses are compared: the text, its tokens, and what was evaluated."""
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
    """What must agree where solved problems are compared."""
    data, solved = run.record['data'], run.solved
    facts = {f'data.{name}': data[name] for name in ('problems', BENCHMARK, 'tokenizer') if name in data}
    facts |= {'final tokens': solved['tokens'], 'problems': solved['problems'], 'samples': solved['samples']}
    protocol = flatten({name: run.protocol[name] for name in PROTOCOL}, 'benchmark.')
    # The same problems may lie elsewhere.
    facts |= {name: value for name, value in protocol.items() if name != 'benchmark.problems.path'}
    # A score that some runs lack (pass@k of another k, a task) can't be compared.
    return facts | dict.fromkeys((f'recorded {name}' for name in sorted(solved)), 'present')
