"""Held-out loss and next-grid accuracy on unseen automata, by the number of grids seen in context.

Every sequence hides another rule, so accuracy that rises with the number of grids seen is in-context inference.
"""

import jax
import jax.numpy as jnp
import numpy as np

from nca_jax.batch import Batch
from nca_jax.evals.held_out import Scores
from nca_jax.nca.patches import PatchVocab


def grid_scores(vocab: PatchVocab, tokens_per_grid: int, batches: int) -> Scores:
    """Means over `batches` batches of equal size.

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
