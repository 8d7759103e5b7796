"""From a corpus to token shards in a cache folder: scan, divide, train a tokenizer, tokenize.

The first pass over a corpus keeps 26 bytes a document, never its text. Shards are written one by one, so that a killed
run goes on where it was.
"""

import concurrent.futures
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from nca_jax import files
from nca_jax.data import corpora, text
from nca_jax.data import tokenizer as bpe
from nca_jax.data.corpora import Corpus
from nca_jax.data.documents import Document
from nca_jax.data.text import PreparedText, TextConfig
from nca_jax.errors import FieldError, UserError
from nca_jax.progress import Progress, silent

INDEX = 'index.json'
# Of a prepared folder; part of its key.
FORMAT = 2
# Of a published token count.
TOLERANCE = 0.001
# Documents encoded at once.
CHUNK = 256
# Chunks encoded at the same time, so that reading and copying hide behind encoding.
AHEAD = 4
# Of text in a shard; about 8M GPT-2 tokens, a few seconds of work.
SHARD_BYTES = 1 << 25


def prepare_text(config: TextConfig, folder: Path | str, progress: Progress = silent) -> PreparedText:
    """The configured text as token shards, made in the config's cache (else in `folder`) if they are missing.

    Processes that want the same text at the same time wait for the one that makes it; a killed one is continued.
    progress(stage, done, total) is called often, with stages wait, scan, learn and tokenize. Raises UserError.
    """
    root = Path(config.cache or folder).expanduser()
    corpus = corpora.open_corpus(config)
    tokenizer = bpe.load(config.tokenizer) if config.tokenizer else None
    # Published counts of tokens hold for one tokenizer.
    if corpus.recipe and (tokenizer is None or tokenizer.get_vocab_size() != corpora.GPT2_VOCAB):
        allowed = f"must be GPT-2's tokenizer.json, of {corpora.GPT2_VOCAB} tokens, for {corpus.name}"
        raise FieldError('tokenizer', config.tokenizer, allowed)
    # All that decides the shards, so that any other text has a folder of its own.
    # 'replace' is the only value of a field that is gone; prepared folders are known by a hash with it.
    settings = [FORMAT, corpus.name, corpus.source, config.field, 'replace', config.valid_share]
    settings.append(bpe.identity(tokenizer) if tokenizer else config.vocab_size)
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    out = root / 'tokens' / f'{corpus.name}-{key}'
    if not (out / INDEX).exists():
        files.make_folder(out, 'cache')
        with files.lock(root / 'lock', lambda: progress('wait', 0, None)):
            # Another process may have made it while this one waited.
            if not (out / INDEX).exists():
                _write(config, corpus, tokenizer, out, progress)
    return open_prepared(out)


def open_prepared(folder: Path) -> PreparedText:
    """Finished token shards and the tokenizer beside them. Raises UserError if a file is damaged."""
    index = files.read_json(folder / INDEX)
    return PreparedText(
        folder=folder,
        train=text.TokenStore(folder, 'train', **index['splits']['train']),
        valid=text.TokenStore(folder, 'valid', **index['splits']['valid']),
        tokenizer=bpe.load(str(folder / bpe.FILE)),
        identity=index['identity'],
        tokenizer_identity=index['tokenizer'],
        documents=index['documents'],
    )


def scan(documents: Iterable[Document], progress: Progress) -> np.ndarray:
    """SCANNED records of N documents."""

    def records() -> Iterator[tuple]:
        for number, document in enumerate(documents, 1):
            data = document.text.encode()
            yield _digest(data), len(data), '\ufffd' in document.text, document.valid
            progress('scan', number, None)

    # NumPy grows the array, so that the number of documents needn't be known.
    scanned_N = np.fromiter(records(), corpora.SCANNED)
    # Now it is, which ends the bar.
    progress('scan', len(scanned_N), len(scanned_N))
    return scanned_N


def select(
    documents: Iterable[Document], scanned_N: np.ndarray, rows_M: np.ndarray, progress: Progress = silent
) -> Iterator[str]:
    """The texts of these rows (ascending), read one at a time. Raises UserError unless they are what `scan` saw."""
    # A mask of a byte a document; the documents themselves never lie in memory together.
    chosen_N = np.zeros(len(scanned_N), bool)
    chosen_N[rows_M] = True
    number = 0
    for document, digest in itertools.compress(zip(documents, scanned_N['digest'], strict=False), chosen_N):
        # NumPy takes trailing zeros for padding.
        if _digest(document.text.encode()).rstrip(b'\0') != digest:
            raise UserError(f'{document.name}: changed while it was read; start again')
        number += 1
        progress('learn', number, len(rows_M))
        yield document.text
    if number < len(rows_M):
        raise UserError(f'{len(rows_M) - number} documents vanished while they were read; start again')


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _write(config: TextConfig, corpus: Corpus, tokenizer: Tokenizer | None, out: Path, progress: Progress) -> None:
    """Writes a prepared folder; the index comes last, and makes it valid."""
    # Half-written files of a killed process. The lock proves that no other one is writing here.
    for scratch in out.glob('.*'):
        scratch.unlink()
    scanned_N = scan(corpus.read(), progress)
    divide = corpus.recipe.divide if corpus.recipe else corpora.by_content
    train_M, valid_M = divide(scanned_N, config.valid_share)
    sides = {'train': train_M, 'valid': valid_M}
    for side, rows_M in sides.items():
        if not len(rows_M):
            raise UserError(f'corpus {corpus.name}: no document for {side} (valid_share = {config.valid_share})')
    if tokenizer is None:
        # It learns from the training side alone.
        tokenizer = bpe.train(select(corpus.read(), scanned_N, train_M, progress), config.vocab_size)
    # Beside the shards, so that a later stage finds the tokenizer that they were written with.
    files.write(out / bpe.FILE, tokenizer.to_str(pretty=True))
    splits = _write_shards(out, corpus, scanned_N, sides, tokenizer, progress)
    for side, expected in corpus.recipe.expected.items() if corpus.recipe else ():
        tokens = splits[side]['tokens']
        if abs(tokens - expected) > TOLERANCE * expected:
            raise UserError(f'corpus {corpus.name}: {tokens:,} {side} tokens, published are {expected:,}')
    digest_N = scanned_N['digest']
    # The shards depend on the tokenizer and on each side's texts in order, and on nothing else.
    content = hashlib.sha256(bpe.identity(tokenizer).encode())
    for side, rows_M in sides.items():
        content.update(side.encode() + digest_N[rows_M].tobytes())
    index = {
        'corpus': corpus.name,
        'tokenizer': bpe.identity(tokenizer),
        'identity': content.hexdigest(),
        # Numbers of documents: in neither split, of validation that train has too, and with U+FFFD in them.
        'documents': {
            'dropped': len(scanned_N) - len(train_M) - len(valid_M),
            'shared': int(np.isin(digest_N[valid_M], digest_N[train_M]).sum()),
            'replaced': int(scanned_N['replaced'].sum()),
        },
        'splits': splits,
    }
    files.write(out / INDEX, json.dumps(index, indent=1))


def _write_shards(
    out: Path,
    corpus: Corpus,
    scanned_N: np.ndarray,
    sides: dict[str, np.ndarray],
    tokenizer: Tokenizer,
    progress: Progress,
) -> dict[str, dict[str, int]]:
    """Tokenizes each side into shards, with an end of text after each document. Finished shards are kept.

    Returns the arguments of each side's TokenStore. Raises UserError for a tokenizer that loses text.
    """
    bytes_V = bpe.token_bytes(tokenizer)
    total, done, splits = sum(int(scanned_N['bytes'][rows_M].sum()) for rows_M in sides.values()), 0, {}
    for side, rows_M in sides.items():
        # A shard ends with the document that fills it, so its documents are known before any is tokenized.
        size_M = scanned_N['bytes'][rows_M]
        cuts = np.flatnonzero(np.diff(np.cumsum(size_M) // SHARD_BYTES)) + 1
        shards = {text.shard_file(out, side, number): rows for number, rows in enumerate(np.split(rows_M, cuts))}
        missing = [rows for file, rows in shards.items() if not file.exists()]
        # One pass over the corpus fills all missing shards, one after the other.
        texts = select(corpus.read(), scanned_N, np.concatenate(missing)) if missing else iter(())
        for file, rows in shards.items():
            size = int(scanned_N['bytes'][rows].sum())
            if not file.exists():
                pieces, counted = [], 0
                for tokens_L in _encode(itertools.islice(texts, len(rows)), tokenizer):
                    pieces.append(tokens_L)
                    counted += int(bytes_V[tokens_L].sum(dtype=np.int64))
                    progress('tokenize', done + counted, total)
                # `select` has checked the texts, so it's the tokenizer that adds or drops bytes.
                if counted != size:
                    raise UserError(f'tokenizer: loses text, its tokens stand for {counted} of {size} bytes')
                with files.replacing(file) as stream:
                    np.save(stream, np.concatenate(pieces))
            done += size
        tokens = sum(len(text.open_shard(file)) for file in shards)
        splits[side] = {'shards': len(shards), 'tokens': tokens, 'documents': len(rows_M), 'bytes': int(size_M.sum())}
    return splits


def _encode(texts: Iterator[str], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """The tokens of the texts, a chunk of texts at a time."""
    # Two bytes hold most vocabularies, GPT-2's among them.
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.uint32
    end = bpe.end_of_text(tokenizer)

    def encode(chunk: list[str]) -> np.ndarray:
        encodings = tokenizer.encode_batch_fast(chunk, add_special_tokens=False)
        return np.concatenate([np.array([*encoding.ids, end], dtype) for encoding in encodings])

    # Encoding runs on all cores, outside Python's lock; this thread reads ahead.
    with concurrent.futures.ThreadPoolExecutor(AHEAD) as pool:
        yield from pool.map(encode, iter(lambda: list(itertools.islice(texts, CHUNK)), []))
