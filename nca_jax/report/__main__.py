"""Writes a report on finished runs: report.md, report.html (one self-contained file) and PNG figures.

    python -m nca_jax.report runs/quickstart --out runs/quickstart/report

It reads what the runs themselves wrote (run.json, metrics.jsonl, automata.npz, complexity.json), says first in
words what the intervals over paired seeds support, and prints the same table to the terminal.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nca_jax import errors
from nca_jax.report import contents, page, runs


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code, 2 for a mistake of the user's, told in one line."""
    parser = argparse.ArgumentParser(
        'python -m nca_jax.report', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('folders', metavar='DIR', nargs='+', help='a run folder, or one that holds runs at any depth')
    parser.add_argument('--out', metavar='FOLDER', help="where the report goes (default: 'report' in the first DIR)")
    parser.add_argument('--baseline', metavar='ARM', help='the arm all others are compared with (default: scratch)')
    chosen = parser.parse_args(arguments)
    try:
        write(chosen.folders, Path(chosen.out or Path(chosen.folders[0]) / 'report'), chosen.baseline)
    except errors.UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


def write(folders: Sequence[str], out: Path, baseline: str | None) -> None:
    """Reads all runs before it touches `out`, then writes the report there and prints its summary."""
    study = runs.make_study(runs.find_runs(folders), baseline)
    blocks = contents.make_blocks(study)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.UserError(f'--out {out}: {error.strerror}') from error
    for block in blocks:
        if isinstance(block, page.Picture):
            (out / f'{block.name}.png').write_bytes(block.light)
    (out / 'report.md').write_text(page.markdown(blocks), 'utf-8')
    (out / 'report.html').write_text(page.page(contents.TITLE, blocks), 'utf-8')
    print(contents.summary(study))
    print(f'\n{out / "report.md"}\n{out / "report.html"}')


if __name__ == '__main__':
    sys.exit(main())
