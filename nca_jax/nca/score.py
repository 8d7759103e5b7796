"""Scores of rules: how far their trajectories compress, or how much changes in them.

They are computed on the CPU, by threads.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import lzma
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np
import pyarrow

from nca_jax import keys
from nca_jax.errors import UserError
from nca_jax.nca import patches
from nca_jax.nca.automaton import RolloutSpec, Rule, RuleSpec, init_rule, rollout
from nca_jax.nca.config import ComplexityConfig, NCAConfig
from nca_jax.nca.patches import PatchVocab
from nca_jax.progress import Progress, silent

# zlib's code for the gzip format. Its 10-byte header and 8-byte trailer count, as in the paper.
GZIP_WBITS = 31

# `(content, level) -> compressed bytes` of each compressor.
COMPRESSED_SIZE: dict[str, Callable[[bytes, int], int]] = {
    'gzip': lambda content, level: len(zlib.compress(content, level, GZIP_WBITS)),
    'zstd': lambda content, level: pyarrow.Codec('zstd', compression_level=level).compress(content).size,
    # The older container: its header has 13 bytes, that of .xz over 60.
    'lzma': lambda content, level: len(lzma.compress(content, lzma.FORMAT_ALONE, preset=level)),
}

# Frames (R, T, Y, X), patch tokens without delimiters (R, L) and scores (R).
Block = tuple[np.ndarray, np.ndarray, np.ndarray]


def ratio(config: ComplexityConfig, tokens_L: np.ndarray) -> float:
    """Compressed over raw size of the tokens. Short inputs can exceed 1, since headers count."""
    content = np.ascontiguousarray(tokens_L, f'<u{config.bytes_per_token}').tobytes()
    return COMPRESSED_SIZE[config.measure](content, config.level) / len(content)


def change_rate(frames_TxYxX: np.ndarray) -> float:
    """Mean share of cells that differ between one frame and the next."""
    return float(np.mean(frames_TxYxX[1:] != frames_TxYxX[:-1]))


def scores(config: ComplexityConfig, frames_RxTxYxX: np.ndarray, tokens_RxL: np.ndarray) -> np.ndarray:
    """The score of each trajectory, float64 (R), from its frames or its tokens as the measure needs."""
    if config.measure == 'change_rate':
        return np.array([change_rate(frames_TxYxX) for frames_TxYxX in frames_RxTxYxX])
    return np.array([ratio(config, tokens_L) for tokens_L in tokens_RxL])


def in_band(scores: np.ndarray, band: tuple[float, float]) -> np.ndarray:
    low, high = band
    return (low < scores) & (scores < high)


class Candidates(NamedTuple):
    """The rules that a search looks through: candidate 0, 1, 2, ... Its number decides a rule's weights."""

    config: NCAConfig
    seed: int
    # Other splits and epochs have other candidates.
    split: str
    epoch: int


def candidate(spec: RuleSpec, root: jax.Array, split: str | jax.Array, epoch: jax.Array, index: jax.Array) -> Rule:
    """The weights of candidate `index`; `root` is the seed's key.

    `split` is a name, or its crc32 where one compiled function serves all splits (see `keys.key`).
    """
    return init_rule(spec, keys.key(root, 'rules', split, epoch, index))


@functools.partial(jax.jit, static_argnums=(0, 1))
def scored_trajectories(
    spec: RolloutSpec, vocab: PatchVocab, root: jax.Array, split: jax.Array, epoch: jax.Array, index_R: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The trajectories that candidates are judged by: frames (R, T, Y, X) uint8 and their patch tokens (R, T * P)."""

    def trajectory(index):
        key = keys.key(root, 'score', split, epoch, index)
        frames_TxYxX = rollout(spec, candidate(spec.rule, root, split, epoch, index), key)
        tokens_TxP = patches.encode(vocab, frames_TxYxX).reshape(spec.frames, -1)[:, 1:-1]
        return frames_TxYxX, tokens_TxP.reshape(-1)

    return jax.vmap(trajectory)(index_R)


def score_block(candidates: Candidates, block: int) -> Block:
    """Scores the `search_block` candidates from block * search_block on.

    Call it in a thread for which no mesh is set: the mesh would decide where it runs.
    """
    config = candidates.config
    # The change rate is about single updates.
    stride = 1 if config.complexity.measure == 'change_rate' else config.stride
    # On a CPU, by look-ups: so every machine accepts the same rules, and a search never waits for an accelerator.
    rule = dataclasses.replace(config.rule, perceive='table')
    spec = RolloutSpec(rule, config.burn_in, stride, config.complexity.frames)
    index_R = np.arange(config.search_block, dtype=np.uint32) + np.uint32(block * config.search_block)
    try:
        cpu = jax.local_devices(backend='cpu')[0]
    except RuntimeError:
        allowed = "must name cpu too, on which rules are searched, such as 'cuda,cpu'"
        raise UserError(f'JAX_PLATFORMS = {jax.config.jax_platforms!r}: {allowed}') from None
    with jax.default_device(cpu):
        names = keys.key(candidates.seed), keys.crc32(candidates.split), np.uint32(candidates.epoch)
        frames, tokens = map(np.asarray, scored_trajectories(spec, config.vocab, *names, index_R))
    return frames, tokens, scores(config.complexity, frames, tokens)


def score_blocks(candidates: Candidates, blocks: Iterable[int]) -> Iterator[Block]:
    """`score_block` of each block, in order, computed ahead by as many threads as cores.

    The caller's mesh and transfer guard don't reach the threads.
    """
    # A block's arithmetic keeps one core busy, and XLA and the compressors release the interpreter.
    # Not every system can tell which cores this process may use.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    pool = concurrent.futures.ThreadPoolExecutor(cores)
    pending = collections.deque()
    try:
        for block in blocks:
            pending.append(pool.submit(score_block, candidates, block))
            # Deep enough that no thread waits for the caller, and no deeper, since blocks may be endless.
            if len(pending) > 2 * cores:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        # Also where the caller has enough and drops this generator.
        pool.shutdown(cancel_futures=True)


def trajectories(candidates: Candidates, count: int, progress: Progress = silent) -> Block:
    """Frames, patch tokens and scores of the first `count` candidates, accepted or not."""
    size, blocks = candidates.config.search_block, []
    for block in score_blocks(candidates, range(-(-count // size))):
        blocks.append(block)
        progress('rules', min(len(blocks) * size, count), count)
    # The last block may hold more.
    frames, tokens, scores = (np.concatenate(parts)[:count] for parts in zip(*blocks, strict=True))
    return frames, tokens, scores


def survey(config: NCAConfig, seed: int, count: int, progress: Progress = silent) -> np.ndarray:
    """Scores (count) of unfiltered rules."""
    # A split of its own, so that nothing trains or validates on them.
    return trajectories(Candidates(config, seed, 'survey', 0), count, progress)[2]
