"""The text stage: held-out loss of each arm, its paired gain over the baseline, and the speed-up."""

import math
from collections.abc import Mapping

from matplotlib.figure import Figure

from nca_jax.report import figures, page, stats, tables
from nca_jax.report.runs import Study

# By arm, for those that share a seed with the baseline.
Comparisons = Mapping[str, stats.Comparison]

RESULT_NOTE = (
    'Loss is the mean over seeds ± the half-width of its 95 % t interval; that spread includes what the seeds of all '
    'arms share. Perplexity is exp of the mean loss. Gains are paired by seed (the same text batches), with 95 % t '
    'intervals in parentheses, and positive is better.'
)
COMPARISON_NOTE = (
    "Speed-up: the baseline's final token count over the tokens at which the arm crosses the baseline's final "
    'perplexity for the last time, per seed, then the mean; "all tokens" counts the tokens of earlier stages too. '
    f'Differences are in nats. {stats.EVIDENCE_NOTE}'
)
CAPTION = (
    'Held-out loss against text tokens: mean over seeds with its 95 % t interval at each evaluation. '
    + figures.GAIN_CAPTION
)


def compare(study: Study) -> Comparisons:
    """Every arm's final losses against the baseline's; gains are in nats per token."""
    # A lower loss is better, so that its negative is the score.
    scores = {arm: {seed: -run.final['loss'] for seed, run in runs.items()} for arm, runs in study.text.items()}
    baseline = scores.pop(study.baseline, {})
    return stats.with_holm({arm: stats.compare(arm, ours, baseline) for arm, ours in scores.items()})


def reduction(gain: stats.Interval) -> tuple[float, float, float]:
    """(mean, low, high) reduction of perplexity in percent: the interval of the gain, transformed."""
    return tuple(-100 * math.expm1(-value) for value in gain.shown)


def speedups(study: Study, c: stats.Comparison) -> tuple[list[float | None], list[float | None] | None]:
    """The speed-up of each pair (None: never reached) in tokens of this stage, and in those of all stages if known."""
    ours, theirs = study.text[c.arm], study.text[study.baseline]
    pairs = [(ours[seed].curve(), theirs[seed].curve()) for seed in c.seeds]
    alone = [stats.speedup(curve, baseline) for curve, baseline in pairs]
    # One unknown parent hides the tokens of its pair, and a mean without that pair would mislead.
    earlier = [study.earlier_tokens(ours[seed]) for seed in c.seeds]
    if None in earlier:
        return alone, None
    return alone, [stats.speedup(*pair, tokens) for pair, tokens in zip(pairs, earlier, strict=True)]


def speedup_cell(values: list[float | None] | None) -> str:
    """The mean with its interval; a count where some seeds (None) never reached the baseline; 'unknown' for None."""
    if values is None:
        return 'unknown'
    reached = [value for value in values if value is not None]
    # A mean of the seeds that reached it would flatter the arm.
    if len(reached) < len(values):
        return f'reached by {len(reached)} of {len(values)}' if reached else 'not reached'
    return tables.ranged(*stats.t_interval(reached).shown, 2, sign='-')


def result_rows(study: Study, comparisons: Comparisons) -> list[dict[str, str]]:
    """One row an arm, the baseline first: final loss, perplexity, bits per byte, and the paired gain."""
    rows = []
    for arm, by_seed in study.text.items():
        loss = stats.t_interval([run.final['loss'] for run in by_seed.values()])
        bits = [run.final.get('bits_per_byte') for run in by_seed.values()]
        # None for the baseline, and for an arm without a partner.
        c = comparisons.get(arm)
        rows.append(
            {
                'arm': arm,
                'seeds': ' '.join(map(str, by_seed)),
                'final loss, nats': tables.number(loss.mean) + ('' if loss.n < 2 else f' ± {loss.half:.3f}'),
                # exp of the mean loss, the geometric mean of perplexities: gains in nats and in percent then agree.
                'perplexity': tables.number(math.exp(loss.mean), 2),
                'bits per byte': tables.number(None if None in bits else sum(bits) / len(bits)),
                f'gain over {study.baseline}, nats': tables.ranged(*c.gain.shown, 3) if c else tables.NONE,
                'lower perplexity, %': tables.ranged(*reduction(c.gain), 1) if c else tables.NONE,
                'verdict': stats.verdict(c, arm, study.baseline),
            }
        )
    return rows


def comparison_rows(study: Study, comparisons: Comparisons) -> list[dict[str, str]]:
    """One row a comparison: its spread, what could have been seen, p values, and the speed-up."""
    rows = []
    for c in comparisons.values():
        alone, counted = map(speedup_cell, speedups(study, c))
        rows.append(stats.evidence(c, study.baseline, 4) | {'speed-up': alone, 'speed-up, all tokens': counted})
    return rows


def findings(study: Study, comparisons: Comparisons) -> list[str]:
    baseline, sentences = study.baseline, []
    for arm, c in comparisons.items():
        mean, low, high = reduction(c.gain)
        claim, interval = f'reaches {mean:.1f} % lower', f'{low:.1f} to {high:.1f} %'
        # A reduction below zero reads as an increase, and its interval the other way round.
        if mean < 0:
            claim, interval = f'ends at {-mean:.1f} % higher', f'{-high:.1f} to {-low:.1f} %'
        # Percent are for readers; the test is in nats.
        interval = f'{interval}; {c.gain.mean:+.3f} nats'
        claim = f'**{arm}** {claim} perplexity than {baseline}'
        text = stats.finding(c, claim, interval, detectable=f'{c.detectable:.3f} nats')
        alone, counted = speedups(study, c)
        # Only a supported difference has a speed-up to tell, and only if all seeds reach the baseline.
        if c.supported and None not in alone:
            times = stats.t_interval(alone).mean
            text += f" It reaches {baseline}'s final perplexity with {times:.2f} times fewer text tokens"
            # Without earlier tokens both speed-ups are the same number.
            if counted not in (None, alone):
                times = stats.t_interval(counted).mean
                text += f'; with the tokens of earlier stages counted the speed-up is {times:.2f}'
            text += '.'
        sentences.append(text)
    return sentences + stats.uncompared(study.text, baseline)


def learning_curves(study: Study) -> Figure:
    """Held-out loss against tokens, mean and 95 % interval over seeds; beside it the paired gain over the baseline."""
    # Without the evaluation before training: a logarithmic axis has no zero.
    curves = {arm: {seed: run.curve(1) for seed, run in by_seed.items()} for arm, by_seed in study.text.items()}
    figure = figures.levels_and_gains(
        study,
        levels={arm: stats.mean_curve(list(by_seed.values())) for arm, by_seed in curves.items()},
        scores={arm: {seed: (x, -y) for seed, (x, y) in by_seed.items()} for arm, by_seed in curves.items()},
        title='Held-out loss',
        unit='nats per token',
        note='mean and 95 % interval over seeds',
        # The last three quarters of training set the scale: early differences are large and say little.
        scale_from=0.25,
    )
    for axes in figure.axes:
        figures.token_axis(axes)
    return figure


def blocks(study: Study, comparisons: Comparisons) -> list[page.Block]:
    if not study.text:
        return []
    section: list[page.Block] = ['## Results', tables.table(result_rows(study, comparisons)), page.Note(RESULT_NOTE)]
    if rows := comparison_rows(study, comparisons):
        section += [tables.table(rows), page.Note(COMPARISON_NOTE)]
    # What the intervals don't cover stands beside them.
    if caveat := stats.caveat(study.text):
        section.append(page.Note(caveat))
    return [*section, page.Picture('learning_curves', CAPTION, figures.render(learning_curves, study))]
