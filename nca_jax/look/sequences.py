"""Draws sequences as a training would see them and measures them."""

import argparse
import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from nca_jax import mesh as meshes
from nca_jax.config import Config
from nca_jax.errors import check
from nca_jax.look import output, pictures, statistics
from nca_jax.nca import complexity, patches, stream
from nca_jax.nca.bank import Bank
from nca_jax.nca.config import NCAConfig
from nca_jax.progress import Progress

BATCH = 64
# Occurrences that a rank needs in the fit of Zipf's law, in all sequences together and in one.
LEAST, LEAST_WITHIN = 10, 3
# Such ranks that one sequence needs.
RANKS_WITHIN = 5
# Sequences whose counts are kept to be drawn.
FEW = 5
# Frames and cells of the chart of information.
CHART = 7
IN_BAND, UNFILTERED = 'in band', 'unfiltered'
NOTE = """

Scores' quantiles are at 5, 50 and 95 %. Entropies, in bits, have Miller and Madow's correction. A Zipf exponent
describes a slope and shows no power law: the pooled one depends on the number of sequences, and beside each stands what
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

    def spaced(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Frames and scores of `count` sequences, evenly spaced in the order of their scores."""
        picked = spaced(self.scores_S, count)
        return self.frames_SxTxYxX[picked], self.scores_S[picked]


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
        sets[name] = draw(source, config.seed, rules, count, config.model.length, named(progress, name))
        if sets[IN_BAND].bank.candidates == rules:
            # The band took every candidate, so that the second set would be the same.
            break
    for name, sequences in sets.items():
        measured[name] = measure(data, sequences, named(progress, name))
    record = {
        'name': config.name,
        'seed': config.seed,
        'rules': rules,
        'spec': dataclasses.asdict(data),
        'sets': measured,
    }
    progress('pictures', 0, 1)
    moving, strips = (
        {name: sequences.spaced(number) for name, sequences in sets.items()}
        for number in (pictures.MOVING, pictures.STRIPS)
    )
    files = pictures.draw_all(data, moving, strips, measured)
    progress('pictures', 1, 1)
    record = output.plain(record)
    return record, files, output.table(record['sets']) + NOTE


def named(progress: Progress, name: str) -> Progress:
    """Progress whose stages name the set."""
    return lambda stage, done, total: progress(f'{stage} {name}', done, total)


def draw(data: NCAConfig, seed: int, rules: int, sequences: int, length: int, progress: Progress) -> SequenceSet:
    """The first `sequences` of the training stream, if its only bank has so many rules.

    Raises FieldError if a sequence of `length` inputs and its last target hold less than two grids.
    """
    data = dataclasses.replace(data, rules_per_epoch=rules, fresh_rules=False)
    grids = (length + 1) // data.tokens_per_grid
    check(grids >= 2, 'config.model.length', length, f'must hold two grids of {data.tokens_per_grid} tokens')
    sharding = meshes.batch_sharding(meshes.make_mesh(meshes.MeshConfig(1, 1, 1), jax.devices()[:1]))
    banks = stream.Banks(data, seed, 'train', None, 1, functools.partial(progress, 'rules'))
    batches = stream.make_stream(data, seed, 'train', BATCH, length, sharding, banks)
    progress('rules', 0, rules)
    progress('sequences', 0, sequences)
    rows = []
    for step in range(-(-sequences // BATCH)):
        batch = jax.device_get(batches(step))
        rows.append(np.concatenate([batch.inputs_BxL, batch.targets_BxL[:, -1:]], 1))
        progress('sequences', min((step + 1) * BATCH, sequences), sequences)
    tokens_SxL = np.concatenate(rows)[:sequences, : grids * data.tokens_per_grid]
    frames = patches.decode(data.vocab, tokens_SxL.reshape(-1), data.rule.height, data.rule.width)
    frames_SxTxYxX = frames.reshape(sequences, grids, *frames.shape[1:])
    tokens_SxTxP = tokens_SxL.reshape(sequences, grids, -1)[:, :, 1:-1]
    scored = slice(None), slice(data.complexity.frames)
    scored_tokens_SxL = tokens_SxTxP[scored].reshape(sequences, -1)
    scores_S = complexity.scores(data.complexity, frames_SxTxYxX[scored], scored_tokens_SxL)
    return SequenceSet(banks(0), scores_S, tokens_SxTxP, frames_SxTxYxX)


def measure(data: NCAConfig, drawn: SequenceSet, progress: Progress) -> dict[str, Any]:
    """The statistics of a set as statistics.json has them.

    Information is in bits, less what chance gives, NaN of a cell and itself. For moving patterns chance gives more than
    is subtracted: these are upper bounds.
    """
    tokens, frames = drawn.tokens_SxTxP, drawn.frames_SxTxYxX
    # Up to three grids and a few tokens, if sequences are that long.
    distances = list(range(1, min(3 * data.tokens_per_grid + 6, (frames.shape[1] - 1) * data.tokens_per_grid) + 1))
    cells = statistics.cells_of_tokens(tokens, data.rule.colours, data.patch**2)
    by_tokens, by_place = net_information(data, cells, frames, distances, progress)
    shuffled = statistics.tokens_of_cells(statistics.shuffled(cells, 2), data.rule.colours)
    pooled, within = zipf_laws(tokens, shuffled, spaced(drawn.scores_S, FEW))
    counts_SxC = np.stack([np.bincount(row, minlength=data.rule.colours) for row in frames.reshape(len(frames), -1)])
    return {
        'sequences': len(tokens),
        'frames': frames.shape[1],
        'tokens': tokens.size,
        'candidates': drawn.bank.candidates,
        'accepted': len(drawn.bank.index_R),
        'accepted_share': len(drawn.bank.index_R) / drawn.bank.candidates,
        'rule_score_quantiles': np.quantile(drawn.bank.scores_R, (0.05, 0.5, 0.95)),
        'sequence_score_quantiles': np.quantile(drawn.scores_S, (0.05, 0.5, 0.95)),
        'change_rate': complexity.change_rate(frames.swapaxes(0, 1)),
        'still_share': (frames == frames[:, :1]).all((1, 2, 3)).mean(),
        'distinct_tokens': len(pooled['counts']),
        'token_entropy': statistics.entropy(pooled['counts']),
        'cell_entropy': statistics.entropy(counts_SxC).mean(),
        'next_cell_information': by_place[1, 0],
        'information_by_place': by_place,
        'distances': distances,
        'information_by_tokens': by_tokens,
        'pooled': pooled,
        'within': within,
    }


def net_information(
    data: NCAConfig, cells: np.ndarray, frames: np.ndarray, distances: Sequence[int], progress: Progress
) -> tuple[np.ndarray, np.ndarray]:
    """Information by distance in tokens, and by frames later and cells to the right, less that of displaced cells."""
    later = range(min(CHART, frames.shape[1]))
    # Half a torus away all pairs would count twice.
    aside = range(min(CHART, (data.rule.width + 1) // 2))
    by_tokens, by_place = np.zeros(len(distances)), np.full((len(later), len(aside)), np.nan)
    other_cells, other_frames = statistics.displaced(cells, 0), statistics.displaced(frames, 0)
    total, colours = by_tokens.size + by_place.size, data.rule.colours
    for index, distance in enumerate(distances):
        progress('measured', index, total)
        own, chance = (
            statistics.information_by_tokens(cells, other, colours, data.tokens_per_grid, distance)
            for other in (cells, other_cells)
        )
        by_tokens[index] = own - chance
    for index, place in enumerate(itertools.product(later, aside), len(distances)):
        progress('measured', index, total)
        own, chance = (
            statistics.information_by_place(frames, other, colours, *place) for other in (frames, other_frames)
        )
        by_place[place] = own - chance
    by_place[0, 0] = np.nan
    progress('measured', total, total)
    return by_tokens, by_place


def zipf_laws(tokens: np.ndarray, shuffled: np.ndarray, few: np.ndarray) -> tuple[dict[str, Any], dict[str, Any]]:
    """Counts by rank and Zipf exponents of all sequences (S, ...) together, and quartiles of each by itself.

    Beside them stand those of shuffled cells and, for each sequence, of as many tokens drawn uniformly from as many
    kinds, since sorted noise has a slope too. `few` are the sequences whose own counts are returned.
    """
    rank_counts, draw = statistics.rank_counts, np.random.default_rng(0)
    own, of_shuffled = ([rank_counts(row) for row in rows.reshape(len(rows), -1)] for rows in (tokens, shuffled))
    uniform = [rank_counts(draw.integers(0, len(counts), counts.sum())) for counts in own]
    pooled = {'counts': rank_counts(tokens), 'counts_shuffled': rank_counts(shuffled)}
    for kind in ('', '_shuffled'):
        pooled[f'exponent{kind}'] = statistics.zipf_exponent(pooled[f'counts{kind}'], LEAST)
    within = {'counts': [own[s] for s in few], 'counts_uniform': uniform[few[len(few) // 2]]}
    for kind, counts in (('', own), ('_shuffled', of_shuffled), ('_uniform', uniform)):
        exponents = np.array([statistics.zipf_exponent(ranks, LEAST_WITHIN, RANKS_WITHIN) for ranks in counts])
        if not kind:
            fitted = ~np.isnan(exponents)
            within['fitted'] = fitted.sum()
        # Of the sequences whose own tokens have a law, so that the three can be compared.
        exponents = exponents[fitted & ~np.isnan(exponents)]
        within[f'exponent{kind}_quartiles'] = np.quantile(exponents, (0.25, 0.5, 0.75)) if len(exponents) else None
    return pooled, within


def spaced(scores_S: np.ndarray, count: int) -> np.ndarray:
    """The indices of `count` sequences, evenly spaced in the order of their scores."""
    order_S = np.argsort(scores_S, kind='stable')
    return order_S[np.linspace(0, len(order_S) - 1, min(count, len(order_S))).round().astype(int)]
