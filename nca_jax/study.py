"""Trains all runs of a study, several at a time, and reports on them.

    python -m nca_jax study experiments/quickstart.py
    python -m nca_jax study experiments/quickstart.py smoke --out=runs/try

A study is an entry of an experiment file's STUDIES: {study: {run: words}}. Among the words, `parent=RUN` names another
run of the study, which is trained first. CONTINUES = {study: earlier study} adds the runs of the earlier one, in its
folder. Finished runs are reused and interrupted ones resume, so the same command goes on wherever it was stopped.

Exit codes: 0 done, 1 a run failed, 2 bad input, 75 stopped by SIGTERM and 130 by Ctrl-C with everything saved.
"""

import argparse
import pathlib


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('file', type=pathlib.Path, help='an experiment file with STUDIES, e.g. experiments/quickstart.py')
    add('study', nargs='?', default='main', help="one of the file's STUDIES, e.g. smoke (main)")
    add('--out', type=pathlib.Path, metavar='DIR', help='folder of the runs and the report (runs/FILE[-STUDY])')
    add('--workers', type=int, help='runs at a time (one per core; 1 with an accelerator)')


def run(args: argparse.Namespace) -> int:
    from nca_jax import jobs

    return jobs.run_study(args.file, args.study, args.out, args.workers)
