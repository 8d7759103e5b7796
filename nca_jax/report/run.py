"""One run as its folder tells it: what it is, its evaluations in order, and whether it has a final number."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from nca_jax import errors
from nca_jax.report.records import ks, read_json

EVALUATORS = {
    'text': 'perplexity',
    'nca': 'nca_grid',
    **dict.fromkeys(('dyck', 'copy', 'noise', 'instruct'), 'held_out'),
}
# What config.benchmark says of how problems were asked.
ASKED = ('problems', 'limit', 'shots', 'samples', 'max_tokens', 'stops', 'sampling')
ASKED_WITHIN = {'problems': ('task',), 'sampling': ('temperature', 'top_p')}
# What a table of solved problems adds to a task's name, by stage and by whether the run trained: none is like another.
WAYS = {
    ('instruct', True): '',
    ('instruct', False): ' as carried',
    ('text', True): ' in the text stage',
    ('text', False): ' without training',
}


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
        return self._evals(EVALUATORS[self.stage])

    @property
    def benchmarks(self) -> list[dict[str, Any]]:
        """The evaluations that count solved problems, likewise. None in a stage whose models read no text."""
        return self._evals('benchmark') if self.stage in ('text', 'instruct') else []

    def _evals(self, evaluator: str) -> list[dict[str, Any]]:
        chosen = (r for r in self.records if r['kind'] == 'eval' and r['evaluator'] == evaluator)
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
        """Why the run has no final number, or None. That of stage instruct is of problems solved."""
        if self.stage == 'instruct':
            return self.unsolved
        if self.done is None:
            return self._unfinished
        if not self.evals or self.final['step'] != self.done['step']:
            return f'no {EVALUATORS[self.stage]} evaluation at its last step {self.done["step"]:,}'
        if self.final['tokens'] == 0:
            return 'evaluated only, not trained'
        return None if math.isfinite(self.final['loss']) else f'its final loss is {self.final["loss"]}'

    @property
    def unsolved(self) -> str | None:
        """Why the run has no final number of solved problems, or None. It need not have trained."""
        if self.done is None:
            return self._unfinished
        if not self.benchmarks or self.solved['step'] != self.done['step']:
            return f'no benchmark evaluation at its last step {self.done["step"]:,}'
        return None if ks(self.solved) else 'its programs are not judged yet'

    @property
    def _unfinished(self) -> str:
        steps = [r['step'] for r in self.records]
        return f'not finished (last record: step {steps[-1]:,})' if steps else 'not finished (nothing recorded yet)'

    @property
    def trained(self) -> bool:
        """Whether a finished run made any update; else it was evaluated alone."""
        return self.done['step'] > 0

    @property
    def solved(self) -> dict[str, Any]:
        """The last count of solved problems."""
        return self.benchmarks[-1]

    @property
    def solved_before(self) -> dict[str, Any] | None:
        """What a run that trained had solved at step 0; None if that wasn't evaluated or wasn't judged."""
        first = self.benchmarks[0]
        return first if self.trained and first['step'] == 0 and ks(first) else None

    @property
    def asked(self) -> dict[str, Any]:
        """config.benchmark: how problems were put to the model. UserError where it doesn't say so."""
        asked = self.about['config'].get('benchmark')
        path = f'{self.folder / "run.json"}: config.benchmark'
        if not isinstance(asked, dict):
            raise errors.UserError(f'{path} = {asked!r}: must be a block, since metrics.jsonl has evaluations of it')
        found = {'': (ASKED, asked)} | {f'.{name}': (has, asked.get(name)) for name, has in ASKED_WITHIN.items()}
        for block, (needed, fields) in found.items():
            lacking = [name for name in needed if not isinstance(fields, dict) or name not in fields]
            if lacking:
                raise errors.UserError(f'{path}{block} lacks {", ".join(lacking)}')
        return asked

    @property
    def benchmark(self) -> str:
        """The task whose problems were asked, and the way in which the model came to them (see WAYS)."""
        return f'{self.asked["problems"]["task"]}{WAYS[self.stage, self.trained]}'

    def curve(self, name: str = 'loss') -> tuple[np.ndarray, np.ndarray]:
        """(tokens, values) of one evaluated quantity."""
        return np.array([r['tokens'] for r in self.evals], float), np.array([r[name] for r in self.evals], float)

    def json(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the run's folder, None if the run wrote none."""
        path = self.folder / name
        return read_json(path) if path.is_file() else None
