"""Which automata are as complex as this text? Proposes the band of rules to train on before a corpus.

    python -m nca_jax.look.calibrate --text=my_corpus/ --config=experiments/nca_pretrain.py
    python -m nca_jax.look.calibrate --text=python_stdlib --text=notes.txt --text=genome.fasta

A text is measured on these footings:

  tokens  --tokenizer's tokens, as many as an automaton is scored on and as wide; left out without a tokenizer
  bytes   every byte a token, as many as an automaton is scored on and widened to integers like its tokens
  raw     as many bytes as they are, unwidened; for reference
  long    up to 1 MiB of bytes as they are, where repeats far apart count too; for reference, since the paper seems to
          have compressed whole corpora (an assumption of ours)

Its place on the automata's scale is where its ratio lies between constant tokens (position 0) and uniform ones of the
kinds that it has, or of a tokenizer's whole vocabulary (position 1). That is a convention, which depends on the number
of kinds: the same process scores less with more of them. Beside it stands the place of tokens drawn from the text's own
frequencies, without any order.

--tokenizer's tokens decide if given, else bytes. The band proposed is the one that holds the text's median; whether
training on it helps is not measured here. Bands are the paper's where its thresholds apply, and else the fifths of
unfiltered rules, as training cuts them. Written are calibration.png and calibration.json. Exit code 2 and one line for
bad input.
"""

import argparse
import dataclasses
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from tokenizers import Tokenizer

from nca_jax import command
from nca_jax.command import Result
from nca_jax.config import Config
from nca_jax.data import tokenizer
from nca_jax.errors import UserError, check
from nca_jax.look import bands, calibration, footing, raw
from nca_jax.look.bands import Band
from nca_jax.look.footing import Ends, Measured
from nca_jax.nca import complexity, score
from nca_jax.nca.config import NCAConfig
from nca_jax.progress import Progress
from nca_jax.report import style

LEAST = 50  # rules and windows that a histogram needs to mean anything


@dataclasses.dataclass(frozen=True)
class Rules:
    """What unfiltered rules score (R), between which ends, and the bands to choose from."""

    scores_R: np.ndarray
    ends: Ends
    bands: list[Band]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog='python -m nca_jax.look.calibrate',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    texts = f'a file or folder of any bytes, or {" or ".join(raw.BUILT_IN)}; may be given several times'
    parser.add_argument('--text', required=True, action='append', metavar='PATH_OR_CORPUS', help=texts)
    parser.add_argument('--tokenizer', metavar='FILE', help="a tokenizer.json of byte-level BPE, such as a run's own")
    parser.add_argument('--rules', type=int, default=2000, help='unfiltered rules to score (2000)')
    parser.add_argument('--windows', type=int, default=2000, help='windows of each text, where it has so many (2000)')
    return command.run(parser, calibrate, 'calibration.json', argv)


def calibrate(config: Config, args: argparse.Namespace, progress: Progress) -> Result:
    """Measures texts and rules."""
    data, seed, start = config.data, config.seed, time.perf_counter()
    bpe = check_input(data, args)

    def told(stage: str) -> Callable[[int, int], None]:
        return lambda done, total: progress(stage, done, total)

    corpora = [raw.open_raw(name, progress) for name in dict.fromkeys(args.text)]
    measured = {
        corpus.name: footing.measure(data, corpus, args.windows, seed, bpe, told(f'windows of text {number}'))
        for number, corpus in enumerate(corpora, 1)
    }
    progress('rules', 0, args.rules)
    rules_start = time.perf_counter()
    scores_R = score.survey(data, seed, args.rules, told('rules'))
    rules_done = time.perf_counter()
    rules = Rules(scores_R, footing.automata_ends(data, seed), bands.make_bands(data, scores_R, told('fifths')))
    main_footing = footing.main_footing(bpe)
    on_scale = {
        name: rules.ends.ratio(found[main_footing].ends.position(found[main_footing].ratios_W))
        for name, found in measured.items()
    }
    record = {
        'config': args.config,
        'spec': dataclasses.asdict(data),
        'seed': seed,
        'rests_on': main_footing,
        'rules': {'tokens': data.scored_tokens, **dataclasses.asdict(rules.ends), **summary(scores_R)},
        'bands': [describe_band(band) for band in rules.bands],
        'texts': {
            corpus.name: {
                'bytes': corpus.size,
                'packed_files': corpus.packed,
                'windows': summary(on_scale[corpus.name]),
                **describe(measured[corpus.name], main_footing, rules),
            }
            for corpus in corpora
        },
        'seconds': {'texts': rules_start - start, 'rules': rules_done - rules_start},
    }
    by_name = {band.name: band for band in rules.bands}
    for text in record['texts'].values():
        text['asked'] = asked(args, data, by_name[text['band']])
    with matplotlib.rc_context(style.settings(style.LIGHT)):
        picture = style.png(calibration.calibration(scores_R, on_scale, record, style.LIGHT))
    return Result(record, {'calibration.png': picture}, calibration.tables(record))


def check_input(data: NCAConfig, args: argparse.Namespace) -> Tokenizer | None:
    """The tokenizer, if one is named. Raises UserError for what can't be measured."""
    measure, usable = data.complexity.measure, ', '.join(complexity.COMPRESSED_SIZE)
    named = f'must be one of {usable}: text has no cells that could change'
    check(measure in complexity.COMPRESSED_SIZE, 'config.data.complexity.measure', measure, named)
    for flag in ('rules', 'windows'):
        check(getattr(args, flag) >= LEAST, f'--{flag}', getattr(args, flag), f'must be at least {LEAST}')
    bpe = tokenizer.load(args.tokenizer) if args.tokenizer else None
    size, width = bpe.get_vocab_size() if bpe else 0, data.complexity.bytes_per_token
    check(size <= 256**width, 'config.data.complexity.bytes_per_token', width, f'enough for {size} tokens')
    return bpe


def summary(scores: np.ndarray) -> dict[str, Any]:
    """Their number, ends and middle, and their shares in the paper's bands."""
    least, median, most = np.quantile(scores, (0, 0.5, 1)).tolist()
    return {'count': len(scores), 'least': least, 'median': median, 'most': most, 'shares': bands.shares(scores)}


def describe_band(band: Band) -> dict[str, Any]:
    """Its edges, null for one that is open."""
    low, high = (edge if np.isfinite(edge) else None for edge in (band.low, band.high))
    return {'name': band.name, 'low': low, 'high': high, 'share': band.share}


def describe(by_footing: Mapping[str, Measured], main_footing: str, rules: Rules) -> dict[str, Any]:
    """One text on all footings, its score, and the band that holds it."""
    footings = {}
    for name, found in by_footing.items():
        low, median, high = np.quantile(found.ratios_W, (0.25, 0.5, 0.75)).tolist()
        position, shuffled = (float(found.ends.position(ratio)) for ratio in (median, found.shuffled))
        footings[name] = {
            'windows': len(found.ratios_W),
            'tokens': found.tokens,
            'bytes_per_token': found.bytes_per_token,
            'ratio_quartiles': [low, median, high],
            **dataclasses.asdict(found.ends),
            'position': position,
            'shuffled_position': shuffled,
        }
        if name in footing.SCORED:
            as_score, shuffled_score = (float(rules.ends.ratio(place)) for place in (position, shuffled))
            band = bands.nearest(rules.bands, as_score).name
            footings[name] |= {'score': as_score, 'shuffled_score': shuffled_score, 'band': band}
    chosen = footings[main_footing]
    return {
        'footings': footings,
        'score': chosen['score'],
        'band': chosen['band'],
        'rules_below': float((rules.scores_R < chosen['score']).mean()),
        'within_reach': bool(rules.scores_R.min() <= chosen['score'] <= rules.scores_R.max()),
    }


def asked(args: argparse.Namespace, data: NCAConfig, band: Band) -> str:
    """The arguments that train on a band: by its word where the experiment knows that, else field by field."""
    wanted = dataclasses.replace(data, band=band.band, band_by=band.band_by)
    file, _, words = args.config.partition(':')
    kept = [word for word in words.split(',') if word and not word.startswith('band=')]
    changes = [change for change in args.changes if not re.match(r'--config\.data\.band(_by)?=', change)]
    by_word = f'{file}:{",".join([*kept, f"band={band.name}"])}'
    try:
        if command.load(by_word, changes, None).data == wanted:
            return shlex.join([f'--config={by_word}', *changes])
    except UserError:
        pass
    fields = [f'--config.data.band={band.band}', f'--config.data.band_by={band.band_by}']
    return shlex.join([f'--config={args.config}', *changes, *fields])


if __name__ == '__main__':
    sys.exit(main())
