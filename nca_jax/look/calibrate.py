"""Finds the band of rules that are as complex as a text.

    python -m nca_jax calibrate --text=my_corpus/ --config=experiments/nca_pretrain.py
    python -m nca_jax calibrate --text=python_stdlib --text=notes.txt --text=genome.fasta

Each text is measured in three settings:

    bytes    bytes as tokens, as many as an automaton's score takes and as wide
    raw      as many bytes as those have, one byte wide; for reference
    long     up to 1 MiB, one byte wide; for reference, since the paper may have compressed whole corpora

A ratio becomes a normalized ratio, 0 for constant tokens and 1 for uniform ones over the text's vocabulary, and then
the score of automata with the same normalized ratio. The proposed band holds the score of the median window of bytes.
Bands are the paper's where its thresholds apply, else fifths of unfiltered rules. Shares, min, median and max are of
the rules' scores.

Not covered:
- Compressed files: their bytes are measured as they are.
- Whether training on the band helps. The normalized ratio is a convention that depends on the vocabulary; the rows
  `shuffled` have those of tokens drawn from the text's frequencies.

Files in --out: calibration.png and calibration.json.
"""

import argparse
from collections.abc import Mapping
from typing import Any

from nca_jax import progress
from nca_jax.errors import check
from nca_jax.look import output
from nca_jax.report import tables

# Fewer give no quantiles.
LEAST = 50
NOTE = """

`calibrate --help` explains the rows. Above 0 or 100 % of rules, no band holds a text: the nearest one is proposed."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    output.add_flags(parser, 'runs/calibrate')
    text = 'a file or folder of any bytes, python_stdlib or python_docs; may be given several times'
    parser.add_argument('--text', required=True, action='append', metavar='PATH_OR_CORPUS', help=text)
    parser.add_argument('--rules', type=int, default=2000, help='unfiltered rules to score (2000)')
    parser.add_argument('--windows', type=int, default=2000, help='windows of each text, if it has so many (2000)')


def run(args: argparse.Namespace) -> None:
    from nca_jax.look import calibration, pictures
    from nca_jax.report import figures

    for flag in ('rules', 'windows'):
        check(getattr(args, flag) >= LEAST, f'--{flag}', getattr(args, flag), f'must be at least {LEAST}')
    config = output.load(args)
    with progress.bars() as show_progress:
        record = calibration.calibrate(config, args, show_progress)
    drawn = {'calibration.png': figures.render(pictures.score_histograms, config.data, record)}
    output.save(args, 'calibration.json', record, drawn, report)


def report(record: Mapping[str, Any]) -> str:
    """A table and a proposal in words for each text of a plain record."""
    parts = []
    for name, text in record['texts'].items():
        band, score, below = record['bands'][text['band']], text['settings']['bytes']['score'], text['rules_below']
        parts += [
            output.table({'rules': record['rules']} | text['settings']),
            f'{name}: band {band["name"]}, scores {tables.number(band["low"])} to {tables.number(band["high"])}\n'
            f'  {text["arguments"]}\n'
            f'  In bytes, the median window has the score {score:.3f}, above {100 * below:.0f} % of rules.',
        ]
    return '\n\n'.join(parts) + NOTE
