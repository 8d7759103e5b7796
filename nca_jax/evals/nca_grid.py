"""What a model has learnt of automata it never saw: held-out loss and next-grid accuracy by grids seen in context.

Every sequence hides another rule, so accuracy that rises with the number of grids seen is in-context inference.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from nca_jax import mesh as meshes
from nca_jax.batch import Batch
from nca_jax.model import transformer
from nca_jax.model.config import ModelConfig
from nca_jax.model.loss import cross_entropy
from nca_jax.nca.patches import PatchVocab


def make_evaluator(
    model: ModelConfig,
    vocab: PatchVocab,
    tokens_per_grid: int,
    mesh: jax.sharding.Mesh,
    stream: Callable[[int], Batch],
    batches: int,
) -> Callable[[dict, int], dict]:
    """`evaluate(params, step) -> {...}` over batches 0..batches-1 of the validation rules.

    loss: nats per scored token, delimiters too, as in training. cell_accuracy, grid_accuracy: teacher-forced argmax
    over all tokens, decoded to cells; a predicted delimiter in place of a patch gets none of its cells right. Both are
    also given `_by_grid`, by the number of whole grids seen before, and count complete grids after the first.
    copy_accuracy: what repeating the previous grid would reach.
    """

    @jax.jit
    def sums(params: dict, batch: Batch) -> dict[str, jax.Array]:
        logits_BxLxV = transformer.apply(model, params, batch.inputs_BxL, vocab)
        nll_BxL = cross_entropy(logits_BxLxV, batch.targets_BxL)
        tokens_BxL1 = jnp.concatenate([batch.inputs_BxL[:, :1], batch.targets_BxL], axis=1)
        guesses_BxL1 = jnp.concatenate([batch.inputs_BxL[:, :1], jnp.argmax(logits_BxLxV, axis=-1)], axis=1)
        truth_BxGxS, guess_BxGxS = (_patches(x, tokens_per_grid) for x in (tokens_BxL1, guesses_BxL1))
        right_BxGxS = _cells_right(vocab, truth_BxGxS, guess_BxGxS)
        copied_BxGxS = _cells_right(vocab, truth_BxGxS, jnp.roll(truth_BxGxS, 1, axis=1))
        cells = vocab.patch**2
        return {
            'nll': jnp.sum(nll_BxL * batch.weights_BxL),
            'weight': jnp.sum(batch.weights_BxL),
            'nll_by_grid': _by_grid(nll_BxL, tokens_per_grid),
            'cells_by_grid': jnp.mean(right_BxGxS / cells, axis=(0, 2)),
            'grids_by_grid': jnp.mean(jnp.all(right_BxGxS == cells, axis=2), axis=0),
            'copied_by_grid': jnp.mean(copied_BxGxS / cells, axis=(0, 2)),
        }

    def evaluate(params: dict, step: int) -> dict:
        with meshes.use(mesh):
            parts = jax.device_get([sums(params, stream(i)) for i in range(batches)])
        mean = {name: np.mean([part[name] for part in parts], axis=0, dtype=np.float64) for name in parts[0]}
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
    whole = tokens_BxL1[:, : grids * tokens_per_grid].reshape(-1, grids, tokens_per_grid)
    return whole[:, :, 1:-1]


def _cells_right(vocab: PatchVocab, truth: jax.Array, guess: jax.Array) -> jax.Array:
    """How many of each patch's cells agree; none where the guess is no patch."""
    digits = vocab.colours ** jnp.arange(vocab.patch**2)
    agree = [(truth // digit) % vocab.colours == (guess // digit) % vocab.colours for digit in digits]
    return sum(cell.astype(jnp.int32) for cell in agree) * (guess < vocab.start)


def _by_grid(nll_BxL: jax.Array, tokens_per_grid: int) -> jax.Array:
    """Mean loss (G,) of the patch tokens of each complete grid. Target position j holds token j + 1."""
    shifted_BxL1 = jnp.pad(nll_BxL, ((0, 0), (1, 0)))
    return jnp.mean(_patches(shifted_BxL1, tokens_per_grid), axis=(0, 2))
