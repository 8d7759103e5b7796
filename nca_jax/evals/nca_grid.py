"""Held-out loss and next-grid accuracy on unseen automata, by the number of grids seen in context.

Every sequence hides another rule, so accuracy that rises with the number of grids seen is in-context inference.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from nca_jax.batch import Batch
from nca_jax.evals.held_out import make_totals
from nca_jax.model.config import ModelConfig
from nca_jax.nca.patches import PatchVocab


def make_evaluator(
    model: ModelConfig,
    vocab: PatchVocab,
    tokens_per_grid: int,
    mesh: jax.sharding.Mesh,
    stream: Callable[[int], Batch],
    batches: int,
) -> Callable[[dict, int], dict]:
    """`evaluate(params, step)` -> metrics over batches 0..batches-1 of the validation rules.

    - loss: nats per scored token, delimiters too, as in training.
    - cell_accuracy, grid_accuracy: the likeliest tokens, teacher-forced, decoded to cells, over complete grids after
      the first. A delimiter in place of a patch gets none of its cells right.
    - copy_accuracy: cell accuracy of repeating the previous grid.
    - *_by_grid: by the number of whole grids seen before; loss_by_grid is of patch tokens alone.
    """

    def measure(logits_BxLxV: jax.Array, nll_BxL: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        first_Bx1 = batch.inputs_BxL[:, :1]
        tokens_BxL1 = jnp.concatenate([first_Bx1, batch.targets_BxL], axis=1)
        guesses_BxL1 = jnp.concatenate([first_Bx1, jnp.argmax(logits_BxLxV, axis=-1)], axis=1)
        truth_BxGxS, guess_BxGxS = (_patches(x, tokens_per_grid) for x in (tokens_BxL1, guesses_BxL1))
        right_BxGxS = _cells_right(vocab, truth_BxGxS, guess_BxGxS)
        copied_BxGxS = _cells_right(vocab, truth_BxGxS, jnp.roll(truth_BxGxS, 1, axis=1))
        # Target position j holds token j + 1.
        nll_BxGxS = _patches(jnp.pad(nll_BxL, ((0, 0), (1, 0))), tokens_per_grid)
        cells = vocab.patch**2
        return {
            'nll_by_grid': jnp.mean(nll_BxGxS, axis=(0, 2)),
            'cells_by_grid': jnp.mean(right_BxGxS / cells, axis=(0, 2)),
            'grids_by_grid': jnp.mean(jnp.all(right_BxGxS == cells, axis=2), axis=0),
            'copied_by_grid': jnp.mean(copied_BxGxS / cells, axis=(0, 2)),
        }

    totals = make_totals(model, vocab, mesh, stream, batches, measure)

    def evaluate(params: dict, step: int) -> dict:
        mean = {name: total / batches for name, total in totals(params).items()}
        return {
            'loss': float(mean['nll'] / mean['weight']),
            'cell_accuracy': float(np.mean(mean['cells_by_grid'][1:])),
            'grid_accuracy': float(np.mean(mean['grids_by_grid'][1:])),
            'copy_accuracy': float(np.mean(mean['copied_by_grid'][1:])),
            'loss_by_grid': mean['nll_by_grid'].tolist(),
            'cell_accuracy_by_grid': mean['cells_by_grid'].tolist(),
            'grid_accuracy_by_grid': mean['grids_by_grid'].tolist(),
        }

    return evaluate


def _patches(tokens_BxL1: jax.Array, tokens_per_grid: int) -> jax.Array:
    """The patch tokens (B, G, S) of the complete grids, without their delimiters."""
    grids = tokens_BxL1.shape[1] // tokens_per_grid
    tokens_BxGxT = tokens_BxL1[:, : grids * tokens_per_grid].reshape(-1, grids, tokens_per_grid)
    return tokens_BxGxT[:, :, 1:-1]


def _cells_right(vocab: PatchVocab, truth: jax.Array, guess: jax.Array) -> jax.Array:
    """How many of each patch's cells agree; none where the guess is no patch."""
    digits = vocab.colours ** jnp.arange(vocab.patch**2)
    agree = [(truth // digit) % vocab.colours == (guess // digit) % vocab.colours for digit in digits]
    return sum(cell.astype(jnp.int32) for cell in agree) * (guess < vocab.start)
