"""Reading with a cache equals reading the whole sequence at once."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nca_jax.model import transformer
from nca_jax.model.decode import empty_cache, extend
from tests.test_model import CONFIG, VOCAB, logits, params, tokens


@functools.partial(jax.jit, static_argnums=0, donate_argnums=4)
def extended(config, tree, tokens_BxL, start_B, cache):
    return extend(config, tree, tokens_BxL, start_B, cache, VOCAB)


def test_a_token_at_a_time_equals_the_whole_sequence():
    """Rows with prompts of 3, 5, 1 and 8 tokens, padded to 8, then token by token to the end."""
    prompt_B = jnp.array([3, 5, 1, 8])
    cache = empty_cache(CONFIG, rows=4, length=12)
    padded_BxL = jnp.where(jnp.arange(8)[None] < prompt_B[:, None], tokens()[:, :8], 0)
    found, cache = extended(CONFIG, params(), padded_BxL, jnp.zeros(4, jnp.int32), cache)
    expected = np.asarray(logits())
    for row, length in enumerate(prompt_B):
        np.testing.assert_allclose(found[row, :length], expected[row, :length], rtol=1e-4, atol=1e-5)
    position_B = prompt_B
    for _ in range(4):
        token_Bx1 = jnp.take_along_axis(tokens(), position_B[:, None], axis=1)
        found, cache = extended(CONFIG, params(), token_Bx1, position_B, cache)
        np.testing.assert_allclose(found[:, 0], expected[jnp.arange(4), position_B], rtol=1e-4, atol=1e-5)
        position_B += 1


@pytest.mark.parametrize('changes', [{'tied': True}, {'head_bias': True}])
def test_every_kind_of_head(changes):
    config = dataclasses.replace(CONFIG, **changes)
    tree = transformer.init_params(config, VOCAB, jax.random.key(0))
    if 'bias' in transformer.head_of(tree):
        tree['head']['bias'] += jnp.arange(VOCAB.padded) / 100
    found, _ = extended(config, tree, tokens(), jnp.zeros(4, jnp.int32), empty_cache(config, 4, 12))
    np.testing.assert_allclose(found, transformer.apply(config, tree, tokens(), VOCAB), rtol=1e-4, atol=1e-5)
