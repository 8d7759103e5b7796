"""Counts what a run will cost: tokens, steps and FLOPs, and the hours on some chips at an MFU that you name.

    python -m nca_jax cost --config=experiments/nca_pretrain.py:size=1b6,band=50+ --chip=v5e --chips=16 --mfu=0.4
    python -m nca_jax cost --config=experiments/nca_pretrain.py:size=1b6 --slice=v5p-32 --mfu=runs/nca --hours=24

The FLOPs are those that the model needs for training, counted as for the MFU of train records. Compilation, preparing
the data, evaluations, checkpoints and restarts come on top. --mfu is a number, or the folder of a run: the median of
what it measured. --hours, a limit of time, shows what that admits at most. Neither the accelerator nor the data is
needed, only a tokenizer.json where the config names one.
"""

import argparse
import json
import pathlib
import statistics

from nca_jax import cli, files
from nca_jax.errors import check
from nca_jax.scale.chips import CHIPS, SLICES

# It has no published peak, and so no hours.
CPU = 'cpu'


def add_flags(parser: argparse.ArgumentParser) -> None:
    cli.add_config(parser)
    parser.add_argument('--chip', default=CPU, help=f'one of {", ".join(CHIPS)}; or {CPU}, without hours ({CPU})')
    parser.add_argument('--chips', type=int, default=1, help='how many (1)')
    parser.add_argument('--slice', metavar='NAME', help='a TPU slice, such as v5litepod-16, in place of chip and chips')
    parser.add_argument('--mfu', help='share of the peak that is used, or the folder of a run that measured it')
    parser.add_argument('--hours', type=float, help='a limit of time')
    parser.add_argument('--json', action='store_true', help='print one JSON object and nothing else')


def run(args: argparse.Namespace) -> None:
    from nca_jax import experiment, stages
    from nca_jax.model.config import step_flops

    chip, count = parse_slice(args.slice) if args.slice else (args.chip, args.chips)
    check(chip == CPU or chip in CHIPS, '--chip', chip, f'must be one of {", ".join((*CHIPS, CPU))}')
    check(count > 0, '--chips', count, 'must be positive')
    check(args.hours is None or args.hours > 0, '--hours', args.hours, 'must be positive')
    mfu = None if args.mfu is None else read_mfu(args.mfu)
    config = experiment.load(args.config, args.changes)
    steps, batch, length = config.timetable.stop, config.train.batch, config.model.length
    tokens = steps * config.timetable.tokens_per_step
    flops = steps * step_flops(config.model, stages.STAGES[config.stage].vocabulary(config), batch)
    lines = [f'{tokens:,} tokens in {steps:,} updates of {batch} x {length}, {flops:.3g} FLOPs']
    hours = None
    # Without a peak or a share of it, FLOPs say nothing about time.
    if chip == CPU:
        lines.append('the hours are not estimated on a CPU')
    elif mfu is None:
        lines.append('name an --mfu for the hours')
    else:
        hours = flops / (CHIPS[chip][0] * mfu * count) / 3600
        amount = f'{hours:.2f} hours on {count} x {chip}, {hours * count:.1f} chip-hours'
        lines.append(f'{amount}, for training alone at an MFU of {mfu:.4g}')
    if args.hours is not None:
        limit = f'{count} chips x {args.hours:g} hours = {args.hours * count:g} chip-hours'
        lines.append(f'at most {limit} each time it starts')
    record = {'tokens': tokens, 'steps': steps, 'batch': batch, 'length': length, 'flops': flops}
    record |= {'chip': chip, 'chips': count, 'mfu': mfu, 'hours': hours, 'limit_hours': args.hours}
    print(json.dumps(record) if args.json else '\n'.join(f'cost: {line}' for line in lines))


def parse_slice(name: str) -> tuple[str, int]:
    """The chip and the number of chips: 'v5p-32' is 32 cores, and so 16 chips, of v5p."""
    by_slice = {in_slices: (chip, per_chip) for chip, (in_slices, per_chip) in SLICES.items()}
    kind, _, size = name.partition('-')
    allowed = f'must be one of {", ".join(by_slice)} with its size, such as v5litepod-16'
    check(kind in by_slice and size.isdecimal(), '--slice', name, allowed)
    chip, per_chip = by_slice[kind]
    check(int(size) % per_chip == 0, '--slice', name, f'is counted in cores, {per_chip} to a chip')
    return chip, int(size) // per_chip


def read_mfu(text: str) -> float:
    """The number, or the median over a run's train records."""
    try:
        mfu = float(text)
    except ValueError:
        records = files.read_records(pathlib.Path(text) / 'metrics.jsonl')
        measured = [record['mfu'] for record in records if 'mfu' in record]
        allowed = 'must be a number, or the folder of a run with an MFU in its metrics.jsonl'
        check(bool(measured), '--mfu', text, allowed)
        # The mean would count the first steps, which compile.
        return statistics.median(measured)
    check(0 < mfu <= 1, '--mfu', mfu, 'must be above 0 and at most 1')
    return mfu
