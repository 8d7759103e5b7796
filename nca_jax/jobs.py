"""The runs of a study as processes: which are left, a few at a time, and their progress."""

import ctypes
import dataclasses
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

from nca_jax import config as configs
from nca_jax import experiment, files, folders
from nca_jax.config import Config
from nca_jax.errors import BAD_INPUT, DONE, FAILED, INTERRUPTED, PREEMPTED, UserError, check
from nca_jax.progress import bars
from nca_jax.report import write as report

PR_SET_PDEATHSIG = 1


@dataclasses.dataclass
class Job:
    """One run of the study, and its process while it trains."""

    name: str
    # The value of --config.
    source: str
    config: Config
    folder: pathlib.Path
    # Another job's name.
    parent: str | None
    process: subprocess.Popen | None = None
    core: int | None = None

    @property
    def tokens(self) -> int:
        return self.config.timetable.stop * self.config.timetable.tokens_per_step

    @property
    def log(self) -> pathlib.Path:
        return self.folder.with_name(self.folder.name + '.log')

    def last_record(self) -> dict | None:
        """The last record of the run's metrics; None before the first."""
        path = self.folder / 'metrics.jsonl'
        lines = files.read_lines(path)
        return files.parse_object(lines[-1], f'{path}:{len(lines)}') if lines else None

    def trained(self) -> int:
        """Tokens trained so far."""
        return (self.last_record() or {'tokens': 0})['tokens']

    def is_finished(self) -> bool:
        """Whether the folder holds this very run, done. Raises UserError where it holds another config's."""
        last = self.last_record()
        if last is None or last['kind'] != 'done':
            return False
        identity = configs.identity(self.config, folders.read_parent(self.config.init_from))
        if folders.read_record(self.folder)['identity'] != identity:
            another = f'the run of another config than {self.source}'
            raise UserError(f'{self.folder} holds {another}; remove it or choose another --out')
        return True


def run_study(file: pathlib.Path, study: str, out: pathlib.Path | None, workers: int | None) -> int:
    """Trains the runs that aren't finished, then writes the report. Returns the exit code."""
    check(workers is None or workers > 0, '--workers', workers, 'must be positive')
    check(out is None or ',' not in str(out), '--out', str(out), 'a comma would part it into words of a config')
    jobs, out = make_jobs(file, study, out)
    # On CPUs unless the user says otherwise: several runs can't share an accelerator's memory.
    # One process a core: small matrices gain nothing from a second one, and results don't depend on the number.
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str((out / 'compiled').absolute()))
    # Large pages save glibc's allocator a tenth of a training step's time on a CPU; elsewhere this does nothing.
    os.environ.setdefault('GLIBC_TUNABLES', 'glibc.malloc.hugetlb=1')
    on_cpu = os.environ['JAX_PLATFORMS'] == 'cpu'
    # macOS can't pin a process to a core.
    cores = sorted(os.sched_getaffinity(0)) if on_cpu and hasattr(os, 'sched_getaffinity') else []
    files.make_folder(out, '--out')
    todo = [job for job in jobs if not job.is_finished()]
    print(f'{file.stem}: {len(jobs)} runs in {out}, {len(jobs) - len(todo)} of them finished before', flush=True)
    code = train_all(todo, workers or len(cores) or 1, cores)
    if code == DONE:
        report.write([str(out)], out / 'report', baseline=None)
    return code


def make_jobs(file: pathlib.Path, study: str, out: pathlib.Path | None) -> tuple[list[Job], pathlib.Path]:
    """The runs of a study and of those that it continues, parents before children, and the folder that holds them.

    Raises UserError where the file can't be read, has no such study, or refuses a run's words.
    """
    module = experiment.load_module(file)
    if not hasattr(module, 'STUDIES'):
        raise UserError(f'{file}: has no STUDIES; train it with python -m nca_jax train --config={file}')
    check(study in module.STUDIES, 'study', study, f'{file} has {", ".join(module.STUDIES)}')
    chain, earlier = [study], getattr(module, 'CONTINUES', {})
    while chain[0] in earlier:
        chain.insert(0, earlier[chain[0]])
    # A study joins the folder of the one that it continues.
    out = out or pathlib.Path('runs') / (file.stem if chain[0] == 'main' else f'{file.stem}-{chain[0]}')
    jobs = []
    for study in chain:
        for name, words in module.STUDIES[study].items():
            parent = re.search(r'\bparent=([^,]+)', words)
            # The experiment file takes a parent's folder; a study names a parent by its run.
            if parent is not None:
                words = words.replace(parent[0], f'parent={out / parent[1]}')
            config = experiment.resolve(experiment.get_config(module, words, f'{file}: run {name} of study {study}'))
            jobs.append(Job(name, f'{file}:{words}', config, out / name, parent and parent[1]))
    return jobs, out


def train_all(todo: list[Job], workers: int, cores: list[int]) -> int:
    """Keeps `workers` runs going until none is left. A failure or a signal stops the others, which save first."""
    waiting, running, free, interrupted = list(todo), [], list(cores), []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: interrupted.append(number))
    total = sum(job.tokens for job in todo)
    with bars() as progress:
        while waiting or running:
            unfinished = {job.name for job in waiting + running}
            ready = [job for job in waiting if job.parent not in unfinished]
            for job in ready[: workers - len(running)]:
                waiting.remove(job)
                running.append(job)
                job.core = free.pop() if free else None
                launch(job)
                print(f'{job.name}: started', flush=True)
            time.sleep(1.0)
            progress('all runs', sum(job.trained() for job in todo), total)
            for job in running:
                progress(job.name, job.trained(), job.tokens)
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                free += [job.core] if job.core is not None else []
                # One failure ends the study: the others likely fail alike, and the report needs all runs.
                if job.process.returncode:
                    stop(running)
                    print(f'{job.name} failed, exit code {job.process.returncode}; {job.log} ends with:')
                    print('\n'.join(job.log.read_text().splitlines()[-8:]), flush=True)
                    return BAD_INPUT if job.process.returncode == BAD_INPUT else FAILED
                print(f'{job.name}: done, step {job.last_record()["step"]}', flush=True)
            if interrupted:
                stop(running)
                print('interrupted; the same command goes on from here', flush=True)
                return INTERRUPTED if interrupted[0] == signal.SIGINT else PREEMPTED
    return DONE


def launch(job: Job) -> None:
    """Starts the run as a process that ends with this one, on a core of its own where `job.core` names one."""
    libc = ctypes.CDLL(None)

    # It makes system calls alone: at the fork, the bar's thread may hold Python's other locks.
    def prepare_child() -> None:
        # The kernel kills the run if this process dies. Otherwise the run would go on with no one to stop it.
        if sys.platform == 'linux':
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if job.core is not None:
            os.sched_setaffinity(0, {job.core})

    command = [sys.executable, '-m', 'nca_jax', 'train', f'--config={job.source}', f'--workdir={job.folder}']
    with job.log.open('a') as log:
        # A session of its own, so that Ctrl-C reaches this process alone, which then asks the runs to save.
        job.process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, preexec_fn=prepare_child, start_new_session=True
        )


def stop(running: list[Job]) -> None:
    """Asks the runs to save and end, and waits for them."""
    for job in running:
        job.process.terminate()
    for job in running:
        job.process.wait()
