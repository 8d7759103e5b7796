"""Reading with a cache equals reading the whole sequence at once, and answers come as the model's distribution says."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from nca_jax import mesh as meshes
from nca_jax.decode import programs
from nca_jax.decode.decoder import DecodeConfig, Prompt, make_decoder
from nca_jax.decode.sampling import Sampling, kept, make_stops
from nca_jax.errors import FieldError
from nca_jax.model import transformer
from tests.test_model import CONFIG, VOCAB, logits, params, tokens

LONGER = dataclasses.replace(CONFIG, length=48)
PIECES = [bytes([32 + token % 95]) for token in range(VOCAB.size)]  # one character a token
NO_STOPS = make_stops((), (), PIECES)
GREEDY = Sampling(temperature=0.0, top_p=1.0, top_k=0)
SAMPLED = Sampling(temperature=0.8, top_p=0.9, top_k=40)


@functools.partial(jax.jit, static_argnums=0)
def prefilled(config, tree, tokens_BxL):
    layers, position_1xL = transformer.by_layer(config, tree), jnp.arange(tokens_BxL.shape[1])[None]
    attends = [programs.attend_and_keep] * config.layers
    return transformer.apply_cached(config, layers, tokens_BxL, position_1xL, attends, VOCAB)


@jax.jit
def stepped(tree, *arguments):
    return programs.next_logits(CONFIG, VOCAB, transformer.by_layer(CONFIG, tree), *arguments)


def test_a_token_at_a_time_equals_the_whole_sequence():
    """Rows with prompts of 3, 5, 1 and 8 tokens, padded to 8, then token by token to the end."""
    prompt_B = jnp.array([3, 5, 1, 8])
    padded_BxL = jnp.where(jnp.arange(8)[None] < prompt_B[:, None], tokens()[:, :8], 0)
    found, caches = prefilled(CONFIG, params(), padded_BxL)
    expected = np.asarray(logits())
    for row, length in enumerate(prompt_B):
        np.testing.assert_allclose(found[row, :length], expected[row, :length], rtol=1e-4, atol=1e-5)
    ring = programs.empty_caches(CONFIG, rows=4, length=4)
    for step in range(4):
        position_B = prompt_B + step
        token_B = tokens()[jnp.arange(4), position_B]
        rows = programs.idle_rows(4)._replace(token_B=token_B, position_B=position_B, written_B=jnp.full(4, step))
        found, ring = stepped(params(), caches, prompt_B, ring, step, rows)
        np.testing.assert_allclose(found, expected[jnp.arange(4), position_B], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('changes', [{'tied': True}, {'head_bias': True}])
def test_every_kind_of_head(changes):
    config = dataclasses.replace(CONFIG, **changes)
    tree = transformer.init_params(config, VOCAB, jax.random.key(0))
    if 'bias' in transformer.head_of(tree):
        tree['head']['bias'] += jnp.arange(VOCAB.padded) / 100
    found, _ = prefilled(config, tree, tokens())
    np.testing.assert_allclose(found, transformer.apply(config, tree, tokens(), VOCAB), rtol=1e-4, atol=1e-5)


def one_device() -> jax.sharding.Mesh:
    return meshes.make_mesh(meshes.MeshConfig(1, 1, 1), jax.devices()[:1])


@functools.cache
def decoder(sampling=SAMPLED, rows=8, share=2, chunk=5, shape=(1, 1, 1)):
    mesh = one_device() if shape == (1, 1, 1) else meshes.make_mesh(meshes.MeshConfig(*shape))
    return make_decoder(LONGER, VOCAB, mesh, DecodeConfig(rows, share, chunk), sampling, NO_STOPS)


@functools.cache
def prompts() -> tuple[Prompt, ...]:
    """Six of 1 to 23 tokens, whose answers are of 1 to 14."""
    draw = np.random.default_rng(0)
    lengths = 7, 1, 23, 2, 12, 5
    return tuple(
        Prompt(draw.integers(0, VOCAB.size, length), number, range(5), draw.integers(1, 15, 5).tolist())
        for number, length in enumerate(lengths, 100)
    )


def answers(decode, asked, seed: int = 0, tree: dict | None = None) -> dict[tuple[int, int], tuple[int, ...]]:
    """Tokens by prompt's number and sample."""
    found = list(decode(tree or params(), asked, seed))
    assert len(found) == sum(len(prompt.samples) for prompt in asked)
    return {(asked[a.prompt].number, a.sample): tuple(a.tokens.tolist()) for a in found}


def whole_logits(sequence: np.ndarray) -> np.ndarray:
    """Logits (V,) after a sequence, read at once."""
    padded_1xL = np.zeros((1, LONGER.length), np.int32)
    padded_1xL[0, : len(sequence)] = sequence
    return np.asarray(read_whole(params(), padded_1xL)[0, len(sequence) - 1])


@jax.jit
def read_whole(tree, tokens_BxL):
    return transformer.apply(LONGER, tree, tokens_BxL, VOCAB)


def test_greedy_answers_are_the_likeliest_tokens_of_the_whole_sequence():
    """30 answers in 8 rows: rows are refilled, groups are given other prompts, the ring goes round."""
    for (number, _), answer in answers(decoder(GREEDY), prompts()).items():
        sequence = prompts()[number - 100].tokens.tolist()
        for token in answer:
            assert np.argmax(whole_logits(sequence)) == token
            sequence.append(token)


def test_limits_are_kept():
    for prompt in prompts():
        for sample, limit in zip(prompt.samples, prompt.limits, strict=True):
            assert len(answers(decoder(), prompts())[prompt.number, sample]) == limit


@pytest.mark.parametrize(
    'layout',
    [
        {'rows': 24, 'share': 1},
        {'rows': 16, 'share': 8, 'chunk': 3},
        {'rows': 32, 'share': 4, 'shape': (8, 1, 1)},
        {'rows': 16, 'share': 2, 'shape': (2, 2, 2)},
    ],
)
def test_an_answer_is_the_same_in_any_batch_on_any_mesh(layout):
    assert answers(decoder(**layout), prompts()) == answers(decoder(), prompts())


def test_an_answer_does_not_depend_on_what_else_is_asked():
    every = answers(decoder(), prompts())
    some = [
        prompt._replace(samples=[3, 1], limits=[prompt.limits[3], prompt.limits[1]]) for prompt in prompts()[3:1:-1]
    ]
    found = answers(decoder(), some)
    assert len(found) == 4
    assert found.items() <= every.items()
    assert answers(decoder(), prompts(), seed=1) != every


def test_samples_differ():
    found = answers(decoder(), [prompts()[0]._replace(samples=range(20), limits=[10] * 20)])
    assert len(set(found.values())) == 20


def test_weights_split_over_fsdp_and_tensor_are_read_as_they_are():
    mesh = meshes.make_mesh(meshes.MeshConfig(2, 2, 2))
    shardings = meshes.param_shardings(mesh, transformer.logical_axes(LONGER, VOCAB), params())
    split = jax.device_put(params(), shardings)
    found = answers(decoder(rows=16, share=2, shape=(2, 2, 2)), prompts(), tree=split)
    assert found == answers(decoder(), prompts())


@pytest.mark.parametrize('sampling', [Sampling(1.0, 1.0, 0), Sampling(0.7, 0.6, 0), Sampling(1.3, 1.0, 6)])
def test_pairs_of_tokens_come_as_often_as_the_model_says(sampling):
    """Chi-square of 4,000 pairs against their exact probabilities, those below 5 expected ones in one bin."""
    count, prompt = 4000, np.array([3, 1, 4])
    asked = [Prompt(prompt, 0, range(count), [2] * count)]
    found = collections.Counter(answers(decoder(sampling, rows=400, share=50), asked).values())
    first_V = shares(sampling, whole_logits(prompt))
    exact = {}
    for first in np.flatnonzero(first_V):
        second_V = shares(sampling, whole_logits([*prompt, first]))
        exact |= {(first, second): first_V[first] * second_V[second] for second in np.flatnonzero(second_V)}
    assert found.keys() <= exact.keys()
    likely = [pair for pair in exact if exact[pair] * count >= 5]
    observed = [found[pair] for pair in likely]
    expected = [exact[pair] * count for pair in likely]
    observed, expected = [*observed, count - sum(observed)], [*expected, count - sum(expected)]
    if expected[-1] < 1e-6:
        observed, expected = observed[:-1], expected[:-1]
    assert len(expected) > 5
    assert scipy.stats.chisquare(observed, expected).pvalue > 1e-3


def shares(sampling: Sampling, logits_V: np.ndarray) -> np.ndarray:
    """Exact probabilities (V,), in float64, by sorting."""
    scaled_V = logits_V.astype(np.float64) / sampling.temperature
    p_V = np.exp(scaled_V - scaled_V.max())
    p_V /= p_V.sum()
    order_V = np.argsort(-p_V)
    if sampling.top_k:
        p_V[order_V[sampling.top_k :]] = 0
        p_V /= p_V.sum()
    before_V = np.cumsum(p_V[order_V]) - p_V[order_V]
    p_V[order_V[before_V >= sampling.top_p]] = 0
    return p_V / p_V.sum()


@pytest.mark.parametrize('sampling', [SAMPLED, Sampling(1.0, 0.5, 0), Sampling(0.3, 1.0, 3), Sampling(2.0, 0.999, 500)])
def test_what_is_kept_is_what_sorting_keeps(sampling):
    logits_BxV = 3 * jax.random.normal(jax.random.key(5), (16, VOCAB.size))
    found_BxV = np.asarray(jax.jit(functools.partial(kept, sampling))(logits_BxV), np.float64)
    expected_BxV = np.array([shares(sampling, row) for row in np.asarray(logits_BxV)])
    assert ((found_BxV > 0) == (expected_BxV > 0)).all()
    np.testing.assert_allclose(found_BxV / found_BxV.sum(1, keepdims=True), expected_BxV, rtol=1e-4)


def test_stop_tokens_and_strings_end_answers():
    """Each answer is the unstopped one up to its first stop token, or to the token that ends a stop string."""
    free = answers(decoder(), prompts())
    texts = {key: b''.join(PIECES[token] for token in answer).decode() for key, answer in free.items()}
    long = [text for text in texts.values() if len(text) > 8]
    strings, ends = [text[2:4] for text in long[:3]] + [text[3:6] for text in long[3:6]], [free[100, 0][-1]]
    stops = make_stops(ends, strings, PIECES)
    stopped = answers(make_decoder(LONGER, VOCAB, one_device(), DecodeConfig(8, 2, 5), SAMPLED, stops), prompts())
    shorter = 0
    for key, answer in free.items():
        places = [texts[key].find(string) + len(string) for string in strings if string in texts[key]]
        places += [answer.index(end) + 1 for end in ends if end in answer]
        assert stopped[key] == answer[: min(places, default=len(answer))]
        shorter += len(stopped[key]) < len(answer)
    assert shorter >= 6


def test_what_cannot_be_asked_is_refused_before_anything_runs():
    with pytest.raises(FieldError, match=r'prompt length = 40: must leave room for an answer of 9 in length 48'):
        next(decoder()(params(), [Prompt(np.zeros(40, int), 0, [0], [9])], 0))
    with pytest.raises(FieldError, match='rows = 8: / share = 2 must be a multiple of 8 devices'):
        decoder(shape=(8, 1, 1))
    with pytest.raises(FieldError, match='share = 3: must divide rows = 8'):
        DecodeConfig(8, 3, 1)
    assert list(decoder()(params(), [], 0)) == []


def test_each_prompt_is_read_once(monkeypatch):
    """Two prompts of ten answers in eight groups: the other six are given copies."""
    read = []

    def recorded(config, vocab, layers, tokens_BxL):
        read.append(tokens_BxL)
        return prefill(config, vocab, layers, tokens_BxL)

    prefill = programs.prefill
    monkeypatch.setattr(programs, 'prefill', recorded)
    asked = [prompt._replace(samples=range(10), limits=[4] * 10) for prompt in prompts()[:3:2]]
    assert len(answers(decoder(rows=16), asked)) == 20
    (tokens_BxL,) = read
    for row_L, prompt in zip(tokens_BxL[:2], asked, strict=True):
        np.testing.assert_array_equal(np.trim_zeros(row_L, 'b'), np.trim_zeros(prompt.tokens[:-1], 'b'))
    assert not tokens_BxL[2:].any()
