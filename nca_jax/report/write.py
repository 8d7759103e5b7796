"""Writes a report on finished runs: report.md, report.html (one self-contained file) and PNG figures.

    python -m nca_jax report runs/quickstart --out runs/quickstart/report

It reads only what the runs wrote (run.json, metrics.jsonl, automata.npz, complexity.json). It says first, in words,
what the intervals over paired seeds support, and prints the same tables to the terminal.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from nca_jax import files
from nca_jax.report import page
from nca_jax.report.runs import Study, find_runs, make_study

TITLE = 'nca_jax: what the runs support'
SMOKE = 'Smoke test: tiny models, minutes of training. The numbers on this page mean nothing.'


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('folders', metavar='DIR', nargs='+', type=Path, help='a run folder, or one that holds runs at any depth')
    add('--out', metavar='FOLDER', type=Path, help="where the report goes (default: 'report' in the first DIR)")
    add('--baseline', metavar='ARM', help='the arm that all others are compared with (default: scratch)')


def run(args: argparse.Namespace) -> None:
    write(args.folders, args.out or args.folders[0] / 'report', args.baseline)


def write(folders: Sequence[str | Path], out: Path, baseline: str | None) -> None:
    """Writes report.md, report.html and the figures into `out`, and prints the results and findings."""
    # Runs that can't be read or compared raise here, before `out` is touched.
    warning, findings, results, rest = make_sections(make_study(find_runs(folders), baseline))
    blocks = [f'# {TITLE}', *warning, *findings, *results, *rest]
    files.make_folder(out, '--out')
    for block in blocks:
        if isinstance(block, page.Picture):
            files.write(out / f'{block.name}.png', block.png)
    files.write(out / 'report.md', page.as_markdown(blocks))
    files.write(out / 'report.html', page.as_html(TITLE, blocks))
    # Findings come last: the end of the output is what a terminal shows.
    print(page.as_text([*warning, *results, *findings]))
    print(f'\n{out / "report.md"}\n{out / "report.html"}')


def make_sections(study: Study) -> tuple[list, ...]:
    """The page's blocks in order: a warning, findings in words, results of compared runs, and all else."""
    # Here, since figures need Matplotlib, which --help does without.
    from nca_jax.report import first_stages, losses, provenance, solved

    comparisons = losses.compare(study)
    gains = {name: solved.compare(group, study.baseline) for name, group in study.solved.items()}
    sentences = losses.findings(study, comparisons) + first_stages.findings(study) + solved.findings(study, gains)
    findings = ['\n'.join(f'- {sentence}' for sentence in sentences or ['No run has finished.'])]
    if study.left_out:
        reasons = '; '.join(f'{run}: {reason}' for run, reason in study.left_out)
        findings.append(f'Left out: {reasons}.')
    # One smoke test among the runs spoils every comparison.
    smoke = any(run.record['config'].get('smoke') for run in study.runs)
    warning = [f'> **{SMOKE}**'] if smoke else []
    results = losses.blocks(study, comparisons) + solved.blocks(study, gains)
    return warning, findings, results, first_stages.blocks(study) + provenance.blocks(study)
