"""A look at the data: pictures and statistics of the sequences that an experiment on automata trains on.

    python -m nca_jax.show --config=experiments/nca_pretrain.py:band=30-40 --out=runs/show/30-40

The sequences are those of the training stream, from its beginning; beside them stand as many of rules that weren't
filtered, unless the band takes all. Any field can be changed by --config.FIELD=VALUE, as for nca_jax.main. Written are

    trajectories.gif, .png   sequences sorted by their score
    rank_frequency.png       how often tokens occur, by rank, with Zipf exponents
    information.png          mutual information of cells over distance
    statistics.json          all numbers, which --json prints as well

Exit code 2 and one line for bad input.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import matplotlib
import numpy as np

from nca_jax import config as configs
from nca_jax import experiment
from nca_jax import mesh as meshes
from nca_jax.config import Config
from nca_jax.errors import UserError, check
from nca_jax.nca import statistics
from nca_jax.nca.config import NCAConfig
from nca_jax.nca.sample import Sample, chosen, describe, draw, token_distances
from nca_jax.progress import Progress, bars, silent
from nca_jax.report import animation, figures, look, style

MOVING, STRIPS = 16, 8  # trajectories of each set in the animation and in the film strip
COLUMNS = 4
IN_BAND, UNFILTERED = 'in the band', 'unfiltered'


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog='python -m nca_jax.show', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--config', required=True, metavar='FILE[:WORDS]', help='an experiment of stage nca')
    parser.add_argument('--rules', type=int, help='rules in each set (one a sequence, or all of a training set)')
    parser.add_argument('--sequences', type=int, default=512, help='sequences of each set (512)')
    parser.add_argument('--seed', type=int, help="another seed than the experiment's")
    parser.add_argument('--out', type=pathlib.Path, default=pathlib.Path('runs/show'), help='folder (runs/show)')
    parser.add_argument('--json', action='store_true', help='print one JSON object and nothing else')
    args, changes = parser.parse_known_args(argv)
    try:
        values = experiment.load_values(args.config, changes)
        if args.seed is not None:
            values['seed'] = args.seed
        stage = values.get('stage')
        check(stage == 'nca', '--config', args.config, f"must be an experiment of stage 'nca', not {stage!r}")
        config = configs.from_dict(values)
        check(args.sequences >= 2, '--sequences', args.sequences, 'must be at least 2')
        most = min(args.sequences, config.data.rules_per_epoch)
        rules = most if args.rules is None else args.rules
        check(1 <= rules <= most, '--rules', rules, f'must be 1 to {most}: at most a set of training, one a sequence')
        show(config, rules, args.sequences, args.out, args.json)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


def show(config: Config, rules: int, sequences: int, out: pathlib.Path, as_json: bool) -> None:
    """Draws both sets, writes the files and prints the table, or the JSON object."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'--out={out}: {error.strerror}') from None
    if as_json:
        record = write(config, rules, sequences, out, silent)
        print(json.dumps(record))
        return
    with bars() as progress:
        record = write(config, rules, sequences, out, progress)
    print(table(record['sets']))
    for path in record['files']:
        print(path)


def write(config: Config, rules: int, sequences: int, out: pathlib.Path, progress: Progress) -> dict[str, Any]:
    """Writes all files and returns what statistics.json holds."""
    # Quantiles 0 to 1 accept every score; how many rules they are taken from doesn't matter then.
    everything = dataclasses.replace(config.data, band=(0.0, 1.0), band_by='quantile', band_sample=1)
    sharding = meshes.batch_sharding(meshes.make_mesh(meshes.MeshConfig(1, 1, 1), jax.devices()[:1]))
    asked = config.seed, rules, sequences, config.model.length, sharding, progress
    samples = {IN_BAND: draw(config.data, *asked)}
    unfiltered = draw(everything, *asked)
    if not np.array_equal(unfiltered.bank.index_R, samples[IN_BAND].bank.index_R):
        samples[UNFILTERED] = unfiltered
    distances = token_distances(config.data, samples[IN_BAND].frames_SxTxYxX.shape[1])
    found = {}
    for name, sample in samples.items():
        found[name] = describe(config.data, sample, distances)
        progress('measured', len(found), len(samples))
    pictures = draw_pictures(config.data, samples, found, distances, progress)
    files = []
    for name, content in pictures.items():
        (out / name).write_bytes(content)
        files.append(str(out / name))
    record = {
        'name': config.name,
        'seed': config.seed,
        'rules': rules,
        'spec': dataclasses.asdict(config.data),
        'sets': {name: plain(values) for name, values in found.items()},
        'files': [*files, str(out / 'statistics.json')],
    }
    (out / 'statistics.json').write_text(json.dumps(record) + '\n')
    return record


def draw_pictures(
    data: NCAConfig,
    samples: Mapping[str, Sample],
    found: Mapping[str, dict],
    distances: Sequence[int],
    progress: Progress,
) -> dict[str, bytes]:
    """The files by name."""
    theme, colours, score = style.LIGHT, data.rule.colours, score_name(data)
    moving, strips = (
        {title(name, data): chosen(sample, count) for name, sample in samples.items()} for count in (MOVING, STRIPS)
    )
    first = samples[IN_BAND].tokens_SxTxP
    uniform_SxN = np.random.default_rng(0).integers(0, data.vocab.start, (len(first), first[0].size))
    uniform = {'pooled': statistics.rank_counts(uniform_SxN), 'within': statistics.rank_counts_within(uniform_SxN)}
    steps = statistics.kinds_by_colours(colours, data.patch**2)
    curves = {
        name: {set_name: values[name] for set_name, values in found.items()}
        for name in ('information_by_tokens', 'information_by_tokens_shuffled', 'information_by_place')
    }
    makers = {
        'trajectories.gif': lambda: animation.gif(moving, colours, score, COLUMNS, theme),
        'trajectories.png': lambda: style.png(figures.film_strips(strips, colours, score, theme)),
        'rank_frequency.png': lambda: style.png(look.rank_frequency(found, uniform, steps, theme)),
        'information.png': lambda: style.png(
            look.information(distances, *curves.values(), data.tokens_per_grid, theme)
        ),
    }
    pictures = {}
    with matplotlib.rc_context(style.settings(theme)):
        for name, make in makers.items():
            pictures[name] = make()
            progress('pictures', len(pictures), len(makers))
    return pictures


def score_name(data: NCAConfig) -> str:
    return 'change rate' if data.complexity.measure == 'change_rate' else f'{data.complexity.measure} ratio'


def title(name: str, data: NCAConfig) -> str:
    """Of a block of pictures. The band is about the rules' scores, the labels are the sequences' own."""
    if name == UNFILTERED:
        return 'unfiltered rules'
    low, high = data.band
    quantile = ' quantile' if data.band_by == 'quantile' else ''
    return f'rules of {score_name(data)}{quantile} {low:g} to {high:g}'


def table(sets: Mapping[str, dict]) -> str:
    """The statistics that are single numbers, a column a set."""
    rows = {
        'sequences': lambda v: f'{v["sequences"]:,}',
        'patch tokens': lambda v: f'{v["tokens"]:,}',
        'distinct tokens': lambda v: f'{v["distinct_tokens"]:,}',
        'rules accepted': lambda v: f'{100 * v["accepted_share"]:.1f} % of {v["candidates"]:,}',
        "rules' score, 5 / 50 / 95 %": lambda v: ' / '.join(f'{q:.3f}' for q in v['rule_score_quantiles']),
        "sequences' score": lambda v: ' / '.join(f'{q:.3f}' for q in v['sequence_score_quantiles']),
        'cells changing, per frame': lambda v: f'{100 * v["change_rate"]:.1f} %',
        'dead trajectories': lambda v: f'{100 * v["dead_share"]:.1f} %',
        'token entropy, bits': lambda v: f'{v["token_entropy"]:.3f}',
        '  given the token before': lambda v: (
            'too few tokens to tell' if v['next_token_entropy'] is None else f'{v["next_token_entropy"]:.3f}'
        ),
        'Zipf exponent, all sequences': lambda v: zipf_words(v['pooled']),
        '  within a sequence': lambda v: zipf_words(v['within']),
        'cell entropy, bits': lambda v: f'{v["cell_entropy"]:.3f}',
        '  shared with the next frame': lambda v: f'{max(0.0, v["next_cell_information"]):.3f}',
    }
    lines = [['', *sets], *([name, *map(tell, sets.values())] for name, tell in rows.items())]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return '\n'.join(
        '  '.join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def zipf_words(law: Mapping[str, Any]) -> str:
    first, last = law['zipf_ranks']
    if last <= first:
        return 'too few tokens to fit'
    return f'{law["zipf_exponent"]:.2f} (ranks {first}-{last:,})'


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
