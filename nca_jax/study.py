"""Runs a study, several runs at a time: `python -m nca_jax.study experiments/quickstart.py [smoke] [--out=DIR]`.

An experiment file's STUDIES are `{study: {run: words}}`; `parent=RUN` among the words names another run of the study,
which is then trained first. CONTINUES, if the file has it, is `{study: earlier study}`: the later one's runs join those
of the earlier in its folder. Finished runs are reused and interrupted ones resumed, so the
same command goes on wherever it was stopped. At the end the report is written and its table printed.
"""

import argparse
import collections
import ctypes
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from types import ModuleType

import rich.progress

from nca_jax import config as configs
from nca_jax import run
from nca_jax.errors import UserError, check
from nca_jax.experiment import load_module, mistake
from nca_jax.report import __main__ as report
from nca_jax.train.duration import to_steps
from nca_jax.train.loop import EXIT_PREEMPTED

MAIN = 'main'
POLL_SECONDS = 1.0
LINE_SECONDS = 60.0
PR_SET_PDEATHSIG = 1


@dataclasses.dataclass
class Job:
    """One run of the study: what it is, and the process while it trains."""

    name: str
    config: str
    folder: pathlib.Path
    parent: str | None
    tokens: int
    process: subprocess.Popen | None = None
    core: int | None = None

    def progress(self) -> tuple[int, str]:
        """Tokens trained so far, and the last record in a few words."""
        last = last_record(self.folder / 'metrics.jsonl')
        if last is None:
            return 0, 'preparing'
        loss = f'loss {last["loss"]:.3f}' if 'loss' in last else last['kind']
        return last['tokens'], f'step {last["step"]}, {loss}'

    @property
    def done(self) -> bool:
        last = last_record(self.folder / 'metrics.jsonl')
        return last is not None and last['kind'] == 'done'


def main(argv: list[str] | None = None) -> int:
    """Exit codes as of nca_jax.main: 0, 1 where a run failed, 2 for bad input, 75 when interrupted."""
    parser = argparse.ArgumentParser(prog='python -m nca_jax.study', description=__doc__.splitlines()[0])
    parser.add_argument(
        'file', type=pathlib.Path, help='an experiment file with STUDIES, e.g. experiments/quickstart.py'
    )
    parser.add_argument('study', nargs='?', default=MAIN, help=f"one of the file's STUDIES, e.g. smoke ({MAIN})")
    parser.add_argument('--out', type=pathlib.Path, help='folder of the runs and the report (runs/FILE[-STUDY])')
    parser.add_argument('--workers', type=int, help='runs at a time (one per core; 1 with an accelerator)')
    args = parser.parse_args(argv)
    try:
        check(args.workers is None or args.workers > 0, '--workers', args.workers, 'must be positive')
        return run_study(args.file, args.study, args.out, args.workers)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2


def run_study(file: pathlib.Path, study: str, out: pathlib.Path | None, workers: int | None) -> int:
    """Trains what isn't trained yet, then writes the report."""
    start = time.time()
    check(out is None or ',' not in str(out), '--out', str(out), 'a comma would part it into words of a config')
    first = chain(load_studies(file), file, study)[0]
    out = out or pathlib.Path('runs') / (file.stem if first == MAIN else f'{file.stem}-{first}')
    # One process a core: small matrices don't gain from a second one, and results don't depend on how many there are.
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str((out / 'compiled').absolute()))
    # Large pages save glibc's allocator a tenth of a training step's time on a CPU; elsewhere it does nothing.
    os.environ.setdefault('GLIBC_TUNABLES', 'glibc.malloc.hugetlb=1')
    on_cpu = os.environ['JAX_PLATFORMS'] == 'cpu'
    cores = sorted(os.sched_getaffinity(0)) if on_cpu and hasattr(os, 'sched_getaffinity') else []
    jobs = make_jobs(file, study, out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'--out={out}: {error.strerror}') from None
    todo = [job for job in jobs if not is_finished(job)]
    print(f'{file.stem}: {len(jobs)} runs in {out}, {len(jobs) - len(todo)} of them finished before', flush=True)
    code = train_all(jobs, todo, workers or len(cores) or 1, cores)
    if code == 0:
        report.write([str(out)], out / 'report', baseline=None)
        print(f'{time.time() - start:,.0f} s for this call. Seconds of all runs: {phases(jobs)}')
    return code


def make_jobs(file: pathlib.Path, study: str, out: pathlib.Path) -> list[Job]:
    """The study's runs and before them those that it continues, in their own order, parents before children."""
    jobs, module = [], load_studies(file)
    wanted = [pair for each in chain(module, file, study) for pair in module.STUDIES[each].items()]
    for name, words in wanted:
        parent = next((word.removeprefix('parent=') for word in words.split(',') if word.startswith('parent=')), None)
        if parent is not None:
            words = words.replace(f'parent={parent}', f'parent={out / parent}')
        try:
            config = module.get_config(words)
        except Exception as error:  # whatever the file's own code raises
            raise mistake(f'{file}: run {name} of study {study}', error) from None
        tokens_per_step = config.train.batch * config.model.length
        tokens = to_steps(config.train.stop, tokens_per_step, 'config.train.stop') * tokens_per_step
        jobs.append(Job(name, f'{file}:{words}', out / name, parent, tokens))
    return jobs


def chain(module: ModuleType, file: pathlib.Path, study: str) -> list[str]:
    """The studies that this one continues, the first of all at the front, and itself."""
    check(study in module.STUDIES, 'study', study, f'{file} has {", ".join(module.STUDIES)}')
    earlier = getattr(module, 'CONTINUES', {})
    return [*(chain(module, file, earlier[study]) if study in earlier else []), study]


def is_finished(job: Job) -> bool:
    """Whether the folder holds this very run, done. UserError where it holds another config's."""
    if not job.done:
        return False
    file, words = job.config.split(':', 1)
    config = configs.resolve(load_module(pathlib.Path(file)).get_config(words))
    identity = configs.identity(config, run.parent_manifest(config.init_from))
    if run.read_record(job.folder)['identity'] != identity:
        raise UserError(
            f'{job.folder} holds the run of another config than {job.config}; remove it or choose another --out'
        )
    return True


def train_all(jobs: list[Job], todo: list[Job], workers: int, cores: list[int]) -> int:
    """Keeps `workers` runs going until none is left. A failure or a signal stops the others, which save first."""
    waiting, running, free = list(todo), [], list(cores)
    interrupted: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: interrupted.append(1))
    with Display(jobs, waiting) as display:
        while waiting or running:
            unfinished = {job.name for job in waiting + running}
            ready = [job for job in waiting if job.parent not in unfinished]
            for job in ready[: workers - len(running)]:
                waiting.remove(job)
                running.append(job)
                job.core = free.pop() if free else None
                launch(job)
                display.say(f'{job.name}: started')
            time.sleep(POLL_SECONDS)
            display.update(running)
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                free += [job.core] if job.core is not None else []
                if job.process.returncode:
                    stop(running)
                    display.say(f'{job.name} failed, exit code {job.process.returncode}; {log_file(job)} ends with:')
                    display.say(tail(log_file(job)))
                    return 2 if job.process.returncode == 2 else 1
                display.say(f'{job.name}: done, {job.progress()[1]}')
            if interrupted:
                stop(running)
                display.say('interrupted; the same command goes on from here')
                return EXIT_PREEMPTED
    return 0


def launch(job: Job) -> None:
    """Starts the run as a process of its own that doesn't outlive this one, on its own core where cores are dealt."""

    def prepare_child() -> None:
        if sys.platform == 'linux':
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if job.core is not None:
            os.sched_setaffinity(0, {job.core})

    command = [sys.executable, '-m', 'nca_jax.main', f'--config={job.config}', f'--workdir={job.folder}']
    with log_file(job).open('a') as log:
        # A group of its own, so that Ctrl-C reaches this process alone, which then asks the runs to save.
        job.process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, preexec_fn=prepare_child, start_new_session=True
        )


def stop(running: list[Job]) -> None:
    for job in running:
        job.process.terminate()
    for job in running:
        job.process.wait()


def phases(jobs: list[Job]) -> str:
    """Where the runs spent their time, added up over all of them."""
    seconds = collections.Counter()
    for job in jobs:
        seconds.update(last_record(job.folder / 'metrics.jsonl')['seconds'])
    return ', '.join(f'{phase} {total:,.0f}' for phase, total in seconds.items())


def log_file(job: Job) -> pathlib.Path:
    return job.folder.with_name(job.folder.name + '.log')


def tail(path: pathlib.Path, lines: int = 8) -> str:
    return '\n'.join(path.read_text().splitlines()[-lines:])


def last_record(path: pathlib.Path) -> dict | None:
    """The last whole line of a metrics.jsonl; None where there is none yet."""
    if not path.exists():
        return None
    whole = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b'\n')]
    try:
        return json.loads(whole[-1]) if whole else None
    except ValueError:
        raise UserError(f'{path}: its last line is not JSON; remove the run to train it anew') from None


def load_studies(file: pathlib.Path) -> ModuleType:
    """An experiment file as a module. UserError where it can't be read or has no study."""
    module = load_module(file)
    if not hasattr(module, 'STUDIES'):
        raise UserError(f'{file}: has no STUDIES; train it with python -m nca_jax.main --config={file}')
    return module


class Display:
    """One bar over all tokens of the study and a line of status per run; plain lines where nobody watches."""

    def __init__(self, jobs: list[Job], todo: list[Job]):
        self._jobs, self._watched, self._last_line = jobs, sys.stdout.isatty(), time.time()
        names = rich.progress.TextColumn('{task.description:<14}')
        status = rich.progress.TextColumn('{task.fields[status]}')
        left = rich.progress.TimeRemainingColumn(elapsed_when_finished=True)
        self._progress = rich.progress.Progress(
            names,
            rich.progress.BarColumn(),
            rich.progress.TaskProgressColumn(),
            left,
            status,
            disable=not self._watched,
        )
        self._before = sum(job.progress()[0] for job in todo)
        self._work = sum(job.tokens for job in todo)
        self._total = self._progress.add_task('all runs', total=self._work - self._before, status='')
        self._bars = {
            job.name: self._progress.add_task(job.name, total=job.tokens, status='', visible=False) for job in jobs
        }
        self._todo, self._start = list(todo), time.time()

    def __enter__(self) -> 'Display':
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def say(self, line: str) -> None:
        if self._watched:
            self._progress.console.print(line, highlight=False)
        else:
            print(line, flush=True)

    def update(self, running: list[Job]) -> None:
        done = sum(job.progress()[0] for job in self._todo) - self._before
        rate = done / (time.time() - self._start)
        self._progress.update(self._total, completed=done, status=f'{rate:,.0f} tokens/s')
        for job in running:
            tokens, status = job.progress()
            self._progress.update(self._bars[job.name], completed=tokens, status=status, visible=True)
        if not self._watched and time.time() - self._last_line > LINE_SECONDS:
            self._last_line = time.time()
            all_tokens = self._work - self._before
            left = f'{(all_tokens - done) / rate / 60:.0f} min left' if done else 'no rate yet'
            runs = '; '.join(f'{job.name} {job.progress()[1]}' for job in running)
            print(
                f'{done / 1e6:.1f}M of {all_tokens / 1e6:.1f}M tokens, {rate:,.0f} tokens/s, {left}: {runs}', flush=True
            )


if __name__ == '__main__':
    sys.exit(main())
