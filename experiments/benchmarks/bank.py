"""Candidates a second in the search for rules: ours against plain Flax, scored by Python's gzip in a loop.

    python -m experiments.benchmarks.bank [--json]

Ours finds the paper's 18,000 rules (10 colours, 12 x 12, gzip ratio over 0.5); the plain one rolls out and scores as
many candidates as a few seconds allow, 256 at a time. Both know nothing beforehand.
"""

import functools
import gzip
from collections.abc import Callable, Iterator

import jax
import numpy as np

from experiments.benchmarks import common
from experiments.benchmarks.nca import paper_config, plain_frames, plain_rules
from nca_jax.nca import bank, patches, score
from nca_jax.nca.config import NCAConfig

RULES, PLAIN_CANDIDATES, PLAIN_BATCH = 18_000, 2_048, 256
FLOOR = 10.0
ROUNDS = 3


def theirs(config: NCAConfig) -> Callable[[], list[float]]:
    """One call scores PLAIN_CANDIDATES candidates."""
    rule, params = plain_rules(config, PLAIN_BATCH)
    frames = config.complexity.frames

    @jax.jit
    def tokens(params, keys):
        grids = jax.vmap(functools.partial(plain_frames, config, rule, frames))(params, keys)
        return jax.vmap(functools.partial(patches.encode, config.vocab))(grids)

    def score_all() -> list[float]:
        ratios = []
        for first in range(0, PLAIN_CANDIDATES, PLAIN_BATCH):
            keys = jax.random.split(jax.random.key(first), PLAIN_BATCH)
            for row in np.asarray(tokens(params, keys)):
                raw = row.reshape(frames, -1)[:, 1:-1].astype('<i4').tobytes()
                ratios.append(len(gzip.compress(raw, 9)) / len(raw))
        return ratios

    return score_all


def rows() -> Iterator[common.Row]:
    config = paper_config(1e-3, band=(0.5, 2.0), rules=RULES)
    candidates = score.Candidates(config, 0, 'train', 0)
    found = bank.search(candidates)
    sides = {'ours': lambda: bank.search(candidates), 'theirs': theirs(config)}
    seconds = common.seconds_in_turn(sides, ROUNDS)
    ours, plain = found.candidates / seconds['ours'], PLAIN_CANDIDATES / seconds['theirs']
    note = f'{RULES:,} rules of {found.candidates:,} candidates in {seconds["ours"]:.1f} s'
    yield common.Row('bank/18000/float32', ours, plain, ours / plain, FLOOR, 'candidates/s', note)


if __name__ == '__main__':
    common.main(rows(), __doc__.splitlines()[0])
