"""Experiment files: every one builds, and every mistake is one line that names the field."""

import dataclasses
import importlib
import json
import pathlib

import jax
import ml_collections
import pytest

from experiments import common
from nca_jax import config as configs
from nca_jax import mesh as meshes
from nca_jax import run
from nca_jax.checkpoint import graft
from nca_jax.errors import UserError
from nca_jax.experiment import literal, load, resolve

EXPERIMENTS = pathlib.Path(__file__).parents[1] / 'experiments'
START = {'run': 'p', 'step': None, 'weights': 'params', 'plan': ()}
WORDS = {
    'quickstart': [
        '',
        'arm=automata',
        'arm=nca,parent=p',
        'arm=only_attn,seed=3,parent=p,smoke',
        'arm=nca,parent=p,tuned',
        'arm=scratch,parent=p,tuned,smoke',
    ],
    'nca_pretrain': [
        '',
        'size=1b6,band=30-40,seed=1',
        'recipe=release',
        'recipe=release,smoke',
        'colours=2,size=10m',
        'colours=3,patch=3,height=6,width=18,measure=zstd',
        'family=life:B3/S23,rules=fixed',
        'family=elementary,measure=change_rate,recipe=release',
        'rules=once,shuffle=tokens',
        'shuffle=frames,band=q25-75,smoke',
        'patch=1,smoke',
        'optimizer=muon,recipe=release',
        'colours=3,patch=3,smoke',
    ],
    'baselines': [
        '',
        'source=shuffle_dyck,size=1b6,recipe=release',
        'source=copy,seed=1,optimizer=adamw',
        'source=copy,smoke',
        'source=noise,recipe=release,smoke',
    ],
    'language': [
        '',
        'corpus=codeparrot,path=p,tokenizer=t',
        'corpus=c4,path=p,tokenizer=t,recipe=release',
        'corpus=c4,path=p,tokenizer=t,tokens=1.6B',
        'corpus=text_files,path=p,field=text,size=tiny',
        'corpus=tfds:gsm8k,path=p,field=question,smoke',
        'parent=p,transfer=only_attn,optimizer=muon',
        'corpus=c4,path=p,optimizer=muon',
        'parent=p,arm=nca tokens',
        'parent=p,recipe=release,smoke',
        'parent=p,parent_stage=dyck,recipe=release',
        'parent=p,parent_stage=copy,transfer=only_attn',
        'parent=p,parent_stage=text,recipe=release,transfer=only_attn,writers=0.2',
    ],
    'gsm8k': [
        '',
        'path=p,parent=p,size=1b6',
        'path=p,parent=p,recipe=release,protocol=readme',
        'parent=p,evaluate',
        'tokenizer=t,smoke',
    ],
    'bigbench': ['', 'path=p,parent=p,size=1b6,recipe=release', 'tokenizer=t,evaluate,smoke'],
    'humaneval': ['', 'path=p,parent=p,run_code', 'parent=p,recipe=release,smoke'],
}


def experiment(name: str, words: str = '') -> ml_collections.ConfigDict:
    return importlib.import_module(f'experiments.{name}').get_config(words)


def test_every_file_is_listed():
    files = {path.stem for path in EXPERIMENTS.glob('*.py')} - {'common', 'smoke', 'tasks', '__init__'}
    assert files == set(WORDS)


@pytest.mark.parametrize(('name', 'words'), [(name, words) for name, lines in WORDS.items() for words in lines])
def test_every_experiment_builds_and_validates(name, words):
    file = experiment(name, words)
    assert file.is_locked
    config = resolve(file)
    again = resolve(configs.to_dict(config))  # what run.json gives back
    assert configs.to_dict(again) == configs.to_dict(config)
    assert configs.identity(again, None) == configs.identity(config, None)
    assert config.smoke == ('smoke' in words)
    run.check_fit(config, meshes.make_mesh(meshes.MeshConfig(1, 1, 1), jax.devices()[:1]))


def test_unknown_words_list_the_known():
    with pytest.raises(ValueError, match=r"unknown word 'sise'.*knows size, band, recipe"):
        experiment('nca_pretrain', 'sise=1b6')
    with pytest.raises(ValueError, match="size = '2b': must be one of tiny, 10m"):
        experiment('nca_pretrain', 'size=2b')
    with pytest.raises(ValueError, match="seed = 'x': must be int"):
        experiment('nca_pretrain', 'seed=x')


def test_one_rule_stays_one_when_it_is_smoke():
    assert resolve(experiment('nca_pretrain', 'rules=fixed,smoke')).data.rules_per_epoch == 1


def test_words_that_would_do_nothing_are_refused():
    with pytest.raises(UserError, match="colours = 15: 2 for the family 'life'"):
        resolve(experiment('nca_pretrain', 'family=life,colours=15'))
    with pytest.raises(ValueError, match='name it by parent=FOLDER'):
        experiment('language', 'writers=0.2')
    with pytest.raises(ValueError, match="parent = 'p': must be a folder for nca and only_attn"):
        experiment('quickstart', 'arm=scratch,parent=p')
    with pytest.raises(ValueError, match="parent = '': must be a folder for nca"):
        experiment('quickstart', 'arm=nca')
    with pytest.raises(ValueError, match=r"corpus = 'pyhton': must be one of openwebtext, .*, c4"):
        experiment('language', 'corpus=pyhton')
    with pytest.raises(ValueError, match="tokens = '164M': is of corpus=c4 alone"):
        experiment('language', 'corpus=openwebtext,tokens=164M')
    with pytest.raises(ValueError, match="tokens = '2B': must be one of 164M"):
        experiment('language', 'corpus=c4,tokens=2B')
    with pytest.raises(ValueError, match="source = 'dick': must be one of dyck, shuffle_dyck, copy, noise"):
        experiment('baselines', 'source=dick')
    with pytest.raises(ValueError, match="parent_stage = 'dick': must be one of nca, dyck, copy, noise, text"):
        experiment('language', 'parent=p,parent_stage=dick')


def test_first_stages_have_the_same_budget_and_the_release_drops_their_head_bias():
    for words in ('corpus=c4,path=p,tokenizer=t', 'corpus=c4,path=p,tokenizer=t,tokens=164M'):
        c4 = experiment('language', words)
        assert c4.train.stop == '163.84M tokens'
        assert c4.arm == 'C4 164M'
    for source in ('dyck', 'shuffle_dyck', 'copy', 'noise'):
        config = experiment('baselines', f'source={source}')
        assert (config.train.to_dict(), config.optimizer.to_dict()) == (c4.train.to_dict(), c4.optimizer.to_dict())
        assert config.train.to_dict() == experiment('nca_pretrain').train.to_dict()
    longer = experiment('language', 'corpus=c4,path=p,tokenizer=t,tokens=1.6B')
    assert (longer.train.stop, longer.arm) == ('1638.4M tokens', 'C4 1.6B')
    assert longer.optimizer.to_dict() == c4.optimizer.to_dict()
    for stage, dropped in {'nca': True, 'dyck': True, 'copy': True, 'noise': True, 'text': False}.items():
        plan = experiment('language', f'parent=p,parent_stage={stage},recipe=release').init_from.plan
        assert (('head/bias', 'drop') in plan) == dropped
        if stage not in ('nca', 'text'):
            assert experiment('baselines', f'source={stage},recipe=release').model.head_bias


def changed(path: str, value: object) -> configs.Config:
    values = experiment('quickstart').to_dict()
    *blocks, field = path.split('.')
    block = values
    for name in blocks:
        block = block[name]
    if value is None:
        del block[field]
    else:
        block[field] = value
    return resolve(values)


@pytest.mark.parametrize(
    ('path', 'value', 'said'),
    [
        ('model.wdith', 3, r'config.model.wdith = 3: unknown field; config.model has layers, width'),
        ('model.width', None, r'config.model.width is missing'),
        ('model.width', 1.5, r'config.model.width = 1.5: must be int, not float'),
        ('model.width', True, r'config.model.width = True: must be int, not bool'),
        ('model.heads', 3, r'config.model.heads = 3: must divide width 128'),
        ('model.init.std', 0.0, r'config.model.init.std = 0.0: must be positive'),
        ('optimizer.lr', -1, r'config.optimizer.lr = -1.0: must be positive'),
        ('optimizer.schedule.final', 2.0, r'config.optimizer.schedule.final = 2.0'),
        ('model.rope_theta', -1, r'config.model.rope_theta = -1.0: must be positive'),
        ('optimizer.decay', 'x', r"config.optimizer.decay = 'x': must be a tuple"),
        ('optimizer.name', 'lion', r"config.optimizer.name = 'lion': must be one of adamw, adam, muon"),
        ('optimizer.schedule.kind', 'flat', r"schedule.kind = 'flat': must be one of cosine, wsd, constant"),
        ('optimizer.state_dtype', 'int8', r"config.optimizer.state_dtype = 'int8': must be 'float32' or 'bfloat16'"),
        ('optimizer.ema', 1.0, r'config.optimizer.ema = 1.0: must be between 0 and 1, or None'),
        ('optimizer.lr_scale', (('head/.*', 0.0),), r"lr_scale = \('head/\.\*', 0.0\): the factor must be positive"),
        ('optimizer.lr_scale', ('head/.*', 2.0), r"config.optimizer.lr_scale\[0\] = 'head/\.\*': must be a tuple"),
        ('optimizer.lr_scale', (('head/.*',),), r"lr_scale\[0\] = \('head/\.\*',\): must have 2 entries"),
        ('optimizer.muon.steps', 0, r'config.optimizer.muon.steps = 0: must be positive'),
        ('optimizer.muon.beta', 1.0, r'config.optimizer.muon.beta = 1.0: must be in \[0, 1\)'),
        ('optimizer.muon.adam_lr', 0.0, r'config.optimizer.muon.adam_lr = 0.0: must be positive, a multiple of lr'),
        ('optimizer.muon.consistent_rms', -1.0, r'muon.consistent_rms = -1.0: must not be negative'),
        ('train.keep', (3,), r'config.train.keep\[0\] = 3: must be str'),
        ('train.accumulate', 3, r'config.train.accumulate = 3: must divide train.batch = 16'),
        ('mesh', 3, r'config.mesh = 3: must be a block with data, fsdp, tensor'),
        ('mesh.fsdp', 0, r'config.mesh.fsdp = 0: must be positive'),
        ('stage', 'nlp', r"config.stage = 'nlp': must be one of nca, text, dyck, copy, noise"),
        ('stage', ['nca'], r"config.stage = \['nca'\]: must be one of"),
        ('stage', 'dyck', r'config.data.[a-z_]+ = .*: unknown field; config.data has kinds, depth'),
        ('profile', '3-1', r"config.profile = '3-1': must be updates, first-last, such as '10-12'"),
        ('track', 'tensorboard', r"config.track = 'tensorboard': must be one of '', 'wandb'"),
        ('seed', -1, r'config.seed = -1'),
        ('seed', 2**32, r'config.seed = 4294967296: must be in 0..2\^32 - 1'),
        ('init_from', START | {'run': ''}, r"config.init_from.run = ''"),
        ('init_from', START | {'weights': 'mean'}, r"config.init_from.weights = 'mean': must be 'params' or 'ema'"),
        ('init_from', START | {'plan': (('.*', 'copy'),)}, r'an action of carry, fresh, drop'),
    ],
)
def test_mistakes_are_one_line(path, value, said):
    with pytest.raises(UserError, match=said) as error:
        changed(path, value)
    assert '\n' not in str(error.value)


def test_identity_ignores_where_things_lie():
    parent = {'identity': 'abc', 'step': 5}
    config = changed('data.cache', '/elsewhere')
    base = resolve(experiment('quickstart'))
    assert configs.identity(config, None) == configs.identity(base, None)
    assert configs.identity(base, parent) != configs.identity(base, None)
    assert configs.identity(base, parent | {'step': 6}) != configs.identity(base, parent)
    assert configs.identity(changed('optimizer.lr', 1e-5), None) != configs.identity(base, None)
    json.dumps(configs.to_dict(config))


@pytest.mark.parametrize('name', ['quickstart', 'nca_pretrain'])
def test_every_other_field_changes_the_identity(name):
    """One after another, in a copy that nothing checks; what a run is watched by and runs on doesn't count."""
    words = {'quickstart': 'arm=nca,parent=p', 'nca_pretrain': ''}[name]
    config = resolve(experiment(name, words))
    identity, left_out = configs.identity(config, None), set()

    def visit(block, path: str) -> None:
        for field in dataclasses.fields(block):
            kept, here = getattr(block, field.name), f'{path}{field.name}'
            if dataclasses.is_dataclass(kept):
                visit(kept, f'{here}.')
                continue
            object.__setattr__(block, field.name, 'another')
            if configs.identity(config, None) == identity:
                left_out.add(here)
            object.__setattr__(block, field.name, kept)

    visit(config, '')
    mesh = {f'mesh.{field.name}' for field in dataclasses.fields(config.mesh)}
    text = {'quickstart': {'data.path', 'data.cache', 'data.tokenizer', 'init_from.run'}, 'nca_pretrain': set()}[name]
    memory = {'model.remat', 'model.unroll', 'model.loss_chunks'}
    assert left_out == {'profile', 'track', *mesh, *memory, *text}


def test_named_plans_carry_what_they_say():
    """Every plan, resolved against a model's own leaves, accounts for each and carries the parts of its name."""
    from nca_jax.batch import Vocab
    from nca_jax.model import transformer

    model = resolve(experiment('quickstart')).model
    shapes = transformer.abstract_params(model, Vocab(300))
    parts = {
        'attn': {
            'blocks/attn/q/kernel',
            'blocks/attn/k/kernel',
            'blocks/attn/v/kernel',
            'blocks/attn/o/kernel',
            'blocks/attn_norm/scale',
        },
        'mlp': {'blocks/mlp/gate/kernel', 'blocks/mlp/up/kernel', 'blocks/mlp/down/kernel', 'blocks/mlp_norm/scale'},
        'norms': {'blocks/attn_norm/scale', 'blocks/mlp_norm/scale', 'final_norm/scale'},
    }
    body = parts['attn'] | parts['mlp'] | parts['norms']
    expected = {'all': body}
    expected |= {f'only_{name}': leaves for name, leaves in parts.items()}
    fresh = {name: leaves - parts['norms'] for name, leaves in parts.items()} | {'norms': parts['norms']}
    expected |= {f'reinit_{name}': body - leaves for name, leaves in fresh.items()}
    for transfer, carried in expected.items():
        plan = graft.parse(common.transfer_plan(transfer, writers=0.2))
        pieces = graft.resolve(plan, shapes, shapes, 300, 300)
        assert graft.carried(pieces) == carried, transfer
        for leaf in common.WRITERS.values():
            if leaf in carried:
                assert next(piece for piece in pieces if piece.path == leaf).scale == 0.2, transfer
    with pytest.raises(ValueError, match="transfer = 'half': must be one of all, only_attn"):
        common.transfer_plan('half', 1.0)


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        resolve(experiment('quickstart')).seed = 3


def test_changed_fields_are_read_as_python_writes_values():
    texts = ('3', '1e-3', '(0.5, 2)', 'None', 'life:B3/S23', '{[1]:2}')
    assert [literal(text) for text in texts] == [3, 1e-3, (0.5, 2), None, 'life:B3/S23', '{[1]:2}']
    with pytest.raises(UserError, match=r'no block data\.band'):
        load('experiments/nca_pretrain.py:smoke', [('data.band.low', '3')])
