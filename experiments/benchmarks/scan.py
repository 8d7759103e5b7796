"""Layers in a loop (scan) against layers written out: what each costs to compile, and to run on a CPU.

    python -m experiments.benchmarks.scan [--json]

"Ours" is the loop, which is what large models compile; the quickstart writes its four layers out.
"""

import time
from collections.abc import Iterator

import jax

from experiments.benchmarks import common, train_step

SHAPES = ((1024, 128, 4, 4, 16, 256), (1024, 128, 12, 4, 16, 256))


def rows() -> Iterator[common.Row]:
    jax.config.update('jax_enable_compilation_cache', False)
    for shape in SHAPES:
        case = '-'.join(map(str, shape))
        sides, compiling = {}, {}
        for name, unroll in (('scanned', 1), ('unrolled', shape[2])):
            sides[name] = train_step.ours(*train_step.configure(shape, unroll=unroll))
            start = time.perf_counter()
            sides[name]()  # of which one step, a share of a second
            compiling[name] = time.perf_counter() - start
        stepping = common.seconds_in_turn(sides, rounds=7)
        for what, seconds in (('compile', compiling), ('step', stepping)):
            ratio = seconds['unrolled'] / seconds['scanned']
            note = f'{shape[2]} layers, scanned against unrolled'
            yield common.Row(
                f'scan/{case} {what}/float32', seconds['scanned'], seconds['unrolled'], ratio, None, 's', note
            )


if __name__ == '__main__':
    jax.config.update('jax_num_cpu_devices', train_step.CORES)
    common.main(rows(), __doc__.splitlines()[0])
