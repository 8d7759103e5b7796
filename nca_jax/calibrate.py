"""Which automata are as complex as this text? Proposes the band of rules to train on before a corpus.

    python -m nca_jax.calibrate --text=my_corpus/ --config=experiments/nca_pretrain.py
    python -m nca_jax.calibrate --text=python_stdlib --text=notes.txt --text=genome.fasta

A text's compression ratio is measured on several footings, and put on the scale of the automata's scores by where it
lies between that of a constant stream and that of a uniform one over as many different tokens as the text has:
{mappings}
The first that applies of tokens and bytes decides. The band proposed is the one that holds the text's median; whether
training on it helps is not measured here. Bands are the paper's for its patches of ten colours scored by gzip, and
fifths of unfiltered rules for all others. `--config.a.b=c` changes one field, as for nca_jax.main. Written are
calibration.png and calibration.json. Exit code 2 and one line for bad input.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from tokenizers import Tokenizer

from nca_jax import config as configs
from nca_jax import experiment
from nca_jax.data import footing, raw, tokenizer
from nca_jax.data.footing import Ends, Measured
from nca_jax.data.raw import RawCorpus
from nca_jax.errors import UserError, check
from nca_jax.nca import bands, complexity, score
from nca_jax.nca.bands import Band
from nca_jax.nca.config import NCAConfig
from nca_jax.progress import Progress, bars, silent
from nca_jax.report import calibration, style

EXPERIMENT = 'experiments/nca_pretrain.py'
FILES = ('calibration.png', 'calibration.json')
LEAST = 50  # rules and windows that a histogram needs to mean anything
QUARTILES = (0.25, 0.5, 0.75)


@dataclasses.dataclass(frozen=True)
class Rules:
    """What unfiltered rules score (R), between which ends, and the bands that divide them."""

    scores_R: np.ndarray
    ends: Ends
    bands: list[Band]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 for bad input."""
    args, changes = make_parser().parse_known_args(argv)
    try:
        config = configs.from_dict(experiment.load_values(args.config, changes))
        check(config.stage == 'nca', '--config', args.config, f"must be of stage 'nca', not {config.stage!r}")
        measure, usable = config.data.complexity.measure, ', '.join(complexity.COMPRESSORS)
        named = f'must be one of {usable}: text has no cells that could change'
        check(measure in complexity.COMPRESSORS, 'config.data.complexity.measure', measure, named)
        for flag in ('rules', 'windows'):
            check(getattr(args, flag) >= LEAST, f'--{flag}', getattr(args, flag), f'must be at least {LEAST}')
        check(0 <= args.seed < 2**32, '--seed', args.seed, 'must be in 0..2^32 - 1')
        calibrate(config.data, args)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m nca_jax.calibrate',
        description=__doc__.format(mappings=explain(footing.MAPPINGS)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    texts = f'a file or folder of any bytes, or {" or ".join(raw.BUILT_IN)}; may be given several times'
    parser.add_argument('--text', required=True, action='append', metavar='PATH_OR_CORPUS', help=texts)
    parser.add_argument(
        '--config', default=EXPERIMENT, metavar='FILE[:WORDS]', help=f'an experiment of stage nca ({EXPERIMENT})'
    )
    parser.add_argument('--tokenizer', metavar='FILE', help="a tokenizer.json of byte-level BPE, such as a run's own")
    parser.add_argument('--rules', type=int, default=2000, help='unfiltered rules to score (2000)')
    parser.add_argument('--windows', type=int, default=2000, help='windows of each text, where it has so many (2000)')
    parser.add_argument('--seed', type=int, default=0, help='of the choice of rules and windows (0)')
    parser.add_argument('--out', type=pathlib.Path, default=pathlib.Path('runs/calibrate'), help='(runs/calibrate)')
    parser.add_argument('--json', action='store_true', help='print one JSON object and nothing else')
    return parser


def calibrate(data: NCAConfig, args: argparse.Namespace) -> None:
    """Measures, writes the files and prints the tables, or the JSON object."""
    bpe = tokenizer.load(args.tokenizer) if args.tokenizer else None
    size, width = bpe.get_vocab_size() if bpe else 0, data.complexity.bytes_per_token
    check(size <= 256**width, 'config.data.complexity.bytes_per_token', width, f'enough for {size} tokens')
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'--out={args.out}: {error.strerror}') from None
    if args.json:
        print(json.dumps(write(data, args, bpe, silent), allow_nan=False))
        return
    with bars() as progress:
        record = write(data, args, bpe, progress)
    print(calibration.tables(record, legend(record)))


def write(data: NCAConfig, args: argparse.Namespace, bpe: Tokenizer | None, progress: Progress) -> dict[str, Any]:
    """Measures texts and rules, writes both files and returns what calibration.json holds."""
    start = time.perf_counter()
    corpora = {name: raw.open_raw(name, progress) for name in dict.fromkeys(args.text)}
    measured = measure_texts(data, corpora, args, bpe, progress)
    texts_done = time.perf_counter()
    scores_R = score.survey(data, args.seed, args.rules, lambda done, total: progress('rules', done, total))
    rules_done = time.perf_counter()
    rules = Rules(scores_R, footing.automata_ends(data, args.seed), bands.make_bands(data, scores_R))
    main_footing = footing.main_footing(bpe)
    found = {name: describe(by_footing, main_footing, rules) for name, by_footing in measured.items()}
    record = {
        'config': args.config,
        'spec': dataclasses.asdict(data),
        'seed': args.seed,
        'rests_on': main_footing,
        'rules': {
            'count': len(scores_R),
            'tokens': footing.scored_tokens(data),
            **dataclasses.asdict(rules.ends),
            'least': float(scores_R.min()),
            'most': float(scores_R.max()),
            'quartiles': np.quantile(scores_R, QUARTILES).tolist(),
        },
        'bands': [dataclasses.asdict(band) for band in rules.bands],
        'texts': {
            name: {'bytes': corpus.size, 'packed_files': corpus.packed, **found[name]}
            for name, corpus in corpora.items()
        },
        'seconds': {'texts': texts_done - start, 'rules': rules_done - texts_done},
        'files': [str(args.out / name) for name in FILES],
    }
    picture = draw(f'{data.complexity.measure} ratio', measured, main_footing, rules)
    (args.out / FILES[0]).write_bytes(picture)
    (args.out / FILES[1]).write_text(json.dumps(record, indent=1, allow_nan=False) + '\n')
    return record


def measure_texts(
    data: NCAConfig,
    corpora: Mapping[str, RawCorpus],
    args: argparse.Namespace,
    bpe: Tokenizer | None,
    progress: Progress,
) -> dict[str, dict[str, Measured]]:
    """Every text on every footing, under one bar."""
    measured = {}
    for number, (name, corpus) in enumerate(corpora.items()):

        def show(share: float, number: int = number) -> None:
            progress('texts, %', int(100 * (number + share) / len(corpora)), 100)

        measured[name] = footing.measure(data, corpus, args.windows, args.seed, bpe, show)
    return measured


def describe(by_footing: Mapping[str, Measured], main_footing: str, rules: Rules) -> dict[str, Any]:
    """One text on all footings, and what is proposed for it."""
    footings = {}
    for name, found in by_footing.items():
        median = float(np.median(found.ratios_W))
        position = float(found.ends.position(median))
        as_score = float(rules.ends.ratio(position))
        footings[name] = {
            'windows': len(found.ratios_W),
            'tokens': found.tokens,
            'bytes_per_token': found.bytes_per_token,
            'ratio_quartiles': np.quantile(found.ratios_W, QUARTILES).tolist(),
            **dataclasses.asdict(found.ends),
            'position': position,
            'as_score': as_score,
            'band': bands.nearest(rules.bands, as_score).name,
            'band_of_plain_ratio': bands.nearest(rules.bands, median).name,
        }
    as_score, scores_W = footings[main_footing]['as_score'], on_scale(by_footing[main_footing], rules)
    band = bands.nearest(rules.bands, as_score)
    return {
        'footings': footings,
        'as_score': as_score,
        'windows_in_bands': {b.name: float(complexity.in_band(scores_W, (b.low, b.high)).mean()) for b in rules.bands},
        'rules_below': float((rules.scores_R < as_score).mean()),
        'within_reach': bool(rules.scores_R.min() <= as_score <= rules.scores_R.max()),
        'band': band.name,
        'word': band.word,
        'flags': band.flags,
    }


def on_scale(found: Measured, rules: Rules) -> np.ndarray:
    """The windows' ratios as automata's scores of the same position."""
    return rules.ends.ratio(found.ends.position(found.ratios_W))


def draw(ratio: str, measured: Mapping[str, Mapping[str, Measured]], main_footing: str, rules: Rules) -> bytes:
    texts = {}
    for name, by_footing in measured.items():
        scores_W = on_scale(by_footing[main_footing], rules)
        band = bands.nearest(rules.bands, float(np.median(scores_W)))
        texts[name] = scores_W, (band.low, band.high), band.name
    label = f"{ratio}; of texts: {main_footing}, on the automata's scale"
    with matplotlib.rc_context(style.settings(style.LIGHT)):
        return style.png(calibration.calibration(rules.scores_R, texts, label, style.LIGHT))


def legend(record: Mapping[str, Any]) -> str:
    """What the rows and columns of the table are."""
    used = {name for text in record['texts'].values() for name in text['footings']}
    columns = (
        'position: from 0, as a constant stream, to 1, as one uniform over the tokens that make up'
        f' {100 * footing.COVERED:g} % of the text; as a score: what automata of that position score; band: the one'
        ' that holds it; plain: the one that would hold the ratio as it is.'
    )
    mappings = {name: words for name, words in footing.MAPPINGS.items() if name in used}
    return f'{explain(mappings)}\n{calibration.wrap(columns)}'


def explain(mappings: Mapping[str, str]) -> str:
    lines = (calibration.wrap(f'{name + ":":<7} {words}', '  ', ' ' * 10) for name, words in mappings.items())
    return '\n'.join(lines)


if __name__ == '__main__':
    sys.exit(main())
