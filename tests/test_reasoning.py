"""The last stage as whole runs: tuned from a text run, asked before and after, killed, and evaluated alone."""

import json
import os
import pathlib
import shutil
import signal

import numpy as np
import pytest

from experiments import baselines, bigbench, gsm8k, humaneval, language, nca_pretrain, quickstart
from nca_jax import config as configs
from nca_jax import folders
from nca_jax import mesh as meshes
from nca_jax.checkpoint.store import read_manifest
from nca_jax.data import tokenizer
from nca_jax.errors import FieldError, UserError
from nca_jax.experiment import resolve
from nca_jax.problems import gsm8k as answers
from nca_jax.problems import sets
from tests.runs import load_program
from tests.test_export import write_corpus
from tests.test_run import CrashError, adjusted, checksums, config, crash, interrupt, metrics, refuse, train

GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'gsm8k'


@pytest.fixture(scope='module')
def cache(tmp_path_factory) -> pathlib.Path:
    return write_corpus(tmp_path_factory.mktemp('reasoning'))


@pytest.fixture(scope='module')
def parent(cache) -> pathlib.Path:
    return train(config(cache, 'arm=scratch'), cache / 'scratch')


def tuned(parent: pathlib.Path, words: str = '') -> configs.Config:
    return resolve(quickstart.get_config(f'arm=scratch,parent={parent},tuned,smoke{words}'))


@pytest.fixture(scope='module')
def child(cache, parent) -> pathlib.Path:
    return train(tuned(parent), cache / 'tuned')


def evaluated(folder: pathlib.Path, name: str) -> list[dict]:
    return [record for record in metrics(folder) if record['kind'] == 'eval' and record['evaluator'] == name]


def graded_by(is_right) -> sets.ProblemSource:
    return sets.SOURCES['arithmetic']._replace(is_right=is_right)


def test_a_text_model_is_tuned_and_asked_before_and_after(parent, child):
    asked, losses = evaluated(child, 'benchmark'), evaluated(child, 'held_out')
    assert json.loads((child / 'run.json').read_text())['evaluator'] == 'benchmark'
    assert [record['step'] for record in asked] == [record['step'] for record in losses] == [0, 3, 6]
    assert losses[-1]['loss'] < losses[0]['loss']
    assert {record['problems'] for record in asked} == {6}  # two of each of three tasks
    assert len(list((child / 'answers').glob('step-*.jsonl'))) == 3
    manifest = folders.read_record(child)
    assert manifest['data'].keys() == {'problems', 'tokenizer', 'benchmark'}
    assert manifest['data']['tokenizer'] == folders.read_record(parent)['data']['tokenizer']
    assert manifest['parent']['identity'] == folders.read_record(parent)['identity']


def test_six_steps_equal_some_and_a_crash_and_the_rest(parent, child, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        interrupt(patched, at=5, how=crash)
        with pytest.raises(CrashError):
            train(tuned(parent), tmp_path / 'run')
    train(tuned(parent), tmp_path / 'run')
    assert metrics(tmp_path / 'run') == metrics(child)
    assert checksums(tmp_path / 'run') == checksums(child)


def test_a_run_killed_while_it_is_asked_goes_on(parent, child, tmp_path, monkeypatch):
    """In the second evaluation, after a few of its problems: they aren't asked again."""
    asked = []

    def same(text: str, right: tuple[str, ...]) -> bool:
        asked.append(text)
        if len(asked) == 20:
            raise CrashError
        return answers.same_number(text, right)

    with monkeypatch.context() as patched:
        patched.setitem(sets.SOURCES, 'arithmetic', graded_by(same))
        with pytest.raises(CrashError):
            train(tuned(parent), tmp_path / 'run')
    (half,) = (tmp_path / 'run' / 'answers').glob('step-3-*.jsonl')
    kept = len(half.read_text().splitlines())
    assert 0 < kept < 6
    asked.clear()
    with monkeypatch.context() as patched:
        patched.setitem(
            sets.SOURCES, 'arithmetic', graded_by(lambda *text: asked.append(text) or answers.same_number(*text))
        )
        train(tuned(parent), tmp_path / 'run')
    assert len(asked) == 2 * (6 - kept) + 2 * 6  # the rest of the second evaluation, and the third
    assert metrics(tmp_path / 'run') == metrics(child)


@pytest.mark.parametrize('signalled', [False, True])
def test_what_was_tuned_is_saved_before_it_is_asked(parent, child, tmp_path, monkeypatch, signalled):
    """A crash or SIGTERM in the last evaluation: it goes on from there, and nothing is trained again."""
    asked = []

    def same(text: str, right: tuple[str, ...]) -> bool:
        asked.append(text)
        if len(asked) == 2 * 12 + 7:
            os.kill(os.getpid(), signal.SIGTERM) if signalled else crash()
        return answers.same_number(text, right)

    with monkeypatch.context() as patched:
        patched.setitem(sets.SOURCES, 'arithmetic', graded_by(same))
        with pytest.raises(SystemExit if signalled else CrashError):
            train(tuned(parent), tmp_path / 'run')
    assert read_manifest(tmp_path / 'run' / 'checkpoints')['step'] == 6
    with monkeypatch.context() as patched:
        for step in range(6):
            interrupt(patched, at=step, how=crash)
        train(tuned(parent), tmp_path / 'run')
    assert metrics(tmp_path / 'run') == metrics(child)
    assert checksums(tmp_path / 'run') == checksums(child)


def test_evaluation_alone_is_a_run_of_zero_steps(child, tmp_path):
    alone = quickstart.get_config(f'arm=scratch,parent={child},tuned,smoke')
    alone.train.stop = '0 steps'
    folder = train(resolve(alone), tmp_path / 'run')
    (before,) = evaluated(folder, 'benchmark')
    assert before | {'step': 6, 'tokens': 0} == evaluated(child, 'benchmark')[-1] | {'tokens': 0}


def test_a_tuned_run_is_read_like_any_other(child):
    """By what it holds itself: its parent isn't needed."""
    _, program, params, _ = load_program(child, meshes.make_mesh(meshes.MeshConfig(-1, 1, 1)))
    found = {name: evaluate(params, 6) for name, evaluate in program.data.evaluators.items()}
    assert found['benchmark']['pass@1'] == evaluated(child, 'benchmark')[-1]['pass@1']
    np.testing.assert_allclose(found['held_out']['loss'], evaluated(child, 'held_out')[-1]['loss'], rtol=1e-5)


def test_a_text_run_is_asked_on_its_way(cache, tmp_path):
    file = language.get_config('size=tiny,smoke')
    with file.unlocked():
        file.benchmark = quickstart.get_config('arm=scratch,parent=p,tuned,smoke').benchmark
    folder = train(adjusted(file, cache), tmp_path / 'run')
    assert [record['step'] for record in evaluated(folder, 'benchmark')] == [0, 3, 6]
    assert [record['step'] for record in evaluated(folder, 'perplexity')] == [0, 3, 6]


def test_programs_may_be_judged_when_the_run_is_over(parent, tmp_path):
    """The same command with run_code: the answers are there, and only judged."""
    words = f'parent={parent},recipe=release,smoke'
    folder = train(resolve(humaneval.get_config(words)), tmp_path / 'run')
    (file,) = (path for path in (folder / 'answers').glob('*.jsonl') if '.' not in path.stem)
    written = file.read_bytes()
    train(resolve(humaneval.get_config(f'{words},run_code')), folder)
    assert [record['pass@1'] for record in evaluated(folder, 'benchmark')] == [0.0]
    assert file.read_bytes() == written


@pytest.mark.parametrize('name', [gsm8k, bigbench, humaneval])
def test_every_benchmark_runs_from_a_checkpoint(cache, parent, tmp_path, name):
    words = f'parent={parent},recipe=release,smoke'  # as the parent, which isn't tied
    words += ',evaluate' if name is gsm8k else ''  # its tuning is bigbench's
    folder = train(resolve(name.get_config(words)), tmp_path / 'run')
    last = evaluated(folder, 'benchmark')[-1]
    assert last['step'] == (6 if name is bigbench else 0)
    assert ('pass@2' in last) == (name is not humaneval)
    assert ('chance_pass@2' in last) == (name is bigbench)
    assert (folder / tokenizer.FILE).exists()


def test_a_model_that_has_read_no_text_is_asked_too(parent, tmp_path):
    """With fresh tables, for it has none for text, and a tokenizer that is named."""
    brackets = train(resolve(baselines.get_config('source=dyck,smoke')), tmp_path / 'brackets')
    found = tokenizer.load_of_run(parent, folders.read_record(parent))
    found.save(str(tmp_path / 'tokenizer.json'))
    words = f'parent={brackets},parent_stage=dyck,evaluate,smoke'
    with pytest.raises(UserError, match=r"^config.data.tokenizer = '': must be a tokenizer.json, since no parent"):
        train(resolve(gsm8k.get_config(words)), tmp_path / 'run')
    config = resolve(gsm8k.get_config(f'{words},tokenizer={tmp_path / "tokenizer.json"}'))
    folder = train(config, tmp_path / 'run')
    assert config.arm == 'brackets'
    assert [record['step'] for record in evaluated(folder, 'benchmark')] == [0]


def test_words_that_say_nothing_about_a_tuned_model():
    with pytest.raises(ValueError, match='tuned carries all tables, and draws none'):
        quickstart.get_config('arm=scratch,parent=p,tuned,tables=0.04')
    assert quickstart.get_config('arm=scratch,parent=p,tuned,lr=0.001').arm == 'scratch lr=0.001'


def test_only_the_tokenizer_of_carried_tables_will_do(cache, parent, tmp_path):
    """Another of the same size is refused, and what a beginning that failed has left is not taken for the parent's."""
    found = tokenizer.load_of_run(parent, folders.read_record(parent))
    other = tokenizer.train((f'{number * 7919}' for number in range(2000)), found.get_vocab_size())
    assert other.get_vocab_size() == found.get_vocab_size()
    other.save(str(tmp_path / 'other.json'))
    words = f'parent={parent},recipe=release,evaluate,smoke'
    named = resolve(gsm8k.get_config(f'{words},tokenizer={tmp_path / "other.json"}'))
    with pytest.raises(UserError, match=f'^config.data.tokenizer: must be that of {parent}, because its tables'):
        train(named, tmp_path / 'named')
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'lock').touch()
    shutil.copy(tmp_path / 'other.json', tmp_path / 'run' / tokenizer.FILE)
    folder = train(resolve(gsm8k.get_config(words)), tmp_path / 'run')
    assert folders.read_record(folder)['data']['tokenizer'] == folders.read_record(parent)['data']['tokenizer']


def test_a_finished_evaluation_takes_no_other_problems(parent, tmp_path):
    """Which would mix two runs in one folder: it has no checkpoint that could tell."""
    for name in ('one', 'two'):
        shutil.copytree(GOLDEN, tmp_path / name)
    test = tmp_path / 'two' / 'test.jsonl'
    test.write_text(''.join(test.read_text().splitlines(keepends=True)[1:]))
    words = f'parent={parent},recipe=release,evaluate,smoke,path={tmp_path}'
    folder = train(resolve(gsm8k.get_config(f'{words}/one')), tmp_path / 'run')
    before = (folder / 'metrics.jsonl').read_bytes()
    with pytest.raises(UserError, match='is a run on other data'):
        train(resolve(gsm8k.get_config(f'{words}/two')), folder)
    assert (folder / 'metrics.jsonl').read_bytes() == before


def test_what_stops_a_run_before_it_starts(parent, child, tmp_path):
    file = humaneval.get_config(f'parent={parent},smoke')
    file.train.stop = '1 steps'
    refuse(resolve(file), tmp_path / 'a', "config.train.stop = '1 steps': must be '0 steps': humaneval trains")
    file = gsm8k.get_config(f'parent={parent},smoke')
    with file.unlocked(), file.ignore_type():
        file.benchmark = None
    refuse(resolve(file), tmp_path / 'none', 'config.benchmark = None: must be set')
    file = gsm8k.get_config(f'parent={parent},smoke')
    file.benchmark.batch.rows = 12
    refuse(resolve(file), tmp_path / 'b', 'config.benchmark.batch.rows = 12')
    bad = gsm8k.get_config(f'parent={parent},smoke')
    bad.benchmark.max_tokens = 1020
    large = gsm8k.get_config(f'parent={parent},smoke')
    large.model.layers = 3
    text = language.get_config('size=tiny,smoke')
    text.data.cache = str(tmp_path / 'c')
    shutil.copytree(GOLDEN, tmp_path / 'word')
    with (tmp_path / 'word' / 'test.jsonl').open('a') as lines:
        lines.write('\n{"question": "When?", "answer": "On #### Monday"}\n')
    for file, said in (
        (gsm8k.get_config('smoke'), "config.data.tokenizer = '': must be a tokenizer.json, since no parent"),
        (gsm8k.get_config(f'parent={parent},path={tmp_path},smoke'), 'train.jsonl: No such file'),
        (bad, 'config.benchmark.max_tokens = 1020: must leave room'),
        (large, f'config.model.layers = 3: must be 2, as in {parent}, whose layers are carried'),
        (text, 'config.data.cache = .*: must not be the --workdir'),
        (
            gsm8k.get_config(f'parent={parent},path={tmp_path}/word,smoke'),
            "answer = 'Monday': must be a number",
        ),
    ):
        with pytest.raises(UserError, match=said) as error:
            train(resolve(file), tmp_path / 'c')
        assert '\n' not in str(error.value)
    file = nca_pretrain.get_config('smoke')
    with file.unlocked():
        file.benchmark = gsm8k.get_config('smoke').benchmark
    with pytest.raises(FieldError, match=r"^config.benchmark = 'gsm_symbolic': must be None in stage nca"):
        resolve(file)


def test_answers_in_the_file_are_those_that_were_scored(child):
    for file in (child / 'answers').glob('step-*.jsonl'):
        for record in map(json.loads, file.read_text().splitlines()):
            scored = [answers.same_number(text, record['answers']) for text in record['texts']]
            assert scored == record['correct']
