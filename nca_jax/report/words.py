"""What the intervals support, in words. The interval decides; a p value alone never does."""

import math
from collections.abc import Mapping

from nca_jax.report import runs, stats


def p_value(p: float) -> str:
    return '-' if math.isnan(p) else '< 0.001' if p < 0.001 else f'{p:.3f}'


def verdict(comparison: stats.Comparison | stats.ScoreGain) -> str:
    """What the paired interval supports, in a word or two."""
    if comparison.gain.n < 2:
        return 'one seed: no interval'
    if math.isnan(comparison.gain.low):  # of scores alone
        return 'no spread: no interval'
    if not comparison.supported:
        return 'not significant'
    word = 'better' if comparison.gain.mean > 0 else 'worse'
    return word if comparison.holm < 1 - stats.LEVEL else f'{word}, not after Holm'


def findings(study: runs.Study, comparisons: Mapping[str, stats.Comparison | None]) -> list[str]:
    """What the report says first: a sentence or two for each arm, and one for each pre-pre-training run."""
    sentences = [
        _finding(c, study.baseline, len(comparisons))
        if c
        else f'**{arm}** shares no seed with {study.baseline}, so it is not compared.'
        for arm, c in comparisons.items()
    ]
    if study.arms and study.baseline not in study.arms:
        sentences.append(f'There is no finished run of the baseline {study.baseline}, so no arm is compared.')
    elif study.arms and not comparisons:
        sentences.append(f'Only the baseline {study.baseline} has finished, so no arm is compared.')
    return sentences + [_first_stage_finding(run) for run in (*study.nca, *study.controls)]


def _finding(c: stats.Comparison, baseline: str, family: int) -> str:
    mean, low, high = c.reduction
    pairs = f'{c.gain.n} paired seed{"s" if c.gain.n > 1 else ""}'
    if c.gain.n < 2:
        higher = 100 * math.expm1(-c.gain.mean)
        change = f'{mean:.1f} % lower' if mean >= 0 else f'{higher:.1f} % higher'
        return (
            f'**{c.arm}** ends at {change} perplexity than {baseline} on {pairs}: one pair gives no interval, '
            f'so nothing is supported.'
        )
    nats = f'{c.gain.mean:+.3f} nats, {pairs}, p = {p_value(c.p)}'.replace('= <', '<')
    if not c.supported:
        return (
            f'**{c.arm}**: **not significant**. The 95 % interval of its perplexity reduction against {baseline}, '
            f'{low:.1f} to {high:.1f} %, includes zero (mean {mean:.1f} %, {nats}). The smallest detectable '
            f'difference at this seed spread with {c.gain.n} seeds is {c.detectable:.3f} nats.'
        )
    if c.gain.mean > 0:
        claim = f'reaches {mean:.1f} % lower perplexity than {baseline} (95 % interval {low:.1f} to {high:.1f} %'
    else:  # an increase has its own interval: exp is not symmetric
        worse, least, most = (100 * math.expm1(-x) for x in (c.gain.mean, c.gain.high, c.gain.low))
        claim = f'ends at {worse:.1f} % higher perplexity than {baseline} (95 % interval {least:.1f} to {most:.1f} %'
    return f'**{c.arm}** {claim}; {nats}): {support(c, family)}.{_speedup_sentence(c, baseline)}'


def support(c: stats.Comparison | stats.ScoreGain, family: int) -> str:
    """How far a gain whose interval excludes zero is supported, among `family` comparisons."""
    if c.holm < 1 - stats.LEVEL:
        return '**supported**'
    return f'**supported on its own, but not once {family} comparisons are corrected for** (Holm p = {c.holm:.3f})'


def _speedup_sentence(c: stats.Comparison, baseline: str) -> str:
    if None in c.speedups:
        return ''
    alone = stats.t_interval(c.speedups).mean
    text = f" It reaches {baseline}'s final perplexity with {alone:.2f} times fewer text tokens"
    if c.speedups_all is None or c.speedups_all == c.speedups:
        return text + '.'
    counted = stats.t_interval(c.speedups_all).mean
    return f'{text}; with the tokens of earlier stages counted the speed-up is {counted:.2f}.'


def _first_stage_finding(run: runs.Run) -> str:
    first, last = run.evals[0], run.final
    uniform = math.log(run.about['vocab_size'])
    stage = 'automata' if run.stage == 'nca' else run.stage
    text = (
        f'The {stage} stage `{run.name}` brought its held-out loss to {last["loss"]:.3f} nats per '
        f'token after {last["tokens"]:,} tokens (a uniform guess: {uniform:.2f})'
    )
    if 'grid_accuracy' in last:
        text += f', and predicts {100 * last["cell_accuracy"]:.1f} % of cells'
        text += f' and {100 * last["grid_accuracy"]:.1f} % of whole grids'
    if run.stage == 'noise':
        return text + '. There is nothing to learn in it.'
    if last['loss'] > 0.95 * uniform or (len(run.evals) > 1 and last['loss'] > 0.98 * first['loss']):
        text += '. **It has hardly learned its task: conclude nothing about transfer from it**'
    return text + '.'


def left_out(study: runs.Study) -> list[str]:
    """Each run that has no place in the tables, with the reason."""
    return [f'{run}: {reason}' for run, reason in study.left_out]


def caveats(study: runs.Study, comparisons: Mapping[str, stats.Comparison | None]) -> list[str]:
    """What the intervals do not cover, as far as the runs show it."""
    return arm_caveats(study.arms, study.baseline, {arm: c is not None for arm, c in comparisons.items()})


def arm_caveats(arms: Mapping[str, Mapping[int, runs.Run]], baseline: str, compared: Mapping[str, bool]) -> list[str]:
    """`caveats` of any group of runs by arm and seed; compared: whether the arm shares seeds with the baseline."""
    notes = []
    shared = [arm for arm in compared if len(arms[arm]) > 1 and len(_parents(arms[arm])) == 1]
    if shared:
        named = ' and of '.join(f'`{arm}`' for arm in shared)
        notes.append(
            f'All seeds of {named} start from one parent run: their intervals cover the chance of this stage, '
            f'not that of the stage before.'
        )
    for arm, paired in compared.items():
        alone = sorted(arms[arm].keys() ^ arms[baseline].keys())
        if paired and alone:
            notes.append(f'Seeds without a partner between `{arm}` and `{baseline}`: {", ".join(map(str, alone))}.')
    return notes


def _parents(by_seed: Mapping[int, runs.Run]) -> set[str]:
    return {run.parent['identity'] for run in by_seed.values() if run.parent}
