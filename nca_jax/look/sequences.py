"""Samples sequences as a training would see them, and measures them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from nca_jax import mesh as meshes
from nca_jax.config import Config
from nca_jax.errors import check
from nca_jax.look import statistics
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

    def spaced(self, count: int) -> np.ndarray:
        """The indices of `count` sequences, evenly spaced in the order of their scores."""
        order_S = np.argsort(self.scores_S, kind='stable')
        return order_S[np.linspace(0, len(order_S) - 1, min(count, len(order_S))).round().astype(int)]


def sample_sets(config: Config, rules: int | None, sequences: int, progress: Progress) -> dict[str, SequenceSet]:
    """The set in the band and the unfiltered one by name; the first alone if the band took every candidate."""
    check(sequences >= 2, '--sequences', sequences, 'must be at least 2')
    most = min(sequences, config.data.rules_per_epoch)
    data = dataclasses.replace(config.data, rules_per_epoch=min(rules or most, most), fresh_rules=False)
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
    # Cells, not tokens: tokens would keep their frequencies, and with them their law.
    shuffled = statistics.shuffle(cells, 2).astype(int) @ powers_K
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
        'token_entropy': statistics.entropy(laws['counts']),
        'cell_entropy': statistics.entropy(counts_SxC).mean(),
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

    chance_cells, chance_frames = statistics.permute_places(cells, 0), statistics.permute_places(frames, 0)
    colours, grid = data.rule.colours, data.tokens_per_grid
    # Up to three grids and a few tokens, if sequences are that long.
    most = min(3 * grid + 6, (frames.shape[1] - 1) * grid)
    distances = range(1, most + 1)
    by_distance = [excess(statistics.information_by_distance, cells, chance_cells, n) for n in distances]
    # To the right at most half the torus: further away all pairs would count twice.
    by_offset = np.zeros((min(CHART, frames.shape[1]), min(CHART, (data.rule.width + 1) // 2)))
    for dt, dx in np.ndindex(by_offset.shape):
        by_offset[dt, dx] = excess(statistics.information_by_offset, frames, chance_frames, dt, dx)
    # A cell tells all of itself.
    by_offset[0, 0] = np.nan
    return np.array(by_distance), by_offset


def zipf_laws(tokens: np.ndarray, shuffled: np.ndarray) -> dict[str, Any]:
    """Counts by rank and the Zipf exponent of all sequences (S, ...) together, and its quartiles over single ones.

    Beside them stand those of shuffled cells, whose slope comes without any dependence between cells.
    """
    laws, exponents_KxS = {}, []
    for kind, rows in (('', tokens), ('_shuffled', shuffled)):
        counts = statistics.rank_counts(rows)
        laws |= {f'counts{kind}': counts, f'zipf_exponent{kind}': statistics.zipf_exponent(counts, MIN_COUNT)}
        alone = [statistics.rank_counts(row) for row in rows]
        exponents_KxS.append([statistics.zipf_exponent(row, MIN_COUNT_ALONE, MIN_RANKS_ALONE) for row in alone])
    # Only of sequences whose own tokens have a fit, so that the two can be compared.
    fitted_KxS = np.array(exponents_KxS)[:, ~np.isnan(exponents_KxS[0])]
    laws['fitted_sequences'] = fitted_KxS.shape[1]
    for kind, exponents in zip(('', '_shuffled'), fitted_KxS, strict=True):
        exponents = exponents[~np.isnan(exponents)]
        quartiles = np.quantile(exponents, (0.25, 0.5, 0.75)) if len(exponents) else None
        laws[f'sequence_zipf_exponent{kind}_quartiles'] = quartiles
    return laws
