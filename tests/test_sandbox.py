"""Programs of tests.hostile have no effect and don't pass; right answers pass; a layer that is missing is noticed."""

import concurrent.futures
import dataclasses
import errno
import fcntl
import gzip
import inspect
import json
import os
import pathlib
import secrets
import shutil
import socket
import struct
import subprocess
import sys
import textwrap
import time

import pytest

from nca_jax.errors import UserError
from nca_jax.sandbox import judge as judging
from nca_jax.sandbox import kernel, layers, pool, sides, zygote
from tests import hostile

ROOT = pathlib.Path(__file__).parents[1]
# The clock on the wall goes on where other programs hold the cores, so that only what sleeps is measured by it.
LIMITS = pool.Limits(cpu_seconds=1, wall_seconds=60.0, memory_mb=256)
SHORT = dataclasses.replace(LIMITS, wall_seconds=1.0)
SMALL = dataclasses.replace(LIMITS, memory_mb=32)  # filled in a tenth of its second: 256 MB were seen to take all of it
IMPORTS = (
    'import builtins, ctypes, gc, os, pathlib, re, signal, socket, subprocess, sys, threading, time\n'
    f'REACHED = {hostile.REACHED!r}\n'
)
ADDS_ONE = pool.Submission('def f(x):\n    return x + 1\n', 'f', '', 'def check(f):\n    assert f(1) == 2\n')


def program(source, check='assert f(1) == 2', setup=''):
    return pool.Submission(source, 'f', setup, f'def check(f):\n    {check}\n')


def judge(box, submission):
    (verdict,) = box.run([submission])
    return verdict


@pytest.fixture(scope='module')
def box():
    """One for all tests. It refuses to start, and so fails them, where this machine lacks a layer, and says which."""
    os.environ['HOSTILE_SECRET'] = HIDDEN  # before the workers start, who must not hand it on
    with pool.Sandbox(workers=3, limits=LIMITS) as box:
        yield box
    del os.environ['HOSTILE_SECRET']


HIDDEN = (
    f'hidden:{secrets.token_hex(16)}'  # known to this process, its environment, the secret file and the tests alone
)


class Outside:
    """What the attacks aim at, and whether it is still as it was."""

    def __init__(self, folder, box):
        self.mark = f'hostile-{secrets.token_hex(8)}'
        self.folder, self.secret = folder, folder / 'secret'
        self.secret.write_text(HIDDEN)
        for path in (folder, self.secret):
            path.chmod(0o777)  # so that file modes aren't what protects it
        self.tcp = socket.create_server(('127.0.0.1', 0))
        self.unix, self.abstract = (socket.socket(socket.AF_UNIX) for _ in range(2))
        self.unix.bind(str(folder / 'socket'))
        (folder / 'socket').chmod(0o777)
        self.abstract.bind(f'\0{self.mark}')
        for listener in (self.tcp, self.unix, self.abstract):
            listener.listen()
            listener.setblocking(False)
        self.box, self.before = box, self.files()
        self.processes = descendants(os.getpid())

    @property
    def at(self):
        return {
            'pid': os.getpid(),
            'group': os.getpgid(0),
            'workers': self.processes,
            'home': str(pathlib.Path.home()),
            'checkout': str(ROOT),
            'folder': str(self.folder),
            'secret': str(self.secret),
            'mark': self.mark,
            'port': self.tcp.getsockname()[1],
            'socket': str(self.folder / 'socket'),
            'abstract': self.mark,
        }

    def files(self):
        """What an attack would change."""
        names, targets = os.listdir(self.folder), (self.secret, os.__file__, ROOT / 'nca_jax' / 'errors.py')
        return names, [pathlib.Path(target).read_bytes() for target in targets]

    def check(self):
        """Nothing was written, nobody called, no process is left, and the workers are the same."""
        assert self.files() == self.before
        folders = (
            '/',
            '/tmp',
            '/var/tmp',
            '/dev/shm',
            '/etc',
            '/usr/lib',
            '/root',
            pathlib.Path.home(),
            ROOT,
            self.folder,
        )
        marked = [folder for folder in folders if os.path.exists(os.path.join(folder, self.mark))]
        assert (marked, os.path.exists('/root/made')) == ([], False)
        for listener in (self.tcp, self.unix, self.abstract):
            with pytest.raises(BlockingIOError):
                listener.accept()
        assert set(descendants(os.getpid())) <= set(self.processes)
        assert set(processes(self.box)) <= set(descendants(os.getpid()))

    def close(self):
        for listener in (self.tcp, self.unix, self.abstract):
            listener.close()


def processes(box):
    """The process numbers of its workers."""
    return [worker.process.pid for worker in box.workers]


def descendants(root):
    """All processes below one, wherever they are in namespaces and sessions."""
    parents = {}
    for name in filter(str.isdigit, os.listdir('/proc')):
        try:
            parents[int(name)] = int(pathlib.Path('/proc', name, 'stat').read_text().rpartition(')')[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
    found, new = set(), {root}
    while new:
        new = {process for process, parent in parents.items() if parent in new} - found
        found |= new
    return sorted(found)


@pytest.fixture(scope='module')
def outside(box, tmp_path_factory):
    for path in (tmp_path_factory.getbasetemp(), tmp_path_factory.getbasetemp().parent):
        path.chmod(0o755)
    outside = Outside(tmp_path_factory.mktemp('outside'), box)
    yield outside
    outside.close()


def attacks():
    """Name and text of each."""
    helpers = IMPORTS + ''.join(inspect.getsource(helper) for helper in hostile.HELPERS)
    for group in hostile.CLASSES:
        for name, function in vars(group).items():
            if inspect.isfunction(function):
                text = textwrap.dedent(inspect.getsource(function)).replace(f'def {name}(', 'def attack(', 1)
                yield f'{group.__name__.lower()}.{name}', helpers + text
    for name, text in hostile.AT_FIRST.items():
        yield f'at_first.{name}', text


ATTACKS = dict(attacks())


ENDLESS = [name for name in ATTACKS if name.startswith('endless.')]
SLEEPERS = ['endless.sleep']
HUNGRY = ['endless.memory_by_many_objects']


def aimed(name, outside):
    """The attack, whose tests pass only where it had its effect or knows what it can't."""
    check = f'assert attack({outside.at!r}) in ({hostile.REACHED!r}, {HIDDEN!r})'
    return pool.Submission(ATTACKS[name], 'attack', '', f'def check(attack):\n    {check}\n')


@pytest.mark.parametrize('name', [name for name in ATTACKS if name not in ENDLESS])
def test_attacks_have_no_effect_and_fail(name, box, outside):
    verdict, after = box.run([aimed(name, outside), ADDS_ONE])
    assert not verdict.passed, verdict
    assert after.passed, after
    outside.check()


def test_what_never_ends_is_ended(box, outside):
    """All at once, since each takes its whole second."""
    spinners = sorted({*ENDLESS} - {*SLEEPERS, *HUNGRY})
    verdicts = {}
    for names, limits in ((spinners, LIMITS), (SLEEPERS, SHORT), (HUNGRY, SMALL)):
        verdicts |= zip(names, box.run((aimed(name, outside) for name in names), limits), strict=True)
    assert {name for name, verdict in verdicts.items() if verdict.passed} == set()
    assert {name for name, verdict in verdicts.items() if verdict.cpu_seconds > LIMITS.cpu_seconds + 0.5} == set()
    why = {name.removeprefix('endless.'): verdict.why for name, verdict in verdicts.items()}
    assert {why[name] for name in why if 'loop' in name} == {'cpu time'}
    assert (why['sleep'], why['memory_by_many_objects']) == ('wall clock', 'memory')
    assert judge(box, ADDS_ONE).passed
    outside.check()


def tasks():
    return list(judging.read_tasks(None).values())


def solutions():
    lines = gzip.decompress(judging.installed().read_bytes()).decode().splitlines()
    return [json.loads(line)['canonical_solution'] for line in lines]


def whys(box, completions):
    submissions = [task.submission(text) for task, text in zip(tasks(), completions, strict=True)]
    return [verdict.why for verdict in box.run(submissions)]


def test_human_evals_own_solutions_pass(box):
    assert whys(box, solutions()) == ['passed'] * 164


@pytest.mark.parametrize('completion', ['    return None\n', '    raise AssertionError\n'])
def test_wrong_solutions_fail(completion, box):
    assert 'passed' not in whys(box, [completion] * 164)


def test_solutions_of_other_problems_fail(box):
    found = solutions()
    assert 'passed' not in whys(box, [*found[1:], found[0]])


@pytest.mark.parametrize(
    ('source', 'check', 'why'),
    [
        ('def f(x): return x', 'assert f(1) == 2', 'wrong'),
        ('def f(x): return y', 'assert f(1) == 2', "error: NameError: name 'y' is not defined"),
        ('def f(x): return object()', 'assert f(1) == 2', 'answer: a object is no plain value'),
        ('def f(x): return object()', 'assert "0x" in f(1)', 'answer: a object is no plain value'),
        ('def f(x): raise ValueError(object())', 'f(1)', 'error: ValueError: <object object at 0x...>'),
        ('def f(x): return None', 'assert len(f(1)) == 2', "error: TypeError: object of type 'NoneType' has no len()"),
        ('def f(x): return "a" * 10**10', 'assert f(1)', 'memory'),
        ('def g(x): return x', 'assert f(1) == 2', "error: NameError: name 'f' is not defined"),
        ('import os\ndef f(x): os.kill(os.getpid(), 11) or os._exit(3)', 'assert f(1)', 'exited: 3'),
        ('import ctypes\ndef f(x): ctypes.string_at(0)', 'assert f(1)', 'killed: SIGSEGV'),
        ('def f(x): return 10**12', 'assert sum(range(f(1)))', 'tests: killed: SIGKILL'),
        ('def f(x): raise StopIteration', 'assert all(map(f, [1]))', 'error: StopIteration:'),
        ('def f(x): raise KeyError("a")', 'import pytest', "error: ModuleNotFoundError: No module named 'pytest'"),
    ],
)
def test_why(source, check, why, box):
    assert judge(box, program(source, check)).why == why


@pytest.mark.parametrize(
    ('source', 'check'),
    [
        ('from collections import *\ndef f(x): return Counter(x)', 'assert f("aab") == {"a": 2, "b": 1}'),
        ('from collections import *\nP = namedtuple("P", "a b")\ndef f(x): return P(1, x)', 'assert f(2) == (1, 2)'),
        ('def f(x, y=0, *, z): return {x, y, z}', 'assert f(1, z=3) == {0, 1, 3}'),
        ('def f(x): return x', 'for x in (float("nan"),): assert str(f(x)) == "nan"'),
        ('def f(x): raise KeyError("a")', 'try: f(1)\n    except KeyError: return\n    assert False'),
        ('n = 0\ndef f(x):\n global n\n n += 1\n return n', 'assert f(1) + f(1) == 3'),
        ('def f(x): return helper(x)\ndef helper(x): return 9', 'assert f(1) == helper(1) + 8'),
        ('def f(x):\n print(x)\n return x', 'assert f(1) == 1'),
        ('import sys\nsys.setrecursionlimit(20000)\ndef f(x): return x and 1 + f(x - 1)', 'assert f(9000) == 9000'),
        ('import threading\ndef f(x):\n t = threading.Thread(target=id)\n t.start()\n t.join()', 'assert not f(1)'),
        ('import tempfile\ndef f(x):\n with tempfile.TemporaryFile() as t: return t.write(b"abc")', 'assert f(1) == 3'),
        ('import random\ndef f(x): return random.random()', 'assert f(1) == 0.8444218515250481'),
        ('def f(x): return hash("a") == x', 'assert f(hash("a"))'),
        ('import hashlib, sqlite3, decimal, zoneinfo\ndef f(x): return x', 'assert f(1) == 1'),
        ('from dataclasses import *\n@dataclass\nclass A: a: "int"\ndef f(x): return A(x).a', 'assert f(1) == 1'),
    ],
)  # fmt: skip
def test_honest_programs_pass(source, check, box):
    verdict = judge(box, program(source, check, setup='def helper(x): return 1'))
    assert verdict.passed, verdict


@pytest.mark.parametrize(
    ('name', 'why'),
    [
        ('huge_number_for_an_answer', 'answer:'),
        ('huge_number_as_a_kind', 'answer: x'),
        ('many_sets_for_an_answer', ('memory', 'tests: killed: SIGKILL')),  # whichever it runs out of first
        ('too_long_source', 'source: more than 8388608 bytes'),
    ],
)
def test_rubbish_at_load_is_the_candidates_own(name, why, box):
    found = judge(box, pool.Submission(hostile.AT_FIRST[name], 'attack', '', '')).why
    assert found in (why if isinstance(why, tuple) else (why,))


def test_every_ending_has_a_name():
    """Of every exit code, also of signals that Python has no name for."""
    found = {code: layers.describe_exit(code) for code in range(-127, 256)}
    assert (found[-9], found[-40], found[0], found[-64]) == (
        'killed: SIGKILL',
        'killed: 40',
        'exited: 0',
        'killed: SIGRTMAX',
    )
    assert found[3] == 'exited: 3'


def test_a_failed_layer_stops_all_and_a_killed_candidate_does_not():
    def why(tests, candidate):
        ended = {'tests': tests, 'candidate': candidate, 'late': False, 'ended': True, 'cpu_seconds': 0.0}
        return pool.explain(None, ended, LIMITS)

    assert why(sides.NEVER_READY, -9) == 'killed: SIGKILL'  # by the system, for its memory
    assert why(sides.CANDIDATE_GONE, 70) == 'tests: exited: 3'
    for tests, candidate in ((sides.NEVER_READY, 70), (70, 0)):
        with pytest.raises(RuntimeError, match='could not be confined'):
            why(tests, candidate)


def test_where_python_lies(tmp_path, monkeypatch):
    """Its folders are bound once each, what lies beside them is noticed, and packages are found."""
    system = [folder for folder in layers.SYSTEM_LIBRARIES if os.path.isdir(folder)]
    for place, folders in (('/usr/lib/python3', system), ('/opt/lib', ['/opt/lib', *system])):
        monkeypatch.setattr(os, '__file__', f'{place}/os.py')
        assert layers.readable() == folders
    python = '/home/me/.pyenv/lib/python3.11'
    assert zygote.children([python, '/usr/lib', '/lib']) == {
        '/': {'home', 'usr', 'lib'},
        '/home': {'me'},
        '/home/me': {'.pyenv'},
        '/home/me/.pyenv': {'lib'},
        '/home/me/.pyenv/lib': {'python3.11'},
        '/usr': {'lib'},
    }
    for name in ('site-packages', 'python3/dist-packages', 'other/packages'):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / 'python4').symlink_to('python3')
    found = [str(tmp_path / name) for name in ('python3/dist-packages', 'site-packages')]
    assert layers.third_party([str(tmp_path)]) == found


def plain_pythons() -> list[str]:
    """This environment's and, where it's new enough, the system's: neither is a virtual environment."""
    code = 'import sys; print(sys.version_info >= (3, 11))'
    found = [os.path.realpath(sys.executable)]  # through the environment's links
    if os.path.exists('/usr/bin/python3'):
        version = subprocess.run(['/usr/bin/python3', '-c', code], capture_output=True, text=True)
        found += ['/usr/bin/python3'] if version.stdout == 'True\n' else []
    return found


@pytest.mark.parametrize('python', plain_pythons())
def test_a_plain_python_holds_programs(python):
    """One that is no virtual environment, and whose library lies below another readable folder."""
    code = (
        'from nca_jax.sandbox import pool\n'
        'program = pool.Submission("def f(x): return x", "f", "", "def check(f): assert f(1) == 1")\n'
        'with pool.Sandbox(1) as box: print(*(verdict.why for verdict in box.run([program])))\n'
    )
    command = [python, '-P', '-B', '-c', code]
    ended = subprocess.run(command, env={'PYTHONPATH': str(ROOT)}, capture_output=True, text=True)
    assert ended.stdout == 'passed\n', ended.stderr


def test_it_is_imported_where_linux_has_names_of_its_own():
    """Every trainer imports it; another system must find out only when it wants to run programs."""
    code = (
        'import os, resource, socket\n'
        'for name in ("MSGQUEUE", "RTPRIO", "NICE", "SIGPENDING"): delattr(resource, f"RLIMIT_{name}")\n'
        'for name in ("O_PATH", "sched_getaffinity", "unshare", "setns", "pidfd_open"):\n'
        '    if hasattr(os, name): delattr(os, name)\n'
        'import nca_jax.sandbox.judge\n'
    )
    ended = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_the_kernel_ends_programs_first(box):
    """Where memory is short."""
    found = {pathlib.Path('/proc', str(process), 'oom_score_adj').read_text() for process in processes(box)}
    assert found == {'1000\n'}


def test_programs_share_nothing(box):
    """Neither the private folder nor a module's state is seen by the next, in any order and on any worker."""
    leaves = program('import os, math\nmath.pi = 3\nopen("/tmp/left", "w").close()\ndef f(x): return 2')
    finds = program('import os, math\ndef f(x): return [os.listdir("/tmp"), math.pi > 3]', 'assert f(1) == [[], True]')
    assert [verdict.why for verdict in box.run([leaves, finds] * 8)] == ['passed'] * 16


def test_verdicts_come_in_order(box):
    programs = [
        program(f'import time\ndef f(x):\n time.sleep({0.05 * (n % 3 == 0)})\n raise ValueError({n})')
        for n in range(20)
    ]
    assert [verdict.why for verdict in box.run(programs)] == [f'error: ValueError: {n}' for n in range(20)]


def test_a_run_that_is_left_gives_nothing_to_the_next(box):
    """Nothing of its programs is taken for the next one's."""
    slow = program('import time\ndef f(x):\n time.sleep(0.3)\n raise ValueError("old")')
    for _ in box.run([ADDS_ONE, slow, slow, slow, slow]):
        break
    assert [verdict.why for verdict in box.run([ADDS_ONE] * 6)] == ['passed'] * 6


def test_two_runs_share_the_workers(box):
    held = box.run([ADDS_ONE, program('def f(x): return 1')])
    assert next(held).passed
    assert judge(box, ADDS_ONE).passed
    assert next(held).why == 'wrong'
    held.close()
    assert judge(box, ADDS_ONE).passed


def test_a_run_that_failed_leaves_no_sandbox():
    """What its workers still do is ended with them, and nothing is judged afterwards."""
    loop = program('while True: pass')

    def submissions():
        yield loop
        raise KeyError('mine')

    with pool.Sandbox(2, LIMITS) as box:
        workers, start = processes(box), time.monotonic()
        with pytest.raises(KeyError, match='mine'):
            list(box.run(submissions(), dataclasses.replace(LIMITS, cpu_seconds=1000, wall_seconds=1000.0)))
        assert time.monotonic() - start < 500
        assert not any(os.path.exists(f'/proc/{process}') for process in workers)
        with pytest.raises(RuntimeError, match='after shutdown'):
            judge(box, ADDS_ONE)


def test_everything_ends_with_the_parent(tmp_path):
    """Killed by force, in the middle of programs that never end: workers and programs go with it."""
    code = """
import sys
from nca_jax.sandbox import pool
loop = pool.Submission('while True: pass', 'f', '', '')
with pool.Sandbox(2) as box:
    print('started', flush=True)
    list(box.run([loop] * 9, pool.Limits(cpu_seconds=100, wall_seconds=100)))
"""
    with subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, cwd=ROOT) as parent:
        assert parent.stdout.readline() == b'started\n'
        deadline = time.monotonic() + 60
        while len(below := descendants(parent.pid)) < 2 + 2 + 4:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        parent.kill()
    while any(os.path.exists(f'/proc/{process}') for process in below):
        assert time.monotonic() < deadline
        time.sleep(0.02)


# A line of the sandbox's own code, what it becomes, and what the sandbox must then say when it starts.
MUTATIONS = {
    'seccomp': (
        'layers',
        "kernel.call('seccomp', kernel.SECCOMP_SET_MODE_FILTER, 0, seccomp)",
        'pass',
        'seccomp: ptrace',
    ),
    'one call': ('kernel', 'read=0,', 'read=0, socket=41,', 'not in force on this machine: seccomp: socket'),
    'Landlock': (
        'layers',
        "kernel.call('landlock_restrict_self', 3 + len(keep), 0)",
        'pass',
        'Landlock: reading, Landlock: reading a file',
    ),
    'Landlock for TCP': ('kernel', 'NETWORK if abi >= 4', '0 if abi >= 4', 'Landlock: TCP'),
    'network': ('layers', "'net', ", '', 'network namespace'),
    'ipc': ('kernel', 'ipc=0x08000000', 'ipc=0', 'namespace ipc: it is still'),
    'processes': ('zygote', "kernel.unshare('pid')", 'pass', 'pid namespace'),
    'root folder': (
        'layers',
        'os.makedirs(STAGE + PRIVATE)',
        '[os.makedirs(STAGE + path) for path in (PRIVATE, "/home")]',
        'mount namespace: its own root',
    ),
    'folders beside': (
        'layers',
        'os.makedirs(STAGE + PRIVATE)',
        '[os.makedirs(STAGE + path) for path in (PRIVATE, "/usr/share")]',
        'force on this machine: mount namespace: no other folders',
    ),
    'packages': ('layers', 'for folder in packages:', 'for folder in ():', 'mount namespace: no packages'),
    'fcntl': ('kernel', '4, 1030)', '4, 1030, 1031)', 'seccomp: fcntl'),
    'read-only': ('layers', 'kernel.MOUNT_ATTR_RDONLY | ', '', 'read-only library'),
    'no programs': ('layers', ' | kernel.MS_NOEXEC', '', 'private folder: no programs'),
    'disk': ('layers', 'size={limits.disk_mb}m', 'size=900m', 'limit of disk'),
    'names': ('layers', 'nr_inodes={limits.inodes}', 'nr_inodes=99999', 'limit of names'),
    'memory': ('layers', '(resource.RLIMIT_AS, mapped + limits.memory_mb * MIB),', '', 'limit of memory'),
    'file size': ('layers', '(resource.RLIMIT_FSIZE, limits.file_mb * MIB),', '', 'limit of file size'),
    'files': ('layers', '(resource.RLIMIT_NOFILE, limits.files),', '', 'limit of open files'),
    'threads': ('layers', '(resource.RLIMIT_NPROC, limits.threads),', '', 'limit of threads'),
    'core files': ('layers', '(resource.RLIMIT_CORE, 0),', '', 'limit of core files'),
    'signals': ('layers', '(resource.RLIMIT_SIGPENDING, 64),', '', 'limit of signals that wait'),
    'capabilities': (
        'layers',
        "kernel.call('capset', kernel.CAPABILITY_HEADER, kernel.NO_CAPABILITIES)",
        'pass',
        'no capabilities',
    ),
    'dumpable': ('layers', 'kernel.prctl(kernel.PR_SET_DUMPABLE, 0)', 'pass', 'not dumpable'),
    'nonce': (
        'pool',
        'passed = report == sides.PASSED + nonce.encode()',
        'passed = report is not None',
        "'return x' was judged 'passed'",
    ),
    'wall clock': (
        'zygote',
        'limits.wall_seconds * 1000',
        '9000',
        "was judged 'wrong' instead of 'wall clock'",
    ),
}


@pytest.fixture(scope='module')
def mutants(tmp_path_factory):
    """What each says, and its exit code; two at a time."""
    for path in (tmp_path_factory.getbasetemp(), tmp_path_factory.getbasetemp().parent):
        path.chmod(0o755)
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        folders = [tmp_path_factory.mktemp('mutant') for _ in MUTATIONS]
        return dict(zip(MUTATIONS, threads.map(start_mutant, MUTATIONS, folders), strict=True))


def start_mutant(name, folder):
    """The sandbox with one of its own lines changed."""
    module, line, becomes, _ = MUTATIONS[name]
    shutil.copytree(ROOT / 'nca_jax' / 'sandbox', folder / 'nca_jax' / 'sandbox')
    for file in ('__init__.py', 'errors.py'):
        shutil.copy(ROOT / 'nca_jax' / file, folder / 'nca_jax')
    changed = folder / 'nca_jax' / 'sandbox' / f'{module}.py'
    text = changed.read_text()
    assert text.count(line) == 1, name
    changed.write_text(text.replace(line, becomes))
    folder.chmod(0o755)
    command = [sys.executable, '-P', '-c', 'from nca_jax.sandbox import pool; pool.Sandbox(1)']
    return subprocess.run(command, env={'PYTHONPATH': str(folder)}, capture_output=True, text=True)


@pytest.mark.parametrize('name', MUTATIONS)
def test_a_missing_layer_is_noticed(name, mutants):
    ended = mutants[name]
    assert ended.returncode == 1, ended.stderr
    assert 'UserError: sandbox: ' in ended.stderr
    assert MUTATIONS[name][-1] in ended.stderr


def decide(code, number, arguments=(0, 0x1234), arch=kernel.AUDIT_ARCH_X86_64):
    """What a filter says of a call, by a small interpreter of its instructions."""
    data = {0: number, 4: arch, 16: arguments[0], 24: arguments[1]}
    lines = list(struct.iter_unpack('=HBBI', code))
    place, held = 0, 0
    while True:
        operation, yes, no, value = lines[place]
        if operation == kernel.RETURN:
            return value
        if operation == kernel.LOAD:
            held, step = data[value], 0
        else:
            jumps = {
                kernel.JUMP_EQUAL: held == value,
                kernel.JUMP_NOT_BELOW: held >= value,
                kernel.JUMP_ANY_BIT: held & value != 0,
            }
            step = yes if jumps[operation] else no
        place += 1 + step


def test_the_filter_lets_through_what_is_listed_alone():
    """Of all numbers."""
    code, special = kernel.seccomp_program(), kernel.BY_ARGUMENTS
    passed = {number for number in range(1100) if decide(code, number) == kernel.ALLOW}
    assert passed == set(kernel.ALLOWED.values())
    assert len(kernel.ALLOWED) == len(passed)
    assert len(kernel.NUMBERS) == len(set(kernel.NUMBERS.values()))
    assert passed.isdisjoint(zygote.FORBIDDEN.values())
    refused = kernel.REFUSE | errno.EPERM
    assert decide(code, special['ioctl'], (1, 0x5401)) == kernel.ALLOW
    assert decide(code, special['ioctl'], (1, 0x5412)) == refused  # typing into a terminal
    assert decide(code, special['clone'], (0x3D0F00, 0)) == kernel.ALLOW  # a thread, as the C library has it
    assert decide(code, special['clone'], (17, 0)) == refused  # a process
    of_files = {command for command in range(2048) if decide(code, special['fcntl'], (1, command)) != refused}
    assert of_files == {
        *(fcntl.F_DUPFD, fcntl.F_DUPFD_CLOEXEC),
        *(fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL, fcntl.F_SETFL),
    }
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000, 0x80):
        assert decide(code, special['clone'], (0x3D0F00 | flag, 0)) == refused
    assert decide(code, special['clone3']) == kernel.REFUSE | errno.ENOSYS
    for number in (0, 0x3FFFFFFF):
        assert decide(code, number, arch=0xC00000B7) == kernel.KILL  # aarch64
    assert decide(code, 0x40000000) == kernel.KILL


def test_another_architecture_is_one_line(monkeypatch):
    monkeypatch.setattr(os, 'uname', lambda: os.uname_result(('Linux', '', '', '', 'aarch64')))
    with pytest.raises(UserError, match=r'^sandbox: it needs Linux on x86_64, and this is linux on aarch64$'):
        pool.Sandbox()


PLAIN = [
    None, True, False, 0, -1, 255, -256, 1 << 100, 0.5, float('inf'), -0.0, 1j, '', 'é', '\ud800', b'a', bytearray(),
    [], [1, [2, (3,)]], (), (None,), {}, {'a': {1: [2]}}, {1, 2}, frozenset({(1, 'x')}),
]  # fmt: skip


@pytest.mark.parametrize('value', PLAIN, ids=repr)
def test_plain_values_come_back_as_they_were(value):
    back = sides.decode(sides.encode(value))
    assert (type(back), back, repr(back)) == (type(value), value, repr(value))


def test_other_bytes_are_no_value():
    """Every cut, and every single change of a byte, is refused or gives some plain value."""
    whole = sides.encode(PLAIN[:-2])
    for length in range(len(whole)):
        with pytest.raises(sides.NotPlainError):
            sides.decode(whole[:length])
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 + place % 255
        try:
            value = sides.decode(bytes(changed))
        except sides.NotPlainError:
            continue
        assert type(value) in map(type, PLAIN)
