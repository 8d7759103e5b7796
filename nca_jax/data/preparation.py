"""From a corpus to token shards in a cache folder: scan, divide, train a tokenizer, tokenize."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from nca_jax import files
from nca_jax.data import corpora, splits
from nca_jax.data import tokenizer as bpe
from nca_jax.data.corpora import Corpus
from nca_jax.data.shards import TokenStore, write_side
from nca_jax.data.text import PreparedText, TextConfig
from nca_jax.errors import UserError, check
from nca_jax.progress import Progress, silent

INDEX = 'index.json'
FORMAT = 2  # of a prepared folder
TOLERANCE = 0.001  # of a published token count


def prepare_text(config: TextConfig, folder: Path | str, progress: Progress = silent) -> PreparedText:
    """The configured text as token shards, made in the config's cache (else in `folder`) if they are missing.

    Processes that want the same text at the same time wait for the one that makes it; a killed one is continued.
    progress(stage, done, total) is called often, with stages wait, scan, learn and tokenize. Raises UserError.
    """
    root = Path(config.cache or folder).expanduser()
    corpus = corpora.open_corpus(config)
    tokenizer = _load_tokenizer(config, corpus) if config.tokenizer or corpus.vocab_size else None
    settings = [FORMAT, corpus.name, corpus.source, config.field, config.encoding_errors, config.valid_share]
    settings.append(bpe.identity(tokenizer) if tokenizer else config.vocab_size)
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    out = root / 'tokens' / f'{corpus.name}-{key}'
    if not (out / INDEX).exists():
        files.make_folder(out, 'cache')
        with files.lock(root / 'lock', lambda: progress('wait', 0, None)):
            # Another process may have made it while this one waited.
            if not (out / INDEX).exists():
                _write(config, corpus, tokenizer, out, progress)
    return open_prepared(out, tokenizer)


def open_prepared(folder: Path, tokenizer: Tokenizer | None = None) -> PreparedText:
    """Finished token shards. Raises UserError where `tokenizer` (default: the one beside them) isn't theirs."""
    tokenizer = tokenizer or bpe.load(str(folder / bpe.FILE))
    try:
        index = files.read_json(folder / INDEX)
    except UserError as error:
        raise UserError(f'{error}; delete {folder} to make it anew') from None
    identity = bpe.identity(tokenizer)
    if identity != index['tokenizer']:
        raise UserError(f'{folder}: written with tokenizer {index["tokenizer"][:12]}, this one is {identity[:12]}')
    return PreparedText(
        folder=folder,
        train=TokenStore(folder, 'train', **index['splits']['train']),
        valid=TokenStore(folder, 'valid', **index['splits']['valid']),
        tokenizer=tokenizer,
        identity=index['identity'],
        tokenizer_identity=identity,
        documents=index['documents'],
    )


def _load_tokenizer(config: TextConfig, corpus: Corpus) -> Tokenizer:
    check(config.tokenizer, 'tokenizer', config.tokenizer, f"must be GPT-2's tokenizer.json for {corpus.name}")
    tokenizer = bpe.load(config.tokenizer)
    size = tokenizer.get_vocab_size()
    if corpus.vocab_size not in (0, size):
        raise UserError(f'{config.tokenizer}: {size} tokens, {corpus.name} takes a tokenizer of {corpus.vocab_size}')
    return tokenizer


def _write(config: TextConfig, corpus: Corpus, tokenizer: Tokenizer | None, out: Path, progress: Progress) -> None:
    """Writes a prepared folder; the index comes last, and makes it valid."""
    # Half-written files of a killed process. The lock proves that no other one is writing here.
    for scratch in out.glob('.*'):
        scratch.unlink()
    scanned_N = splits.scan(corpus.read(), progress)
    if not len(scanned_N):
        raise UserError(f'corpus {corpus.name}: empty, it has no document')
    division = corpus.divide(scanned_N, config.valid_share)
    sides = {'train': division.train_M, 'valid': division.valid_M}
    for side, rows_M in sides.items():
        if not len(rows_M):
            raise UserError(f'corpus {corpus.name}: no document for {side} (valid_share = {config.valid_share})')
    # The tokenizer learns from the training side alone.
    tokenizer = tokenizer or bpe.train(_texts(corpus, scanned_N, division.train_M, progress), config.vocab_size)
    files.write(out / bpe.FILE, tokenizer.to_str(pretty=True))
    content = hashlib.sha256(bpe.identity(tokenizer).encode())
    entries, done = {}, 0
    total = sum(int(scanned_N['bytes'][rows_M].sum()) for rows_M in sides.values())
    for side, rows_M in sides.items():

        def show(more: int, done: int = done) -> None:
            progress('tokenize', done + more, total)

        entries[side] = write_side(out, side, corpus.read, scanned_N, rows_M, tokenizer, show)
        done += entries[side]['bytes']
        content.update(side.encode() + scanned_N['digest'][rows_M].tobytes())
    _check_counts(corpus, entries)
    replaced = int(scanned_N['replaced'].sum())
    index = {
        'corpus': corpus.name,
        'tokenizer': bpe.identity(tokenizer),
        'identity': content.hexdigest(),
        'documents': {'dropped': division.dropped, 'shared': division.shared, 'replaced': replaced},
        'splits': entries,
    }
    files.write(out / INDEX, json.dumps(index, indent=1))


def _texts(corpus: Corpus, scanned_N: np.ndarray, rows_M: np.ndarray, progress: Progress) -> Iterator[str]:
    for number, text in enumerate(splits.select(corpus.read(), scanned_N, rows_M), 1):
        progress('learn', number, len(rows_M))
        yield text


def _check_counts(corpus: Corpus, entries: dict[str, dict]) -> None:
    for side, expected in corpus.expected.items():
        tokens = entries[side]['tokens']
        if abs(tokens - expected) > TOLERANCE * expected:
            raise UserError(f'corpus {corpus.name}: {tokens:,} {side} tokens, published are {expected:,}')
