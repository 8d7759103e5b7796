"""Statistics of token sequences and grids. All information is in bits.

Letters beside the README's: S sequences, N samples of a sequence, K cells of a patch.
"""

import numpy as np
from scipy import optimize, stats


def rank_counts(tokens: np.ndarray) -> np.ndarray:
    """The counts of the distinct tokens, the highest first."""
    return np.sort(np.unique(tokens, return_counts=True)[1])[::-1]


def entropy(counts: np.ndarray) -> np.ndarray:
    """Entropy along the last axis, with Miller and Madow's correction for its bias."""
    counts = np.asarray(counts)
    occurring = (counts > 0).sum(-1)
    return stats.entropy(counts, base=2, axis=-1) + (occurring - 1) / (2 * np.log(2) * counts.sum(-1))


def zipf_exponent(counts: np.ndarray, least: float, ranks: int = 2) -> float:
    """Maximum-likelihood exponent a of frequency ~ rank^-a, over ranks with at least `least` occurrences.

    counts: as of `rank_counts`. NaN with fewer than `ranks` such ranks. The exponent describes a slope; every finite
    sample has one, whatever its law.
    """
    # Lower counts are in order because they were sorted, not because of their law.
    counts = np.asarray(counts, float)[np.asarray(counts) >= least]
    if len(counts) < ranks:
        return float('nan')
    log_rank = np.log(np.arange(1, len(counts) + 1))
    # The likelihood is highest where the law's mean log rank is the sample's.
    mean = np.average(log_rank, weights=counts)
    return optimize.brentq(lambda a: np.average(log_rank, weights=np.exp(-a * log_rank)) - mean, -1, 50)


def mutual_information(x_SxN: np.ndarray, y_SxN: np.ndarray, size: int) -> np.ndarray:
    """Mutual information of the observed x and y, both in 0..size-1, within each row, (S).

    Its bias is about (size - 1)^2 / 2N nats for N independent samples: subtract that of permuted samples.
    """
    rows = len(x_SxN)
    # One bincount for all rows: each row's pairs have numbers of their own.
    pair_SxN = (np.arange(rows)[:, None] * size + x_SxN) * size + y_SxN
    joint = np.bincount(pair_SxN.ravel(), minlength=rows * size * size).reshape(rows, size, size)
    counts = joint.sum(2), joint.sum(1), joint.reshape(rows, -1)
    of_x, of_y, of_both = (stats.entropy(table, base=2, axis=1) for table in counts)
    # Rounding may take it below zero.
    return np.maximum(0.0, of_x + of_y - of_both)


def shuffle(samples: np.ndarray, seed: int) -> np.ndarray:
    """All values of each sequence (axis 0) in a random order: the same counts without any dependence."""
    rows_SxN = samples.reshape(len(samples), -1)
    return np.random.default_rng(seed).permuted(rows_SxN, axis=1).reshape(samples.shape)


def permute_places(samples: np.ndarray, seed: int) -> np.ndarray:
    """The places of each sequence (S, T, ...) in a random order, the same in all its frames.

    Each place keeps its values over time, so that slow cells are still alike by chance, but neighbours are lost.
    """
    places_SxTxN = samples.reshape(*samples.shape[:2], -1)
    order_SxN = np.tile(np.arange(places_SxTxN.shape[2]), (len(samples), 1))
    order_SxN = np.random.default_rng(seed).permuted(order_SxN, axis=1)
    return np.take_along_axis(places_SxTxN, order_SxN[:, None], 2).reshape(samples.shape)


def information_by_distance(now_SxTxPxK: np.ndarray, later_SxTxPxK: np.ndarray, colours: int, distance: int) -> float:
    """Mean mutual information of a cell and the same cell of the patch `distance` tokens later.

    `later_SxTxPxK` is the first array again, or has permuted places for what chance gives. NaN if no two patches are
    so far apart.
    """
    sequences, frames, patches, cells = now_SxTxPxK.shape
    # The places of patches in a sequence: each grid's two delimiters count in the distance and are no samples.
    place_N = (np.arange(frames)[:, None] * (patches + 2) + np.arange(patches)).ravel()
    _, later_N, now_N = np.intersect1d(place_N, place_N + distance, assume_unique=True, return_indices=True)
    if not len(now_N):
        return float('nan')
    x, y = now_SxTxPxK.reshape(sequences, -1, cells)[:, now_N], later_SxTxPxK.reshape(sequences, -1, cells)[:, later_N]
    return mutual_information(x.reshape(sequences, -1), y.reshape(sequences, -1), colours).mean()


def information_by_offset(now_SxTxYxX: np.ndarray, later_SxTxYxX: np.ndarray, colours: int, dt: int, dx: int) -> float:
    """Like `information_by_distance`, between a cell and the one dt frames later and dx cells to the right (torus)."""
    sequences, frames = now_SxTxYxX.shape[:2]
    x, y = now_SxTxYxX[:, : frames - dt], np.roll(later_SxTxYxX[:, dt:], -dx, axis=3)
    return mutual_information(x.reshape(sequences, -1), y.reshape(sequences, -1), colours).mean()
