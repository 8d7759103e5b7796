"""Trains one stage, or evaluates it where the config's train.stop is '0 steps'.

    python -m nca_jax train --config=experiments/nca_pretrain.py:size=10m,band=50+ --workdir=runs/nca
    python -m nca_jax train --config=experiments/language.py:size=10m,parent=runs/nca --workdir=runs/code
    python -m nca_jax train --config=experiments/nca_pretrain.py:smoke --workdir=runs/try   # a minute on a CPU

Each file in experiments/ says at its top what it is for, and in get_config which words it knows. A wrong word or field
is answered with those that are allowed. The same command resumes a run that stopped.

Exit codes: 0 done, 1 a loss that isn't finite, 2 bad input, 74 a disk that is full or failing, 75 stopped by SIGTERM
and 130 by Ctrl-C with everything saved, 134 a lost process. Several processes save on SIGTERM alone.

Several processes, on one machine or many, make one run: each is this command, and nca_jax/distributed.py says by which
variables they find each other. All of them must see the folder of the run.
"""

import argparse
import pathlib
import signal
import sys

from nca_jax import cli
from nca_jax.errors import PREEMPTED


def add_flags(parser: argparse.ArgumentParser) -> None:
    cli.add_config(parser)
    words = 'the folder of this run: metrics, checkpoints, and what a report reads'
    parser.add_argument('--workdir', type=pathlib.Path, required=True, metavar='DIR', help=words)


def run(args: argparse.Namespace) -> None:
    # Before training nothing needs saving: SIGTERM ends the process, also while it imports and waits for others. Later
    # Preemption takes its place; with several processes JAX does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(PREEMPTED))
    from nca_jax import distributed, experiment
    from nca_jax.run import train
    from nca_jax.train.loop import Preemption

    distributed.initialise()
    preemption = Preemption()
    train(experiment.load(args.config, args.changes), args.workdir, preemption)


if __name__ == '__main__':
    cli.start('train')
