"""Problems put to a model: what is asked, that a killed evaluation goes on, and scores as computed by hand."""

import dataclasses
import functools
import gzip
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from nca_jax import files, keys
from nca_jax import mesh as meshes
from nca_jax.batch import Vocab
from nca_jax.data import tokenizer
from nca_jax.decode.decoder import DecodeConfig
from nca_jax.decode.sampling import Sampling
from nca_jax.errors import UserError
from nca_jax.model import transformer
from nca_jax.problems import benchmark, bigbench, sets
from nca_jax.problems.benchmark import BenchmarkConfig
from nca_jax.problems.problem import Problem, Problems
from nca_jax.problems.sets import ProblemsConfig
from nca_jax.sandbox import judge as judging
from nca_jax.sandbox import pool
from tests.test_model import CONFIG

GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'gsm8k'
MODEL = dataclasses.replace(CONFIG, length=512, layers=2, unroll=1)
ASKED = BenchmarkConfig(
    problems=ProblemsConfig(
        task='gsm8k',
        path=str(GOLDEN),
        train_rows=0,
        valid_rows=2,
        size=(0, 0),
    ),
    limit=0,
    shots=2,
    samples=4,
    max_tokens=6,
    stops=(),
    sampling=Sampling(0.8, 0.95, 0),
    batch=DecodeConfig(rows=8, share=2, chunk=4),
    run_code=False,
)


def gsm8k() -> Problems:
    return sets.load_problems(ASKED.problems, bpe())


@functools.cache
def bpe():
    train = sets.load_problems(ASKED.problems, None).splits['train']
    return tokenizer.train((p.prompt + p.target for p in train), 400)


def params(seed: int = 0) -> dict:
    return transformer.init_params(MODEL, Vocab(400), jax.random.key(seed))


def evaluator(folder: pathlib.Path, asked: Problems | None = None, **changes):
    config = dataclasses.replace(ASKED, **changes)
    mesh = meshes.make_mesh(meshes.MeshConfig(1, 1, 1), jax.devices()[:1])
    return benchmark.make_evaluator(config, asked or gsm8k(), MODEL, mesh, 0, folder)


@pytest.fixture(scope='module')
def evaluated(tmp_path_factory):
    """A folder with the answers of one evaluation, and its metrics."""
    folder = tmp_path_factory.mktemp('answers')
    return folder, evaluator(folder)(params(), 5)


def answers_of(folder: pathlib.Path) -> pathlib.Path:
    (file,) = folder.glob('step-5-*.jsonl')
    return file


def test_every_problem_has_a_record_with_all_its_samples(evaluated):
    folder, found = evaluated
    kept = {record['id']: record for record in files.read_records(answers_of(folder))}
    test = gsm8k().splits['test']
    assert kept.keys() == {problem.id for problem in test}
    assert all(len(record['texts']) == len(record['correct']) == 4 for record in kept.values())
    assert (found['problems'], found['samples'], found['left_out']) == (len(test), 4, 0)
    assert {name for name in found if name.startswith('pass@')} >= {'pass@1', 'pass@2', 'pass@4', 'pass@1_low'}


@pytest.mark.parametrize('lines', [0, 1, 5])
def test_a_killed_evaluation_goes_on_and_gives_the_same_numbers(evaluated, tmp_path, lines):
    folder, found = evaluated
    whole = answers_of(folder).read_bytes().splitlines(keepends=True)
    file = tmp_path / answers_of(folder).name
    file.write_bytes(b''.join(whole[:lines]) + whole[lines][:40])
    assert evaluator(tmp_path)(params(), 5) == found
    assert sorted(file.read_bytes().splitlines()) == sorted(line.rstrip() for line in whole)
    assert file.read_bytes().startswith(b''.join(whole[:lines]))


def test_a_finished_evaluation_is_read(evaluated, tmp_path):
    folder, found = evaluated
    shutil.copy(answers_of(folder), tmp_path)
    again = evaluator(tmp_path)
    before = answers_of(tmp_path).stat().st_mtime_ns
    assert again(params(), 5) == found
    assert answers_of(tmp_path).stat().st_mtime_ns == before


@pytest.mark.parametrize('changes', [{'shots': 1}, {'sampling': Sampling(0.7, 0.95, 0)}])
def test_answers_of_another_protocol_are_not_taken_for_these(evaluated, tmp_path, changes):
    folder, _ = evaluated
    shutil.copy(answers_of(folder), tmp_path)
    evaluator(tmp_path, **changes)(params(), 5)
    assert len(list(tmp_path.glob('step-5-*.jsonl'))) == 2


def test_answers_of_other_weights_are_not_taken_for_these(evaluated, tmp_path):
    folder, _ = evaluated
    shutil.copy(answers_of(folder), tmp_path)
    evaluator(tmp_path)(params(1), 5)
    assert len(list(tmp_path.glob('step-5-*.jsonl'))) == 2


def test_a_batch_of_another_layout_finds_its_answers(evaluated, tmp_path):
    folder, found = evaluated
    shutil.copy(answers_of(folder), tmp_path)
    assert evaluator(tmp_path, batch=DecodeConfig(16, 1, 8))(params(), 5) == found


def test_what_is_asked_is_laid_out_as_in_training():
    asked, unlike = benchmark.ask(ASKED, gsm8k(), 512, 0)
    assert unlike == {'left_out': 0, 'fewer_shots': 0}
    examples = {problem.prompt + problem.target for problem in gsm8k().splits['train']}
    for problem, tokens in asked:
        *shots, last = bpe().decode(tokens, skip_special_tokens=False).split(tokenizer.END_OF_TEXT)
        assert last == problem.prompt
        assert len(shots) == 2
        assert set(shots) <= examples


def test_problems_that_leave_no_room_are_left_out_and_counted():
    sizes = sorted(len(bpe().encode(problem.prompt).ids) for problem in gsm8k().splits['test'])
    length = sizes[2] + 6
    asked, unlike = benchmark.ask(ASKED, gsm8k(), length, 0)
    assert len(asked) == sum(size <= sizes[2] for size in sizes)
    assert unlike == {'left_out': len(sizes) - len(asked), 'fewer_shots': len(asked)}  # nor is there room for both
    with pytest.raises(UserError, match=r'^config.benchmark.max_tokens = 6: must leave room for a prompt of gsm8k'):
        benchmark.ask(ASKED, gsm8k(), 10, 0)


def choices() -> Problems:
    """Two tasks: of two problems with 2 and 4 choices, and of one with 5."""
    test = (
        Problem('a/0', 'p', 'Yes', ('Yes',), 2, 'a'),
        Problem('a/1', 'q', 'red', ('red', 'blue'), 4, 'a'),
        Problem('b/0', 'r', 'x', ('x',), 5, 'b'),
    )
    return Problems({'train': (), 'valid': (), 'test': test}, bpe())


def test_bigbench_scores_are_those_computed_by_hand(tmp_path):
    """Task a: 3 of 4 right and 2 of 4; task b: 1 of 4."""
    asked = dataclasses.replace(ASKED.problems, task='choices', path='', size=(40, 0))
    found = evaluator(tmp_path, choices(), problems=asked, shots=0)
    found(params(), 5)
    file = answers_of(tmp_path)
    texts = {'a/0': ['yes', ' YES\n', 'no', 'Yes'], 'a/1': ['Blue', 'green', 'red', 'x'], 'b/0': ['X ', 'y', '', 'xx']}
    lines = []
    for problem in choices().splits['test']:
        lines.append(benchmark.record(problem, texts[problem.id], bigbench.same_text))
    file.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    scores = found(params(), 5)
    assert scores['a/pass@1'] == pytest.approx((3 / 4 + 2 / 4) / 2)
    assert scores['b/pass@1'] == pytest.approx(1 / 4)
    assert scores['pass@1'] == pytest.approx((0.625 + 0.25) / 2)
    single, chance = (1 / 2 + 1 / 4) / 2, (1 / 2 + 2 / 4) / 2  # two of the four options of a/1 are right
    assert scores['chance_pass@1'] == pytest.approx((chance + 1 / 5) / 2)
    assert scores['normalised@1'] == pytest.approx(((0.625 - single) / (1 - single) + (0.25 - 0.2) / 0.8) / 2)
    by_chance = ((0.625 - chance) / (1 - chance) + (0.25 - 0.2) / 0.8) / 2
    assert scores['normalised_by_chance@1'] == pytest.approx(by_chance)
    assert scores['a/pass@2'] == pytest.approx((1 + (1 - 1 / 6)) / 2)
    assert scores['chance_pass@2'] == pytest.approx(((3 / 4 + 3 / 4) / 2 + 9 / 25) / 2)


def solutions() -> dict[str, str]:
    lines = gzip.decompress(judging.installed().read_bytes()).splitlines()
    return {row['task_id']: row['canonical_solution'] for row in map(json.loads, lines)}


def programs(tmp_path: pathlib.Path, run_code: bool, texts) -> dict:
    """HumanEval's first three problems with given answers."""
    asked = dataclasses.replace(ASKED.problems, task='humaneval', path='')
    three = Problems({'train': (), 'valid': (), 'test': sets.human_eval('').test[:3]}, bpe())
    found = evaluator(tmp_path, three, problems=asked, shots=0, samples=2, run_code=run_code)
    found(params(), 5)
    (file,) = (path for path in tmp_path.glob('step-5-*.jsonl') if '.' not in path.stem)
    lines = [benchmark.record(problem, texts(problem), None) for problem in three.splits['test']]
    file.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    for other in tmp_path.glob('*.judged.jsonl'):
        other.unlink()
    return found(params(), 5)


def test_a_sandbox_that_cannot_be_had_is_told_before_anything_is_sampled(tmp_path, monkeypatch):
    monkeypatch.setattr(pool.sys, 'platform', 'darwin')
    with pytest.raises(UserError, match=r'^sandbox: it needs Linux'):
        programs(tmp_path, True, lambda problem: ('', ''))
    assert not list(tmp_path.iterdir())


def test_programs_are_judged_where_they_may_run(tmp_path, capfd):
    scores = programs(tmp_path, True, lambda problem: [solutions()[problem.id], '    return None\n'])
    assert (scores['pass@1'], scores['pass@2']) == (0.5, 1.0)


def test_programs_are_only_written_down_otherwise(tmp_path, capfd):
    scores = programs(tmp_path, False, lambda problem: [solutions()[problem.id], 'x'])
    assert scores == {'problems': 3, 'samples': 2, 'left_out': 0, 'fewer_shots': 0}
    (samples,) = tmp_path.glob('*.samples.jsonl')
    assert f'python -m nca_jax judge {samples} --allow-code, then' in capfd.readouterr().err
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    assert [line['task_id'] for line in lines] == ['HumanEval/0'] * 2 + ['HumanEval/1'] * 2 + ['HumanEval/2'] * 2


def test_a_line_that_is_no_record_is_named(evaluated, tmp_path):
    folder, _ = evaluated
    file = tmp_path / answers_of(folder).name
    file.write_text('{"id"\n')
    with pytest.raises(UserError, match=r'jsonl:1: not JSON'):
        evaluator(tmp_path)(params(), 5)


@pytest.mark.parametrize(
    ('changes', 'said'),
    [
        ({'samples': 0}, 'samples = 0: must be positive'),
        ({'shots': -1}, 'shots = -1: must be 0 or more'),
        ({'stops': ('',)}, 'stops = '),
        ({'run_code': True}, 'run_code = True: must be false unless the task is humaneval'),
        (
            {'problems': dataclasses.replace(ASKED.problems, task='humaneval', path='')},
            'shots = 2: must be 0 for humaneval',
        ),
    ],
)
def test_impossible_protocols_are_refused(changes, said):
    with pytest.raises(UserError, match='^' + said):
        dataclasses.replace(ASKED, **changes)


def test_problems_have_keys_of_their_own():
    test = gsm8k().splits['test']
    numbers = {int(keys.crc32(problem.id)) for problem in (*test, *sets.human_eval('').test)}
    assert len(numbers) == len(test) + 164
    assert np.iinfo(np.uint32).max >= max(numbers)
    assert benchmark.KS[0] == 1
