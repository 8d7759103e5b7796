"""Runs out to Hugging Face's format, and weights from elsewhere in as parents of runs."""

import dataclasses
import json
import pathlib
import shutil
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file

from experiments import baselines, quickstart
from nca_jax import cli, folders, run, trees
from nca_jax import mesh as meshes
from nca_jax.checkpoint.store import Store, read_manifest, restore_params, saved_params
from nca_jax.experiment import resolve
from nca_jax.hf import llama, torch_zip
from nca_jax.report.runs import read_run
from tests.test_hf import GOLDEN, assert_logits, logits
from tests.test_run import adjusted, metrics, train

HF, RELEASE = GOLDEN / 'hf_llama', GOLDEN / 'release_checkpoint.pt'


def write_corpus(folder: pathlib.Path) -> pathlib.Path:
    """What test_run.adjusted makes runs on text read."""
    (folder / 'corpus').mkdir()
    for number in range(60):
        text = '\n'.join(f'def f{i}(x):\n    return x * {i} + {number}' for i in range(60))
        (folder / 'corpus' / f'{number}.py').write_text(text)
    return folder


@pytest.fixture(scope='module')
def cache(tmp_path_factory) -> pathlib.Path:
    return write_corpus(tmp_path_factory.mktemp('export'))


@pytest.fixture(scope='module')
def trained(cache) -> pathlib.Path:
    """A run on text that kept an average of its weights."""
    return train(adjusted(quickstart.get_config('smoke'), cache, optimizer__ema=0.5), cache / 'trained')


@pytest.fixture(scope='module')
def exported(cache, trained) -> pathlib.Path:
    assert cli.main(['export', str(trained), f'--out={cache / "exported"}']) == 0
    return cache / 'exported'


def params_of(folder: pathlib.Path, weights: str = 'params') -> dict[str, np.ndarray]:
    saved = saved_params(read_manifest(folder / 'checkpoints'), weights)
    layout = dict.fromkeys(saved, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    return trees.flatten(restore_params(folder / 'checkpoints', None, layout, weights)[0])


def refused(capsys, command, *arguments) -> str:
    """What it says, in one line, leaving nothing behind."""
    capsys.readouterr()
    out = next(pathlib.Path(argument.removeprefix('--out=')) for argument in arguments if '--out' in str(argument))
    before = sorted(out.parent.iterdir())
    assert cli.main([command, *map(str, arguments)]) == 2
    assert sorted(out.parent.iterdir()) == before
    printed = capsys.readouterr()
    assert printed.out == ''
    assert printed.err.count('\n') == 1
    return printed.err


def test_a_run_on_text_becomes_a_folder(trained, exported):
    files = {'config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json'}
    assert {path.name for path in exported.iterdir()} == files
    described = json.loads((exported / 'config.json').read_text())
    assert (described['vocab_size'], described['eos_token_id'], described['torch_dtype']) == (300, 0, 'float32')
    tokenizer = tokenizers.Tokenizer.from_file(str(exported / 'tokenizer.json'))
    assert tokenizer.decode(tokenizer.encode('return x * 3').ids) == 'return x * 3'
    assert tokenizer.token_to_id(json.loads((exported / 'tokenizer_config.json').read_text())['eos_token']) == 0
    params, tensors = params_of(trained), load_file(exported / 'model.safetensors')
    np.testing.assert_array_equal(tensors['model.embed_tokens.weight'], params['embed/table'][:300])
    np.testing.assert_array_equal(tensors['lm_head.weight'], params['head/kernel'][:, :300].T)
    np.testing.assert_array_equal(
        tensors['model.layers.1.self_attn.v_proj.weight'], params['blocks/attn/v/kernel'][1].reshape(32, 32).T
    )
    assert (exported / 'model.safetensors').stat().st_mode == (exported / 'config.json').stat().st_mode


def test_the_average_of_the_weights_and_another_dtype(trained, tmp_path):
    assert cli.main(['export', str(trained), f'--out={tmp_path / "out"}', '--weights=ema', '--dtype=bfloat16']) == 0
    found = load_file(tmp_path / 'out' / 'model.safetensors')['lm_head.weight']
    average, last = params_of(trained, 'ema')['head/kernel'], params_of(trained)['head/kernel']
    assert not np.array_equal(average, last)
    np.testing.assert_array_equal(found, np.asarray(average)[:, :300].T.astype(ml_dtypes.bfloat16))
    assert json.loads((tmp_path / 'out' / 'config.json').read_text())['torch_dtype'] == 'bfloat16'


def test_an_earlier_step(trained, tmp_path, capsys):
    assert cli.main(['export', str(trained), f'--out={tmp_path / "out"}', '--step=3']) == 0
    assert 'step 3:' in capsys.readouterr().out
    found, last = load_file(tmp_path / 'out' / 'model.safetensors'), params_of(trained)
    assert not np.array_equal(found['lm_head.weight'], last['head/kernel'][:, :300].T)


def test_a_run_from_an_adopted_folder_measures_what_the_exported_one_did(cache, trained, exported, tmp_path, capsys):
    """Out, in, and evaluated by a run of zero steps: the very loss that the first run ended with."""
    assert cli.main(['adopt', str(exported), f'--out={tmp_path / "adopted"}']) == 0
    assert '--config.model.ffn=64' in capsys.readouterr().out
    child = adjusted(quickstart.get_config(f'arm=nca,parent={tmp_path / "adopted"},smoke'), cache)
    child = dataclasses.replace(
        child,
        train=dataclasses.replace(child.train, stop='0 steps'),
        init_from=dataclasses.replace(child.init_from, plan=(('.*', 'carry'),)),
    )
    train(child, tmp_path / 'child')
    losses = {row['evaluator']: row['loss'] for row in metrics(trained) if row['kind'] == 'eval'}  # the last ones
    assert metrics(tmp_path / 'child')[0]['loss'] == losses['perplexity'] != losses['perplexity_ema']
    parent = folders.read_record(tmp_path / 'child')['parent']
    assert parent['identity'] == folders.read_record(tmp_path / 'adopted')['identity']


def test_weights_in_several_files_are_those_in_one(exported, tmp_path):
    shutil.copytree(exported, tmp_path / 'parts')
    whole = load_file(exported / 'model.safetensors')
    (tmp_path / 'parts' / 'model.safetensors').unlink()
    for number in range(3):
        part = {name: tensor for place, (name, tensor) in enumerate(whole.items()) if place % 3 == number}
        save_file(part, tmp_path / 'parts' / f'model-0000{number + 1}-of-00003.safetensors')
    identities = []
    for number, folder in enumerate((tmp_path / 'parts', exported)):
        assert cli.main(['adopt', str(folder), f'--out={tmp_path / str(number)}']) == 0
        identities.append(folders.read_record(tmp_path / str(number))['identity'])
    assert identities[0] == identities[1]


def test_an_adopted_folder_goes_out_as_it_came(tmp_path):
    assert cli.main(['adopt', str(HF), f'--out={tmp_path / "in"}']) == 0
    assert cli.main(['export', str(tmp_path / 'in'), f'--out={tmp_path / "out"}']) == 0
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {'config.json', 'model.safetensors'}
    expected = load_file(HF / 'model.safetensors')
    for name, tensor in load_file(tmp_path / 'out' / 'model.safetensors').items():
        np.testing.assert_array_equal(tensor, expected[name])
    assert cli.main(['adopt', str(HF), f'--out={tmp_path / "half"}', '--param-dtype=bfloat16']) == 0
    halves = params_of(tmp_path / 'half')
    assert {str(leaf.dtype) for leaf in halves.values()} == {'bfloat16'}
    rounded = expected['model.norm.weight'].astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(halves['final_norm/scale'], rounded)
    told = read_run(tmp_path / 'in')  # what a report makes of it
    assert (told.stage, told.arm, told.parent) == ('text', 'adopted', None)
    assert 'not finished' in told.missing(told.evaluator)


def test_a_run_starts_from_a_checkpoint_of_the_release(tmp_path):
    """Blocks and tables arrive, the head's bias is dropped; with it the logits would be the golden ones."""
    arguments = ['--stage=nca', '--heads=2', '--vocab-size=34']
    assert cli.main(['adopt', str(RELEASE), f'--out={tmp_path / "parent"}', *arguments]) == 0
    file = baselines.get_config('source=noise,smoke')
    file.data.size = 34
    file.model.update({'width': 8, 'ffn': 12, 'length': 10, 'tied': False, 'dropout': 0.0})
    plan = (('head/bias', 'drop'), ('.*', 'carry'))
    values = file.to_dict() | {
        'init_from': {'run': str(tmp_path / 'parent'), 'step': None, 'weights': 'params', 'plan': plan}
    }
    child = resolve(values)
    program = run.build(child, meshes.make_mesh(child.mesh), tmp_path)
    with Store(tmp_path / 'checkpoints', keep=1) as store:
        state, lineage = run.start(child, program, store, folders.read_parent(child.init_from), say=lambda line: None)
    assert (lineage['name'], lineage['step']) == ('release_checkpoint.pt', 0)
    golden, bias = np.load(GOLDEN / 'release_checkpoint.npz'), params_of(tmp_path / 'parent')['head/bias']
    found = logits(child.model, jax.device_get(state.params), golden['tokens'], program.data.vocab)
    assert_logits(found + np.asarray(bias)[:34], golden['logits'])


@pytest.mark.parametrize('prefix', ['module.', '_orig_mod.', 'module._orig_mod.'])
def test_names_of_wrapped_modules_are_freed_of_their_prefix(monkeypatch, prefix):
    content = torch_zip.load(RELEASE)
    wrapped = {'model': {f'{prefix}{name}': tensor for name, tensor in content['model'].items()}}
    monkeypatch.setattr(torch_zip, 'load', lambda file: wrapped)
    source = llama.read_checkpoint(RELEASE, heads=2)
    np.testing.assert_array_equal(source.read('model.norm.weight'), content['model']['norm.weight'].read())


def test_an_automata_run_has_no_tokenizer(tmp_path, capsys):
    """Its export says so, and a head with a bias is refused."""
    assert cli.main(['adopt', str(HF), f'--out={tmp_path / "in"}', '--stage=nca', '--vocab-size=30']) == 0
    assert '30 of 40 rows, padded to 128' in capsys.readouterr().out
    assert cli.main(['export', str(tmp_path / 'in'), f'--out={tmp_path / "out"}']) == 0
    assert 'tokenizer: none' in capsys.readouterr().out
    assert load_file(tmp_path / 'out' / 'model.safetensors')['lm_head.weight'].shape == (30, 16)
    assert cli.main(['adopt', str(RELEASE), f'--out={tmp_path / "biased"}', '--heads=2', '--vocab-size=34']) == 0
    assert 'head/bias' in refused(capsys, 'export', tmp_path / 'biased', f'--out={tmp_path / "other"}')


def test_export_refuses(trained, exported, tmp_path, capsys):
    out = f'--out={tmp_path / "out"}'
    assert 'no such folder of checkpoints' in refused(capsys, 'export', tmp_path / 'none', out)
    assert 'no checkpoint of step 4' in refused(capsys, 'export', trained, out, '--step=4')
    assert 'already and not empty' in refused(capsys, 'export', trained, f'--out={exported}')
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'link').symlink_to(tmp_path / 'empty')
    assert cli.main(['export', str(trained), f'--out={tmp_path / "link"}']) == 0
    assert (tmp_path / 'empty' / 'config.json').exists()
    cli.main(['adopt', str(exported), f'--out={tmp_path / "in"}'])
    other = tmp_path / 'in' / 'tokenizer.json'
    layout = json.loads((exported / 'tokenizer.json').read_text())
    layout['model']['merges'].pop()
    other.write_text(json.dumps(layout))
    assert 'is another one' in refused(capsys, 'export', tmp_path / 'in', out)
    assert 'kept no average' in refused(capsys, 'export', tmp_path / 'in', out, '--weights=ema')
    other.unlink()
    assert 'no readable tokenizer.json' in refused(capsys, 'export', tmp_path / 'in', out)


def changed(folder: pathlib.Path, **fields) -> pathlib.Path:
    """A copy of the golden folder with another config.json."""
    shutil.copytree(HF, folder)
    (folder / 'config.json').write_text(json.dumps(json.loads((HF / 'config.json').read_text()) | fields))
    return folder


def test_adopt_refuses_folders(exported, tmp_path, capsys):
    def said(folder, *flags) -> str:
        return refused(capsys, 'adopt', folder, f'--out={tmp_path / "out"}', *flags)

    assert "model_type = 'gpt2'" in said(changed(tmp_path / 'gpt2', model_type='gpt2'))
    assert 'num_key_value_heads = 1' in said(changed(tmp_path / 'grouped', num_key_value_heads=1))
    assert 'tensor model.layers.1.input_layernorm.weight must be absent' in said(
        changed(tmp_path / 'short', num_hidden_layers=1)
    )
    assert 'tensor model.layers.2.input_layernorm.weight must be (16,), and is missing' in said(
        changed(tmp_path / 'long', num_hidden_layers=3)
    )
    assert 'must be (16, 32), and is (16, 24)' in said(changed(tmp_path / 'wide', intermediate_size=32))
    assert 'tensor lm_head.weight must be absent' in said(changed(tmp_path / 'tied', tie_word_embeddings=True))
    assert '--heads = 4: is only for a file' in said(HF, '--heads=4')
    assert '--vocab-size = 41: must be 1 to 40' in said(HF, '--vocab-size=41')
    assert 'config.json: No such file' in said(tmp_path)
    folder = changed(tmp_path / 'damaged')
    (folder / 'model.safetensors').write_bytes((HF / 'model.safetensors').read_bytes()[:-1])
    assert 'not a whole safetensors file' in said(folder)
    (folder / 'model.safetensors').unlink()
    assert 'tensor lm_head.weight must be (40, 16), and is missing' in said(folder)
    for name in 'ab':
        save_file({'a': np.zeros(2, np.float32)}, folder / f'model-{name}.safetensors')
    assert 'model-b.safetensors: a is in another file too' in said(folder)
    save_file({'b': np.zeros(2, np.int32)}, folder / 'model-b.safetensors')
    assert "'I32': must be floats of 16 or 32 bits" in said(folder)
    shutil.copytree(exported, tmp_path / 'more')
    described = json.loads((exported / 'config.json').read_text()) | {'vocab_size': 310}
    (tmp_path / 'more' / 'config.json').write_text(json.dumps(described))
    tensors = load_file(exported / 'model.safetensors')
    for name in ('model.embed_tokens.weight', 'lm_head.weight'):
        tensors[name] = np.pad(tensors[name], ((0, 10), (0, 0)))
    save_file(tensors, tmp_path / 'more' / 'model.safetensors')
    assert '--vocab-size = None: must be 1 to 310: how many of the 310 rows' in said(tmp_path / 'more')
    assert cli.main(['adopt', str(tmp_path / 'more'), f'--out={tmp_path / "in"}', '--vocab-size=300']) == 0


def repacked(path: pathlib.Path, old: bytes, new: bytes) -> pathlib.Path:
    """The golden checkpoint with other bytes, as many, in its pickle."""
    with zipfile.ZipFile(RELEASE) as source, zipfile.ZipFile(path, 'w') as target:
        for info in source.infolist():
            content = source.read(info)
            if info.filename.endswith('/data.pkl'):
                assert old in content
                content = content.replace(old, new)
            target.writestr(info.filename, content)
    return path


def test_adopt_refuses_files(tmp_path, capsys):
    def said(file, *flags) -> str:
        return refused(capsys, 'adopt', file, f'--out={tmp_path / "out"}', *flags)

    both = ('--heads=2', '--vocab-size=34')
    assert '--heads = None: must be given for a file' in said(RELEASE)
    assert '--vocab-size = None: must be 1 to 48: how many of the 48 rows' in said(RELEASE, '--heads=2')
    assert '--vocab-size = 64000: must be 1 to 48' in said(RELEASE, '--heads=2', '--vocab-size=64000')
    assert 'heads = 3: must divide width 8' in said(RELEASE, '--heads=3', '--vocab-size=34')
    assert 'No such file' in said(tmp_path / 'none.pt', *both)
    other = tmp_path / 'other.pt'
    assert 'tensor model.nerm.weight must be absent' in said(
        repacked(other, b'\x0b\0\0\0norm.weight', b'\x0b\0\0\0nerm.weight'), *both
    )
    assert 'tensor lm_head.waight must be absent' in said(
        repacked(other, b'output_proj.weight', b'output_proj.waight'), *both
    )
    assert "must hold a dict with 'model'" in said(repacked(other, b'\x05\0\0\0model', b'\x05\0\0\0madel'), *both)
    assert 'torch LoatStorage' in said(repacked(other, b'torch\nFloatStorage', b'torch\nLoatStorage'), *both)
    assert "'int32': must be floats of" in said(repacked(other, b'torch\nFloatStorage', b'torch\nIntStorage'), *both)
    assert 'nothing_that_is_read' in said(repacked(other, b'torch\nFloatStorage', b'os\nnothing_that_is_read'), *both)
    other.write_bytes(RELEASE.read_bytes()[:-100])
    assert 'not a checkpoint that PyTorch 1.6 or later wrote' in said(other, *both)
    (tmp_path / 'file').write_text('')
    assert 'already and not empty' in refused(capsys, 'adopt', HF, f'--out={tmp_path}')
    assert 'already and not empty' in refused(capsys, 'adopt', HF, f'--out={tmp_path / "file"}')
