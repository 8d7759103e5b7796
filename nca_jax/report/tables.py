"""The report's tables: rows of cells for the results, the evidence behind them, and where they came from."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nca_jax.report import runs, stats, words

Rows = Sequence[Mapping[str, str]]
NONE = '-'


def table(rows: Rows) -> str:
    """Rows with the same keys as a Markdown table, padded so that it reads well in a terminal too; '' for no rows."""
    if not rows:
        return ''
    header = list(rows[0])
    cells = [header, *([row[column].replace('|', r'\|') for column in header] for row in rows)]
    widths = [max(3, *(len(line[i]) for line in cells)) for i in range(len(header))]
    rule = ['-' * widths[0], *('-' * (width - 1) + ':' for width in widths[1:])]

    def line(texts: Sequence[str]) -> str:
        padded = [texts[0].ljust(widths[0]), *(t.rjust(w) for t, w in zip(texts[1:], widths[1:], strict=True))]
        return '| ' + ' | '.join(padded) + ' |'

    return '\n'.join([line(header), line(rule), *map(line, cells[1:])])


def number(value: float | None, digits: int = 3, sign: str = '-') -> str:
    """A number for a cell; '-' where there is none. sign '+' writes the plus too."""
    return NONE if value is None or math.isnan(value) else f'{value:{sign}.{digits}f}'


def ranged(mean: float, low: float, high: float, digits: int, sign: str = '+') -> str:
    """'mean (low to high)', the mean alone where there is no interval."""
    middle = number(mean, digits, sign)
    return middle if math.isnan(low) else f'{middle} ({number(low, digits, sign)} to {number(high, digits, sign)})'


def speedups(values: Sequence[float | None] | None) -> str:
    """The mean per-seed speed-up with its interval; no mean where some seeds never reached the baseline."""
    if values is None:
        return 'unknown'
    reached = [value for value in values if value is not None]
    if len(reached) < len(values):
        return f'reached by {len(reached)} of {len(values)}' if reached else 'not reached'
    interval = stats.t_interval(reached)
    return ranged(interval.mean, interval.low, interval.high, 2, sign='-')


def result_rows(study: runs.Study, comparisons: Mapping[str, stats.Comparison | None]) -> list[dict[str, str]]:
    """One row an arm, the baseline first: final loss, perplexity, bits per byte, and the paired gain."""
    rows = []
    for arm, by_seed in study.arms.items():
        loss = stats.t_interval([run.final['loss'] for run in by_seed.values()])
        bits = [run.final.get('bits_per_byte') for run in by_seed.values()]
        c = comparisons.get(arm)
        rows.append(
            {
                'arm': arm,
                'seeds': ' '.join(map(str, by_seed)),
                'final loss, nats': number(loss.mean) + ('' if loss.n < 2 else f' ± {loss.half:.3f}'),
                'perplexity': number(math.exp(loss.mean), 2),
                'bits per byte': number(None if None in bits else sum(bits) / len(bits)),
                f'gain over {study.baseline}, nats': ranged(c.gain.mean, c.gain.low, c.gain.high, 3) if c else NONE,
                'lower perplexity, %': ranged(*c.reduction, 1) if c else NONE,
                'verdict': words.verdict(c) if c else 'baseline' if arm == study.baseline else 'not compared',
            }
        )
    return rows


def comparison_rows(comparisons: Mapping[str, stats.Comparison | None], baseline: str) -> list[dict[str, str]]:
    """One row a comparison: pairs, speed-up, spread, what could have been seen, and p values."""
    return [
        {
            'comparison': f'{arm} - {baseline}',
            'pairs': str(c.gain.n),
            'speed-up': speedups(c.speedups),
            'speed-up, all tokens': speedups(c.speedups_all),
            'SD': number(c.gain.sd, 4),
            'half-width': number(c.gain.half, 4),
            'detectable': number(c.detectable, 4),
            'p': words.p_value(c.p),
            'Holm p': words.p_value(c.holm),
        }
        for arm, c in comparisons.items()
        if c
    ]


def nca_rows(study: runs.Study) -> list[dict[str, str]]:
    """One row a run of the automata stage."""
    return [
        {
            'run': run.name,
            'seed': str(run.seed),
            'tokens': f'{run.final["tokens"]:,}',
            'held-out loss, nats': number(run.final['loss']),
            'uniform guess': number(math.log(run.about['vocab_size'])),
            'cells right, %': number(_percent(run.final.get('cell_accuracy')), 1),
            'grids right, %': number(_percent(run.final.get('grid_accuracy')), 1),
            'cells by copying, %': number(_percent(run.final.get('copy_accuracy')), 1),
        }
        for run in study.nca
    ]


def control_rows(study: runs.Study) -> list[dict[str, str]]:
    """One row a run of a first stage on something else than automata."""
    return [
        {
            'run': run.name,
            'stage': run.stage,
            'seed': str(run.seed),
            'tokens': f'{run.final["tokens"]:,}',
            'held-out loss, nats': number(run.final['loss']),
            'uniform guess': number(math.log(run.about['vocab_size'])),
            'tokens right, %': number(_percent(run.final.get('accuracy')), 1),
            'closing brackets right, %': number(_percent(run.final.get('close_accuracy')), 1),
        }
        for run in study.controls
    ]


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def run_rows(study: runs.Study) -> list[dict[str, str]]:
    """One row a run: what it is, which code and device made it, and what it started from."""
    return [
        {
            'run': run.name,
            'arm': run.arm,
            'seed': str(run.seed),
            'identity': run.identity[:12],
            'commit': commit(run.about['code']),
            'parameters': f'{run.about["parameters"]:,}',
            'device': f'{run.about["device"]["count"]} x {run.about["device"]["kind"]}',
            'lineage': lineage(study, run),
        }
        for run in study.runs
    ]


def commit(code: Mapping[str, Any]) -> str:
    short = (code.get('commit') or 'unknown')[:10]
    return f'{short}, with changes' if code.get('dirty') else short


def lineage(study: runs.Study, run: runs.Run) -> str:
    """'grandparent @step -> parent @step -> run', upwards as far as the folders show it."""
    if run.parent is None:
        return 'fresh'
    parent, step = study.parent_of(run), run.parent['step']
    if parent is None:
        return f'{run.parent["identity"][:12]} (not in these folders) @{step:,} -> {run.name}'
    above = '' if parent.parent is None else lineage(study, parent).removesuffix(parent.name)
    return f'{above}{parent.name} @{step:,} -> {run.name}'


def plan_rows(study: runs.Study) -> list[dict[str, str]]:
    """One row an arm that carries weights: its transfer plan, as written in the config."""
    rows = {}
    for run in study.runs:
        if run.parent is not None:
            entries = (' '.join(str(part) for part in entry if part not in ({}, None)) for entry in run.parent['plan'])
            arm = f'{run.arm}, instruct' if run.stage == 'instruct' else run.arm  # it carried before, by another plan
            rows.setdefault(arm, {'arm': arm, 'transfer plan': f'`{"; ".join(entries)}`'})
    return list(rows.values())


def seconds_rows(study: runs.Study) -> list[dict[str, str]]:
    """One row a run: wall seconds by phase, from its last line."""
    phases = list(dict.fromkeys(phase for run in study.runs for phase in run.done.get('seconds', {})))
    rows = []
    for run in study.runs:
        spent = run.done.get('seconds', {})
        row = {'run': run.name, 'tokens': f'{run.done["tokens"]:,}'}
        row |= {phase: number(spent.get(phase), 1) for phase in phases}
        rows.append(row | {'total': number(sum(spent.values()), 1)})
    return rows


def setting_rows(study: runs.Study) -> list[dict[str, str]]:
    """`differing_rows` of the arms of text."""
    return differing_rows(study.arms)


def differing_rows(arms: Mapping[str, Mapping[int, runs.Run]]) -> list[dict[str, str]]:
    """One row a config field that isn't the same in all compared runs, one column an arm."""
    flat = {arm: [_flatten(run.about['config']) for run in seeds.values()] for arm, seeds in arms.items()}
    fields = sorted({field for configs in flat.values() for config in configs for field in config})
    rows = []
    for field in fields:
        shown = {arm: list(dict.fromkeys(c.get(field, 'absent') for c in configs)) for arm, configs in flat.items()}
        if len({value for values in shown.values() for value in values}) > 1:
            rows.append({'setting': f'`{field}`'} | {arm: ', '.join(f'`{v}`' for v in shown[arm]) for arm in shown})
    return rows


def _flatten(config: Mapping[str, Any], prefix: str = '') -> dict[str, str]:
    flat = {}
    for name, value in config.items():
        flat |= _flatten(value, f'{prefix}{name}.') if isinstance(value, dict) else {prefix + name: f'{value}'}
    return flat
