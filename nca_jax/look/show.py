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

from nca_jax.look import output


def add_flags(parser: argparse.ArgumentParser) -> None:
    output.add_flags(parser, 'runs/show')
    parser.add_argument('--rules', type=int, help='rules in each set (one a sequence, or all of a training set)')
    parser.add_argument('--sequences', type=int, default=512, help='sequences of each set (512)')


def run(args: argparse.Namespace) -> None:
    from nca_jax.look import sequences

    output.run(args, sequences.show, 'statistics.json')
