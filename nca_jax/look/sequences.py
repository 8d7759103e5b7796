"""Samples sequences as a training would see them, and measures them. All information is in bits.

Letters beside the README's: S sequences, N samples of a sequence, K cells of a patch.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from scipy import optimize, stats

from nca_jax import mesh as meshes
from nca_jax.config import Config
from nca_jax.errors import check
from nca_jax.nca import patches, score, stream
from nca_jax.nca.bank import Bank
from nca_jax.nca.config import NCAConfig
from nca_jax.progress import Progress, silent

# Rarer tokens are left out of a fit of Zipf's law: of all sequences together, and of one.
MIN_COUNT, MIN_COUNT_ALONE = 10, 3
# A single sequence with fewer such tokens has no fit.
MIN_RANKS_ALONE = 5
# Frames and cells of the chart of mutual information.
CHART = 7
IN_BAND, UNFILTERED = 'in band', 'unfiltered'


@dataclasses.dataclass(frozen=True)
class SequenceSet:
    """Sequences of one set of rules: sequence s has rule s modulo R of the bank."""

    bank: Bank
    # The sequences' own scores; the bank's are of the trajectories by which rules were accepted.
    scores_S: np.ndarray
    # Whole grids without delimiters.
    tokens_SxTxP: np.ndarray
    frames_SxTxYxX: np.ndarray

    def spaced(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Frames and scores of `count` sequences, evenly spaced in the order of their scores."""
        order_S = np.argsort(self.scores_S, kind='stable')
        rows = order_S[np.linspace(0, len(order_S) - 1, min(count, len(order_S))).round().astype(int)]
        return self.frames_SxTxYxX[rows], self.scores_S[rows]


def sample_sets(config: Config, sequences: int, progress: Progress) -> dict[str, SequenceSet]:
    """The set in the band and the unfiltered one by name; the first alone if the band took every candidate."""
    check(sequences >= 2, '--sequences', sequences, 'must be at least 2')
    # More rules than sequences would be searched in vain.
    rules = min(sequences, config.data.rules_per_epoch)
    data = dataclasses.replace(config.data, rules_per_epoch=rules, fresh_rules=False)
    # Quantiles 0 to 1 accept every score and need no survey.
    unfiltered = dataclasses.replace(data, band=(0.0, 1.0), band_by='quantile')
    sets = {}
    for name, of_set in ((IN_BAND, data), (UNFILTERED, unfiltered)):
        sets[name] = sample(of_set, config.seed, sequences, config.model.length, progress)
        if sets[IN_BAND].bank.candidates == data.rules_per_epoch:
            break
    return sets


def sample(data: NCAConfig, seed: int, sequences: int, length: int, progress: Progress = silent) -> SequenceSet:
    """The first `sequences` of the training stream.

    Raises FieldError if a sequence of `length` inputs and its last target hold less than two grids.
    """
    grids = (length + 1) // data.tokens_per_grid
    check(grids >= 2, 'config.model.length', length, f'must hold two grids of {data.tokens_per_grid} tokens')
    # One device: the sequences don't depend on the mesh.
    sharding = meshes.batch_sharding(meshes.make_mesh(meshes.MeshConfig(1, 1, 1), jax.devices()[:1]))
    banks = stream.Banks(data, seed, 'train', None, 1, progress)
    batch = jax.device_get(stream.make_stream(data, seed, 'train', sequences, length, sharding, banks)(0))
    # The last target completes the last grid.
    tokens_SxL = np.concatenate([batch.inputs_BxL, batch.targets_BxL[:, -1:]], 1)[:, : grids * data.tokens_per_grid]
    height, width = data.rule.height, data.rule.width
    frames_SxTxYxX = patches.decode(data.vocab, tokens_SxL, height, width).reshape(sequences, grids, height, width)
    # Without the two delimiters of each grid.
    tokens_SxTxP = tokens_SxL.reshape(sequences, grids, -1)[:, :, 1:-1]
    # The search scores as many frames of a rule.
    scored = data.complexity.frames
    scored_tokens_SxL = tokens_SxTxP[:, :scored].reshape(sequences, -1)
    scores_S = score.scores(data.complexity, frames_SxTxYxX[:, :scored], scored_tokens_SxL)
    return SequenceSet(banks(0), scores_S, tokens_SxTxP, frames_SxTxYxX)


def measure(data: NCAConfig, sequences: SequenceSet) -> dict[str, Any]:
    """The statistics of a set as statistics.json has them.

    Mutual information is in bits, less what chance gives, NaN of a cell and itself. For moving patterns chance gives
    more than is subtracted: these are upper bounds.
    """
    tokens, frames, colours, bank = sequences.tokens_SxTxP, sequences.frames_SxTxYxX, data.rule.colours, sequences.bank
    # A token's digits are its patch's cells.
    powers_K = colours ** np.arange(data.patch**2)
    cells = (tokens[..., None] // powers_K % colours).astype(np.uint8)
    # Cells, not tokens: tokens would keep their frequencies, and with them their law. As one frame all change places.
    shuffled = permute_places(cells.reshape(len(cells), 1, -1), 2).reshape(cells.shape).astype(int) @ powers_K
    laws = zipf_laws(tokens, shuffled)
    by_distance, by_offset = excess_information(data, cells, frames)
    counts_SxC = np.stack([np.bincount(row, minlength=colours) for row in frames.reshape(len(frames), -1)])
    return {
        'sequences': len(tokens),
        'frames': frames.shape[1],
        'tokens': tokens.size,
        'candidates': bank.candidates,
        'accepted': len(bank.index_R),
        'accepted_share': len(bank.index_R) / bank.candidates,
        'rule_score_quantiles': np.quantile(bank.scores_R, (0.05, 0.5, 0.95)),
        'sequence_score_quantiles': np.quantile(sequences.scores_S, (0.05, 0.5, 0.95)),
        'change_rate': score.change_rate(frames.swapaxes(0, 1)),
        'static_share': (frames == frames[:, :1]).all((1, 2, 3)).mean(),
        'distinct_tokens': len(laws['counts']),
        'token_entropy': entropy(laws['counts']),
        'cell_entropy': entropy(counts_SxC).mean(),
        'next_frame_information': by_offset[1, 0],
        'information_by_offset': by_offset,
        # From distance 1 on.
        'information_by_distance': by_distance,
        **laws,
    }


def excess_information(data: NCAConfig, cells: np.ndarray, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mutual information less what chance gives: by distance in tokens, and by frames later and cells aside."""

    def excess(measure: Callable, samples: np.ndarray, chance: np.ndarray, *place: int) -> float:
        return measure(samples, samples, colours, *place) - measure(samples, chance, colours, *place)

    chance_cells, chance_frames = permute_places(cells, 0), permute_places(frames, 0)
    colours, grid = data.rule.colours, data.tokens_per_grid
    # Up to three grids and a few tokens, if sequences are that long.
    distances = range(1, 1 + min(3 * grid + 6, (frames.shape[1] - 1) * grid))
    by_distance = [excess(information_by_distance, cells, chance_cells, n) for n in distances]
    # To the right at most half the torus: further away all pairs would count twice.
    by_offset = np.zeros((min(CHART, frames.shape[1]), min(CHART, (data.rule.width + 1) // 2)))
    for dt, dx in np.ndindex(by_offset.shape):
        by_offset[dt, dx] = excess(information_by_offset, frames, chance_frames, dt, dx)
    # A cell tells all of itself.
    by_offset[0, 0] = np.nan
    return np.array(by_distance), by_offset


def zipf_laws(tokens: np.ndarray, shuffled: np.ndarray) -> dict[str, Any]:
    """Counts by rank and the Zipf exponent of all sequences (S, ...) together, and its quartiles over single ones.

    Beside them stand those of shuffled cells, whose slope comes without any dependence between cells.
    """
    laws, exponents_KxS = {}, []
    for kind, rows in (('', tokens), ('_shuffled', shuffled)):
        counts = rank_counts(rows)
        laws |= {f'counts{kind}': counts, f'zipf_exponent{kind}': zipf_exponent(counts, MIN_COUNT)}
        exponents_KxS.append([zipf_exponent(rank_counts(row), MIN_COUNT_ALONE, MIN_RANKS_ALONE) for row in rows])
    # Only of sequences whose own tokens have a fit, so that the two can be compared.
    fitted_KxS = np.array(exponents_KxS)[:, ~np.isnan(exponents_KxS[0])]
    laws['fitted_sequences'] = fitted_KxS.shape[1]
    for kind, exponents in zip(('', '_shuffled'), fitted_KxS, strict=True):
        exponents = exponents[~np.isnan(exponents)]
        quartiles = np.quantile(exponents, (0.25, 0.5, 0.75)) if len(exponents) else None
        laws[f'sequence_zipf_exponent{kind}_quartiles'] = quartiles
    return laws


def rank_counts(tokens: np.ndarray) -> np.ndarray:
    """The counts of the distinct tokens, the highest first."""
    return np.sort(np.unique(tokens, return_counts=True)[1])[::-1]


def entropy(counts: np.ndarray) -> np.ndarray:
    """Entropy along the last axis, with Miller and Madow's correction for its bias."""
    occurring = (counts > 0).sum(-1)
    return stats.entropy(counts, base=2, axis=-1) + (occurring - 1) / (2 * np.log(2) * counts.sum(-1))


def zipf_exponent(counts: np.ndarray, least: float, ranks: int = 2) -> float:
    """Maximum-likelihood exponent a of frequency ~ rank^-a, over ranks with at least `least` occurrences.

    counts: as of `rank_counts`. NaN with fewer than `ranks` such ranks. The exponent describes a slope; every finite
    sample has one, whatever its law.
    """
    # Lower counts are in order because they were sorted, not because of their law.
    counts = counts[counts >= least]
    if len(counts) < ranks:
        return float('nan')
    log_rank = np.log(np.arange(1, len(counts) + 1))
    # The likelihood is highest where the law's mean log rank is the sample's.
    mean = np.average(log_rank, weights=counts)
    return optimize.brentq(lambda a: np.average(log_rank, weights=np.exp(-a * log_rank)) - mean, -1, 50)


def mutual_information(x: np.ndarray, y: np.ndarray, size: int) -> np.ndarray:
    """Mutual information of the observed x and y (S, ...), both in 0..size-1, within each row, (S).

    Its bias is about (size - 1)^2 / 2N nats for N independent samples: subtract that of permuted samples.
    """
    rows = len(x)
    # One bincount for all rows: each row's pairs have numbers of their own.
    pair_SxN = (np.arange(rows)[:, None] * size + x.reshape(rows, -1)) * size + y.reshape(rows, -1)
    joint = np.bincount(pair_SxN.ravel(), minlength=rows * size * size).reshape(rows, size, size)
    counts = joint.sum(2), joint.sum(1), joint.reshape(rows, -1)
    of_x, of_y, of_both = (stats.entropy(table, base=2, axis=1) for table in counts)
    # Rounding may take it below zero.
    return np.maximum(0.0, of_x + of_y - of_both)


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
    _, frames, patches, _ = now_SxTxPxK.shape
    # The places of patches in a sequence: each grid's two delimiters count in the distance and are no samples.
    place_N = (np.arange(frames)[:, None] * (patches + 2) + np.arange(patches)).ravel()
    _, later_N, now_N = np.intersect1d(place_N, place_N + distance, assume_unique=True, return_indices=True)
    if not len(now_N):
        return float('nan')
    x, y = (part.reshape(len(part), frames * patches, -1) for part in (now_SxTxPxK, later_SxTxPxK))
    return mutual_information(x[:, now_N], y[:, later_N], colours).mean()


def information_by_offset(now_SxTxYxX: np.ndarray, later_SxTxYxX: np.ndarray, colours: int, dt: int, dx: int) -> float:
    """Like `information_by_distance`, between a cell and the one dt frames later and dx cells to the right (torus)."""
    frames = now_SxTxYxX.shape[1]
    return mutual_information(now_SxTxYxX[:, : frames - dt], np.roll(later_SxTxYxX[:, dt:], -dx, 3), colours).mean()
