"""Candidates for a set of rules, and their scores. A candidate is a number, and so is a rule once it is accepted."""

import collections
import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np

from nca_jax import keys
from nca_jax.errors import UserError
from nca_jax.nca import complexity, patches
from nca_jax.nca.config import NCAConfig
from nca_jax.nca.rollout import rollout
from nca_jax.nca.rule import Rule, init_rule

Progress = Callable[[int, int], None]


def candidate(config: NCAConfig, root: jax.Array, split: str, epoch: jax.Array, index: jax.Array) -> Rule:
    """The weights of candidate `index`; `root` is the seed's key. Other splits and epochs have other keys."""
    return init_rule(config.rule, keys.key(root, 'rules', split, epoch, index))


@functools.partial(jax.jit, static_argnums=(0, 2))
def score_frames(
    config: NCAConfig, root: jax.Array, split: str, epoch: jax.Array, index_R: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """What candidates are judged by: frames (R, T, Y, X) uint8 and their patch tokens without delimiters (R, T * P)."""
    count = config.complexity.frames
    spec = config.rollout(count)
    if config.complexity.measure == 'change_rate':
        spec = dataclasses.replace(spec, stride=1)

    def one(index):
        key = keys.key(root, 'score', split, epoch, index)
        frames_TxYxX = rollout(spec, candidate(config, root, split, epoch, index), key)
        tokens_TxS = patches.encode(config.vocab, frames_TxYxX).reshape(count, -1)[:, 1:-1]
        return frames_TxYxX, tokens_TxS.reshape(-1)

    return jax.vmap(one)(index_R)


def host_cpu() -> jax.Device:
    """A CPU of this process. Raises UserError where JAX was told to leave it out."""
    try:
        return jax.local_devices(backend='cpu')[0]
    except RuntimeError:
        allowed = "must name cpu too, on which rules are searched, such as 'cuda,cpu'"
        raise UserError(f'JAX_PLATFORMS = {jax.config.jax_platforms!r}: {allowed}') from None


def scored_frames(
    config: NCAConfig, seed: int, split: str, epoch: int, first: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames, patch tokens and scores of the `search_block` candidates from `first` on.

    They are computed on a CPU and by looking up, whatever the training runs on: so a rule is accepted or not on every
    machine alike, and a search never waits for an accelerator.
    """
    searched = dataclasses.replace(config, rule=dataclasses.replace(config.rule, perceive='table'))
    index_R = np.arange(first, first + config.search_block, dtype=np.uint32)
    with jax.default_device(host_cpu()):
        frames, tokens = score_frames(searched, keys.key(seed), split, np.uint32(epoch), index_R)
    frames, tokens = np.asarray(frames), np.asarray(tokens)
    return frames, tokens, complexity.scores(config.complexity, frames, tokens)


def score_blocks(config: NCAConfig, seed: int, split: str, epoch: int, blocks: Iterable[int]) -> Iterator[np.ndarray]:
    """Scores (search_block) of the candidates of each block, in order; block k holds k * search_block and on.

    A thread for every core rolls out and compresses a block at a time: one thread's arithmetic fills a core, and both
    let go of the interpreter. A mesh or transfer guard set by the caller doesn't reach the threads.
    """

    def of_block(block: int) -> np.ndarray:
        return scored_frames(config, seed, split, epoch, block * config.search_block)[2]

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        pending = collections.deque()
        for block in blocks:
            pending.append(pool.submit(of_block, block))
            if len(pending) > 2 * os.cpu_count():
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def trajectories(
    config: NCAConfig, seed: int, split: str, epoch: int, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames (R, T, Y, X), patch tokens (R, L) and scores (R) of the first `count` candidates, accepted or not."""
    firsts = range(0, count, config.search_block)
    blocks = [scored_frames(config, seed, split, epoch, first) for first in firsts]
    frames, tokens, scores = (np.concatenate(parts)[:count] for parts in zip(*blocks, strict=True))
    return frames, tokens, scores


def survey(config: NCAConfig, seed: int, count: int, progress: Progress | None = None) -> np.ndarray:
    """Scores (count) of unfiltered rules that no split trains or validates on."""
    found = []
    for scores_R in score_blocks(config, seed, 'survey', 0, range(-(-count // config.search_block))):
        found.append(scores_R)
        if progress:
            progress(min(len(found) * config.search_block, count), count)
    return np.concatenate(found)[:count]
