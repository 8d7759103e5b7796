"""Samples sequences as a training would see them, and measures them."""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from nca_jax import mesh as meshes
from nca_jax.config import Config
from nca_jax.errors import check
from nca_jax.look import output, pictures, statistics
from nca_jax.nca import patches, score, stream
from nca_jax.nca.bank import Bank
from nca_jax.nca.config import NCAConfig
from nca_jax.progress import Progress

BATCH = 64
# Rarer tokens are left out of a fit of Zipf's law: of all sequences together, and of one.
MIN_COUNT, MIN_COUNT_ALONE = 10, 3
# A single sequence with fewer such tokens has no fit.
MIN_RANKS_ALONE = 5
# Sequences whose own counts are drawn.
DRAWN = 5
# Frames and cells of the chart of mutual information.
CHART = 7
IN_BAND, UNFILTERED = 'in band', 'unfiltered'
NOTE = """

Scores' quantiles are at 5, 50 and 95 %. Entropies, in bits, have Miller and Madow's correction. A Zipf exponent
describes a slope and shows no power law: that of all sequences depends on their number, and beside each stands what
comes without any dependence between cells."""


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


def show(config: Config, args: argparse.Namespace, progress: Progress) -> tuple[dict[str, Any], dict[str, bytes], str]:
    """The record of both sets' statistics, the pictures, and the statistics as a table."""
    data, count = config.data, args.sequences
    check(count >= 2, '--sequences', count, 'must be at least 2')
    most = min(count, data.rules_per_epoch)
    rules = most if args.rules is None else args.rules
    check(1 <= rules <= most, '--rules', rules, f'must be 1 to {most}: at most a set of training, one a sequence')
    # Quantiles 0 to 1 accept every score and need no survey.
    unfiltered = dataclasses.replace(data, band=(0.0, 1.0), band_by='quantile')
    sets, measured = {}, {}
    for name, source in ((IN_BAND, data), (UNFILTERED, unfiltered)):
        sets[name] = sample(source, config.seed, rules, count, config.model.length, name, progress)
        # A band that took every candidate is the unfiltered set.
        if sets[IN_BAND].bank.candidates == rules:
            break
    for name, sequences in sets.items():
        progress('measured', len(measured), len(sets))
        measured[name] = measure(data, sequences)
    progress('measured', len(sets), len(sets))
    drawn = pictures.draw_sequences(data, sets, measured)
    record = {
        'name': config.name,
        'seed': config.seed,
        'rules': rules,
        'spec': dataclasses.asdict(data),
        'sets': measured,
    }
    record = output.plain(record)
    return record, drawn, output.table(record['sets']) + NOTE


def sample(
    data: NCAConfig, seed: int, rules: int, sequences: int, length: int, name: str, progress: Progress
) -> SequenceSet:
    """The first `sequences` of the training stream, if its only bank has so many rules; `name` labels the progress.

    Raises FieldError if a sequence of `length` inputs and its last target hold less than two grids.
    """
    data = dataclasses.replace(data, rules_per_epoch=rules, fresh_rules=False)
    grids = (length + 1) // data.tokens_per_grid
    check(grids >= 2, 'config.model.length', length, f'must hold two grids of {data.tokens_per_grid} tokens')
    # One device, whatever the config's mesh: the sequences are the same.
    sharding = meshes.batch_sharding(meshes.make_mesh(meshes.MeshConfig(1, 1, 1), jax.devices()[:1]))
    banks = stream.Banks(
        data, seed, 'train', None, 1, lambda stage, done, total: progress(f'{stage} {name}', done, total)
    )
    batches = stream.make_stream(data, seed, 'train', BATCH, length, sharding, banks)
    progress(f'rules {name}', 0, rules)
    rows = []
    for step in range(-(-sequences // BATCH)):
        progress(f'sequences {name}', step * BATCH, sequences)
        batch = jax.device_get(batches(step))
        # The last target completes the last grid.
        rows.append(np.concatenate([batch.inputs_BxL, batch.targets_BxL[:, -1:]], 1))
    progress(f'sequences {name}', sequences, sequences)
    tokens_SxL = np.concatenate(rows)[:sequences, : grids * data.tokens_per_grid]
    frames = patches.decode(data.vocab, tokens_SxL.reshape(-1), data.rule.height, data.rule.width)
    frames_SxTxYxX = frames.reshape(sequences, grids, *frames.shape[1:])
    tokens_SxTxP = tokens_SxL.reshape(sequences, grids, -1)[:, :, 1:-1]
    # As many frames as rules are judged by.
    scored = slice(None), slice(data.complexity.frames)
    scored_tokens_SxL = tokens_SxTxP[scored].reshape(sequences, -1)
    scores_S = score.scores(data.complexity, frames_SxTxYxX[scored], scored_tokens_SxL)
    return SequenceSet(banks(0), scores_S, tokens_SxTxP, frames_SxTxYxX)


def measure(data: NCAConfig, sequences: SequenceSet) -> dict[str, Any]:
    """The statistics of a set as statistics.json has them.

    Mutual information is in bits, less what chance gives, NaN of a cell and itself. For moving patterns chance gives
    more than is subtracted: these are upper bounds.
    """
    tokens, frames, colours = sequences.tokens_SxTxP, sequences.frames_SxTxYxX, data.rule.colours
    cells = statistics.cells_of_tokens(tokens, colours, data.patch**2)
    chance_cells, chance_frames = statistics.permute_places(cells, 0), statistics.permute_places(frames, 0)
    # Up to three grids and a few tokens, if sequences are that long.
    distances = list(range(1, min(3 * data.tokens_per_grid + 6, (frames.shape[1] - 1) * data.tokens_per_grid) + 1))
    by_distance = [
        less_chance(statistics.information_by_distance, cells, chance_cells, colours, data.tokens_per_grid, distance)
        for distance in distances
    ]
    # To the right at most half the torus: further away all pairs would count twice.
    by_offset = np.zeros((min(CHART, frames.shape[1]), min(CHART, (data.rule.width + 1) // 2)))
    for offset in np.ndindex(by_offset.shape):
        information = statistics.information_by_offset
        by_offset[offset] = less_chance(information, frames, chance_frames, colours, *offset)
    # A cell tells all of itself.
    by_offset[0, 0] = np.nan
    # Cells, not tokens: tokens would keep their frequencies, and with them their law.
    shuffled = statistics.tokens_of_cells(statistics.shuffle(cells, 2), colours)
    laws = zipf_laws(tokens, shuffled, sequences.spaced(DRAWN))
    counts_SxC = np.stack([np.bincount(row, minlength=colours) for row in frames.reshape(len(frames), -1)])
    bank = sequences.bank
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
        'distances': distances,
        'information_by_distance': by_distance,
        **laws,
    }


def less_chance(information: Callable[..., float], samples: np.ndarray, permuted: np.ndarray, *where: int) -> float:
    return information(samples, samples, *where) - information(samples, permuted, *where)


def zipf_laws(tokens: np.ndarray, shuffled: np.ndarray, drawn: np.ndarray) -> dict[str, Any]:
    """Counts by rank and the Zipf exponent of all sequences (S, ...) together, and its quartiles over single ones.

    Beside them stand those of shuffled cells and, for each sequence, of as many tokens drawn uniformly from as many
    kinds, since sorted noise has a slope too. `drawn` are the sequences whose own counts are returned.
    """
    rank_counts, zipf_exponent = statistics.rank_counts, statistics.zipf_exponent
    generator = np.random.default_rng(0)
    own, of_shuffled = ([rank_counts(row) for row in rows] for rows in (tokens, shuffled))
    uniform = [rank_counts(generator.integers(0, len(counts), counts.sum())) for counts in own]
    laws = {'counts': rank_counts(tokens), 'counts_shuffled': rank_counts(shuffled)}
    for kind in ('', '_shuffled'):
        laws[f'zipf_exponent{kind}'] = zipf_exponent(laws[f'counts{kind}'], MIN_COUNT)
    laws |= {'sequence_counts': [own[s] for s in drawn], 'sequence_counts_uniform': uniform[drawn[len(drawn) // 2]]}
    single = {
        kind: np.array([zipf_exponent(counts, MIN_COUNT_ALONE, MIN_RANKS_ALONE) for counts in sequences])
        for kind, sequences in (('', own), ('_shuffled', of_shuffled), ('_uniform', uniform))
    }
    fitted = ~np.isnan(single[''])
    laws['fitted_sequences'] = fitted.sum()
    for kind, exponents in single.items():
        # Only of sequences whose own tokens have a fit, so that the three can be compared.
        exponents = exponents[fitted & ~np.isnan(exponents)]
        quartiles = np.quantile(exponents, (0.25, 0.5, 0.75)) if len(exponents) else None
        laws[f'sequence_zipf_exponent{kind}_quartiles'] = quartiles
    return laws
