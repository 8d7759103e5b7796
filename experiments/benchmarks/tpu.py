"""What automata cost a TPU's training step, by its compiler's estimate: no TPU is needed, and none has been timed.

    python -m experiments.benchmarks.tpu [--json]

Compiles, ahead of time for a v5e:2x2 slice, the generator of one batch, the paper's 1b6 training step at that batch,
and both as one program in which the tokens never leave the chips. Needs `libtpu` (the extra `tpu`). How cycles become
seconds stands in nca_jax/scale/aot.py.
"""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from experiments import nca_pretrain
from experiments.benchmarks import common
from nca_jax import keys, run
from nca_jax import mesh as meshes
from nca_jax.batch import to_batch
from nca_jax.experiment import resolve
from nca_jax.nca import stream
from nca_jax.scale import aot
from nca_jax.scale.estimate import Estimate

TOPOLOGY = 'v5e:2x2'


def estimates() -> dict[str, Estimate]:
    """The generator, the step, and both in one."""
    experiment = nca_pretrain.get_config('size=1b6')
    experiment.mesh.update({'data': 1, 'fsdp': 4})
    target = aot.make_target(resolve(experiment), TOPOLOGY)
    config, rows = target.config, meshes.batch_sharding(target.mesh)
    names = jax.ShapeDtypeStruct((config.train.batch, 3), jnp.uint32, sharding=rows)
    root = jax.ShapeDtypeStruct((), jax.eval_shape(lambda: keys.key(0)).dtype, sharding=meshes.replicated(target.mesh))
    sequences = stream.make_sequences(config.data, config.model.length + 1, 'train', rows)
    state, _, train_step = run.make_update(config, target.mesh, target.vocab)

    def fused(state, root, names):
        return train_step(state, to_batch(sequences(root, names), config.data.first_loss_at))

    programs = aot.programs(target)
    lowered = {
        'generator': programs['generator'],
        'step': programs['train step'],
        'fused': lambda: jax.jit(fused, donate_argnums=0).lower(state, root, names),
    }
    return {name: aot.cost(target, lower) for name, lower in lowered.items()}


def rows() -> Iterator[common.Row]:
    found = estimates()
    seconds = {name: each.work for name, each in found.items()}
    note = f'{TOPOLOGY}, estimated; generator and step, {seconds["generator"] / seconds["step"]:.2%} of a step'
    row = common.Row('tpu/generator/bfloat16', seconds['generator'], seconds['step'], 0.0, None, 's', note)
    yield dataclasses.replace(row, ratio=row.theirs / row.ours)
    more = seconds['fused'] / seconds['step'] - 1
    note = f'{TOPOLOGY}, estimated; step with its batch made inside, and step alone, {more:+.2%}'
    row = common.Row('tpu/fused/bfloat16', seconds['fused'], seconds['step'], 0.0, None, 's', note)
    yield dataclasses.replace(row, ratio=row.theirs / row.ours)
    memory = {name: each.memory.total / 2**30 for name, each in found.items()}
    note = f'memory a chip, fused and step alone; the generator alone has {memory["generator"] * 1024:.1f} MiB'
    row = common.Row('tpu/fused memory/bfloat16', memory['fused'], memory['step'], 0.0, None, 'GiB', note)
    yield dataclasses.replace(row, ratio=row.theirs / row.ours)


if __name__ == '__main__':
    common.main(rows(), __doc__.splitlines()[0])
