"""What a run will cost, before it starts: tokens, steps, FLOPs, hours and chip-hours at an MFU that is assumed.

    python -m nca_jax.scale.cost --config=experiments/nca_pretrain.py:size=1b6,band=50+ --chip=v5e --chips=16
    python -m nca_jax.scale.cost --config=experiments/nca_pretrain.py:size=1b6 --slice=v5p-32 --mfu=0.5 --hours=24

It counts the FLOPs of training alone, as the model needs them (nca_jax.model.config.step_flops): compilation, preparing
the data, evaluations, checkpoints and restarts come on top. With --hours, a limit of time, it says what that admits at
most. It needs neither the accelerator nor the data, only a tokenizer.json where the config names one. Exit code 2 and
one line for bad input.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence

from nca_jax import cli, experiment, stages
from nca_jax.config import Config
from nca_jax.errors import UserError, check
from nca_jax.model.config import step_flops
from nca_jax.scale import chips
from nca_jax.train.duration import to_steps

CHIPS = chips.TPUS | chips.GPUS
CPU = 'cpu'  # has no peak to speak of: what it needs is counted, how long it takes isn't

# The names of TPU slices: which chip, and by how many the number in the name counts it (cores, in the older ones).
SLICES = {'v4': ('v4', 2), 'v5p': ('v5p', 2), 'v5litepod': ('v5e', 1), 'v5e': ('v5e', 1), 'v6e': ('v6e', 1)}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog='python -m nca_jax.scale.cost', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--config', required=True, metavar='FILE[:WORDS]', help='an experiment; --config.a.b=c changes one field'
    )
    parser.add_argument('--chip', default=CPU, help=f'one of {", ".join(CHIPS)}; or {CPU}, without an estimate ({CPU})')
    parser.add_argument('--chips', type=int, default=1, help='how many (1)')
    parser.add_argument('--slice', metavar='NAME', help='a TPU slice, such as v5litepod-16, in place of chip and chips')
    parser.add_argument('--mfu', type=float, default=0.4, help='assumed share of the peak that is used (0.4)')
    parser.add_argument('--hours', type=float, help='a limit of time')
    parser.add_argument('--json', action='store_true', help='print one JSON object and nothing else')
    args, changes = parser.parse_known_args(argv)
    try:
        chip, count = parse_slice(args.slice) if args.slice else (args.chip, args.chips)
        config = experiment.from_dict(experiment.load_values(args.config, cli.split_changes(changes)[1]))
        found = cost(config, chip, count, args.mfu, args.hours)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(json.dumps(found) if args.json else '\n'.join(describe(found)))
    return 0


def parse_slice(name: str) -> tuple[str, int]:
    """'v5p-32' is 32 cores, and so 16 chips, of v5p; 'v5litepod-16' is 16 chips of v5e."""
    match = re.fullmatch(r'(\w+)-(\d+)', name)
    known = match is not None and match[1] in SLICES and int(match[2]) > 0
    check(known, '--slice', name, f'must be one of {", ".join(SLICES)} with its size, such as v5litepod-16')
    chip, per_chip = SLICES[match[1]]
    check(int(match[2]) % per_chip == 0, '--slice', name, f'is counted in cores, {per_chip} to a chip')
    return chip, int(match[2]) // per_chip


def cost(config: Config, chip: str, count: int, mfu: float, limit: float | None = None) -> dict:
    """What --json prints. `hours` and `chip_hours` are None on a CPU, the limit's two numbers without a limit.

    Raises FieldError for a chip that isn't known, no chips, an MFU outside (0, 1], or a limit that isn't positive.
    """
    check(chip == CPU or chip in CHIPS, '--chip', chip, f'must be one of {", ".join((*CHIPS, CPU))}')
    check(count > 0, '--chips', count, 'must be positive')
    check(0 < mfu <= 1, '--mfu', mfu, 'must be above 0 and at most 1')
    check(limit is None or limit > 0, '--hours', limit, 'must be positive')
    tokens_per_step = config.train.batch * config.model.length
    steps = to_steps(config.train.stop, tokens_per_step, 'config.train.stop')
    flops = steps * step_flops(config.model, stages.vocabulary(config), config.train.batch)
    hours = None if chip == CPU else flops / (CHIPS[chip].flops * mfu * count) / 3600
    return {
        'tokens': steps * tokens_per_step,
        'steps': steps,
        'batch': config.train.batch,
        'length': config.model.length,
        'flops': flops,
        'chip': chip,
        'chips': count,
        'mfu': mfu,
        'hours': hours,
        'chip_hours': None if hours is None else hours * count,
        'limit_hours': limit,
        'limit_chip_hours': None if limit is None else limit * count,
    }


def describe(found: dict) -> list[str]:
    """The lines for people."""
    flops, chips_of = f'{found["flops"]:.3g} FLOPs', f'{found["chips"]} x {found["chip"]}'
    updates = f'{found["steps"]:,} updates of {found["batch"]} x {found["length"]}'
    lines = [f'cost: {found["tokens"]:,} tokens in {updates}, {flops}']
    if found['hours'] is None:
        lines += ['cost: the hours are not estimated on a CPU']
    else:
        amount = f'{found["hours"]:.2f} hours on {chips_of}, {found["chip_hours"]:.1f} chip-hours'
        lines += [f'cost: {amount}, for training alone at an assumed MFU of {100 * found["mfu"]:g} %']
    if found['limit_hours'] is not None:
        lines += [
            f'cost: at most {found["chips"]} chips x {found["limit_hours"]:g} hours = {found["limit_chip_hours"]:g}'
            ' chip-hours each time it starts'
        ]
    return lines


if __name__ == '__main__':
    sys.exit(main())
