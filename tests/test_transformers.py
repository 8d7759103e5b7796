"""The real transformers and PyTorch, of launch/oracle.lock: they load what goes out, and what they write comes in."""

import dataclasses
import json
import pathlib

import flax.traverse_util
import jax
import numpy as np
import pytest

from experiments import language, quickstart
from nca_jax import cli
from nca_jax.batch import Vocab
from nca_jax.checkpoint.store import read_manifest
from nca_jax.data import tokenizer as bpe
from nca_jax.errors import UserError
from nca_jax.hf import llama as hf
from nca_jax.hf import torch_zip
from nca_jax.model import transformer
from tests.test_export import params_of, write_corpus
from tests.test_hf import LLAMA, assert_logits, logits
from tests.test_run import adjusted, train

pytestmark = pytest.mark.full


def their_logits(folder: pathlib.Path, tokens_BxL: np.ndarray) -> np.ndarray:
    import torch
    import transformers

    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(input_ids=torch.tensor(tokens_BxL)).logits.numpy()


def nested(leaves: dict) -> dict:
    """The tree of `{path: leaf}`."""
    return flax.traverse_util.unflatten_dict(leaves, sep='/')


@pytest.mark.parametrize('recipe', ['untied', 'tied'])
def test_a_trained_run_loads_and_generates(tmp_path, recipe):
    """Logits, tokens of the tokenizer and greedy continuations are ours."""
    import torch
    import transformers

    config = language.get_config('size=tiny,smoke') if recipe == 'tied' else quickstart.get_config('smoke')
    wanted = adjusted(config, write_corpus(tmp_path), model__dropout=0.0, optimizer__lr=0.01)
    assert wanted.model.tied is (recipe == 'tied')
    folder, out = train(wanted, tmp_path / 'run'), tmp_path / 'out'
    assert cli.main(['export', str(folder), f'--out={out}']) == 0
    llama, vocab, params = wanted.model, Vocab(300), nested(params_of(folder))
    fresh = transformer.init_params(wanted.model, vocab, jax.random.key(0))
    assert not np.allclose(params['embed']['table'], fresh['embed']['table'], atol=1e-3)  # it has learnt something

    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    fast = transformers.PreTrainedTokenizerFast.from_pretrained(out)
    text = 'def f1(x):\n    return x * 17  # é'
    own = bpe.load_of_run(folder, read_manifest(folder / 'checkpoints'))
    assert tokenizer(text)['input_ids'] == fast(text)['input_ids'] == own.encode(text).ids
    assert tokenizer.decode(own.encode(text).ids) == text
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id, len(tokenizer)) == (0, 0, 300)

    tokens_BxL = np.random.default_rng(0).integers(0, 300, (4, 64))
    assert_logits(their_logits(out, tokens_BxL), logits(llama, params, tokens_BxL, vocab))
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert type(model) is transformers.LlamaForCausalLM
    assert model.dtype == torch.float32
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) is (recipe == 'tied')
    assert (model.generation_config.eos_token_id, model.config.max_position_embeddings) == (0, 64)

    prompt, given = own.encode('def f1(x):').ids, tokenizer('def f1(x):', return_tensors='pt')
    generated = model.generate(**given, max_new_tokens=8, do_sample=False, pad_token_id=0)[0].tolist()
    expected = list(prompt)
    while len(expected) < len(generated):
        padded = np.zeros((1, 64), np.int32)
        padded[0, : len(expected)] = expected
        expected.append(int(logits(llama, params, padded, vocab)[0, len(expected) - 1].argmax()))
    assert generated == expected
    assert len(generated) > len(prompt)


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'tied': True},
        {'rope_theta': 5e5, 'norm_eps': 1e-2},
        {'heads': 4, 'layers': 3, 'ffn': 20},
        {'heads': 1, 'width': 6, 'rope_theta': 100.0},
    ],
)
def test_random_weights_give_the_same_logits(tmp_path, changes):
    import torch
    import transformers

    llama, vocab = dataclasses.replace(LLAMA, **changes), Vocab(77)
    rng = np.random.default_rng(0)
    shapes = transformer.abstract_params(llama, vocab)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes)
    for dtype in ('float32', 'bfloat16'):
        folder = tmp_path / dtype
        folder.mkdir()
        hf.write_folder(folder, llama, vocab, params, None, dtype)
    tokens_BxL = rng.integers(0, 77, (3, 10))
    assert_logits(their_logits(tmp_path / 'float32', tokens_BxL), logits(llama, params, tokens_BxL, vocab))
    half = transformers.LlamaForCausalLM.from_pretrained(tmp_path / 'bfloat16', dtype='auto')
    assert half.dtype == torch.bfloat16
    np.testing.assert_array_equal(
        half.get_input_embeddings().weight.detach().float().numpy(),
        params['embed']['table'][:77].astype(jax.numpy.bfloat16).astype(np.float32),
    )
    read = hf.from_config(json.loads(half.config.to_json_string()), 'config.json')
    assert read == (llama, 77)


@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_what_transformers_saves_is_adopted(tmp_path, capsys, tied, dtype):
    """In several files, in any of its dtypes, tied or not; the parameters are float32."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=77,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=3,
        max_position_embeddings=12,
        rms_norm_eps=1e-5,
        rope_parameters={'rope_type': 'default', 'rope_theta': 5e4},
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )
    model = transformers.LlamaForCausalLM(config).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / 'theirs', max_shard_size='10KB')
    assert len(list((tmp_path / 'theirs').glob('*.safetensors'))) > 1
    assert cli.main(['adopt', str(tmp_path / 'theirs'), f'--out={tmp_path / "run"}']) == 0
    assert 'parameters as float32' in capsys.readouterr().out
    llama = hf.model_config(read_manifest(tmp_path / 'run' / 'checkpoints')['config']['model'])
    assert (llama.rope_theta, llama.norm_eps, llama.tied, llama.heads) == (5e4, 1e-5, tied, 3)
    tokens_BxL = np.random.default_rng(0).integers(0, 77, (3, 12))
    found = logits(llama, nested(params_of(tmp_path / 'run')), tokens_BxL, Vocab(77))
    assert_logits(found, their_logits(tmp_path / 'theirs', tokens_BxL))


def test_other_architectures_are_refused(tmp_path, capsys):
    import transformers

    grouped = transformers.LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=4
    )
    grouped.num_key_value_heads = 2
    small = {'vocab_size': 20, 'hidden_size': 16, 'intermediate_size': 8, 'num_hidden_layers': 1}
    models = {
        'num_key_value_heads': transformers.LlamaForCausalLM(grouped),
        'model_type': transformers.MistralForCausalLM(
            transformers.MistralConfig(**small, num_attention_heads=2, num_key_value_heads=2)
        ),
        'rope_parameters': transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                **small,
                num_attention_heads=2,
                rope_parameters={'rope_type': 'linear', 'factor': 2.0, 'rope_theta': 1e4},
            )
        ),
        'mlp_bias': transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**small, num_attention_heads=2, mlp_bias=True)
        ),
    }
    for said, model in models.items():
        model.save_pretrained(tmp_path / said)
        assert cli.main(['adopt', str(tmp_path / said), f'--out={tmp_path / "run"}']) == 2
        assert f'config.json: {said} = ' in capsys.readouterr().err


def release_model(rows: int, width: int, layers: int, ffn: int, bias: bool) -> dict:
    """A state dict with the release's names, in an order of its own."""
    import torch

    linear = {f'self_attn.{letter}_proj': (width, width) for letter in 'qkvo'}
    linear |= {'mlp.gate_proj': (ffn, width), 'mlp.up_proj': (ffn, width), 'mlp.down_proj': (width, ffn)}
    state = {'output_proj.weight': torch.randn(rows, width), 'norm.weight': torch.randn(width)}
    state |= {'output_proj.bias': torch.randn(rows)} if bias else {}
    for layer in reversed(range(layers)):
        state |= {f'layers.{layer}.{name}.weight': torch.randn(shape) for name, shape in linear.items()}
        for name in ('input_layernorm', 'post_attention_layernorm'):
            state[f'layers.{layer}.{name}.weight'] = torch.randn(width)
    return state | {'input_proj.weight': torch.randn(rows, width)}


@pytest.mark.parametrize('prefix', ['', 'module.', '_orig_mod.'])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_checkpoints_of_the_release(tmp_path, capsys, prefix, dtype):
    """64,000 rows of which 10,002 are real, beside Adam's state and a scheduler's, as torch.save writes them."""
    import torch

    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    state = {name: tensor.to(kind) for name, tensor in release_model(64_000, 8, 2, 12, prefix == '').items()}
    parameters = [torch.nn.Parameter(tensor) for tensor in state.values()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    schedules = [
        torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5),
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10),
    ]
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, schedules, [5])
    sum(parameter.float().square().sum() for parameter in parameters).backward()
    optimizer.step()
    wrapped = {f'{prefix}{name}': tensor for name, tensor in state.items()}
    content = {'model': wrapped, 'optimizer': optimizer.state_dict(), 'scheduler': scheduler.state_dict(), 'step': 9}
    torch.save(content, tmp_path / 'file.pt')
    flags = ['--heads=2', '--vocab-size=10002', '--stage=nca']
    assert cli.main(['adopt', str(tmp_path / 'file.pt'), f'--out={tmp_path / "run"}', *flags]) == 0
    said = capsys.readouterr().out
    assert '10,002 of 64,000 rows, padded to 10,112' in said
    found = params_of(tmp_path / 'run')
    plain = {name: tensor.float().numpy() for name, tensor in state.items()}
    np.testing.assert_array_equal(found['embed/table'][:10_002], plain['input_proj.weight'][:10_002])
    np.testing.assert_array_equal(found['head/kernel'][:, :10_002], plain['output_proj.weight'][:10_002].T)
    assert not np.asarray(found['embed/table'][10_002:]).any()
    assert ('head/bias' in found) is (prefix == '')
    o_DxD = plain['layers.1.self_attn.o_proj.weight']
    np.testing.assert_array_equal(found['blocks/attn/o/kernel'][1].reshape(8, 8), o_DxD.T)
    k_DxD = plain['layers.0.self_attn.k_proj.weight']
    np.testing.assert_array_equal(found['blocks/attn/k/kernel'][0, :, 1], k_DxD[4:].T)


def test_the_reader_against_torch_load(tmp_path):
    """Every dtype, shared and strided storages, and plain objects around them."""
    import torch

    base = torch.randn(6, 8)
    kinds = ('float32', 'float64', 'float16', 'bfloat16', 'int64', 'int32', 'int16', 'int8', 'uint8', 'bool')
    content = {
        'kinds': {kind: (torch.randn(3, 5) * 50).to(getattr(torch, kind)) for kind in kinds},
        'views': [base, base.T, base[2], base[1:5:2, ::3], base[3:3], base[0, 0], base.permute(1, 0).contiguous()],
        'plain': ({1: -3, 'two': 2**40, None: -(2**70)}, [True, False, None, 1.5], (), ((1,), (2, 3)), 'é' * 300),
        'module': torch.nn.LayerNorm(4).state_dict(),
    }
    path = tmp_path / 'file.pt'
    torch.save(content, path)
    found, expected = torch_zip.load(path), torch.load(path, weights_only=False)  # which reads protocol 2 alone
    assert found['plain'] == expected['plain']
    assert list(found['module']) == ['weight', 'bias']
    for kind, tensor in expected['kinds'].items():
        assert str(found['kinds'][kind].storage.dtype) == kind
        np.testing.assert_array_equal(found['kinds'][kind].read().astype(np.float64), tensor.double().numpy())
    for ours, theirs in zip(found['views'], expected['views'], strict=True):
        np.testing.assert_array_equal(ours.read(), theirs.numpy())


def test_other_files_of_torch_are_refused(tmp_path):
    import torch

    path, layer = tmp_path / 'file.pt', torch.nn.Linear(2, 2)
    torch.save(layer, path)
    with pytest.raises(UserError, match=r'torch\.nn\.modules\.linear Linear'):
        torch_zip.load(path)
    torch.save({'model': layer.weight}, path)
    with pytest.raises(UserError, match=r'torch\._utils _rebuild_parameter'):
        torch_zip.load(path)
    torch.save(layer.state_dict(), path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r'PyTorch 1\.6'):
        torch_zip.load(path)
    torch.jit.save(torch.jit.script(layer), path)
    with pytest.raises(UserError, match='is compressed'):
        torch_zip.load(path)
