"""Writes what the report shows of the automata that a run trains on."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np

from nca_jax import files, keys
from nca_jax.nca import bank, score
from nca_jax.nca.config import NCAConfig

# The examples are picked from so many unfiltered candidates, at these quantiles of their scores.
CANDIDATES = 256
QUANTILES = {'low': (0.02, 0.08, 0.16), 'medium': (0.42, 0.5, 0.58), 'high': (0.84, 0.92, 0.98)}


def write_examples(config: NCAConfig, seed: int, folder: Path) -> None:
    """Writes `automata.npz` and `complexity.json` into the folder of a run, unless they are there.

    automata.npz: three rules each of low, medium and high score, accepted or not: frames (9, T, Y, X), ratios, level,
    colours and weights. complexity.json: the first training bank's band and its histogram of all candidates.
    """
    folder = Path(folder)
    # This file is written last.
    if (folder / 'complexity.json').exists():
        return
    first_bank = bank.bank(config, seed, 'train', 0, folder)
    frames_RxTxYxX, _, scores_R = score.trajectories(config, seed, 'train', 0, CANDIDATES)
    ranks = [int(q * (CANDIDATES - 1)) for quantiles in QUANTILES.values() for q in quantiles]
    shown_9 = np.argsort(scores_R, kind='stable')[ranks]
    rules = jax.vmap(lambda index: score.candidate(config.rule, keys.key(seed), 'train', np.uint32(0), index))(shown_9)
    np.savez_compressed(
        folder / 'automata.npz',
        frames=frames_RxTxYxX[shown_9],
        ratios=scores_R[shown_9],
        level=np.repeat(list(QUANTILES), 3),
        colours=config.rule.colours,
        **jax.device_get(rules),
    )
    record = {
        'score': config.complexity.measure,
        'bytes_per_token': config.complexity.bytes_per_token,
        'band': np.clip(first_bank.band, bank.EDGES[0], bank.EDGES[-1]).tolist(),
        'candidates': first_bank.candidates,
        'accepted': len(first_bank.index_R),
        'edges': bank.EDGES.tolist(),
        'counts': first_bank.counts.tolist(),
        'spec': dataclasses.asdict(config),
    }
    files.write(folder / 'complexity.json', json.dumps(record, indent=1) + '\n')
