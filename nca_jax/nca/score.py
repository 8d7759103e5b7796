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
from nca_jax.nca.patches import PatchVocab
from nca_jax.nca.rollout import RolloutSpec, rollout
from nca_jax.nca.rule import Rule, RuleSpec, init_rule

Progress = Callable[[int, int], None]
Block = tuple[np.ndarray, np.ndarray, np.ndarray]


def candidate(spec: RuleSpec, root: jax.Array, split: str | jax.Array, epoch: jax.Array, index: jax.Array) -> Rule:
    """The weights of candidate `index`; `root` is the seed's key. Other splits and epochs have other keys.

    A split is named, or given by its name's crc32 where one compiled function serves all (see `keys.key`).
    """
    return init_rule(spec, keys.key(root, 'rules', split, epoch, index))


@functools.partial(jax.jit, static_argnums=(0, 1))
def score_frames(
    spec: RolloutSpec, vocab: PatchVocab, root: jax.Array, split: jax.Array, epoch: jax.Array, index_R: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """What candidates are judged by: frames (R, T, Y, X) uint8 and their patch tokens without delimiters (R, T * P)."""

    def one(index):
        key = keys.key(root, 'score', split, epoch, index)
        frames_TxYxX = rollout(spec, candidate(spec.rule, root, split, epoch, index), key)
        tokens_TxS = patches.encode(vocab, frames_TxYxX).reshape(spec.frames, -1)[:, 1:-1]
        return frames_TxYxX, tokens_TxS.reshape(-1)

    return jax.vmap(one)(index_R)


def scored_rollout(config: NCAConfig) -> RolloutSpec:
    """The trajectories that are scored: found by looking up, whatever the training's machine prefers."""
    spec = config.rollout(config.complexity.frames)
    stride = 1 if config.complexity.measure == 'change_rate' else spec.stride
    return dataclasses.replace(spec, rule=dataclasses.replace(spec.rule, perceive='table'), stride=stride)


def host_cpu() -> jax.Device:
    """A CPU of this process. Raises UserError where JAX was told to leave it out."""
    try:
        return jax.local_devices(backend='cpu')[0]
    except RuntimeError:
        allowed = "must name cpu too, on which rules are searched, such as 'cuda,cpu'"
        raise UserError(f'JAX_PLATFORMS = {jax.config.jax_platforms!r}: {allowed}') from None


def cores() -> int:
    """Those that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def score_block(config: NCAConfig, seed: int, split: str, epoch: int, block: int) -> Block:
    """Frames, patch tokens and scores of the `search_block` candidates from block * search_block on.

    They are computed on a CPU, whatever the training runs on: so a rule is accepted or not on every machine alike, and
    a search never waits for an accelerator. To be called in a thread that no mesh is set for: it would decide instead.
    """
    index_R = np.arange(config.search_block, dtype=np.uint32) + np.uint32(block * config.search_block)
    with jax.default_device(host_cpu()):
        names = keys.key(seed), keys.number(split), np.uint32(epoch)
        frames, tokens = score_frames(scored_rollout(config), config.vocab, *names, index_R)
    frames, tokens = np.asarray(frames), np.asarray(tokens)
    return frames, tokens, complexity.scores(config.complexity, frames, tokens)


def score_blocks(config: NCAConfig, seed: int, split: str, epoch: int, blocks: Iterable[int]) -> Iterator[Block]:
    """`score_block` of each block, in order, some of them ahead of what is asked for.

    A thread for every core rolls out and compresses a block at a time: one thread's arithmetic fills a core, and both
    let go of the interpreter. A mesh or transfer guard set by the caller doesn't reach the threads.
    """
    host_cpu()
    pool = concurrent.futures.ThreadPoolExecutor(cores())
    pending = collections.deque()
    try:
        for block in blocks:
            pending.append(pool.submit(score_block, config, seed, split, epoch, block))
            if len(pending) > 2 * cores():
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def trajectories(config: NCAConfig, seed: int, split: str, epoch: int, count: int) -> Block:
    """Frames (R, T, Y, X), patch tokens (R, L) and scores (R) of the first `count` candidates, accepted or not."""
    blocks = score_blocks(config, seed, split, epoch, range(-(-count // config.search_block)))
    frames, tokens, scores = (np.concatenate(parts)[:count] for parts in zip(*blocks, strict=True))
    return frames, tokens, scores


def survey(config: NCAConfig, seed: int, count: int, progress: Progress | None = None) -> np.ndarray:
    """Scores (count) of unfiltered rules that no split trains or validates on."""
    found = []
    for _, _, scores_R in score_blocks(config, seed, 'survey', 0, range(-(-count // config.search_block))):
        found.append(scores_R)
        if progress:
            progress(min(len(found) * config.search_block, count), count)
    return np.concatenate(found)[:count]
