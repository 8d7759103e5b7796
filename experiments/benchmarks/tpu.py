"""What automata cost a TPU's training step, by its compiler's estimate: no TPU is needed, and none has been timed.

    python -m experiments.benchmarks.tpu [--json]

Compiles, ahead of time for a v5e:2x2 slice, the generator of one batch, the paper's 1b6 training step at that batch,
and both as one program in which the tokens never leave the chips. Needs `libtpu` (the extra `tpu`). Seconds are the
compiler's cycles, loop bodies times their trips, over a clock calibrated with one large matrix product; collectives
aren't in them, so that a step takes longer and the generator's share of it is smaller than shown.
"""

import functools
import os
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterator

os.environ.update(
    JAX_PLATFORMS='cpu', TPU_SKIP_MDS_QUERY='1', TPU_WORKER_HOSTNAMES='localhost', TPU_ACCELERATOR_TYPE='v5litepod-4'
)

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from experiments import nca_pretrain
from experiments.benchmarks import common
from nca_jax import config as configs
from nca_jax import mesh as meshes
from nca_jax import run
from nca_jax.batch import to_batch
from nca_jax.nca import stream

TOPOLOGY, PEAK_FLOPS = 'v5e:2x2', 197e12  # bfloat16, as Google publishes it
HIDDEN_TRIPS = 36 / 27  # updates for 27 frames, the mean of a loop that is bounded by variables
SIZE = 8192  # of the matrix product that calibrates the clock


def cycles(compiled: jax.stages.Compiled) -> float:
    """The compiler's estimate of a program's cycles; a loop counts as often as its condition's constant says.

    Only the rollout's inner loop, over the updates between two frames, has none.
    """
    bodies = {}
    for text in re.split(r'\n(?=\S)', compiled.as_text()):
        name = re.match(r'(?:ENTRY )?(%?[\w.-]+)', text)
        if name:
            bodies['ENTRY' if text.startswith('ENTRY') else name[1].lstrip('%')] = text

    @functools.cache
    def of(name: str) -> float:
        text = bodies[name]
        total = sum(int(count) for count in re.findall(r'"estimated_cycles":"(\d+)"', text))
        for condition, body in re.findall(r' while\(.*condition=%([\w.-]+), body=%([\w.-]+)', text):
            trips = [int(count) for count in re.findall(r' constant\((\d+)\)', bodies[condition])]
            total += max(trips, default=HIDDEN_TRIPS) * of(body)
        return total

    return of('ENTRY')


def compile_all() -> dict[str, jax.stages.Compiled]:
    """The generator, the step, both in one, and the matrix product."""
    devices = topologies.get_topology_desc(platform='tpu', topology_name=TOPOLOGY).devices
    experiment = nca_pretrain.get_config('size=1b6')
    experiment.data.update({'rules_per_epoch': 64, 'band': (0.0, 2.0)})  # what is compiled doesn't depend on them
    experiment.mesh.update({'data': 1, 'fsdp': 4})
    experiment.eval.update({'batches': 1})
    config = configs.resolve(experiment)
    mesh = meshes.make_mesh(config.mesh, list(devices))
    rows = meshes.batch_sharding(mesh)
    names = jax.ShapeDtypeStruct((config.train.batch, 3), jnp.uint32, sharding=rows)
    root = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=meshes.replicated(mesh))
    sequences = stream.make_sequences(config.data, config.model.length + 1, 'train', rows)

    def batch_of(root, names):
        return to_batch(sequences(root, names), config.data.first_loss_at)

    with tempfile.TemporaryDirectory() as folder:
        program = run.build(config, mesh, pathlib.Path(folder))
    square = jax.ShapeDtypeStruct((SIZE, SIZE), jnp.bfloat16, sharding=meshes.replicated(mesh))  # on every chip alike
    with meshes.use(mesh):
        batch = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=rows),
            jax.eval_shape(batch_of, root, names),
        )
        fused = jax.jit(lambda state, root, names: program.train_step(state, batch_of(root, names)), donate_argnums=0)
        return {
            'generator': jax.jit(batch_of, out_shardings=rows).lower(root, names).compile(),
            'step': program.train_step.lower(program.abstract, batch).compile(),
            'fused': fused.lower(program.abstract, root, names).compile(),
            'matmul': jax.jit(jnp.matmul).lower(square, square).compile(),
        }


def gib(compiled: jax.stages.Compiled) -> float:
    """Memory on each chip: arguments, results that alias none of them, temporaries."""
    need = compiled.memory_analysis()
    own_results = need.output_size_in_bytes - need.alias_size_in_bytes
    return (need.argument_size_in_bytes + own_results + need.temp_size_in_bytes) / 2**30


def rows() -> Iterator[common.Row]:
    compiled = compile_all()
    clock = cycles(compiled['matmul']) / (2 * SIZE**3 / PEAK_FLOPS)
    seconds: Callable[[str], float] = lambda name: cycles(compiled[name]) / clock  # noqa: E731
    note = f'{TOPOLOGY}, estimated; generator and step, {seconds("generator") / seconds("step"):.2%} of a step'
    ratio = seconds('step') / seconds('generator')
    yield common.Row('tpu/generator/bfloat16', seconds('generator'), seconds('step'), ratio, None, 's', note)
    more = seconds('fused') / seconds('step') - 1
    note = f'{TOPOLOGY}, estimated; step with its batch made inside, and step alone, {more:+.2%}'
    ratio = seconds('step') / seconds('fused')
    yield common.Row('tpu/fused/bfloat16', seconds('fused'), seconds('step'), ratio, None, 's', note)
    memory = {name: gib(compiled[name]) for name in ('fused', 'step')}
    note = f'memory a chip, fused and step alone; the generator alone has {gib(compiled["generator"]) * 1024:.1f} MiB'
    ratio = memory['step'] / memory['fused']
    yield common.Row('tpu/fused memory/bfloat16', memory['fused'], memory['step'], ratio, None, 'GiB', note)


if __name__ == '__main__':
    common.main(rows(), __doc__.splitlines()[0])
