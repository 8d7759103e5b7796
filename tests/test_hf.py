"""Hugging Face's names and layouts, against what transformers itself wrote and computed."""

import dataclasses
import functools
import json
import pathlib

import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from nca_jax import trees
from nca_jax.batch import Vocab
from nca_jax.errors import UserError
from nca_jax.hf import llama as hf
from nca_jax.hf import torch_zip
from nca_jax.model import transformer
from nca_jax.model.config import ModelConfig
from tests.test_model import CONFIG

GOLDEN = pathlib.Path(__file__).parent / 'golden'
LLAMA = hf.model_config(
    {
        **{'layers': 2, 'width': 16, 'heads': 2, 'ffn': 24, 'length': 10},
        **{'rope_theta': 1e4, 'norm_eps': 1e-6, 'tied': False, 'head_bias': False},
    }
)
VOCAB = Vocab(40)
JSON = json.loads((GOLDEN / 'hf_llama' / 'config.json').read_text())


@functools.cache
def theirs() -> dict[str, np.ndarray]:
    return load_file(GOLDEN / 'hf_llama' / 'model.safetensors')


@functools.cache
def ours() -> dict:
    return hf.imported(LLAMA, theirs().__getitem__, VOCAB, np.dtype(np.float32))


def logits(model: ModelConfig, params: dict, tokens_BxL, vocab: Vocab) -> np.ndarray:
    """Of the real tokens."""
    config = dataclasses.replace(model, unroll=model.layers)
    found = jax.jit(lambda p, x: transformer.apply(config, p, x, vocab))(params, jnp.asarray(tokens_BxL, jnp.int32))
    return np.asarray(found)[..., : vocab.size]


def assert_logits(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_logits_of_a_folder_that_transformers_saved():
    golden = np.load(GOLDEN / 'llama.npz')
    assert_logits(logits(LLAMA, ours(), golden['tokens'], VOCAB), golden['logits'])


def test_logits_of_a_checkpoint_with_the_releases_names():
    model = torch_zip.load(GOLDEN / 'release_checkpoint.pt')['model']
    tensors = {hf.from_release(name): tensor for name, tensor in model.items()}
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    llama, rows = hf.release_config(shapes, 2, 'file')
    assert (llama.layers, llama.width, llama.ffn, llama.head_bias, rows) == (2, 8, 12, True, 48)
    hf.check_tensors(hf.tensor_shapes(llama, rows), shapes, 'file')
    vocab, golden = Vocab(34), np.load(GOLDEN / 'release_checkpoint.npz')
    params = hf.imported(llama, lambda name: tensors[name].read(), vocab, np.dtype(np.float32))
    assert_logits(logits(dataclasses.replace(llama, length=10), params, golden['tokens'], vocab), golden['logits'])


def test_export_is_what_transformers_saved():
    golden = np.load(GOLDEN / 'llama.npz')
    params = flax.traverse_util.unflatten_dict({name: golden[name] for name in golden.files if '/' in name}, sep='/')
    found = dict(hf.exported(params, VOCAB, np.dtype(np.float32)))
    assert found.keys() == theirs().keys()
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor, theirs()[name])


def test_padding_is_zero_when_it_comes_and_gone_when_it_leaves():
    assert ours()['embed']['table'].shape == (128, 16)
    assert not ours()['embed']['table'][40:].any()
    assert not ours()['head']['kernel'][:, 40:].any()
    found = dict(hf.exported(ours(), VOCAB, np.dtype(np.float32)))
    assert {name: tensor.shape for name, tensor in found.items()} == hf.tensor_shapes(LLAMA, 40)
    cut = hf.imported(LLAMA, theirs().__getitem__, Vocab(30), np.dtype(np.float32))
    np.testing.assert_array_equal(cut['head']['kernel'][:, :30], theirs()['lm_head.weight'][:30].T)
    assert not cut['head']['kernel'][:, 30:].any()


@pytest.mark.parametrize('tied', [False, True])
def test_there_and_back(tied):
    """The structure is the model's own, on devices; ties stay, with no second table."""
    config = dataclasses.replace(CONFIG, tied=tied)
    vocab = Vocab(200)
    rng = np.random.default_rng(0)
    shapes = transformer.abstract_params(config, vocab)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes)
    tensors = dict(hf.exported(params, vocab, np.dtype(np.float32)))
    assert ('lm_head.weight' in tensors) is not tied
    back = hf.imported(config, tensors.__getitem__, vocab, np.dtype(np.float32))
    assert jax.tree.map(jnp.shape, back) == jax.tree.map(jnp.shape, params)
    real = {'embed/table': np.s_[:200], 'head/kernel': np.s_[:, :200]}
    for path, leaf in trees.flatten(back).items():
        cut = real.get(path, ...)
        np.testing.assert_array_equal(leaf[cut], trees.flatten(params)[path][cut])


def test_dtypes():
    halves = {name: tensor.astype(np.float16) for name, tensor in theirs().items()}
    for dtype in (np.float32, ml_dtypes.bfloat16):
        found = trees.flatten(hf.imported(LLAMA, halves.__getitem__, VOCAB, np.dtype(dtype)))
        assert {leaf.dtype for leaf in found.values()} == {np.dtype(dtype)}
        expected = halves['model.norm.weight'].astype(np.float32).astype(dtype)
        np.testing.assert_array_equal(found['final_norm/scale'], expected)
    exported = dict(hf.exported(ours(), VOCAB, np.dtype(ml_dtypes.bfloat16)))
    rounded = theirs()['lm_head.weight'].astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(exported['lm_head.weight'], rounded)


def test_configs():
    assert hf.from_config(JSON, 'config.json') == (LLAMA, 40)
    for llama in (LLAMA, dataclasses.replace(LLAMA, tied=True, rope_theta=5e5, norm_eps=1e-5, length=7, heads=4)):
        assert hf.from_config(hf.to_config(llama, VOCAB, 7, 'float32'), 'config.json') == (llama, 40)
    written = hf.to_config(LLAMA, VOCAB, 7, 'float32')
    assert (written['bos_token_id'], written['eos_token_id'], written['pad_token_id']) == (7, 7, None)
    same = [field for field in JSON if field in written and field not in ('bos_token_id', 'eos_token_id')]
    assert {field: written[field] for field in same} == {field: JSON[field] for field in same}
    assert len(same) >= 15


@pytest.mark.parametrize(
    'changes',
    [
        {'rope_parameters': {'rope_theta': 5e5, 'rope_type': 'default'}},
        {'rope_theta': 5e5, 'rope_parameters': None},
        {'rope_theta': 5e5, 'rope_parameters': None, 'rope_scaling': None},
        {'rope_theta': 5e5, 'rope_parameters': {'rope_type': 'default'}},
    ],
)
def test_rotary_base_in_both_places(changes):
    assert hf.from_config(JSON | changes, 'config.json')[0].rope_theta == 5e5


@pytest.mark.parametrize(
    ('changes', 'said'),
    [
        ({'model_type': 'mistral'}, "model_type = 'mistral': must be 'llama'"),
        ({'model_type': None}, 'model_type = None'),
        ({'num_key_value_heads': 1}, 'num_key_value_heads = 1: must be 2'),
        ({'head_dim': 4}, 'head_dim = 4: must be 8'),
        ({'hidden_act': 'gelu'}, "hidden_act = 'gelu': must be 'silu'"),
        ({'attention_bias': True}, 'attention_bias = True'),
        ({'mlp_bias': True}, 'mlp_bias = True'),
        ({'rope_scaling': {'type': 'linear', 'factor': 2.0}}, 'rope_scaling = '),
        ({'rope_parameters': {'rope_type': 'llama3', 'rope_theta': 1e4}}, 'rope_parameters = '),
        ({'rope_parameters': {'rope_type': 'default', 'rope_theta': 1e4, 'factor': 8.0}}, 'rope_parameters = '),
        ({'rope_parameters': [1]}, 'rope_parameters = '),
        ({'rope_parameters': {'rope_theta': -1}}, 'rope_theta = -1'),
        ({'quantization_config': {'bits': 4}}, 'quantization_config = '),
        ({'hidden_size': '16'}, "hidden_size = '16': must be a positive int"),
        ({'vocab_size': 0}, 'vocab_size = 0'),
        ({'num_attention_heads': 3, 'num_key_value_heads': 3, 'head_dim': None}, 'heads = 3: must divide width 16'),
        ({'rms_norm_eps': None}, 'norm_eps = None'),
        ({'tie_word_embeddings': 'yes'}, "tie_word_embeddings = 'yes'"),
    ],
)
def test_other_models_are_refused(changes, said):
    with pytest.raises(UserError, match=r'^FOLDER/config\.json: ') as refused:
        hf.from_config(JSON | changes, 'FOLDER/config.json')
    assert said in str(refused.value)


@pytest.mark.parametrize('field', ['vocab_size', 'hidden_size', 'num_hidden_layers', 'intermediate_size'])
def test_missing_sizes_are_named(field):
    with pytest.raises(UserError, match=f'{field} = None'):
        hf.from_config({name: value for name, value in JSON.items() if name != field}, 'config.json')


def test_a_bias_of_the_head_is_refused():
    with pytest.raises(UserError, match='no place for a bias'):
        hf.to_config(dataclasses.replace(LLAMA, head_bias=True), VOCAB, None, 'float32')


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        (
            lambda found: found.pop('model.norm.weight'),
            'FOLDER: tensor model.norm.weight must be (16,), and is missing',
        ),
        (lambda found: found.update({'rotary': (4,)}), 'FOLDER: tensor rotary must be absent, and is (4,)'),
        (lambda found: found.update({'a\nb\x1b[2J': (4,)}), r'tensor a\nb\x1b[2J must be absent'),
        (
            lambda found: found.update({'lm_head.weight': (40, 8)}),
            'FOLDER: tensor lm_head.weight must be (40, 16), and is (40, 8)',
        ),
    ],
)
def test_other_tensors_are_refused(change, said):
    found = hf.tensor_shapes(LLAMA, 40)
    change(found)
    with pytest.raises(UserError) as refused:
        hf.check_tensors(hf.tensor_shapes(LLAMA, 40), found, 'FOLDER')
    assert said in str(refused.value)


def test_shapes_that_make_no_model_are_refused():
    shapes = hf.tensor_shapes(LLAMA, 40)
    for changes, said in (
        ({'model.embed_tokens.weight': (40,)}, r'file: shape of model.embed_tokens.weight = \(40,\): must be a matrix'),
        ({'model.embed_tokens.weight': (40, 0)}, 'hidden_size = 0: must be a positive int'),
        ({'model.layers.0.mlp.gate_proj.weight': ()}, r'gate_proj.weight = \(\): must be a matrix'),
    ):
        with pytest.raises(UserError, match=said):
            hf.release_config(shapes | changes, 2, 'file')
    with pytest.raises(UserError, match='heads = 3: must divide width 16'):
        hf.release_config(shapes, 3, 'file')
    del shapes['model.embed_tokens.weight']
    with pytest.raises(UserError, match=r'embed_tokens\.weight = None: must be a matrix'):
        hf.release_config(shapes, 2, 'file')
