"""How a step grows on a CPU when one thing doubles, against the model's own FLOPs.

    python -m experiments.benchmarks.growth [--json]

"Theirs" is the ideal: the base step times the ratio of FLOPs. A ratio above 1 means that the larger step uses the cores
better than the base does.
"""

from collections.abc import Iterator

import jax

from experiments.benchmarks import common, train_step
from nca_jax.model.config import step_flops

BASE = (1024, 128, 4, 4, 16, 256)  # vocabulary, width, layers, heads, batch, length
DOUBLED = {
    'width': (1024, 256, 4, 8, 16, 256),
    'layers': (1024, 128, 8, 4, 16, 256),
    'batch': (1024, 128, 4, 4, 32, 256),
    'length': (1024, 128, 4, 4, 16, 512),
}


def rows() -> Iterator[common.Row]:
    built = {name: train_step.configure(shape) for name, shape in {'base': BASE, **DOUBLED}.items()}
    seconds = common.seconds_in_turn({name: train_step.ours(*each) for name, each in built.items()}, rounds=7)
    flops = {name: step_flops(config.model, vocab, config.train.batch) for name, (config, vocab) in built.items()}
    for name in DOUBLED:
        growth = flops[name] / flops['base']
        ideal = seconds['base'] * growth
        note = f'{seconds[name] / seconds["base"]:.2f} times the base step, {growth:.2f} times its FLOPs'
        yield common.Row(f'growth/{name}/float32', seconds[name], ideal, ideal / seconds[name], None, 's', note)


if __name__ == '__main__':
    jax.config.update('jax_num_cpu_devices', train_step.CORES)
    common.main(rows(), __doc__.splitlines()[0])
