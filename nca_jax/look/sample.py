"""Sequences as a training would see them, drawn to be looked at, and their statistics."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from nca_jax.errors import FieldError
from nca_jax.look import statistics
from nca_jax.nca import complexity, patches, stream
from nca_jax.nca.bank import Bank
from nca_jax.nca.config import NCAConfig
from nca_jax.progress import Progress

BATCH = 64
LEAST, LEAST_WITHIN = 10, 3  # occurrences that a rank needs in the Zipf fit: in all sequences, in one
RANKS_WITHIN = 5  # and so many ranks in one sequence
FEW = 5  # sequences whose own counts are kept to be drawn
QUANTILES, QUARTILES = (0.05, 0.5, 0.95), (0.25, 0.5, 0.75)


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
    found = stream.Rules(data, seed, 'train', None, 1, lambda done, total: progress('rules', done, total))
    batches = stream.make_stream(data, seed, 'train', BATCH, length, sharding, found)
    progress('rules', 0, rules)
    progress('sequences', 0, sequences)
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


def measure(data: NCAConfig, sample: Sample, distances: Sequence[int], progress: Progress) -> dict[str, Any]:
    """The statistics of a set, by the names that statistics.json has.

    Information is in bits, with what chance alone gives subtracted; of a cell and itself it is left out (NaN). Where
    what is seen moves, chance gives more than `statistics.displaced` tells: an upper bound.
    """
    colours, tokens, frames = data.rule.colours, sample.tokens_SxTxP, sample.frames_SxTxYxX
    cells = statistics.cells_of_tokens(tokens, colours, data.patch**2)
    later = range(min(7, frames.shape[1]))
    aside = range(min(7, (data.rule.width + 1) // 2))  # half a torus away all pairs would count twice
    places, done = list(itertools.product(later, aside)), itertools.count()
    total = len(distances) + len(places)

    def ticked(items: Iterable) -> Iterator:
        for item in items:
            progress('measured', next(done), total)
            yield item

    def net(information: Callable[..., float], samples: np.ndarray, wheres: Iterable[tuple]) -> np.ndarray:
        displaced = statistics.displaced(samples, 0)
        found = [[information(samples, y, colours, *where) for y in (samples, displaced)] for where in ticked(wheres)]
        return np.array([dependent - by_chance for dependent, by_chance in found])

    by_tokens = net(statistics.information_by_tokens, cells, [(data.tokens_per_grid, d) for d in distances])
    by_place = net(statistics.information_by_place, frames, places).reshape(len(later), len(aside))
    by_place[0, 0] = np.nan
    shuffled = statistics.tokens_of_cells(statistics.shuffled(cells, 2), colours)
    pooled, within = laws(tokens, shuffled, spaced(sample.scores_S, FEW))
    progress('measured', total, total)
    counts_SxC = np.stack([np.bincount(row, minlength=colours) for row in frames.reshape(len(frames), -1)])
    return {
        'sequences': len(tokens),
        'frames': frames.shape[1],
        'tokens': tokens.size,
        'candidates': sample.bank.candidates,
        'accepted': len(sample.bank.index_R),
        'accepted_share': len(sample.bank.index_R) / sample.bank.candidates,
        'rule_score_quantiles': np.quantile(sample.bank.scores_R, QUANTILES),
        'sequence_score_quantiles': np.quantile(sample.scores_S, QUANTILES),
        'change_rate': complexity.change_rate(frames.swapaxes(0, 1)),
        'still_share': statistics.still_share(frames),
        'distinct_tokens': len(pooled['counts']),
        'token_entropy': float(statistics.entropy(pooled['counts'])),
        'cell_entropy': float(statistics.entropy(counts_SxC).mean()),
        'next_cell_information': by_place[1, 0],
        'information_by_place': by_place,
        'distances': distances,
        'information_by_tokens': by_tokens,
        'pooled': pooled,
        'within': within,
    }


def laws(tokens: np.ndarray, shuffled: np.ndarray, few: np.ndarray) -> tuple[dict[str, Any], dict[str, Any]]:
    """Counts by rank and their Zipf exponents: of all sequences (S, ...) together, and of each by itself.

    Beside them stands what shuffled cells give, and for each sequence as many tokens drawn uniformly from as many
    kinds: sorted noise has a slope, too. The counts are those of all together and of the `few`.
    """
    pooled = {'': statistics.rank_counts(tokens), '_shuffled': statistics.rank_counts(shuffled)}
    own, of_shuffled = ([statistics.rank_counts(row) for row in of.reshape(len(of), -1)] for of in (tokens, shuffled))
    draw = np.random.default_rng(0)
    uniform = [statistics.rank_counts(draw.integers(0, len(counts), counts.sum())) for counts in own]
    exponents = {
        kind: np.array([statistics.zipf_exponent(counts, LEAST_WITHIN, RANKS_WITHIN) for counts in of])
        for kind, of in (('', own), ('_shuffled', of_shuffled), ('_uniform', uniform))
    }
    fitted_S = ~np.isnan(exponents[''])
    together = {f'counts{kind}': counts for kind, counts in pooled.items()}
    together |= {f'exponent{kind}': statistics.zipf_exponent(counts, LEAST) for kind, counts in pooled.items()}
    alone = {f'exponent{kind}_quartiles': quartiles(found[fitted_S]) for kind, found in exponents.items()}
    alone |= {'fitted': int(fitted_S.sum())}
    return together, alone | {'counts': [own[s] for s in few], 'counts_uniform': uniform[few[len(few) // 2]]}


def quartiles(values: np.ndarray) -> np.ndarray | None:
    known = values[~np.isnan(values)]
    return np.quantile(known, QUARTILES) if len(known) else None


def spaced(scores_S: np.ndarray, count: int) -> np.ndarray:
    """Which so many sequences to take for an even choice of all when they are sorted by their score."""
    order_S = np.argsort(scores_S, kind='stable')
    return order_S[np.linspace(0, len(order_S) - 1, min(count, len(order_S))).round().astype(int)]


def chosen(sample: Sample, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames and scores of so many sequences, from the lowest score to the highest."""
    picked = spaced(sample.scores_S, count)
    return sample.frames_SxTxYxX[picked], sample.scores_S[picked]
