"""Held-out loss and other scores on a stage's own data: one evaluator, and the scores of each kind of data."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nca_jax import mesh as meshes
from nca_jax.batch import Batch, Vocab
from nca_jax.errors import check
from nca_jax.model import transformer
from nca_jax.model.config import ModelConfig
from nca_jax.model.loss import cross_entropy
from nca_jax.nca.patches import PatchVocab

# `measure(logits_BxLxV, nll_BxL, batch)` -> named sums over the batch.
Measure = Callable[[jax.Array, jax.Array, Batch], dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """The size of the validation data, the same at every evaluation."""

    # Sequences at a time, and how many times.
    batch: int
    batches: int

    def __post_init__(self):
        check(self.batch > 0, 'batch', self.batch, 'must be positive')
        check(self.batches > 0, 'batches', self.batches, 'must be positive')


class Scores(NamedTuple):
    """The metrics that an evaluator reports, and how it computes them."""

    # A record's fields from the totals over all batches, float64: `nll`, `weight`, and those that `measure` adds.
    summarise: Callable[[dict[str, np.ndarray]], dict]
    # Runs on the devices, batch by batch.
    measure: Measure = lambda *_: {}


def make_sums(model: ModelConfig, vocab: Vocab, measure: Measure) -> Callable[[dict, Batch], dict[str, jax.Array]]:
    """A jitted `sums(params, batch)`: nll in nats, the weight, and the sums that `measure` adds."""

    @jax.jit
    def sums(params: dict, batch: Batch) -> dict[str, jax.Array]:
        logits_BxLxV = transformer.apply(model, params, batch.inputs_BxL, vocab)
        nll_BxL = cross_entropy(logits_BxLxV, batch.targets_BxL)
        loss = {'nll': jnp.sum(nll_BxL * batch.weights_BxL), 'weight': jnp.sum(batch.weights_BxL)}
        return loss | measure(logits_BxLxV, nll_BxL, batch)

    return sums


def make_evaluator(
    model: ModelConfig,
    vocab: Vocab,
    mesh: jax.sharding.Mesh,
    stream: Callable[[int], Batch],
    batches: int,
    scores: Scores,
) -> Callable[[dict, int], dict]:
    """`evaluate(params, step)` -> the scores over batches 0..batches-1 of the stream."""
    sums = make_sums(model, vocab, scores.measure)

    def evaluate(params: dict, step: int) -> dict:
        with meshes.use(mesh):
            # Read only when all are queued, so that the devices never wait for the host.
            parts = jax.device_get([sums(params, stream(i)) for i in range(batches)])
        # In float64, so that a long range doesn't round.
        return scores.summarise(
            {name: np.sum([part[name] for part in parts], axis=0, dtype=np.float64) for name in parts[0]}
        )

    return evaluate


def accuracy_scores(subsets: dict[str, Callable[[jax.Array], jax.Array]]) -> Scores:
    """Means by loss weight.

    - loss: nats per scored token.
    - accuracy: how often the likeliest token is right, teacher-forced.
    - NAME_accuracy: the same for each of `subsets`, which map targets (B, L) to bool; 0 if it chooses none.
    """

    def measure(logits_BxLxV: jax.Array, nll_BxL: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        right_BxL = jnp.argmax(logits_BxLxV, axis=-1) == batch.targets_BxL
        sums = {'right': jnp.sum(batch.weights_BxL * right_BxL)}
        for name, subset in subsets.items():
            weights_BxL = batch.weights_BxL * subset(batch.targets_BxL)
            sums |= {f'{name}_right': jnp.sum(weights_BxL * right_BxL), f'{name}_weight': jnp.sum(weights_BxL)}
        return sums

    def summarise(totals: dict[str, np.ndarray]) -> dict:
        total = {name: float(value) for name, value in totals.items()}
        result = {'loss': total['nll'] / total['weight'], 'accuracy': total['right'] / total['weight']}
        for name in subsets:
            # Without a target in the subset this is 0, not 0 / 0.
            result[f'{name}_accuracy'] = total[f'{name}_right'] / max(total[f'{name}_weight'], 1.0)
        return result

    return Scores(summarise, measure)


def text_scores(scored_bytes: int) -> Scores:
    """loss (nats per scored token), perplexity, bits_per_byte, scored_tokens.

    `scored_bytes` is the number of UTF-8 bytes of the scored targets: bits per byte compare between tokenizers.
    """

    def summarise(totals: dict[str, np.ndarray]) -> dict:
        nll, tokens = float(totals['nll']), float(totals['weight'])
        return {
            'loss': nll / tokens,
            # Above, exp overflows.
            'perplexity': math.exp(min(nll / tokens, 700.0)),
            'bits_per_byte': nll / math.log(2) / scored_bytes,
            'scored_tokens': int(tokens),
        }

    return Scores(summarise)


def grid_scores(vocab: PatchVocab, tokens_per_grid: int, batches: int) -> Scores:
    """Next grids of unseen automata: means over `batches` batches of equal size.

    Every sequence hides another rule, so accuracy that rises with the grids seen is in-context inference.

    - loss: nats per scored token, delimiters too, as in training.
    - cell_accuracy, grid_accuracy: the likeliest tokens, teacher-forced, decoded to cells, over complete grids after
      the first.
    - copy_accuracy: cell accuracy of repeating the previous grid.
    - *_by_grid: by the number of whole grids seen before; loss_by_grid is of patch tokens alone.
    """

    def patches(tokens_BxL1: jax.Array) -> jax.Array:
        # The patch tokens (B, G, S) of the complete grids, without their delimiters.
        grids = tokens_BxL1.shape[1] // tokens_per_grid
        tokens_BxGxT = tokens_BxL1[:, : grids * tokens_per_grid].reshape(-1, grids, tokens_per_grid)
        return tokens_BxGxT[:, :, 1:-1]

    def cells_right(truth: jax.Array, guess: jax.Array) -> jax.Array:
        # A patch's token is a number with one digit for each cell.
        digits = vocab.colours ** jnp.arange(vocab.patch**2)
        agree = [(truth // digit) % vocab.colours == (guess // digit) % vocab.colours for digit in digits]
        # A delimiter in place of a patch gets none of its cells right.
        return sum(cell.astype(jnp.int32) for cell in agree) * (guess < vocab.start)

    def measure(logits_BxLxV: jax.Array, nll_BxL: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        # The first token is given, not guessed.
        first_Bx1 = batch.inputs_BxL[:, :1]
        tokens_BxL1 = jnp.concatenate([first_Bx1, batch.targets_BxL], axis=1)
        guesses_BxL1 = jnp.concatenate([first_Bx1, jnp.argmax(logits_BxLxV, axis=-1)], axis=1)
        truth_BxGxS, guess_BxGxS = patches(tokens_BxL1), patches(guesses_BxL1)
        right_BxGxS = cells_right(truth_BxGxS, guess_BxGxS)
        copied_BxGxS = cells_right(truth_BxGxS, jnp.roll(truth_BxGxS, 1, axis=1))
        # Target position j holds token j + 1.
        nll_BxGxS = patches(jnp.pad(nll_BxL, ((0, 0), (1, 0))))
        cells = vocab.patch**2
        return {
            'nll_by_grid': jnp.mean(nll_BxGxS, axis=(0, 2)),
            'cells_by_grid': jnp.mean(right_BxGxS / cells, axis=(0, 2)),
            'grids_by_grid': jnp.mean(jnp.all(right_BxGxS == cells, axis=2), axis=0),
            'copied_by_grid': jnp.mean(copied_BxGxS / cells, axis=(0, 2)),
        }

    def summarise(totals: dict[str, np.ndarray]) -> dict:
        mean = {name: total / batches for name, total in totals.items()}
        return {
            'loss': float(mean['nll'] / mean['weight']),
            # Grid 0 can't be known: no grid before it shows the rule.
            'cell_accuracy': float(np.mean(mean['cells_by_grid'][1:])),
            'grid_accuracy': float(np.mean(mean['grids_by_grid'][1:])),
            'copy_accuracy': float(np.mean(mean['copied_by_grid'][1:])),
            'loss_by_grid': mean['nll_by_grid'].tolist(),
            'cell_accuracy_by_grid': mean['cells_by_grid'].tolist(),
            'grid_accuracy_by_grid': mean['grids_by_grid'].tolist(),
        }

    return Scores(summarise, measure)
