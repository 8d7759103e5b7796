"""Writes a report on finished runs: report.md, report.html (one self-contained file) and PNG figures.

    python -m nca_jax report runs/quickstart --out runs/quickstart/report

It reads only what the runs wrote (run.json, metrics.jsonl, automata.npz, complexity.json). It says first, in words,
what the intervals over paired seeds support, and prints the same tables to the terminal.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from nca_jax import files
from nca_jax.report import page, tables
from nca_jax.report.runs import Group, Run, Study, find_runs, flatten, make_study

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
    from nca_jax.report import first_stages, losses, solved

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
    return warning, findings, results, first_stages.blocks(study) + provenance(study)


def run_rows(study: Study) -> list[dict[str, str]]:
    """One row a run: what it is, which code and device made it, how long that took, and what it started from."""
    return [
        {
            'run': run.name,
            'arm': run.arm,
            'seed': str(run.seed),
            'identity': run.record['identity'][:12],
            # Outside a git repository the commit is unknown.
            'commit': (run.record['code'].get('commit') or 'unknown')[:10]
            + (', with changes' if run.record['code'].get('dirty') else ''),
            'parameters': f'{run.record["parameters"]:,}',
            'device': '{count} x {kind}'.format(**run.record['device']),
            'tokens': f'{run.done["tokens"]:,}',
            # Runs of other stages have other phases.
            'seconds by phase': ', '.join(f'{name} {taken:.1f}' for name, taken in run.done['seconds'].items()),
            'lineage': lineage(study, run),
        }
        for run in study.runs
    ]


def lineage(study: Study, run: Run) -> str:
    """'grandparent @step -> parent @step -> run', as far as the folders show it; only the name of a fresh run."""
    if run.parent is None:
        return run.name
    parent = study.parent_of(run)
    above = lineage(study, parent) if parent else f'{run.parent["identity"][:12]} (not in these folders)'
    return f'{above} @{run.parent["step"]:,} -> {run.name}'


def plan_rows(study: Study) -> list[dict[str, str]]:
    """One row an arm that carries weights: its transfer plan, as written in the config."""
    plans = {}
    for run in study.runs:
        if run.parent is not None:
            entries = (' '.join(str(part) for part in entry if part not in ({}, None)) for entry in run.parent['plan'])
            # An arm carries weights by another plan in each stage; its seeds share them.
            plans.setdefault(f'{run.arm}, {run.stage}', '; '.join(entries))
    return [{'arm': arm, 'transfer plan': f'`{plan}`'} for arm, plan in plans.items()]


def setting_rows(group: Group) -> list[dict[str, str]]:
    """One row a config field that isn't the same in all compared runs, one column an arm."""
    configs = {arm: [flatten(run.record['config']) for run in by_seed.values()] for arm, by_seed in group.items()}
    fields = sorted({field for of_arm in configs.values() for config in of_arm for field in config})
    rows = []
    for field in fields:
        # Each value once, in the order of seeds.
        values = {arm: dict.fromkeys(f'`{c.get(field, "absent")}`' for c in of_arm) for arm, of_arm in configs.items()}
        if len(set().union(*values.values())) > 1:
            rows.append({'setting': f'`{field}`'} | {arm: ', '.join(of_arm) for arm, of_arm in values.items()})
    return rows


def provenance(study: Study) -> list[page.Block]:
    """Where the numbers come from: code, devices, lineage, transfer plans, settings that differ, and versions."""
    if not study.runs:
        return []
    optional = {'What was carried': plan_rows(study), 'Settings that differ between the runs': setting_rows(study.text)}
    for name, group in study.solved.items():
        optional[f'Settings that differ between the runs on {name}'] = setting_rows(group)
    section: list[page.Block] = ['## Where this comes from', tables.table(run_rows(study))]
    for title, rows in optional.items():
        section += [f'### {title}', tables.table(rows)] if rows else []
    # Most often all runs used the same versions.
    versions = dict.fromkeys(', '.join(map(' '.join, run.record['versions'].items())) for run in study.runs)
    return [*section, '### Versions', *map(page.Note, versions)]
