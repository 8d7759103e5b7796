"""A look at the data: pictures and statistics of the sequences that an experiment on automata trains on.

    python -m nca_jax.look.show --config=experiments/nca_pretrain.py:band=30-40 --out=runs/show/30-40

The sequences are those of the training stream, from its beginning; beside them stand as many of rules that weren't
filtered, unless the band takes all. Any field can be changed by --config.FIELD=VALUE, as for nca_jax.main. Written are

    trajectories.gif, .png   sequences sorted by their score
    rank_frequency.png       how often tokens occur, by rank, beside that of shuffled cells
    information.png          mutual information of cells over distance, less what chance gives
    statistics.json          all numbers, which --json prints as well

Exit code 2 and one line for bad input.
"""

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import matplotlib
import numpy as np

from nca_jax import command
from nca_jax import mesh as meshes
from nca_jax.config import Config
from nca_jax.errors import check
from nca_jax.look import animation
from nca_jax.look import figures as look
from nca_jax.look.sample import Sample, chosen, draw, measure, token_distances
from nca_jax.nca.config import NCAConfig
from nca_jax.progress import Progress
from nca_jax.report import figures, style, tables

MOVING, STRIPS = 16, 8  # trajectories of each set in the animation and in the film strip
COLUMNS = 4
IN_BAND, UNFILTERED = 'in band', 'unfiltered'
SMALL_PRINT = """
Entropies have Miller and Madow's correction. A Zipf exponent describes a slope and shows no power law: that of all
sequences moves with their number, and beside each stands what comes without any dependence between cells."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog='python -m nca_jax.look.show', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--rules', type=int, help='rules in each set (one a sequence, or all of a training set)')
    parser.add_argument('--sequences', type=int, default=512, help='sequences of each set (512)')
    return command.run(parser, show, 'statistics.json', argv)


def show(config: Config, args: argparse.Namespace, progress: Progress) -> command.Result:
    """Draws both sets, measures them and makes the pictures."""
    sequences = args.sequences
    check(sequences >= 2, '--sequences', sequences, 'must be at least 2')
    most = min(sequences, config.data.rules_per_epoch)
    rules = most if args.rules is None else args.rules
    check(1 <= rules <= most, '--rules', rules, f'must be 1 to {most}: at most a set of training, one a sequence')
    # Quantiles 0 to 1 accept every score; how many rules they are taken from doesn't matter then.
    everything = dataclasses.replace(config.data, band=(0.0, 1.0), band_by='quantile', band_sample=1)
    sharding = meshes.batch_sharding(meshes.make_mesh(meshes.MeshConfig(1, 1, 1), jax.devices()[:1]))
    asked = config.seed, rules, sequences, config.model.length, sharding
    samples = {IN_BAND: draw(config.data, *asked, staged(progress, IN_BAND))}
    if samples[IN_BAND].bank.candidates > rules:
        samples[UNFILTERED] = draw(everything, *asked, staged(progress, UNFILTERED))
    distances = token_distances(config.data, samples[IN_BAND].frames_SxTxYxX.shape[1])
    found = {name: measure(config.data, each, distances, staged(progress, name)) for name, each in samples.items()}
    pictures = draw_pictures(config.data, samples, found, progress)
    record = {
        'name': config.name,
        'seed': config.seed,
        'rules': rules,
        'spec': dataclasses.asdict(config.data),
        'sets': {name: plain(values) for name, values in found.items()},
    }
    return command.Result(record, pictures, table(config.data, record['sets']))


def staged(progress: Progress, name: str) -> Progress:
    """Tells the stages of one set apart from the other's."""
    return lambda stage, done, total: progress(f'{stage} {name}', done, total)


def draw_pictures(
    data: NCAConfig, samples: Mapping[str, Sample], found: Mapping[str, dict], progress: Progress
) -> dict[str, bytes]:
    """The files by name."""
    theme, colours, frames = style.LIGHT, data.rule.colours, samples[IN_BAND].frames_SxTxYxX.shape[1]
    note = f'{style.score_name(data.complexity.measure)} of the sequence shown, {scored(data, frames)}'
    moving, strips = (
        {title(name, data): chosen(sample, count) for name, sample in samples.items()} for count in (MOVING, STRIPS)
    )
    makers = {
        'trajectories.gif': lambda: animation.gif(moving, colours, note, COLUMNS, theme),
        'trajectories.png': lambda: style.png(figures.film_strips(strips, colours, note, theme)),
        'rank_frequency.png': lambda: style.png(look.rank_frequency(found, data.vocab.start, theme)),
        'information.png': lambda: style.png(look.information(found, data.tokens_per_grid, theme)),
    }
    pictures = {}
    with matplotlib.rc_context(style.settings(theme)):
        for name, make in makers.items():
            progress('pictures', len(pictures), len(makers))
            pictures[name] = make()
    progress('pictures', len(makers), len(makers))
    return pictures


def scored(data: NCAConfig, frames: int) -> str:
    """Over how many frames a score is taken, in words: a short sequence has fewer than rules are judged by."""
    return f'first {min(frames, data.complexity.frames)} frames'


def title(name: str, data: NCAConfig) -> str:
    """Of a block of pictures. The band is about the rules' scores, the labels are the sequences' own."""
    if name == UNFILTERED:
        return 'unfiltered rules'
    low, high = data.band
    if (low, high, data.band_by) == (0, 1, 'quantile'):
        return 'all rules'
    quantile = ' quantile' if data.band_by == 'quantile' else ''
    return f'rules of {style.score_name(data.complexity.measure)}{quantile} {low:g} to {high:g}'


def table(data: NCAConfig, sets: Mapping[str, dict]) -> str:
    """The statistics that are single numbers, a column a set, and what to know before quoting them."""
    frames, score = sets[IN_BAND]['frames'], style.score_name(data.complexity.measure)
    rows = {
        'ALL SEQUENCES TOGETHER': lambda v: '',
        'sequences': lambda v: f'{v["sequences"]:,} of {v["frames"]} frames',
        'rules accepted': lambda v: f'{100 * v["accepted_share"]:.1f} % of {v["candidates"]:,}',
        f"rules' {score}, {scored(data, data.complexity.frames)}, 5 / 50 / 95 %": lambda v: ratios(
            v['rule_score_quantiles'], 3
        ),
        'nothing changes': lambda v: f'{100 * v["still_share"]:.1f} %',
        'distinct tokens': lambda v: f'{v["distinct_tokens"]:,} of {data.vocab.start:,}',
        'token entropy, bits': lambda v: f'{v["token_entropy"]:.1f} ({v["tokens"]:,} tokens)',
        'Zipf exponent; of shuffled cells': lambda v: '; '.join(
            'too few tokens' if v['pooled'][of] is None else f'{v["pooled"][of]:.2f}'
            for of in ('exponent', 'exponent_shuffled')
        ),
        'MEAN OF A SEQUENCE, OR QUANTILES': lambda v: '',
        f'{score}, {scored(data, frames)}, 5 / 50 / 95 %': lambda v: ratios(v['sequence_score_quantiles'], 3),
        'cells changing, per frame': lambda v: f'{100 * v["change_rate"]:.1f} %',
        'cell entropy, bits': lambda v: f'{v["cell_entropy"]:.3f}',
        'shared with the next frame, at most': lambda v: f'{max(0.0, v["next_cell_information"]):.3f}',
        'Zipf exponent, 25 / 50 / 75 %': lambda v: ratios(v['within']['exponent_quartiles'], 2),
        'of its cells shuffled': lambda v: ratios(v['within']['exponent_shuffled_quartiles'], 2),
        'of uniform tokens, as many kinds': lambda v: ratios(v['within']['exponent_uniform_quartiles'], 2),
        'sequences with enough ranks to fit': lambda v: f'{v["within"]["fitted"]:,}',
    }
    lines = [{'': name} | {each: tell(values) for each, values in sets.items()} for name, tell in rows.items()]
    return f'{tables.table(lines)}\n{SMALL_PRINT}'


def ratios(quantiles: Sequence[float] | None, digits: int) -> str:
    return 'none' if quantiles is None else ' / '.join(f'{q:.{digits}f}' for q in quantiles)


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON holds it: lists for arrays, no NaN."""

    def convert(value: Any) -> Any:
        if isinstance(value, np.ndarray | np.generic):
            value = value.tolist()
        if isinstance(value, list | tuple):
            return [convert(entry) for entry in value]
        if isinstance(value, dict):
            return plain(value)
        return None if isinstance(value, float) and np.isnan(value) else value

    return {name: convert(value) for name, value in values.items()}


if __name__ == '__main__':
    sys.exit(main())
