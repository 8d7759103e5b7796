"""From a corpus to token shards, on demand or ahead of time: `python -m nca_jax.data.prepare --help`."""

import argparse
import contextlib
import fcntl
import hashlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from nca_jax.batch import Vocab
from nca_jax.data import corpora, recipes, shards, splits
from nca_jax.data import tokenizer as bpe
from nca_jax.data.builder import Corpus, build, fingerprint
from nca_jax.data.text import Prepared, TextConfig
from nca_jax.errors import UserError, check
from nca_jax.progress import Progress, bars, silent

HELP = """Makes token shards of a corpus ahead of time; the same command goes on with what was interrupted.

    python -m nca_jax.data.prepare --corpus=python_stdlib --vocab_size=1024 --out=runs/text
    python -m nca_jax.data.prepare --corpus=openwebtext --path=DIR --tokenizer=gpt2/tokenizer.json --out=runs/text

A config that says the same of its corpus, with `cache` the folder given here as --out, finds the shards ready."""

FORMAT = 1  # of what lies in a prepared folder
TOLERANCE = 0.001  # of a published token count
LARGE = 9e9  # tokens, as many as OpenWebText has


def prepare_text(config: TextConfig, folder: Path | str, progress: Progress = silent) -> Prepared:
    """Token shards, tokenizer and vocabulary of the configured text, made in the cache (or `folder`) where missing.

    Processes that want the same text at the same time wait for the one that makes it; one that was killed is continued.
    progress(stage, done, total) is called often, with stages wait, read, scan, learn and tokenize. Raises UserError.
    """
    root = Path(config.cache or folder).expanduser()
    corpus = corpora.open_corpus(config, root / 'corpora')
    loaded = _load_tokenizer(config, corpus) if config.tokenizer or corpus.vocab_size else None
    settings = [FORMAT, corpus.builder.info.full_name, corpus.field, config.encoding_errors, config.valid_share]
    key = fingerprint([*settings, bpe.identity(loaded) if loaded else config.vocab_size])
    out = root / 'tokens' / f'{corpus.name}-{key}'
    if not (out / shards.INDEX).exists():
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f'cache {root}: {error.strerror}') from None
        with _locked(root / 'lock', progress):
            if not (out / shards.INDEX).exists():
                _write(config, corpus, loaded, out, progress)
    return open_prepared(out, loaded)


def open_prepared(folder: Path, tokenizer: Tokenizer | None = None) -> Prepared:
    """Finished token shards; UserError where `tokenizer` (default: the one beside them) isn't theirs."""
    tokenizer = tokenizer or bpe.load(str(folder / shards.TOKENIZER))
    index = shards.read_index(folder, tokenizer)
    train, valid = (shards.TokenStore(folder, index['splits'][side]) for side in ('train', 'valid'))
    return Prepared(
        folder=folder,
        train=train,
        valid=valid,
        tokenizer=tokenizer,
        vocab=Vocab(tokenizer.get_vocab_size()),
        token_bytes_V=bpe.token_bytes(tokenizer),
        identity=index['identity'],
        tokenizer_identity=index['tokenizer'],
        documents=index['documents'],
    )


def _load_tokenizer(config: TextConfig, corpus: Corpus) -> Tokenizer:
    check(config.tokenizer, 'tokenizer', config.tokenizer, f"must be GPT-2's tokenizer.json for {corpus.name}")
    tokenizer = bpe.load(config.tokenizer)
    size = tokenizer.get_vocab_size()
    if corpus.vocab_size not in (0, size):
        raise UserError(f'{config.tokenizer}: {size} tokens, {corpus.name} takes a tokenizer of {corpus.vocab_size}')
    return tokenizer


def _write(config: TextConfig, corpus: Corpus, loaded: Tokenizer | None, out: Path, progress: Progress) -> None:
    """Everything that a prepared folder holds; the index comes last, and makes it valid."""
    built = build(corpus, progress)
    errors = config.encoding_errors
    names = splits.names(built)
    if corpus.split and corpus.split not in names:
        raise UserError(f'corpus {corpus.name}: no split {corpus.split}, has {" ".join(names)}')
    scanned = {
        split: splits.scan(splits.open_source(built, split), corpus.field, errors, progress)
        for split in ([corpus.split] if corpus.split else names)
    }
    division = corpus.divide(scanned, config.valid_share)
    sides = {'train': division.train, 'valid': division.valid}
    for side, (_, rows) in sides.items():
        if not len(rows):
            raise UserError(f'corpus {corpus.name}: no document for {side} (valid_share = {config.valid_share})')
    tokenizer = loaded or _train_tokenizer(config, corpus, built, division.train, progress)
    tokenizer.save(str(out / shards.TOKENIZER))
    parts, content = [], hashlib.sha256(bpe.identity(tokenizer).encode())
    for side, (split, rows) in sides.items():
        parts += shards.plan(side, rows, scanned[split].bytes_N, built, split, corpus.field, errors)
        content.update(side.encode() + scanned[split].digest_N[rows].tobytes())
    entries = shards.write_parts(parts, out, tokenizer, progress)
    written = {side: shards.totals(entries, side) for side in sides}
    _check_counts(corpus, written)
    replaced = int(sum(documents.replaced_N.sum() for documents in scanned.values()))
    index = {
        'corpus': corpus.builder.info.full_name,
        'tokenizer': bpe.identity(tokenizer),
        'identity': content.hexdigest(),
        'documents': {'dropped': division.dropped, 'shared': division.shared, 'replaced': replaced},
        'splits': written,
    }
    shards.write_json(out / shards.INDEX, index)


def _train_tokenizer(config: TextConfig, corpus: Corpus, built: str, side: tuple, progress: Progress) -> Tokenizer:
    split, rows = side

    def texts() -> Iterator[str]:
        source = splits.open_source(built, split)
        for number, text in enumerate(splits.iterate(source, rows, corpus.field, config.encoding_errors), 1):
            progress('learn', number, len(rows))
            yield text

    return bpe.train(texts(), config.vocab_size)


def _check_counts(corpus: Corpus, written: dict) -> None:
    for side, expected in corpus.expected.items():
        found = written[side]['tokens']
        if abs(found - expected) > TOLERANCE * expected:
            raise UserError(f'corpus {corpus.name}: {found:,} {side} tokens, published are {expected:,}')


@contextlib.contextmanager
def _locked(file: Path, progress: Progress) -> Iterator[None]:
    """One process at a time; the kernel frees the lock of one that died."""
    with file.open('a') as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress('wait', 0, None)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog='python -m nca_jax.data.prepare', description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    names = ', '.join([*corpora.BUILT_IN, 'text_files', *recipes.RECIPES])
    add('--corpus', required=True, help=f'{names}, or tfds:NAME')
    add('--path', default='', help="the user's file, folder or glob")
    add('--field', default='', help='of JSON lines or TFDS examples')
    add('--encoding_errors', default='replace', choices=('replace', 'refuse'), help='what to do where it is no UTF-8')
    add('--tokenizer', default='', help='a tokenizer.json; without it one is trained')
    add('--vocab_size', type=int, help='tokens of the trained one (1024)')
    add('--valid_share', type=float, default=0.05, help='of the documents, where no split is published (0.05)')
    add('--out', required=True, help='the cache folder, `cache` in configs')
    flags = vars(parser.parse_args(arguments))
    check(flags['out'] != '', '--out', flags['out'], 'must name a folder')
    if flags['vocab_size'] is None:
        flags['vocab_size'] = 0 if flags['tokenizer'] else 1024
    config = TextConfig(cache=flags.pop('out'), **flags)
    marks = []  # (time, bytes tokenized), to know the rate of what this call did

    with bars() as show:

        def progress(stage: str, done: int, total: int | None) -> None:
            show(stage, done, total)
            if stage == 'tokenize':
                marks.append((time.monotonic(), done))

        prepared = prepare_text(config, config.cache, progress)
    _print(prepared, marks)


def _print(prepared: Prepared, marks: list[tuple[float, int]]) -> None:
    print(prepared.folder)
    for side, store in (('train', prepared.train), ('valid', prepared.valid)):
        print(f'{side}: {store.tokens:,} tokens, {store.documents:,} documents, {store.bytes:,} bytes')
    print('documents ' + ', '.join(f'{name} {count:,}' for name, count in prepared.documents.items()))
    if not marks:
        print('already prepared')
        return
    (start, first), (end, last) = marks[0], marks[-1]
    tokens_per_byte = (prepared.train.tokens + prepared.valid.tokens) / (prepared.train.bytes + prepared.valid.bytes)
    rate = (last - first) * tokens_per_byte / (end - start)
    print(f'tokenized {rate:,.0f} tokens/s; 9B tokens would take {LARGE / rate / 3600:.1f} h')


if __name__ == '__main__':
    try:
        main()
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)
