"""Sequences as a training would see them, drawn to be looked at, and their statistics."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from nca_jax.errors import FieldError
from nca_jax.nca import complexity, patches, statistics, stream
from nca_jax.nca.bank import Bank
from nca_jax.nca.config import NCAConfig
from nca_jax.progress import Progress

BATCH = 64
LEAST, LEAST_WITHIN = 10, 1  # occurrences that a rank needs in the Zipf fit: in all sequences, in the mean one
PAIRS_PER_KIND = 10  # samples that a pair of tokens needs for their conditional entropy to mean something
QUANTILES = (0.05, 0.5, 0.95)


@dataclasses.dataclass(frozen=True)
class Sample:
    """Sequences of one set of rules: sequence s has rule s modulo R. tokens are whole grids without delimiters.

    scores_S: of the sequences themselves, where the bank's are of the trajectories that its rules were judged by.
    """

    bank: Bank
    scores_S: np.ndarray
    tokens_SxTxP: np.ndarray
    frames_SxTxYxX: np.ndarray


def draw(
    data: NCAConfig,
    seed: int,
    rules: int,
    sequences: int,
    length: int,
    sharding: jax.sharding.NamedSharding,
    progress: Progress,
) -> Sample:
    """The first `sequences` of the training stream, were its one set so many rules; the first `rules` are its own.

    Raises FieldError where a sequence of `length` inputs and its last target hold less than two grids.
    """
    data = dataclasses.replace(data, rules_per_epoch=rules, fresh_rules=False)
    whole = (length + 1) // data.tokens_per_grid
    if whole < 2:
        raise FieldError('config.model.length', length, f'must hold two grids of {data.tokens_per_grid} tokens')
    found = stream.make_rules(data, seed, 'train', None, 1, lambda done, total: progress('rules', done, total))
    batches = stream.make_stream(data, seed, 'train', BATCH, length, sharding, found)
    rows = []
    for step in range(-(-sequences // BATCH)):
        batch = jax.device_get(batches(step))
        rows.append(np.concatenate([batch.inputs_BxL, batch.targets_BxL[:, -1:]], 1))
        progress('sequences', min((step + 1) * BATCH, sequences), sequences)
    tokens_SxL = np.concatenate(rows)[:sequences, : whole * data.tokens_per_grid]
    frames = patches.decode(data.vocab, tokens_SxL.reshape(-1), data.rule.height, data.rule.width)
    frames_SxTxYxX = frames.reshape(sequences, whole, *frames.shape[1:])
    tokens_SxTxP = tokens_SxL.reshape(sequences, whole, -1)[:, :, 1:-1]
    scored = slice(None), slice(data.complexity.frames)
    judged_SxN = tokens_SxTxP[scored].reshape(sequences, -1)
    scores_S = complexity.scores(data.complexity, frames_SxTxYxX[scored], judged_SxN)
    return Sample(found(0), scores_S, tokens_SxTxP, frames_SxTxYxX)


def token_distances(data: NCAConfig, frames: int) -> list[int]:
    """1 to three grids and a few tokens, as far as there are so many."""
    return list(range(1, min(3 * data.tokens_per_grid + 6, (frames - 1) * data.tokens_per_grid) + 1))


def describe(data: NCAConfig, sample: Sample, distances: Sequence[int]) -> dict[str, Any]:
    """The statistics of a set, by the names that statistics.json has; information in bits."""
    colours, tokens, frames = data.rule.colours, sample.tokens_SxTxP, sample.frames_SxTxYxX
    cells = statistics.cells_of_tokens(tokens, colours, data.patch**2)
    along = colours, data.tokens_per_grid, distances
    across = colours, range(min(7, frames.shape[1])), range(min(7, data.rule.width // 2 + 1))
    by_place = statistics.information_by_place(frames, frames, *across)
    place_floor = statistics.information_by_place(frames, statistics.shuffled(frames, 0), *across)
    net = by_place - place_floor
    net[0, 0] = by_place[0, 0]  # a cell and itself: the entropy, no estimate of a dependence
    alone_SxTxPxK = statistics.shuffled(cells, 1)
    pooled, within = ranked(tokens, statistics.tokens_of_cells(alone_SxTxPxK, colours))
    return {
        'sequences': len(tokens),
        'tokens': tokens.size,
        'candidates': sample.bank.candidates,
        'accepted': len(sample.bank.index_R),
        'accepted_share': len(sample.bank.index_R) / sample.bank.candidates,
        'rule_score_quantiles': np.quantile(sample.bank.scores_R, QUANTILES),
        'sequence_score_quantiles': np.quantile(sample.scores_S, QUANTILES),
        'change_rate': complexity.change_rate(frames.swapaxes(0, 1)),
        'dead_share': statistics.dead_share(frames),
        'distinct_tokens': len(pooled['counts']),
        'token_entropy': float(statistics.entropy(pooled['counts'])),
        'next_token_entropy': next_token_entropy(tokens),
        'cell_entropy': by_place[0, 0],
        'next_cell_information': net[1, 0],
        'information_by_place': net,
        'distances': distances,
        'information_by_tokens': statistics.information_by_tokens(cells, cells, *along),
        'information_by_tokens_shuffled': statistics.information_by_tokens(cells, alone_SxTxPxK, *along),
        'pooled': pooled,
        'within': within,
    }


def ranked(tokens_SxTxP: np.ndarray, shuffled_SxTxP: np.ndarray) -> tuple[dict[str, Any], dict[str, Any]]:
    """Counts by rank and their Zipf law, of all sequences together and in one; beside them those of shuffled cells."""
    both = tokens_SxTxP, shuffled_SxTxP
    pooled = [statistics.rank_counts(tokens) for tokens in both]
    within = [statistics.rank_counts_within(tokens.reshape(len(tokens), -1)) for tokens in both]

    def law(counts: np.ndarray, of_shuffled: np.ndarray, least: float) -> dict[str, Any]:
        ranks = statistics.zipf_range(counts, least)
        exponent = statistics.zipf_exponent(counts, ranks)
        return {'zipf_exponent': exponent, 'zipf_ranks': ranks, 'counts': counts, 'counts_shuffled': of_shuffled}

    return law(*pooled, LEAST), law(*within, LEAST_WITHIN)


def next_token_entropy(tokens_SxTxP: np.ndarray) -> float | None:
    """Entropy of a token given the one before it in the grid; None where there are too few pairs to tell."""
    _, number = np.unique(tokens_SxTxP, return_inverse=True)
    kinds = int(number.max()) + 1
    number_SxTxP = number.reshape(tokens_SxTxP.shape)
    before, after = number_SxTxP[..., :-1].ravel(), number_SxTxP[..., 1:].ravel()
    if before.size < PAIRS_PER_KIND * kinds**2:
        return None
    pairs = np.bincount(before * kinds + after)
    return float(statistics.entropy(pairs) - statistics.entropy(np.bincount(before)))


def chosen(sample: Sample, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames and scores of so many sequences, evenly spaced when all are sorted by their score."""
    order_S = np.argsort(sample.scores_S, kind='stable')
    places = np.linspace(0, len(order_S) - 1, min(count, len(order_S))).round().astype(int)
    return sample.frames_SxTxYxX[order_S[places]], sample.scores_S[order_S[places]]
