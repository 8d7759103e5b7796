"""Banks: sets of rules whose scores lie in a band, neither too simple nor too random."""

import dataclasses
import hashlib
import itertools
import json
import zipfile
import zlib
from pathlib import Path

import jax
import numpy as np
import pyarrow

from nca_jax import files, keys
from nca_jax.errors import UserError
from nca_jax.nca import score
from nca_jax.nca.config import NCAConfig
from nca_jax.nca.score import Candidates, in_band
from nca_jax.progress import Progress, silent

# Of the histogram of scores.
EDGES = np.round(np.arange(0, 1.22, 0.02), 2)
# A search gives up by its rate of accepted rules. So many more count as accepted, so that a poor start doesn't end it.
GRACE = 10
# The report's examples are picked from so many unfiltered candidates, at these quantiles of their scores.
EXAMPLES_FROM = 256
QUANTILES = {'low': (0.02, 0.08, 0.16), 'medium': (0.42, 0.5, 0.58), 'high': (0.84, 0.92, 0.98)}


@dataclasses.dataclass(frozen=True)
class Bank:
    """A set of R accepted rules."""

    # The numbers of the accepted candidates, ascending (see `score.candidate`).
    index_R: np.ndarray
    scores_R: np.ndarray
    # The scores between which all of them lie.
    band: tuple[float, float]
    # Histogram over EDGES, its last bin open above, of all candidates up to the last accepted one.
    counts: np.ndarray
    # The number of those candidates.
    candidates: int
    # sha256 of the request, the software, the rules and their scores.
    hash: str


def request(candidates: Candidates) -> dict:
    """All that decides which rules a bank holds, except the software."""
    config = candidates.config
    names = {'seed': candidates.seed, 'split': candidates.split, 'epoch': candidates.epoch}
    return band_request(config) | names | {'rules_per_epoch': config.rules_per_epoch}


def band_request(config: NCAConfig) -> dict:
    """All that decides which scores a band accepts and how rules are scored, except the software."""
    fields = dataclasses.asdict(config)
    names = ('rule', 'burn_in', 'stride', 'patch', 'complexity', 'band', 'band_by', 'search_block')
    if config.band_by == 'quantile':
        names += ('band_sample',)
    # A search always looks up.
    del fields['rule']['perceive']
    return {name: fields[name] for name in names}


def software() -> dict[str, str]:
    """Versions of what may round or compress differently."""
    return {'jax': jax.__version__, 'zlib': zlib.ZLIB_RUNTIME_VERSION, 'pyarrow': pyarrow.__version__}


def digest(record: dict) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def thresholds(config: NCAConfig, folder: Path | None = None) -> tuple[float, float]:
    """The scores between which rules are accepted: `config.band`, or its quantiles of unfiltered rules.

    All that use a folder take the quantiles of the first survey there.
    """
    if config.band_by == 'score':
        return config.band
    # All rules: no survey is needed.
    if config.band == (0, 1):
        return -np.inf, np.inf
    if folder is None:
        # Seed 0 whatever the run's seed, so that all arms of a study have the same band.
        return quantiles(score.survey(config, 0, config.band_sample), config.band)
    path = folder / 'rules' / f'quantiles-{digest(band_request(config) | software())[:12]}.json'
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, json.dumps(thresholds(config)))
    return tuple(json.loads(path.read_text()))


def quantiles(scores: np.ndarray, band: tuple[float, float]) -> tuple[float, float]:
    """The thresholds that accept a band's share of the scores, infinite where the band reaches 0 or 1."""
    # A score on the upper quantile is accepted, one on the lower isn't, so that neighbouring bands don't overlap.
    below, above = np.quantile(scores, band, method='inverted_cdf')
    return -np.inf if band[0] == 0 else float(below), np.inf if band[1] == 1 else float(np.nextafter(above, np.inf))


def search(candidates: Candidates, folder: Path | None = None, progress: Progress = silent) -> Bank:
    """Scores candidates in order and keeps the first `rules_per_epoch` inside the band: a pure function.

    progress('rules', accepted, rules) is called after each block. Raises UserError after more than
    `candidates_per_rule` candidates for each accepted rule.
    """
    config = candidates.config
    band, rules, scores, accepted = thresholds(config, folder), config.rules_per_epoch, [], 0
    for _, _, scores_R in score.score_blocks(candidates, itertools.count()):
        scores.append(scores_R)
        accepted += int(in_band(scores_R, band).sum())
        scored = len(scores) * config.search_block
        progress('rules', min(accepted, rules), rules)
        if accepted >= rules:
            break
        if scored >= config.candidates_per_rule * (accepted + GRACE):
            # How far the band is from what this family of rules does.
            deciles = np.quantile(np.concatenate(scores), np.linspace(0, 1, 11)).round(2).tolist()
            raise UserError(
                f'band = {band}: {accepted} of {rules} {candidates.split} rules found among {scored} candidates'
                f' by {config.complexity.measure}; deciles of their scores: {deciles}'
            )
    scores = np.concatenate(scores)
    index_R = np.flatnonzero(in_band(scores, band))[:rules].astype('u4')
    # Candidates after the last accepted one were scored only because blocks are whole.
    scores = scores[: index_R[-1] + 1]
    accepted_rules = {'index': index_R.tolist(), 'scores': scores[index_R].tolist()}
    return Bank(
        index_R=index_R,
        scores_R=scores[index_R],
        band=band,
        counts=np.histogram(np.minimum(scores, EDGES[-1]), EDGES)[0],
        candidates=len(scores),
        hash=digest(request(candidates) | software() | accepted_rules),
    )


def bank_path(candidates: Candidates, folder: Path) -> Path:
    """A bank's file. Its name holds the request's hash, so that banks of other requests may lie beside it."""
    name = f'{candidates.split}-{candidates.epoch:04d}-{digest(request(candidates))[:12]}.npz'
    return folder / 'rules' / name


def bank(candidates: Candidates, folder: Path | None, progress: Progress = silent) -> Bank:
    """The bank of one epoch: read from `folder`/rules if it is there, else searched and saved.

    Raises UserError for a file that can't be read.
    """
    if folder is None:
        return search(candidates, progress=progress)
    path = bank_path(candidates, folder)
    if not path.exists():
        result = search(candidates, folder, progress)
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as file:
            np.savez(file, **dataclasses.asdict(result))
        return result
    try:
        with np.load(path) as arrays:
            band, scored = tuple(arrays['band'].tolist()), int(arrays['candidates'])
            return Bank(arrays['index_R'], arrays['scores_R'], band, arrays['counts'], scored, str(arrays['hash']))
    # What NumPy raises for files that are empty, cut, spoilt or of another kind.
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f'{path}: not a readable set of rules ({error}); delete it to search again') from error


def write_examples(config: NCAConfig, seed: int, folder: Path) -> None:
    """Writes what the report shows of the automata into the folder of a run, unless it is there.

    - automata.npz: frames (9, T, Y, X), ratios, level, colours and weights of three rules each of low, medium and high
      score, accepted or not. The weights let others run the rules on.
    - complexity.json: the first training bank's band and its histogram of all candidates.
    """
    candidates = Candidates(config, seed, 'train', 0)
    # This file is written last.
    if (folder / 'complexity.json').exists():
        return
    first_bank = bank(candidates, folder)
    frames_RxTxYxX, _, scores_R = score.trajectories(candidates, EXAMPLES_FROM)
    ranks = [int(q * (EXAMPLES_FROM - 1)) for quantiles in QUANTILES.values() for q in quantiles]
    shown_9 = np.argsort(scores_R, kind='stable')[ranks]
    root = keys.key(seed)
    rules = jax.vmap(lambda index: score.candidate(config.rule, root, 'train', np.uint32(0), index))(shown_9)
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
        # JSON has no infinity, and the histogram ends here.
        'band': np.clip(first_bank.band, EDGES[0], EDGES[-1]).tolist(),
        'candidates': first_bank.candidates,
        'accepted': len(first_bank.index_R),
        'edges': EDGES.tolist(),
        'counts': first_bank.counts.tolist(),
    }
    files.write(folder / 'complexity.json', json.dumps(record, indent=1) + '\n')
