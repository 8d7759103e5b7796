"""What a batch costs beside the step that it feeds, and what memory the stream of automata takes.

    python -m experiments.benchmarks.stream [--json]

The quickstart's two streams and the paper's automata at the size `10m`: the time to make one batch alone (median of
50) and of one training step alone; then a step with its batch, where both share the cores, and a step while a process
beside it searches the next epoch's rules, against the step alone. Memory: the peak of a process that makes batches from
18,000 rules against one that has 1,000, and of many steps against a few.
"""

import dataclasses
import itertools
import multiprocessing
import pathlib
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator

import jax
from ml_collections import ConfigDict

from experiments import nca_pretrain, quickstart
from experiments.benchmarks import common
from experiments.benchmarks.nca import paper_config
from nca_jax import config as configs
from nca_jax import mesh as meshes
from nca_jax import run
from nca_jax.experiment import resolve
from nca_jax.nca import score, stream

BATCHES, STEPS = 50, 5
STARTING_S = 10.0  # that a search may take to compile
MEMORY = {'few rules': (1_000, 10), '18,000 rules': (18_000, 10), '300 steps': (1_000, 300)}


def median_seconds(call: Callable[[], object], times: int) -> float:
    call()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measure(name: str, experiment: ConfigDict, folder: pathlib.Path) -> Iterator[common.Row]:
    """A batch against a step, and both together against a step."""
    config = resolve(experiment)
    mesh = meshes.make_mesh(config.mesh)
    folder.mkdir()
    program = run.build(config, mesh, folder)
    numbers = itertools.count(1)
    with meshes.use(mesh):
        state, first = program.init(), program.data.stream(0)

        def step(batch=first):
            nonlocal state
            state, metrics = program.train_step(state, batch)
            jax.block_until_ready(metrics)

        batch_s = median_seconds(lambda: jax.block_until_ready(program.data.stream(next(numbers))), BATCHES)
        step_s = median_seconds(step, STEPS)
        both_s = median_seconds(lambda: step(program.data.stream(next(numbers))), STEPS)
        beside_s = median_seconds_beside_search(step, config, folder) if config.stage == 'nca' else None
    note = f'batch and step; {batch_s / step_s:.2%} of a step'
    yield common.Row(f'stream/{name}/{config.model.dtype}', batch_s, step_s, step_s / batch_s, None, 's', note)
    note = f'step with its batch, and step alone; {both_s / step_s - 1:+.2%}'
    yield common.Row(f'stream/{name} combined/{config.model.dtype}', both_s, step_s, step_s / both_s, None, 's', note)
    if beside_s is not None:
        note = f'step while the next rules are searched, and step alone; {beside_s / step_s - 1:+.2%}'
        name = f'stream/{name} beside a search/{config.model.dtype}'
        yield common.Row(name, beside_s, step_s, step_s / beside_s, None, 's', note)


def median_seconds_beside_search(step: Callable[[], object], config: configs.Config, folder: pathlib.Path) -> float:
    """Of steps while another process looks for the rules of a set too large to be found before they end."""
    endless = dataclasses.replace(config.data, rules_per_epoch=10**9)
    search = stream.start_search(score.Candidates(endless, config.seed, 'train', 1), folder)
    time.sleep(STARTING_S)
    seconds = median_seconds(step, STEPS)
    del search  # which ends it
    return seconds


def peak_mib(rules: int, steps: int) -> float:
    """Peak memory of this process after a search for so many rules and so many batches of 32."""
    config = paper_config(1e-3, band=(0.5, 2.0), rules=rules)
    mesh = meshes.make_mesh(meshes.MeshConfig(-1, 1, 1))
    bank = stream.Banks(config, 0, 'train', None, epochs=1)
    batches = stream.make_stream(config, 0, 'train', 32, 1024, meshes.batch_sharding(mesh), bank)
    for step in range(steps):
        jax.block_until_ready(batches(step))
    status = pathlib.Path('/proc/self/status').read_text()  # getrusage would count what the parent held, too
    return int(re.search(r'VmHWM:\s+(\d+) kB', status)[1]) / 1024


def memory() -> Iterator[common.Row]:
    with multiprocessing.get_context('spawn').Pool(1, maxtasksperchild=1) as pool:
        peaks = {name: pool.apply(peak_mib, sizes) for name, sizes in MEMORY.items()}
    few = peaks.pop('few rules')
    for name, peak in peaks.items():
        note = 'peak memory, against 1,000 rules and 10 steps'
        yield common.Row(f'stream/memory {name}/uint8', peak, few, few / peak, None, 'MiB', note)


def rows() -> Iterator[common.Row]:
    experiments = {
        'quickstart automata': quickstart.get_config('arm=automata'),
        'quickstart text': quickstart.get_config('arm=scratch'),
        'automata at 10m': nca_pretrain.get_config('size=10m'),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, experiment in experiments.items():
            yield from measure(name, experiment, pathlib.Path(folder) / name)
    yield from memory()


if __name__ == '__main__':
    common.main(rows(), __doc__.splitlines()[0])
