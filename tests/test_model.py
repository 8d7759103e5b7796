"""The transformer: its parameters, causality, and that how it is run doesn't change what it computes."""

import dataclasses
import functools
import itertools
import math
import pathlib

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import common
from nca_jax import trees
from nca_jax.batch import Batch, Vocab
from nca_jax.errors import FieldError
from nca_jax.model import attention, transformer
from nca_jax.model.attention import Dropout, drop
from nca_jax.model.config import InitConfig, ModelConfig, body_parameters, step_flops
from nca_jax.model.loss import cross_entropy, sum_cross_entropy

VOCAB = Vocab(200)
CONFIG = ModelConfig(
    layers=3,
    width=16,
    heads=2,
    ffn=32,
    length=12,
    rope_theta=1e4,
    norm_eps=1e-6,
    dropout=0.0,
    tied=False,
    head_bias=False,
    init=InitConfig(std=0.2, residual='flat', table_std=0.5, head='normal'),
    remat='none',
    unroll=3,
    attention='einsum',
    loss_chunks=1,
    dtype='float32',
    param_dtype='float32',
)


@functools.cache
def params():
    return transformer.init_params(CONFIG, VOCAB, jax.random.key(0))


@functools.cache
def tokens() -> jax.Array:
    return jax.random.randint(jax.random.key(1), (4, 12), 0, VOCAB.size)


@functools.cache
def logits(config: ModelConfig = CONFIG, seed: int | None = None) -> jax.Array:
    dropout = None if seed is None else Dropout(jax.random.key(seed), jnp.arange(4))
    return jax.jit(lambda p, x: transformer.apply(config, p, x, VOCAB, dropout))(params(), tokens())


def reference_logits(p: dict, tokens_BxL: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Llama's equations, position by position and head by head, in float64 NumPy."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), p)
    half = config.head_width // 2
    frequencies = config.rope_theta ** (-np.arange(half) / half)

    def norm(x, scale):
        return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + config.norm_eps) * scale

    def rotate(x, position):
        cos, sin = np.cos(position * frequencies), np.sin(position * frequencies)
        return np.concatenate([x[:half] * cos - x[half:] * sin, x[half:] * cos + x[:half] * sin])

    result = []
    for row in np.asarray(tokens_BxL):
        x = p['embed']['table'][row]
        for layer in range(config.layers):
            block = jax.tree.map(lambda leaf, n=layer: leaf[n], p['blocks'])
            y, out = norm(x, block['attn_norm']['scale']), np.zeros_like(x)
            for head in range(config.heads):
                q, k, v = (y @ block['attn'][name]['kernel'][:, head] for name in 'qkv')
                q, k = (np.stack([rotate(vector, i) for i, vector in enumerate(each)]) for each in (q, k))
                for i in range(len(row)):
                    scores = np.exp(q[i] @ k[: i + 1].T / np.sqrt(config.head_width))
                    out[i] += (scores / scores.sum()) @ v[: i + 1] @ block['attn']['o']['kernel'][head]
            x = x + out
            y = norm(x, block['mlp_norm']['scale'])
            gate, up = y @ block['mlp']['gate']['kernel'], y @ block['mlp']['up']['kernel']
            x = x + (gate / (1 + np.exp(-gate)) * up) @ block['mlp']['down']['kernel']
        result.append(norm(x, p['final_norm']['scale']) @ p['head']['kernel'])
    return np.stack(result)


def test_parameter_paths_are_api():
    assert list(trees.flatten(params())) == [
        'blocks/attn/k/kernel',
        'blocks/attn/o/kernel',
        'blocks/attn/q/kernel',
        'blocks/attn/v/kernel',
        'blocks/attn_norm/scale',
        'blocks/mlp/down/kernel',
        'blocks/mlp/gate/kernel',
        'blocks/mlp/up/kernel',
        'blocks/mlp_norm/scale',
        'embed/table',
        'final_norm/scale',
        'head/kernel',
    ]
    biased = transformer.abstract_params(dataclasses.replace(CONFIG, head_bias=True), VOCAB)
    assert biased['head']['bias'].shape == (VOCAB.padded,)
    assert 'head' not in transformer.abstract_params(dataclasses.replace(CONFIG, tied=True), VOCAB)


def test_parameter_count_in_closed_form():
    assert trees.count(params()) == body_parameters(CONFIG) + 2 * VOCAB.padded * CONFIG.width
    paper = dataclasses.replace(CONFIG, layers=24, width=2048, heads=32, ffn=8192, unroll=1)
    assert body_parameters(paper) == 1_610_713_088  # the paper's 1b6


def test_logits_equal_the_equations():
    expected = reference_logits(params(), tokens(), CONFIG)
    np.testing.assert_allclose(logits()[..., : VOCAB.size], expected[..., : VOCAB.size], rtol=1e-4, atol=1e-5)


def test_logits_equal_hugging_faces_llama():
    golden = dict(np.load(pathlib.Path(__file__).parent / 'golden' / 'llama.npz'))
    tokens_BxL, logits_BxLxV = golden.pop('tokens'), golden.pop('logits')
    assert 'transformers' in str(golden.pop('about'))
    vocab = Vocab(logits_BxLxV.shape[-1])
    padding = vocab.padded - vocab.size
    golden['embed/table'] = np.pad(golden['embed/table'], ((0, padding), (0, 0)))
    golden['head/kernel'] = np.pad(golden['head/kernel'], ((0, 0), (0, padding)))
    config = dataclasses.replace(CONFIG, layers=2, ffn=24, unroll=2)
    found = transformer.apply(config, flax.traverse_util.unflatten_dict(golden, sep='/'), tokens_BxL, vocab)
    np.testing.assert_allclose(found[..., : vocab.size], logits_BxLxV, rtol=1e-4, atol=1e-4)


def test_padded_logits_are_masked():
    assert VOCAB.padded == 256
    assert np.all(np.asarray(jax.nn.softmax(logits()))[..., VOCAB.size :] == 0)


@pytest.mark.parametrize('changes', [{'unroll': 1}, {'remat': 'full', 'unroll': 1}, {'remat': 'full'}])
def test_how_layers_run_changes_nothing(changes):
    np.testing.assert_allclose(logits(dataclasses.replace(CONFIG, **changes)), logits(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    'changes',
    [
        {'unroll': 1},
        {'remat': 'full', 'unroll': 1},
        {'remat': 'projections', 'unroll': 1},
        {'remat': 'projections'},
        {'remat': 'dots', 'unroll': 1},
    ],
)
def test_how_layers_run_changes_no_gradient(changes):
    def gradient(config):
        return jax.jit(jax.grad(lambda p: transformer.apply(config, p, tokens(), VOCAB)[..., :200].var()))(params())

    expected, found = gradient(CONFIG), gradient(dataclasses.replace(CONFIG, **changes))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected)


def test_causality_by_gradient():
    """The logits of position i have no gradient with respect to the embeddings of later positions."""
    position = 5

    def picked(table):
        tree = params() | {'embed': {'table': table}}
        return transformer.apply(CONFIG, tree, jnp.arange(12)[None], VOCAB)[0, position, :200].var()

    gradient_VxD = np.asarray(jax.jit(jax.grad(picked))(params()['embed']['table']))
    moved = np.abs(gradient_VxD[:12]).sum(1) > 0
    assert moved.tolist() == [i <= position for i in range(12)]


def test_dropout_falls_on_attention_only_in_training():
    wet = dataclasses.replace(CONFIG, dropout=0.5)
    np.testing.assert_array_equal(logits(wet), logits())  # without a key it is off
    np.testing.assert_array_equal(logits(wet, seed=1), logits(wet, seed=1))
    assert np.abs(logits(wet, seed=1) - logits()).max() > 1e-2
    # The first position sees itself alone: with its weight of one dropped or doubled, only attention's part changes.
    assert np.abs(logits(wet, seed=1) - logits(wet, seed=2)).max() > 1e-2


def test_layers_rows_and_blocks_of_queries_draw_dropout_apart(monkeypatch):
    """Which weights each call leaves over, written down on the way."""
    wet, masks = dataclasses.replace(CONFIG, dropout=0.5, unroll=1), []

    def recorded(x_Bx, rate, dropout, start):
        result_Bx = drop(x_Bx, rate, dropout, start)
        jax.debug.callback(lambda result: masks.extend(np.asarray(result)[:, :, -1] == 0), result_Bx)
        return result_Bx

    monkeypatch.setattr(attention, 'drop', recorded)
    monkeypatch.setattr(attention, 'LEAST_BLOCK', 6)
    dropout = Dropout(jax.random.key(0), jnp.arange(4))
    transformer.apply(wet, params(), tokens(), VOCAB, dropout)
    jax.effects_barrier()
    assert len(masks) == CONFIG.layers * 2 * 4
    for one, other in itertools.combinations([mask[:, :6].tobytes() for mask in masks], 2):
        assert one != other


def test_a_rows_dropout_is_its_own_wherever_it_stands():
    """Rows in another order, and fewer of them, keep their logits."""
    wet = dataclasses.replace(CONFIG, dropout=0.5)
    row_B = jnp.array([2, 0])
    dropout = Dropout(jax.random.key(1), row_B)
    found = transformer.apply(wet, params(), tokens()[row_B], VOCAB, dropout)
    np.testing.assert_allclose(found, logits(wet, seed=1)[row_B], rtol=1e-5, atol=1e-6)


def test_bfloat16_is_close_and_parameters_stay_float32():
    half = dataclasses.replace(CONFIG, dtype='bfloat16')
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(transformer.abstract_params(half, VOCAB)))
    error = np.asarray(logits(half) - logits())[..., : VOCAB.size]
    assert np.any(logits(half) != logits(half).astype(jnp.bfloat16))  # summed and kept in float32
    assert np.std(error) < 0.02 * np.std(logits()[..., : VOCAB.size])  # bfloat16 has 8 bits of mantissa


def test_initialisations():
    wide = dataclasses.replace(CONFIG, width=256, heads=4, ffn=512, init=InitConfig(0.02, 'scaled', 1.0, 'uniform'))
    tree = transformer.init_params(wide, VOCAB, jax.random.key(0))
    assert np.std(tree['blocks']['attn']['q']['kernel']) == pytest.approx(0.02, rel=0.02)
    assert np.std(tree['blocks']['mlp']['down']['kernel']) == pytest.approx(0.02 / math.sqrt(6), rel=0.02)
    assert np.std(tree['embed']['table']) == pytest.approx(1.0, rel=0.02)
    head = np.asarray(tree['head']['kernel'])
    assert np.abs(head).max() <= 1 / 16
    assert np.std(head) == pytest.approx(1 / 16 / math.sqrt(3), rel=0.02)
    flat = dataclasses.replace(wide, init=InitConfig(0.02, 'flat', 1.0, 'normal'))
    tree = transformer.init_params(flat, VOCAB, jax.random.key(0))
    assert np.std(tree['blocks']['mlp']['down']['kernel']) == pytest.approx(0.02, rel=0.02)
    # Layers are drawn apart.
    assert not np.allclose(tree['blocks']['attn']['q']['kernel'][0], tree['blocks']['attn']['q']['kernel'][1])


def test_cross_entropy_and_its_gradient_equal_autodiff():
    scores = jax.random.normal(jax.random.key(3), (2, 5, 7)) * 3
    targets = jax.random.randint(jax.random.key(4), (2, 5), 0, 7)

    def plain(x):
        return -jnp.take_along_axis(jax.nn.log_softmax(x), targets[..., None], -1)[..., 0]

    np.testing.assert_allclose(cross_entropy(scores, targets), plain(scores), rtol=1e-5, atol=1e-6)
    weights = jnp.arange(10.0).reshape(2, 5)
    # States that are the logits themselves, so that their gradient is the one written by hand.
    ours = jax.grad(lambda x: sum_cross_entropy(lambda x, head: x, 1, x, {}, targets, weights))(scores)
    theirs = jax.grad(lambda x: jnp.sum(weights * plain(x)))(scores)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ('field', 'value', 'said'),
    [
        ('heads', 3, 'must divide width 16'),
        ('dropout', 1.0, 'must be in'),
        ('dtype', 'float16', 'float32'),
        ('unroll', 4, '1..3'),
        ('remat', 'some', 'one of none, full, projections, dots'),
        ('param_dtype', 'int8', 'one of float32, bfloat16'),
        ('attention', 'flash', 'one of einsum, cudnn, splash'),
        ('loss_chunks', 5, 'must divide length 12'),
    ],
)
def test_impossible_sizes(field, value, said):
    with pytest.raises(FieldError, match=said) as error:
        dataclasses.replace(CONFIG, **{field: value})
    assert error.value.field == field


@pytest.mark.parametrize(
    ('changes', 'said'),
    [
        ({'attention': 'splash', 'length': 128, 'dropout': 0.1}, "dropout = 0.1: needs attention 'einsum'"),
        ({'attention': 'splash'}, 'length = 12: must be a multiple of 128'),
        ({'attention': 'cudnn'}, "dtype = 'float32': must be bfloat16"),
    ],
)
def test_what_fused_attention_cannot_do(changes, said):
    with pytest.raises(FieldError, match=said):
        dataclasses.replace(CONFIG, **changes)


def test_parameters_in_half_precision():
    half = dataclasses.replace(CONFIG, dtype='bfloat16', param_dtype='bfloat16', head_bias=True)
    tree = transformer.init_params(half, VOCAB, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype('bfloat16')}
    batch = Batch(tokens(), tokens(), jnp.ones((4, 12)))
    loss, gradient = jax.jit(jax.value_and_grad(lambda p: transformer.sum_loss(half, p, batch, VOCAB)))(tree)
    assert loss.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype('bfloat16')}


@pytest.mark.parametrize('name', common.SIZES)
def test_named_sizes_have_the_parameters_of_the_closed_form(name):
    values = common.model(name, length=1024, dropout=0.1).to_dict()
    config = ModelConfig(**values | {'init': InitConfig(**values['init'])})
    blocks = transformer.abstract_params(config, VOCAB)['blocks']
    assert trees.count(blocks) + config.width == body_parameters(config)
    expected = {'400m': 402.7e6, '600m': 604.1e6, '1b6': 1_610_713_088}
    if name in expected:
        assert body_parameters(config) == pytest.approx(expected[name], rel=1e-4)


def test_flops_of_an_update():
    """Counted product by product: a parameter multiplies six times a token, and attention needs half of its scores."""
    products = sum(leaf.size for path, leaf in trees.flatten(params()).items() if path.startswith('blocks'))
    head = VOCAB.size * CONFIG.width
    scores = CONFIG.layers * CONFIG.length**2 * CONFIG.width  # q k of all heads; as many for the weighted values
    expected = 3 * 4 * (2 * CONFIG.length * (products + head) + 2 * (scores + scores) / 2)
    assert step_flops(CONFIG, VOCAB, 4) == pytest.approx(expected, rel=0.02)
