"""Writes a report on finished runs: report.md, report.html (one self-contained file) and PNG figures.

    python -m nca_jax report runs/quickstart --out runs/quickstart/report

It reads only what the runs wrote (run.json, metrics.jsonl, automata.npz, complexity.json). It says first, in words,
what the intervals over paired seeds support, and prints the same tables to the terminal.
"""

import argparse
from pathlib import Path


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('folders', metavar='DIR', nargs='+', type=Path, help='a run folder, or one that holds runs at any depth')
    add('--out', metavar='FOLDER', type=Path, help="where the report goes (default: 'report' in the first DIR)")
    add('--baseline', metavar='ARM', help='the arm that all others are compared with (default: scratch)')


def run(args: argparse.Namespace) -> None:
    from nca_jax.report import write

    write.write(args.folders, args.out or args.folders[0] / 'report', args.baseline)
