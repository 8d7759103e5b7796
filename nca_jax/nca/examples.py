"""What a run leaves for its report about the automata it trains on."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np

from nca_jax import files, keys
from nca_jax.nca import bank, score
from nca_jax.nca.config import NCAConfig

SHOWN_FROM = 256  # unfiltered candidates among which the examples are sought
QUANTILES = {'low': (0.02, 0.08, 0.16), 'medium': (0.42, 0.5, 0.58), 'high': (0.84, 0.92, 0.98)}


def write_examples(config: NCAConfig, seed: int, folder: Path, progress: score.Progress | None = None) -> None:
    """Writes `automata.npz` and `complexity.json` into the folder of a run.

    automata.npz: three rules each of low, medium and high complexity among the first candidates, accepted or not:
    frames (9, T, Y, X), ratios, level, colours and the weights. complexity.json: histogram of all candidates of the
    first training set (which is searched here, and kept in `folder`, if it wasn't before) and the accepted band. It is
    written last and in one stroke; where it exists, as in a resumed run, nothing is done.
    """
    folder = Path(folder)
    if (folder / 'complexity.json').exists():
        return
    training = bank.bank(config, seed, 'train', 0, folder, progress)
    frames_RxTxYxX, _, scores_R = score.trajectories(config, seed, 'train', 0, SHOWN_FROM)
    order_R = np.argsort(scores_R, kind='stable')
    places = [int(q * (SHOWN_FROM - 1)) for quantiles in QUANTILES.values() for q in quantiles]
    shown_9 = order_R[places]
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
        'band': np.clip(training.band, bank.EDGES[0], bank.EDGES[-1]).tolist(),
        'candidates': training.candidates,
        'accepted': len(training.index_R),
        'edges': bank.EDGES.tolist(),
        'counts': training.counts.tolist(),
        'spec': dataclasses.asdict(config),
    }
    files.write(folder / 'complexity.json', json.dumps(record, indent=1).encode() + b'\n')
