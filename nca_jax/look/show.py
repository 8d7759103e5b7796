"""Draws and measures the sequences that an experiment on automata trains on.

    python -m nca_jax show --config=experiments/nca_pretrain.py:band=30-40 --out=runs/show/30-40

The first sequences of the training stream stand beside as many of unfiltered rules, unless the band takes all rules.
Files in --out:

    trajectories.gif, .png   sequences in the order of their scores
    rank_frequency.png       frequency of tokens by rank, beside that of shuffled cells
    information.png          mutual information of cells by distance, less what chance gives
    statistics.json          all numbers, which --json prints as well
"""

import argparse
import dataclasses

from nca_jax import progress
from nca_jax.look import output

NOTE = """

Scores' quantiles are at 5, 50 and 95 %, entropies in bits. A Zipf exponent describes a slope and shows no power law:
that of all sequences depends on their number, and beside each stands what comes of shuffled cells."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    output.add_flags(parser, 'runs/show')
    parser.add_argument('--sequences', type=int, default=512, help='sequences of each set (512)')


def run(args: argparse.Namespace) -> None:
    from nca_jax.look import pictures, sequences

    config = output.load(args)
    data = config.data
    with progress.bars() as show_progress:
        sets = sequences.sample_sets(config, args.sequences, show_progress)
    measured = {name: sequences.measure(data, drawn) for name, drawn in sets.items()}
    drawn = pictures.draw_sequences(data, sets, measured)
    record = {'name': config.name, 'seed': config.seed, 'spec': dataclasses.asdict(data), 'sets': measured}
    output.save(args, 'statistics.json', record, drawn, lambda record: output.table(record['sets']) + NOTE)
