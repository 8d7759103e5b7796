"""Sets of rules whose trajectories are neither too simple nor too random."""

import dataclasses
import hashlib
import itertools
import json
import shutil
import zipfile
import zlib
from pathlib import Path

import jax
import numpy as np
import pyarrow

from nca_jax import files
from nca_jax.errors import UserError
from nca_jax.nca import complexity, score, share
from nca_jax.nca.config import NCAConfig
from nca_jax.nca.score import Progress

EDGES = np.round(np.arange(0, 1.22, 0.02), 2)
GRACE = 10  # rules that the search may owe before it gives up, so that a poor start isn't the end


@dataclasses.dataclass(frozen=True)
class Bank:
    """A set of R accepted rules.

    index_R: the accepted candidates, ascending; a rule is its candidate's number (see `score.candidate`).
    scores_R: their scores.
    band: the scores between which they lie.
    counts: histogram over EDGES (last bin open above) of all candidates up to the last accepted one.
    candidates: how many those are.
    hash: of what was asked for, of the software that scored, and of the rules and scores that it found.
    """

    index_R: np.ndarray
    scores_R: np.ndarray
    band: tuple[float, float]
    counts: np.ndarray
    candidates: int
    hash: str


def request(config: NCAConfig, seed: int, split: str, epoch: int) -> dict:
    """All that decides which rules are accepted, but for the software."""
    names = {'seed': seed, 'split': split, 'epoch': epoch}
    return surveyed(config) | names | {'rules_per_epoch': config.rules_per_epoch}


def surveyed(config: NCAConfig) -> dict:
    """All that decides which rules a band takes, but for the software."""
    asked = dataclasses.asdict(config)
    kept = ('rule', 'burn_in', 'stride', 'patch', 'complexity', 'band', 'band_by', 'search_block')
    if config.band_by == 'quantile':
        kept += ('band_sample',)
    del asked['rule']['perceive']  # a search always looks up
    return {field: asked[field] for field in kept}


def software() -> dict[str, str]:
    """What may round or compress differently elsewhere."""
    return {'jax': jax.__version__, 'zlib': zlib.ZLIB_RUNTIME_VERSION, 'pyarrow': pyarrow.__version__}


def digest(record: dict) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def thresholds(config: NCAConfig) -> tuple[float, float]:
    """The scores between which rules are accepted: `config.band`, or that band's quantiles of unfiltered rules.

    The quantiles are those of one survey, the same for all seeds, splits and epochs; a rule on the upper one is
    accepted and on the lower one not, so that neighbouring bands don't overlap. Raises UserError where scores are so
    often equal that none lies between.
    """
    if config.band_by == 'score':
        return config.band
    if config.band == (0, 1):
        return -np.inf, np.inf
    scores = score.survey(config, 0, config.band_sample)
    found = quantiles(scores, config.band)
    if not complexity.in_band(scores, found).any():
        raise UserError(f'band = {config.band}: no rule of {len(scores)} lies between these quantiles, {found}')
    return found


def quantiles(scores: np.ndarray, band: tuple[float, float]) -> tuple[float, float]:
    """The thresholds that accept a band's share of the scores, without a bound where it reaches 0 or 1."""
    below, above = np.quantile(scores, band, method='inverted_cdf')
    return -np.inf if band[0] == 0 else float(below), np.inf if band[1] == 1 else float(np.nextafter(above, np.inf))


def kept_thresholds(config: NCAConfig, folder: Path) -> tuple[float, float]:
    """`thresholds`, with quantiles surveyed once for all that use the folder: its first file decides."""
    if config.band_by == 'score':
        return config.band
    path = Path(folder) / 'rules' / f'quantiles-{digest(surveyed(config) | software())[:12]}.json'
    if not path.exists():
        found = thresholds(config)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, json.dumps(found).encode(), keep=True)
    low, high = json.loads(path.read_text())
    return low, high


def search(
    config: NCAConfig,
    seed: int,
    split: str,
    epoch: int,
    progress: Progress | None = None,
    together: share.Together | None = None,
    band: tuple[float, float] | None = None,
) -> Bank:
    """Scores candidates in order and keeps the first `rules_per_epoch` inside the band: a pure function.

    `together` divides the work between processes; `band` are the thresholds, where they are known. Raises UserError
    with the histogram once there were more than `candidates_per_rule` candidates for each rule accepted (and a few
    more). `progress(accepted, wanted)` is called now and then.
    """
    band, wanted, scores, accepted = band or thresholds(config), config.rules_per_epoch, [], 0
    if together:
        blocks = share.scores(config, seed, split, epoch, together)
    else:
        blocks = (scores_R for _, _, scores_R in score.score_blocks(config, seed, split, epoch, itertools.count()))
    for scores_R in blocks:
        scores.append(scores_R)
        accepted += int(complexity.in_band(scores_R, band).sum())
        candidates = len(scores) * config.search_block
        if progress:
            progress(min(accepted, wanted), wanted)
        if accepted >= wanted:
            break
        if candidates >= config.candidates_per_rule * (accepted + GRACE):
            raise UserError(
                f'band = {band}: {accepted} of {wanted} {split} rules found among {candidates} candidates'
                f' ({config.rule.colours} colours, {config.complexity.measure}, {config.complexity.bytes_per_token}'
                f' bytes a token); their scores: {describe(np.concatenate(scores))}'
            )
    return choose(np.concatenate(scores), band, wanted, request(config, seed, split, epoch))


def choose(scores: np.ndarray, band: tuple[float, float], wanted: int, asked: dict) -> Bank:
    """The first `wanted` of the scored candidates inside the band."""
    index_R = np.flatnonzero(complexity.in_band(scores, band))[:wanted].astype('u4')
    scores = scores[: index_R[-1] + 1]
    found = {'index': index_R.tolist(), 'scores': scores[index_R].tolist()}
    return Bank(
        index_R=index_R,
        scores_R=scores[index_R],
        band=band,
        counts=histogram(scores),
        candidates=len(scores),
        hash=digest(asked | software() | found),
    )


def histogram(scores: np.ndarray) -> np.ndarray:
    """Counts over EDGES; the last bin takes all that lies above."""
    return np.histogram(np.minimum(scores, EDGES[-1]), EDGES)[0]


def describe(scores: np.ndarray) -> str:
    """The histogram in words, by tenths, without the empty ones."""
    counts = np.histogram(np.minimum(scores, 1.0), np.arange(12) / 10)[0]
    names = [f'{tenth / 10:.1f}-{(tenth + 1) / 10:.1f}' for tenth in range(10)] + ['1.0 and above']
    return ', '.join(f'{name}: {count}' for name, count in zip(names, counts, strict=True) if count)


def bank_path(config: NCAConfig, seed: int, split: str, epoch: int, folder: Path) -> Path:
    """Where a set is kept: its name carries what was asked for, so that sets of other requests lie beside it."""
    asked = digest(request(config, seed, split, epoch))
    return Path(folder) / 'rules' / f'{split}-{epoch:04d}-{asked[:12]}.npz'


def scores_folder(config: NCAConfig, seed: int, split: str, epoch: int, folder: Path) -> Path:
    """Where processes leave the scores for one another."""
    path = bank_path(config, seed, split, epoch, folder)
    return path.with_name(f'{path.stem}-{digest(software())[:8]}.scores')


def forget_scores(config: NCAConfig, seed: int, split: str, epoch: int, folder: Path) -> None:
    """Deletes what processes told one another, once all of them have their set."""
    shutil.rmtree(scores_folder(config, seed, split, epoch, folder), ignore_errors=True)


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
    """The set of rules of one epoch, read from `folder`/rules if it was saved there before, else searched and saved.

    Several processes that share the folder search together. Raises UserError for a file that can't be read or holds
    something else.
    """
    if folder is None:
        return search(config, seed, split, epoch, progress)
    path = bank_path(config, seed, split, epoch, folder)
    asked = request(config, seed, split, epoch)
    if path.exists():
        return load(path, digest(asked))
    scores = scores_folder(config, seed, split, epoch, folder)
    together = share.Together(scores, process, processes) if processes > 1 else None
    found = search(config, seed, split, epoch, progress, together, kept_thresholds(config, folder))
    save(path, found, digest(asked))
    return found


def save(path: Path, found: Bank, asked: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as file:
        np.savez(file, request=asked, **dataclasses.asdict(found))


def load(path: Path, asked: str) -> Bank:
    """Reads a saved set back; `asked` is the digest of the request that it must answer."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            stored = {name: arrays[name] for name in arrays.files}
        answered = str(stored.pop('request'))
        plain = {'candidates': int(stored.pop('candidates')), 'hash': str(stored.pop('hash'))}
        low, high = stored.pop('band')
        found = Bank(**stored, **plain, band=(float(low), float(high)))
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f'{path}: not a readable set of rules ({error}); delete it to search again') from error
    if answered != asked:
        raise UserError(f'{path}: holds the rules of another configuration; delete it or use another folder')
    return found
