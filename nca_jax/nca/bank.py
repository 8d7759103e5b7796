"""Banks: sets of rules whose scores lie in a band, neither too simple nor too random."""

import dataclasses
import hashlib
import itertools
import json
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
import pyarrow

from nca_jax import files
from nca_jax.errors import UserError
from nca_jax.nca import complexity, score
from nca_jax.nca.config import NCAConfig
from nca_jax.nca.score import Progress

EDGES = np.round(np.arange(0, 1.22, 0.02), 2)
# A search gives up by its rate of accepted rules. So many more count as accepted, so that a poor start doesn't end it.
GRACE = 10


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


def request(config: NCAConfig, seed: int, split: str, epoch: int) -> dict:
    """All that decides which rules a bank holds, except the software."""
    names = {'seed': seed, 'split': split, 'epoch': epoch}
    return band_request(config) | names | {'rules_per_epoch': config.rules_per_epoch}


def band_request(config: NCAConfig) -> dict:
    """All that decides which scores a band accepts and how rules are scored, except the software."""
    fields = dataclasses.asdict(config)
    names = ('rule', 'burn_in', 'stride', 'patch', 'complexity', 'band', 'band_by', 'search_block')
    if config.band_by == 'quantile':
        names += ('band_sample',)
    # A search always looks up.
    del fields['rule']['perceive']
    # The only value of a field that is gone; saved banks are known by a hash with it.
    fields['rule']['groups'] = 1
    return {name: fields[name] for name in names}


def software() -> dict[str, str]:
    """Versions of what may round or compress differently."""
    return {'jax': jax.__version__, 'zlib': zlib.ZLIB_RUNTIME_VERSION, 'pyarrow': pyarrow.__version__}


def digest(record: dict) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def thresholds(config: NCAConfig, folder: Path | None = None) -> tuple[float, float]:
    """The scores between which rules are accepted: `config.band`, or its quantiles of unfiltered rules.

    All seeds, splits and epochs have the same quantiles; all that use a folder take those of the first survey there.
    Raises UserError if scores are so often equal that none lies between.
    """
    if config.band_by == 'score':
        return config.band
    if config.band == (0, 1):
        return -np.inf, np.inf
    path = folder and Path(folder) / 'rules' / f'quantiles-{digest(band_request(config) | software())[:12]}.json'
    if not path or not path.exists():
        scores = score.survey(config, 0, config.band_sample)
        band = quantiles(scores, config.band)
        if not complexity.in_band(scores, band).any():
            raise UserError(f'band = {config.band}: no rule of {len(scores)} lies between these quantiles, {band}')
        if not path:
            return band
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, json.dumps(band), keep=True)
    # Another process may have been first with its own survey.
    low, high = json.loads(path.read_text())
    return low, high


def quantiles(scores: np.ndarray, band: tuple[float, float]) -> tuple[float, float]:
    """The thresholds that accept a band's share of the scores, infinite where the band reaches 0 or 1.

    A score on the upper quantile is accepted, one on the lower isn't, so that neighbouring bands don't overlap.
    """
    below, above = np.quantile(scores, band, method='inverted_cdf')
    return -np.inf if band[0] == 0 else float(below), np.inf if band[1] == 1 else float(np.nextafter(above, np.inf))


def search(
    config: NCAConfig,
    seed: int,
    split: str,
    epoch: int,
    progress: Progress | None = None,
    band: tuple[float, float] | None = None,
    blocks: Iterable[np.ndarray] | None = None,
) -> Bank:
    """Scores candidates in order and keeps the first `rules_per_epoch` inside the band: a pure function.

    band: the thresholds, if they are known. blocks: the scores of all blocks in order, if others help to compute them.
    `progress(accepted, rules)` is called after each block. Raises UserError, with a histogram of the scores, after more
    than `candidates_per_rule` candidates for each accepted rule.
    """
    band, rules, scores, accepted = band or thresholds(config), config.rules_per_epoch, [], 0
    if blocks is None:
        blocks = (scores_R for _, _, scores_R in score.score_blocks(config, seed, split, epoch, itertools.count()))
    for scores_R in blocks:
        scores.append(scores_R)
        accepted += int(complexity.in_band(scores_R, band).sum())
        candidates = len(scores) * config.search_block
        if progress:
            progress(min(accepted, rules), rules)
        if accepted >= rules:
            break
        if candidates >= config.candidates_per_rule * (accepted + GRACE):
            raise UserError(
                f'band = {band}: {accepted} of {rules} {split} rules found among {candidates} candidates'
                f' ({config.rule.colours} colours, {config.complexity.measure}, {config.complexity.bytes_per_token}'
                f' bytes a token); their scores: {describe(np.concatenate(scores))}'
            )
    scores = np.concatenate(scores)
    index_R = np.flatnonzero(complexity.in_band(scores, band))[:rules].astype('u4')
    scores = scores[: index_R[-1] + 1]
    accepted_rules = {'index': index_R.tolist(), 'scores': scores[index_R].tolist()}
    return Bank(
        index_R=index_R,
        scores_R=scores[index_R],
        band=band,
        counts=np.histogram(np.minimum(scores, EDGES[-1]), EDGES)[0],
        candidates=len(scores),
        hash=digest(request(config, seed, split, epoch) | software() | accepted_rules),
    )


def describe(scores: np.ndarray) -> str:
    """A histogram in words, by tenths, without empty bins."""
    counts = np.histogram(np.minimum(scores, 1.0), np.arange(12) / 10)[0]
    names = [f'{tenth / 10:.1f}-{(tenth + 1) / 10:.1f}' for tenth in range(10)] + ['1.0 and above']
    return ', '.join(f'{name}: {count}' for name, count in zip(names, counts, strict=True) if count)


def bank_path(config: NCAConfig, seed: int, split: str, epoch: int, folder: Path) -> Path:
    """A bank's file. Its name holds the request's hash, so that banks of other requests may lie beside it."""
    return Path(folder) / 'rules' / f'{split}-{epoch:04d}-{digest(request(config, seed, split, epoch))[:12]}.npz'


def scores_folder(config: NCAConfig, seed: int, split: str, epoch: int, folder: Path) -> Path:
    """Where processes that search together exchange scores. To be deleted once all of them have their bank."""
    path = bank_path(config, seed, split, epoch, folder)
    return path.with_name(f'{path.stem}-{digest(software())[:8]}.scores')


def bank(
    config: NCAConfig,
    seed: int,
    split: str,
    epoch: int,
    folder: Path | None,
    progress: Progress | None = None,
    process: int = 0,
    processes: int = 1,
) -> Bank:
    """The bank of one epoch: read from `folder`/rules if it is there, else searched and saved.

    Several processes that share the folder search together. Raises UserError for a file that can't be read or holds
    another bank.
    """
    if folder is None:
        return search(config, seed, split, epoch, progress)
    path = bank_path(config, seed, split, epoch, folder)
    request_hash = digest(request(config, seed, split, epoch))
    if path.exists():
        return load(path, request_hash)
    blocks = None
    if processes > 1:
        scores = scores_folder(config, seed, split, epoch, folder)
        blocks = score.shared_scores(config, seed, split, epoch, scores, process, processes)
    result = search(config, seed, split, epoch, progress, thresholds(config, folder), blocks)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as file:
        np.savez(file, request=request_hash, **dataclasses.asdict(result))
    return result


def load(path: Path, request_hash: str) -> Bank:
    """Reads a saved bank. Raises UserError unless it answers the request."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            fields = {name: arrays[name] for name in arrays.files}
        saved_hash = str(fields.pop('request'))
        scalars = {'candidates': int(fields.pop('candidates')), 'hash': str(fields.pop('hash'))}
        low, high = fields.pop('band')
        result = Bank(**fields, **scalars, band=(float(low), float(high)))
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f'{path}: not a readable set of rules ({error}); delete it to search again') from error
    if saved_hash != request_hash:
        raise UserError(f'{path}: holds the rules of another configuration; delete it or use another folder')
    return result
