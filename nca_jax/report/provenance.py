"""Where the numbers come from: code, devices, lineage, transfer plans, settings that differ, seconds and versions."""

from nca_jax.report import page, tables
from nca_jax.report.runs import Group, Run, Study, flatten


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


def blocks(study: Study) -> list[page.Block]:
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
