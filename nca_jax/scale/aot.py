"""Compiles a run for TPUs that aren't here: does it fit, and what does it move.

    python -m nca_jax aot --config=experiments/nca_pretrain.py:size=1b6 --topology=v5e:4x4 --config.mesh.fsdp=4
    python -m nca_jax aot --config=experiments/language.py:size=1b6,corpus=openwebtext --topology=v5p:2x2x4 --search

libtpu's compiler gets the very train step of `nca_jax train`, the evaluation's step, and for automata the generator of
a batch. It reads no data: a text's vocabulary is its tokenizer's, or as large as the config says.

Not covered: time, which it can't measure, and the decoding of a benchmark.

It shows, of the train step:
  hbm_bytes         the peak of a chip's memory, against hbm_limit, which a program may use
  alias_share       the share of the state that is updated in place, padding of its tiles included
  flops             of all chips' products, with what remat computes again and masks throw away, beside model_flops
  bytes_accessed    on a chip, each loop's body counted once
  collective_bytes  what a chip receives, by kind

--search finds, for each remat policy, the most sequences a chip that fit, and shows the policy that recomputes least.
A compilation of the largest size takes some minutes. Exit codes: 0 all fits, 1 something doesn't, 2 bad input.
"""

import argparse
import json
import sys

from nca_jax import cli


def add_flags(parser: argparse.ArgumentParser) -> None:
    cli.add_config(parser)
    parser.add_argument('--topology', required=True, metavar='NAME', help='a TPU slice such as v5e:4x4 or v5p:2x2x4')
    parser.add_argument('--search', action='store_true', help='find the largest batch and the least recomputation')
    parser.add_argument('--step-only', action='store_true', help='compile the train step alone: half the time')
    parser.add_argument('--json', action='store_true', help='print one JSON object and nothing else')


def run(args: argparse.Namespace) -> int:
    import jax

    from nca_jax import experiment
    from nca_jax.scale import fit

    # A program for chips that aren't here can't be read back from the cache.
    jax.config.update('jax_enable_compilation_cache', False)
    fit.check_name(args.topology)
    config = experiment.load(args.config, args.changes)
    devices = fit.open_slice(args.topology)
    target = fit.make_target(config, args.topology, devices, fit.hbm_limit(devices))
    if args.search:
        target, record = fit.search(target, lambda line: print(line, file=sys.stderr, flush=True))
    else:
        record = fit.measure_step(target)
    # They take minutes to compile, and tell nothing more about a run whose step doesn't fit.
    record['programs'] = fit.measure_others(target) if record['fits'] and not args.step_only else {}
    lines = (f'{name:20}{fit.in_words(name, value)}' for name, value in record.items())
    print(json.dumps(record) if args.json else '\n'.join(lines))
    return 0 if all(program['fits'] for program in (record, *record['programs'].values())) else 1
