"""Whole runs: resumption to the bit, grafting from a parent, preemption, and what stops a run before it starts."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments import baselines, language, nca_pretrain, quickstart
from nca_jax import config as configs
from nca_jax import folders, run, stages, trees
from nca_jax import mesh as meshes
from nca_jax.checkpoint.store import committed, read_manifest
from nca_jax.errors import NotFiniteError, UserError
from nca_jax.experiment import resolve
from nca_jax.train import loop
from tests.runs import load_program

WALL_CLOCK = ('time', 'tokens_per_s', 'data_wait', 'seconds')


@pytest.fixture(scope='module')
def cache(tmp_path_factory) -> pathlib.Path:
    """A small corpus and the runs that tests share."""
    folder = tmp_path_factory.mktemp('runs')
    (folder / 'corpus').mkdir()
    for number in range(60):
        text = '\n'.join(f'def f{i}(x):\n    return x * {i} + {number}' for i in range(60))
        (folder / 'corpus' / f'{number}.py').write_text(text)
    return folder


def config(cache: pathlib.Path, words: str, **changes) -> configs.Config:
    """A smoke config of the quickstart over the small corpus; `train__stop='2 steps'` changes one field."""
    return adjusted(quickstart.get_config(f'{words},smoke'), cache, **changes)


def adjusted(file, cache: pathlib.Path, **changes) -> configs.Config:
    if file.stage == 'text':
        file.data.update({'corpus': 'text_files', 'path': str(cache / 'corpus'), 'cache': str(cache / 'text')})
    if file.stage == 'nca':
        file.data.rules_per_epoch = min(file.data.rules_per_epoch, 20)  # six batches of eight use three sets
    for path, value in changes.items():
        block, field = path.split('__')
        file[block][field] = value
    return resolve(file)


def train(wanted: configs.Config, folder: pathlib.Path) -> pathlib.Path:
    run.train(wanted, folder, loop.Preemption())
    return folder


@pytest.fixture(scope='module')
def automata(cache) -> pathlib.Path:
    return train(config(cache, 'arm=automata'), cache / 'automata')


@pytest.fixture(scope='module')
def scratch(cache) -> pathlib.Path:
    return train(config(cache, 'arm=scratch'), cache / 'scratch')


def metrics(folder: pathlib.Path) -> list[dict]:
    """The records without what the clock says."""
    records = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    return [{name: value for name, value in record.items() if name not in WALL_CLOCK} for record in records]


def checksums(folder: pathlib.Path) -> dict[str, int]:
    return {row['path']: row['checksum'] for row in read_manifest(folder / 'checkpoints')['leaves']}


def interrupt(monkeypatch, at: int, how) -> None:
    """Calls `how` when the stream is asked for the batch of step `at`."""
    build = run.build

    def building(*args):
        program = build(*args)

        def stream(step):
            if step == at:
                how()
            return program.data.stream(step)

        return dataclasses.replace(program, data=dataclasses.replace(program.data, stream=stream))

    monkeypatch.setattr(run, 'build', building)


class CrashError(Exception):
    pass


def crash():
    raise CrashError


@pytest.mark.parametrize('at', [2, pytest.param(5, marks=pytest.mark.full)])
@pytest.mark.parametrize('words', ['arm=automata', 'arm=scratch'])
def test_six_steps_equal_some_and_a_crash_and_the_rest(cache, automata, scratch, tmp_path, monkeypatch, words, at):
    """The newest checkpoint is of step 3 or there is none yet; later metrics were already written."""
    whole = automata if words == 'arm=automata' else scratch
    with monkeypatch.context() as patched:
        interrupt(patched, at=at, how=crash)
        with pytest.raises(CrashError):
            train(config(cache, words), tmp_path / 'run')
    assert max(record['step'] for record in metrics(tmp_path / 'run')) == at - 1
    train(config(cache, words), tmp_path / 'run')
    assert metrics(tmp_path / 'run') == metrics(whole)
    assert checksums(tmp_path / 'run') == checksums(whole)
    train(config(cache, words), tmp_path / 'run')  # a finished run stays as it is
    assert metrics(tmp_path / 'run') == metrics(whole)


def test_sigterm_saves_and_exits_75(cache, scratch, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        interrupt(patched, at=4, how=lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit) as stopped:
            train(config(cache, 'arm=scratch'), tmp_path / 'run')
    assert stopped.value.code == 75
    assert read_manifest(tmp_path / 'run' / 'checkpoints')['step'] == 5  # the update in flight is finished
    train(config(cache, 'arm=scratch'), tmp_path / 'run')
    assert metrics(tmp_path / 'run') == metrics(scratch)
    assert checksums(tmp_path / 'run') == checksums(scratch)


def test_sigterm_before_the_first_step_ends_it_at_once(cache, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        interrupt(patched, at=0, how=lambda: os.kill(os.getpid(), signal.SIGTERM))  # the batch to compile for
        with pytest.raises(SystemExit) as stopped:
            train(config(cache, 'arm=scratch'), tmp_path / 'run')
    assert stopped.value.code == 75
    assert committed(tmp_path / 'run' / 'checkpoints') == []


def test_a_run_goes_on_with_other_devices_and_watched_otherwise(cache, scratch, tmp_path, monkeypatch):
    """What isn't part of its identity: the mesh, a trace, a tracker."""
    with monkeypatch.context() as patched:
        interrupt(patched, at=4, how=crash)
        with pytest.raises(CrashError):
            train(config(cache, 'arm=scratch'), tmp_path / 'run')
    watched = config(cache, 'arm=scratch', mesh__fsdp=2)
    watched = dataclasses.replace(watched, profile='5-6', track='wandb')
    monkeypatch.delenv('WANDB_MODE', raising=False)
    train(watched, tmp_path / 'run')
    found, whole = metrics(tmp_path / 'run'), metrics(scratch)
    assert [record['step'] for record in found] == [record['step'] for record in whole]
    losses, expected = ([record['loss'] for record in records if 'loss' in record] for records in (found, whole))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert {'profile', 'wandb'} <= {path.name for path in (tmp_path / 'run').iterdir()}


def test_a_watcher_that_cannot_be_had_stops_a_run_before_it_starts(cache, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    wanted = dataclasses.replace(config(cache, 'arm=scratch'), track='wandb')
    refuse(wanted, tmp_path / 'run', "config.track = 'wandb': the package isn't installed")
    late = quickstart.get_config('arm=scratch,smoke')
    late.profile = '5-7'
    with pytest.raises(UserError, match=r"^config\.profile = '5-7': the last update is 6$"):
        resolve(late)


def test_named_steps_are_kept_for_good(cache, tmp_path):
    kept = {'train__save_every': '1 steps', 'train__keep_last': 1, 'train__keep': ('2 steps', '2048 tokens')}
    train(config(cache, 'arm=scratch', **kept), tmp_path / 'run')
    assert committed(tmp_path / 'run' / 'checkpoints') == [2, 4, 6]


def test_text_may_lie_in_the_runs_own_folder(cache, scratch, tmp_path, monkeypatch):
    own = config(cache, 'arm=scratch', data__cache='')
    with monkeypatch.context() as patched:
        patched.setattr(stages, 'make_evaluator', lambda *_: crash())  # only the text is prepared
        with pytest.raises(CrashError):
            train(own, tmp_path / 'run')
    train(own, tmp_path / 'run')
    assert metrics(tmp_path / 'run') == metrics(scratch)


def test_a_run_does_not_go_on_with_other_text(cache, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        interrupt(patched, at=5, how=crash)
        with pytest.raises(CrashError):
            train(config(cache, 'arm=scratch'), tmp_path / 'run')
    (tmp_path / 'corpus').mkdir()
    for file in sorted((cache / 'corpus').iterdir())[1:]:
        (tmp_path / 'corpus' / file.name).write_bytes(file.read_bytes())
    other = config(cache, 'arm=scratch', data__path=str(tmp_path / 'corpus'))
    with pytest.raises(UserError, match='run: is a run on other data'):
        train(other, tmp_path / 'run')


@pytest.mark.full
@pytest.mark.parametrize('recipe', ['paper', 'release'])
def test_the_papers_stages_train_and_resume_with_dropout(cache, tmp_path, monkeypatch, recipe):
    """Adam, tied tables or a biased head, accumulation and dropout, in both stages."""
    first = adjusted(nca_pretrain.get_config(f'recipe={recipe},smoke'), cache, train__accumulate=2, train__batch=16)
    train(first, tmp_path / 'first')
    words = f'recipe={recipe},corpus=text_files,path={cache}/corpus,parent={tmp_path}/first,smoke'
    second = adjusted(language.get_config(words), cache, train__accumulate=2, train__batch=16)
    whole = train(second, tmp_path / 'whole')
    with monkeypatch.context() as patched:
        interrupt(patched, at=5, how=crash)
        with pytest.raises(CrashError):
            train(second, tmp_path / 'run')
    train(second, tmp_path / 'run')
    assert metrics(tmp_path / 'run') == metrics(whole)
    assert checksums(tmp_path / 'run') == checksums(whole)
    assert first.model.dropout == second.model.dropout == 0.1


def baseline(cache: pathlib.Path, words: str, **changes) -> configs.Config:
    return adjusted(baselines.get_config(f'{words},smoke'), cache, **changes)


@pytest.mark.parametrize(
    'source', ['dyck', *(pytest.param(name, marks=pytest.mark.full) for name in ('shuffle_dyck', 'copy', 'noise'))]
)
def test_every_baseline_trains_resumes_and_is_evaluated(cache, tmp_path, monkeypatch, source):
    wanted = baseline(cache, f'source={source}')
    with monkeypatch.context() as patched:
        interrupt(patched, at=5, how=crash)
        with pytest.raises(CrashError):
            train(wanted, tmp_path / 'run')
    assert [r['step'] for r in metrics(tmp_path / 'run') if r['kind'] == 'eval'] == [0, 3]
    train(wanted, tmp_path / 'run')
    found = [record for record in metrics(tmp_path / 'run') if record['kind'] == 'eval']
    assert [(record['evaluator'], record['step']) for record in found] == [('held_out', step) for step in (0, 3, 6)]
    assert all({'loss', 'accuracy'} <= record.keys() for record in found)
    assert all(('close_accuracy' in record) == ('dyck' in source) for record in found)
    assert folders.read_record(tmp_path / 'run')['data'] == {}


def test_a_text_run_starts_from_dyck(cache, tmp_path):
    """The release's recipe: a biased head in the first stage, of which the second has none."""
    parent = train(baseline(cache, 'source=dyck,recipe=release'), tmp_path / 'parent')
    words = f'recipe=release,corpus=text_files,path={cache}/corpus,parent={parent},parent_stage=dyck,smoke'
    child = adjusted(language.get_config(words), cache)
    program = run.build(child, meshes.make_mesh(child.mesh), tmp_path)
    manifest = folders.read_parent(child.init_from)
    own, _ = folders.carry(child, program, program.init().params, manifest, say=lambda line: None)
    carried, own = params_of(parent), trees.flatten(jax.device_get(own))
    assert 'head/bias' in carried
    assert 'head/bias' not in own
    for path in own:
        same = np.array_equal(own[path], carried[path])
        assert same == (path.startswith('blocks/') or path == 'final_norm/scale'), path


def test_data_that_does_not_fit_the_model(cache, tmp_path):
    for words, changes, said in (
        ('source=noise', {'data__size': 2**20 + 1}, r'config.data.size = 1048577: .*at most 1,048,576 tokens'),
        ('source=copy', {'data__size': 2**30}, r'config.data.size = 1073741824: .*at most 1,048,576 tokens'),
        ('source=copy', {'data__period': (4, 64)}, r'config.data.period = \(4, 64\): .*below config.model.length = 64'),
        ('source=dyck', {'data__depth': 0}, r'config.data.depth = 0: .* depth in 1\.\.255'),
    ):
        with pytest.raises(UserError, match=said) as error:
            train(baseline(cache, words, **changes), tmp_path / 'run')
        assert '\n' not in str(error.value)
    with pytest.raises(UserError, match=r'config.data.vocab_size = 1048577: .*at most 1,048,576 tokens'):
        train(config(cache, 'arm=scratch', data__vocab_size=2**20 + 1), tmp_path / 'run')
    file = quickstart.get_config('arm=automata,smoke')
    file.data.rule.colours = 33
    file.data.complexity.bytes_per_token = 4
    with pytest.raises(UserError, match=r'config.data.rule.colours = 33: .*at most 1,048,576 tokens.* 1,185,923'):
        train(adjusted(file, cache), tmp_path / 'run')


def test_a_loss_that_is_not_finite_names_its_step(cache, tmp_path):
    wild = config(cache, 'arm=scratch', optimizer__lr=1e30, train__save_every='1 steps')
    with pytest.raises(NotFiniteError, match=r'step \d: .*stream\(\d\)') as error:
        train(wild, tmp_path / 'run')
    step = int(str(error.value)[5])
    manifest = read_manifest(tmp_path / 'run' / 'checkpoints')
    assert manifest['step'] < step
    assert all(record['step'] < step for record in metrics(tmp_path / 'run'))


def params_of(folder: pathlib.Path) -> dict:
    mesh = meshes.make_mesh(meshes.MeshConfig(-1, 1, 1))
    return trees.flatten(jax.device_get(load_program(folder, mesh)[2]))


def test_a_transfer_carries_what_its_plan_says(cache, automata, tmp_path):
    """Step 0 of the child: attention is the parent's to the bit (writers at a fifth), the rest fresh."""
    child = config(cache, f'arm=only_attn,parent={automata}', train__stop='0 steps')
    mesh = meshes.make_mesh(child.mesh)
    program = run.build(child, mesh, tmp_path)
    fresh = jax.device_get(program.init().params)
    carried, lineage = folders.carry(
        child, program, program.init().params, folders.read_parent(child.init_from), say=lambda line: None
    )
    parent = params_of(automata)
    for path, leaf in trees.flatten(jax.device_get(carried)).items():
        if path == 'blocks/attn/o/kernel':
            np.testing.assert_array_equal(leaf, parent[path] * np.float32(0.2))
        elif path.startswith('blocks/attn'):
            np.testing.assert_array_equal(leaf, parent[path])
        else:
            np.testing.assert_array_equal(leaf, trees.flatten(fresh)[path])
            if 'kernel' in path or 'table' in path:
                assert leaf.shape != parent[path].shape or not np.array_equal(leaf, parent[path])
    assert (lineage['step'], lineage['tokens']) == (6, 6 * 8 * 64)
    # Paired arms: scratch at the same seed and scales starts from the very leaves that are fresh here.
    scratch_config = dataclasses.replace(config(cache, 'arm=scratch'), model=child.model)
    scratch = run.build(scratch_config, mesh, tmp_path).init().params
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(scratch), fresh)


def test_a_run_trained_with_a_kernel_is_read_where_there_is_none(automata, tmp_path):
    shutil.copytree(automata, tmp_path / 'run')
    record = json.loads((automata / 'run.json').read_text())
    record['config']['model']['attention'] = 'splash'
    (tmp_path / 'run' / 'run.json').write_text(json.dumps(record))
    jax.tree.map(np.testing.assert_array_equal, params_of(tmp_path / 'run'), params_of(automata))


def test_arms_see_the_same_text(cache, automata, tmp_path):
    arms = [config(cache, 'arm=scratch'), config(cache, f'arm=nca,parent={automata}')]
    first, second = (run.build(arm, meshes.make_mesh(arm.mesh), tmp_path).data.stream for arm in arms)
    for step in (0, 5):
        np.testing.assert_array_equal(first(step).inputs_BxL, second(step).inputs_BxL)
    other = run.build(dataclasses.replace(arms[0], seed=1), meshes.make_mesh(arms[0].mesh), tmp_path).data.stream
    assert not np.array_equal(first(0).inputs_BxL, other(0).inputs_BxL)


def test_a_run_leaves_what_its_report_needs(automata, scratch):
    record = folders.read_record(automata)
    assert record['stage'] == 'nca'
    assert record['config']['smoke'] is True
    assert {path.name for path in automata.iterdir()} >= {
        'automata.npz',
        'complexity.json',
        'metrics.jsonl',
        'tensorboard',
    }
    kinds = [(row['kind'], row['step']) for row in metrics(scratch)]
    assert kinds[0] == ('eval', 0)
    assert kinds[-2:] == [('eval', 6), ('done', 6)]
    assert [step for kind, step in kinds if kind == 'eval'] == [0, 3, 6]


def test_evaluation_alone_is_a_run_of_zero_steps(cache, scratch, tmp_path):
    alone = quickstart.get_config(f'arm=nca,parent={scratch},smoke')
    alone.data.update({'corpus': 'text_files', 'path': str(cache / 'corpus'), 'cache': str(cache / 'text')})
    alone.train.stop = '0 steps'
    alone.init_from.plan = (('.*', 'carry'),)
    train(resolve(alone), tmp_path / 'run')
    (evaluated, done) = metrics(tmp_path / 'run')
    assert evaluated['loss'] == metrics(scratch)[-2]['loss']
    assert done['kind'] == 'done'


def refuse(wanted: configs.Config, folder: pathlib.Path, said: str) -> None:
    """The run is refused with one line, and nothing in its folder changes."""

    def stamps() -> dict:
        return {path: path.stat().st_mtime_ns for path in folder.rglob('*')}

    before = stamps()
    with pytest.raises(UserError, match=said) as error:
        train(wanted, folder)
    assert '\n' not in str(error.value)
    assert stamps() == before


def test_what_stops_a_run_before_it_starts(cache, automata, scratch, tmp_path):
    new = tmp_path / 'new'
    refuse(config(cache, 'arm=scratch', optimizer__lr=3e-4), scratch, 'holds the run of another config')
    (tmp_path / 'foreign').mkdir()
    (tmp_path / 'foreign' / 'thesis.tex').write_text('')
    refuse(config(cache, 'arm=scratch'), tmp_path / 'foreign', 'not a run: it holds thesis.tex')
    refuse(config(cache, 'arm=nca,parent=nowhere'), new, 'nowhere/checkpoints: no such folder')
    (tmp_path / 'empty' / 'checkpoints').mkdir(parents=True)
    refuse(config(cache, f'arm=nca,parent={tmp_path}/empty'), new, 'no valid checkpoint')
    refuse(config(cache, 'arm=scratch', train__batch=12), new, r'config.train.batch = 12: .*multiple of 8 devices')
    refuse(config(cache, 'arm=scratch', mesh__tensor=8), new, r'config.model.heads = 2: .*mesh.tensor = 8')
    fused = {'model__attention': 'splash', 'model__length': 128}
    refuse(config(cache, 'arm=scratch', **fused), new, r"attention = 'splash': .* that a cpu has: einsum$")
    (tmp_path / 'file').write_text('')
    refuse(config(cache, 'arm=scratch'), tmp_path / 'file', 'file: File exists')
    assert not new.exists()


def test_impossible_durations_are_no_config(cache):
    schedule = {'kind': 'cosine', 'warmup': '10%', 'horizon': 'soon', 'final': 0.1, 'decay': '20%'}
    for changes, said in (
        ({'train__stop': 'soon'}, r"config.train.stop = 'soon'"),
        ({'train__keep': ('7 steps',)}, r"config.train.keep = '7 steps': step 7 comes"),
        ({'optimizer__schedule': schedule}, r"config.optimizer.schedule.horizon = 'soon'"),
    ):
        with pytest.raises(UserError, match=said) as error:
            config(cache, 'arm=scratch', **changes)
        assert '\n' not in str(error.value)


def test_a_plan_that_leaves_a_leaf_uncovered(cache, automata, tmp_path):
    child = config(cache, f'arm=nca,parent={automata}', init_from__plan=(('blocks/.*', 'carry'), ('embed/.*', 'fresh')))
    with pytest.raises(UserError, match='no entry covers final_norm/scale'):
        train(child, tmp_path / 'run')
    assert not (tmp_path / 'run' / 'metrics.jsonl').exists()


@pytest.mark.parametrize(('field', 'value'), [('rope_theta', 5e5), ('norm_eps', 1e-5)])
def test_layers_are_carried_only_into_the_same_layers(cache, automata, tmp_path, field, value):
    """No shape tells them apart, so what comes out would be another function without a word."""
    child = config(cache, f'arm=only_attn,parent={automata}', **{f'model__{field}': value})
    with pytest.raises(UserError, match=f'config.model.{field} = {value}: must be .*, as in {automata}, whose layers'):
        train(child, tmp_path / 'run')
    assert not (tmp_path / 'run' / 'metrics.jsonl').exists()


def test_an_unfinished_parent_must_be_named_by_step(cache, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        interrupt(patched, at=4, how=lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit):
            train(config(cache, 'arm=automata', train__stop='7 steps'), tmp_path / 'parent')
    child = config(cache, f'arm=nca,parent={tmp_path}/parent')
    with pytest.raises(UserError, match='is at step 5 of 7: finish it, or name the step'):
        train(child, tmp_path / 'run')
    by_step = config(cache, f'arm=nca,parent={tmp_path}/parent', init_from__step=5, train__stop='0 steps')
    train(by_step, tmp_path / 'run')


def test_two_processes_do_not_share_a_folder(cache, tmp_path):
    with folders.owned(tmp_path / 'run', 'x'), pytest.raises(UserError, match='in use by another process'):
        train(config(cache, 'arm=scratch'), tmp_path / 'run')


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['--config=experiments/quickstart.py:colour=red'], "unknown word 'colour'"),
        (['--config=experiments/quickstart.py', '--config.model.wdith=3'], 'wdith'),
        (['--config=experiments/nowhere.py:seed=1'], 'experiments/nowhere.py: no such experiment file'),
        (['--config=experiments/quickstart.py:arm=nca,parent=nowhere,smoke'], 'nowhere/checkpoints: no such folder'),
        (
            ['--config=experiments/quickstart.py', '--config.model.heads=3'],
            'config.model.heads = 3: must divide width 128',
        ),
        ([], '--config'),
    ],
)
def test_the_command_line_says_one_line_and_exits_2(tmp_path, arguments, said):
    command = [sys.executable, '-m', 'nca_jax.main', f'--workdir={tmp_path / "run"}', *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=pathlib.Path(__file__).parents[1])
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (tmp_path / 'run').exists()


def test_help_is_useful():
    command = [sys.executable, '-m', 'nca_jax', 'train', '--help']
    done = subprocess.run(command, capture_output=True, text=True, cwd=pathlib.Path(__file__).parents[1])
    assert '--workdir' in done.stdout
    assert 'experiments/nca_pretrain.py' in done.stdout
