"""Evaluators against counts made by hand: models are replaced by tables whose predictions are known."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nca_jax import mesh as meshes
from nca_jax.batch import Vocab, to_batch
from nca_jax.evals.held_out import accuracy_scores, grid_scores, make_evaluator, text_scores
from nca_jax.model import transformer
from nca_jax.nca import patches
from tests.test_model import CONFIG

MESH = meshes.MeshConfig(8, 1, 1)


def bigram(vocab: Vocab, next_token: np.ndarray, sharpness: float) -> tuple:
    """A transformer without depth to speak of that predicts `next_token[t]` after t: blocks write nothing."""
    config = dataclasses.replace(
        CONFIG, layers=1, unroll=1, width=vocab.padded, heads=1, ffn=2, length=64, norm_eps=1e-12
    )
    params = transformer.init_params(config, vocab, jax.random.key(0))
    params = jax.tree.map(jnp.zeros_like, params)
    params['final_norm'] = {'scale': jnp.ones(vocab.padded)}
    params['embed'] = {'table': jnp.eye(vocab.padded)}
    head = np.zeros((vocab.padded, vocab.padded), np.float32)
    head[np.arange(vocab.size), next_token] = sharpness / math.sqrt(vocab.padded)
    params['head'] = {'kernel': jnp.asarray(head)}
    return config, params


def test_perplexity_of_a_known_model():
    """Logit s on the right token and 0 on the others gives -log(e^s / (e^s + size - 1)), whatever the padding."""
    vocab, mesh = Vocab(100), meshes.make_mesh(MESH)
    config, params = bigram(vocab, (np.arange(100) + 1) % 100, sharpness=3.0)
    tokens = (np.arange(16)[:, None] + np.arange(9)[None]) % 100

    def stream(step):
        batch = to_batch(tokens.astype(np.int32))
        weights = batch.weights_BxL * (np.arange(16)[:, None] < (16 if step == 0 else 4))
        return jax.device_put(batch._replace(weights_BxL=weights.astype(np.float32)), meshes.batch_sharding(mesh))

    result = make_evaluator(config, vocab, mesh, stream, 2, text_scores(320))(params, 0)
    loss = -math.log(math.exp(3) / (math.exp(3) + 99))
    assert result['scored_tokens'] == 20 * 8
    assert result['loss'] == pytest.approx(loss, rel=1e-5)
    assert result['perplexity'] == pytest.approx(math.exp(loss), rel=1e-5)
    assert result['bits_per_byte'] == pytest.approx(loss * 160 / 320 / math.log(2), rel=1e-5)


def test_held_out_accuracy_counts_by_weight():
    """A model that is right after every token but those divisible by five; the first two targets aren't scored."""
    vocab, mesh = Vocab(100), meshes.make_mesh(MESH)
    following = (np.arange(100) + 1) % 100
    config, params = bigram(vocab, np.where(np.arange(100) % 5, following, 0), sharpness=4.0)
    tokens = (7 * np.arange(16)[:, None] + np.arange(9)[None]) % 100

    def stream(step):
        batch = to_batch(((tokens + 3 * step) % 100).astype(np.int32), first_loss_at=2)
        return jax.device_put(batch, meshes.batch_sharding(mesh))

    subsets = {'high': lambda targets: targets >= 60, 'none': lambda targets: targets > 100}
    result = make_evaluator(config, vocab, mesh, stream, 2, accuracy_scores(subsets))(params, 0)
    inputs = np.concatenate([(tokens + 3 * step)[:, 2:-1] % 100 for step in (0, 1)])
    right, high = (inputs % 5 != 0) | (inputs == 99), following[inputs] >= 60
    assert result['accuracy'] == pytest.approx(right.mean())
    assert result['high_accuracy'] == pytest.approx(right[high].mean())
    assert result['high_accuracy'] != pytest.approx(result['accuracy'], abs=1e-3)
    assert result['none_accuracy'] == 0
    log_sum = math.log(math.exp(4) + 99)
    assert result['loss'] == pytest.approx(log_sum - 4 * right.mean(), rel=1e-5)


def test_grid_accuracy_by_hand():
    """A model that repeats each token of a still automaton wrongly in one known cell."""
    vocab, mesh = patches.PatchVocab(colours=2, patch=2), meshes.make_mesh(MESH)
    still = np.zeros((4, 4, 4), np.uint8)  # four frames of a 4 x 4 grid that is 0 everywhere
    row = np.asarray(patches.encode(vocab, still))
    per_grid = patches.tokens_per_grid(vocab, 4, 4)
    tokens = np.tile(row, (8, 1)).astype(np.int32)
    # After a patch or the start comes patch 0b1000 instead of 0: three of four cells right. After `end`: start.
    following = np.full(vocab.size, 8)
    following[vocab.end] = vocab.start
    config, params = bigram(vocab, following, sharpness=20.0)

    def stream(step):
        return jax.device_put(to_batch(tokens, per_grid - 1), meshes.batch_sharding(mesh))

    result = make_evaluator(config, vocab, mesh, stream, 1, grid_scores(vocab, per_grid, 1))(params, 0)
    assert result['cell_accuracy_by_grid'] == pytest.approx([0.75] * 4)
    assert result['cell_accuracy'] == pytest.approx(0.75)
    assert result['grid_accuracy'] == 0
    assert result['copy_accuracy'] == 1
    assert len(result['loss_by_grid']) == 4

    following[:] = 0
    following[vocab.end] = vocab.start
    config, params = bigram(vocab, following, sharpness=20.0)
    result = make_evaluator(config, vocab, mesh, stream, 1, grid_scores(vocab, per_grid, 1))(params, 0)
    assert result['cell_accuracy'] == result['grid_accuracy'] == 1
    # A delimiter in place of a patch has no cell right.
    following[:] = vocab.end
    config, params = bigram(vocab, following, sharpness=20.0)
    result = make_evaluator(config, vocab, mesh, stream, 1, grid_scores(vocab, per_grid, 1))(params, 0)
    assert result['cell_accuracy'] == 0


def test_grids_are_counted_from_the_right_token():
    """The loss by grid looks at patch tokens alone: a model that fails on delimiters only has no loss there."""
    vocab, mesh = patches.PatchVocab(colours=2, patch=2), meshes.make_mesh(MESH)
    row = np.asarray(patches.encode(vocab, np.zeros((3, 4, 4), np.uint8)))
    following = np.zeros(vocab.size, int)  # never a delimiter
    config, params = bigram(vocab, following, sharpness=20.0)
    tokens = np.tile(row, (8, 1)).astype(np.int32)

    def stream(step):
        return jax.device_put(to_batch(tokens, 5), meshes.batch_sharding(mesh))

    result = make_evaluator(config, vocab, mesh, stream, 1, grid_scores(vocab, 6, 1))(params, 0)
    # The first patch of grid 0 has one predecessor (its start delimiter); the masked grid still counts in `by_grid`.
    assert result['loss_by_grid'] == pytest.approx([0, 0, 0], abs=1e-5)
    assert result['loss'] == pytest.approx(20 * 4 / 12, rel=1e-3)  # two delimiters in each of two scored grids
