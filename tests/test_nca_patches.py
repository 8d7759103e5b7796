"""Grids to tokens and back."""

import jax.numpy as jnp
import numpy as np
import pytest

from nca_jax.errors import FieldError
from nca_jax.nca import patches


@pytest.mark.parametrize(
    ('colours', 'patch', 'height', 'width'),
    [(2, 1, 3, 5), (10, 2, 12, 12), (15, 2, 4, 6), (10, 3, 6, 9), (2, 3, 3, 12), (256, 1, 2, 2)],
)
def test_decode_inverts_encode(colours, patch, height, width):
    vocab = patches.PatchVocab(colours, patch)
    grid = np.random.default_rng(0).integers(0, colours, (3, height, width)).astype(np.uint8)
    tokens = np.asarray(patches.encode(vocab, jnp.asarray(grid)))
    assert tokens.dtype == np.int32
    np.testing.assert_array_equal(patches.decode(vocab, tokens, height, width), grid)
    by_frame = tokens.reshape(3, patches.tokens_per_grid(vocab, height, width))
    assert set(by_frame[:, 0]) == {vocab.start}
    assert set(by_frame[:, -1]) == {vocab.end}


def test_tokens_of_a_known_grid():
    vocab = patches.PatchVocab(10, 2)
    grid = jnp.asarray([[[1, 2, 5, 6], [3, 4, 7, 8]]], jnp.uint8)
    assert patches.encode(vocab, grid).tolist() == [10_000, 4321, 8765, 10_001]
    assert (vocab.size, vocab.padded) == (10_002, 10_112)
    assert patches.tokens_per_grid(vocab, 12, 12) == 38


def test_a_patch_must_tile_the_grid_and_fit_int32():
    with pytest.raises(FieldError, match='patch = 5'):
        patches.tokens_per_grid(patches.PatchVocab(2, 5), 12, 12)
    with pytest.raises(FieldError, match='int32'):
        patches.PatchVocab(256, 2)
