"""Sets of rules whose trajectories are neither too simple nor too random."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

from nca_jax import keys
from nca_jax.errors import UserError
from nca_jax.nca import complexity, patches
from nca_jax.nca.config import NCAConfig
from nca_jax.nca.rollout import rollout
from nca_jax.nca.rule import Rule, init_rule

EDGES = np.round(np.arange(0, 1.22, 0.02), 2)
GRACE = 10  # rules that the search may owe before it gives up, so that a poor start isn't the end

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Bank:
    """A set of R accepted rules.

    index_R: the accepted candidates, ascending; a rule is its candidate's number (see `candidate`).
    ratios_R: their gzip ratios.
    counts: histogram over EDGES (last bin open above) of all candidates up to the last accepted one.
    candidates: how many those are.
    hash: of what was asked for and of what computed it.
    """

    index_R: np.ndarray
    ratios_R: np.ndarray
    counts: np.ndarray
    candidates: int
    hash: str


def candidate(config: NCAConfig, root: jax.Array, split: str, epoch: jax.Array, index: jax.Array) -> Rule:
    """The weights of candidate `index`; `root` is the seed's key. Other splits and epochs have other keys."""
    return init_rule(config.rule, keys.key(root, 'rules', split, epoch, index))


@functools.partial(jax.jit, static_argnums=(0, 2))
def score_frames(
    config: NCAConfig, root: jax.Array, split: str, epoch: jax.Array, index_R: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """What candidates are judged by: frames (R, T, Y, X) uint8 and their patch tokens without delimiters (R, T * P)."""

    def one(index):
        key = keys.key(root, 'score', split, epoch, index)
        frames_TxYxX = rollout(
            config.rollout(config.complexity.frames), candidate(config, root, split, epoch, index), key
        )
        tokens_TxP = patches.encode(config.vocab, frames_TxYxX).reshape(config.complexity.frames, -1)[:, 1:-1]
        return frames_TxYxX, tokens_TxP.reshape(-1)

    return jax.vmap(one)(index_R)


def candidate_ratios(config: NCAConfig, seed: int, split: str, epoch: int) -> Iterator[float]:
    """Gzip ratios of candidates 0, 1, 2, ... without end; the next block is computed while one is compressed.

    A mesh or transfer guard set by the caller doesn't reach the pool's threads: a search runs on one local device.
    """

    def tokens_of(first: int) -> np.ndarray:
        index_R = np.arange(first, first + config.search_block, dtype=np.uint32)
        return np.asarray(score_frames(config, keys.key(seed), split, np.uint32(epoch), index_R)[1])

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        ahead = pool.submit(tokens_of, 0)
        for first in itertools.count(config.search_block, config.search_block):
            tokens_RxL, ahead = ahead.result(), pool.submit(tokens_of, first)
            yield from complexity.gzip_ratios(config.complexity, tokens_RxL, pool)


def request(config: NCAConfig, seed: int, split: str, epoch: int) -> dict:
    """All that decides which rules are accepted, but for the software and the backend."""
    asked = dataclasses.asdict(config)
    kept = ('rule', 'burn_in', 'stride', 'patch', 'complexity', 'band', 'rules_per_epoch')
    return {field: asked[field] for field in kept} | {'seed': seed, 'split': split, 'epoch': epoch}


def digest(record: dict) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def search(config: NCAConfig, seed: int, split: str, epoch: int, progress: Progress | None = None) -> Bank:
    """Scores candidates in order and keeps the first `rules_per_epoch` inside the band: a pure function.

    Raises UserError with the histogram once there were more than `candidates_per_rule` candidates for each rule
    accepted (and a few more). `progress(accepted, wanted)` is called now and then.
    """
    wanted, ratios, accepted = config.rules_per_epoch, [], []
    for ratio in candidate_ratios(config, seed, split, epoch):
        if complexity.in_band(ratio, config.band):
            accepted.append(len(ratios))
        ratios.append(ratio)
        if progress and (len(ratios) % config.search_block == 0 or len(accepted) == wanted):
            progress(len(accepted), wanted)
        if len(accepted) == wanted:
            break
        if len(ratios) >= config.candidates_per_rule * (len(accepted) + GRACE):
            raise UserError(
                f'band = {config.band}: {len(accepted)} of {wanted} {split} rules found among {len(ratios)} candidates'
                f' ({config.rule.colours} colours, {config.complexity.bytes_per_token} bytes a token); their gzip'
                f' ratios: {describe(np.array(ratios))}'
            )
    index_R = np.array(accepted, 'u4')
    software = {'zlib': zlib.ZLIB_RUNTIME_VERSION, 'jax': jax.__version__, 'backend': jax.default_backend()}
    return Bank(
        index_R=index_R,
        ratios_R=np.array(ratios)[index_R],
        counts=histogram(np.array(ratios)),
        candidates=len(ratios),
        hash=digest(request(config, seed, split, epoch) | software),
    )


def histogram(ratios: np.ndarray) -> np.ndarray:
    """Counts over EDGES; the last bin takes all that lies above."""
    return np.histogram(np.minimum(ratios, EDGES[-1]), EDGES)[0]


def describe(ratios: np.ndarray) -> str:
    """The histogram in words, by tenths, without the empty ones."""
    counts = np.histogram(np.minimum(ratios, 1.0), np.arange(12) / 10)[0]
    names = [f'{tenth / 10:.1f}-{(tenth + 1) / 10:.1f}' for tenth in range(10)] + ['1.0 and above']
    return ', '.join(f'{name}: {count}' for name, count in zip(names, counts, strict=True) if count)


def bank(
    config: NCAConfig, seed: int, split: str, epoch: int, folder: Path | None, progress: Progress | None = None
) -> Bank:
    """The set of rules of one epoch, read from `folder`/rules if it was saved there before, else searched and saved.

    The file's name carries what was asked for, so that sets of other requests lie beside it. Raises UserError for a
    file that can't be read or holds something else.
    """
    asked = digest(request(config, seed, split, epoch))
    path = folder and Path(folder) / 'rules' / f'{split}-{epoch:04d}-{asked[:12]}.npz'
    if path and path.exists():
        return load(path, asked)
    found = search(config, seed, split, epoch, progress)
    if path:
        save(path, found, asked)
    return found


def save(path: Path, found: Bank, asked: str) -> None:
    """Writes the set in one stroke: readers see nothing or all of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f'.{path.name}.{os.getpid()}')
    with scratch.open('wb') as file:
        np.savez(file, request=asked, **dataclasses.asdict(found))
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def load(path: Path, asked: str) -> Bank:
    """Reads a saved set back; `asked` is the digest of the request that it must answer."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            stored = {name: arrays[name] for name in arrays.files}
        answered = str(stored.pop('request'))
        counts = {'candidates': int(stored.pop('candidates')), 'hash': str(stored.pop('hash'))}
        found = Bank(**stored, **counts)
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f'{path}: not a readable set of rules ({error}); delete it to search again') from error
    if answered != asked:
        raise UserError(f'{path}: holds the rules of another configuration; delete it or use another folder')
    return found
