"""Makes token shards of a corpus ahead of time; the same command goes on with what was interrupted.

    python -m nca_jax prepare --corpus=python_stdlib --vocab_size=1024 --out=runs/text
    python -m nca_jax prepare --corpus=openwebtext --path=DIR --tokenizer=gpt2/tokenizer.json --out=runs/text

A config with the same words about its corpus, and with `cache` the folder given here as --out, finds the shards ready.
"""

import argparse
import dataclasses

from nca_jax.errors import check
from nca_jax.progress import bars


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    names = 'python_stdlib, python_docs, text_files, openwebtext, openwebmath, codeparrot, c4'
    add('--corpus', required=True, help=f'{names}, or tfds:NAME')
    add('--path', default='', help="the user's file, folder or glob; for tfds:NAME the folder where TFDS has it")
    add('--field', default='', help='the field with the text, in JSON lines or TFDS examples')
    add('--tokenizer', default='', help='a tokenizer.json; without it one is trained')
    add('--vocab_size', type=int, help='tokens of the trained tokenizer (1024)')
    add('--valid_share', type=float, default=0.05, help='of the documents, where no split is published (0.05)')
    add('--out', required=True, dest='cache', metavar='DIR', help='the cache folder, `cache` in configs')


def run(args: argparse.Namespace) -> None:
    from nca_jax.data.corpora import TextConfig
    from nca_jax.data.text import prepare_text

    # TextConfig takes '' for the run's own folder, and here is no run.
    check(args.cache != '', '--out', args.cache, 'must name a folder')
    if args.vocab_size is None:
        args.vocab_size = 0 if args.tokenizer else 1024
    # The flags are named as the config's fields.
    config = TextConfig(**{field.name: getattr(args, field.name) for field in dataclasses.fields(TextConfig)})
    with bars() as show:
        prepared = prepare_text(config, config.cache, show)
    print(prepared.folder)
    for side, store in (('train', prepared.train), ('valid', prepared.valid)):
        print(f'{side}: {len(store):,} tokens, {store.documents:,} documents, {store.bytes:,} bytes')
    print('documents ' + ', '.join(f'{name} {count:,}' for name, count in prepared.documents.items()))
