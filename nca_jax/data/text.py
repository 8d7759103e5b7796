"""Text as a stream of Batches: a corpus becomes token shards in a cache folder, and windows of them become rows.

The first pass over a corpus keeps 26 bytes a document, never its text. Shards are written one by one, so that a killed
run goes on where it was.
"""

import bisect
import concurrent.futures
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import jax
import numpy as np
from tokenizers import Tokenizer

from nca_jax import files
from nca_jax.batch import Batch, Vocab
from nca_jax.data import corpora
from nca_jax.data import tokenizer as bpe
from nca_jax.data.corpora import Corpus, TextConfig
from nca_jax.data.documents import Document
from nca_jax.data.streams import make_read_stream, shuffled
from nca_jax.errors import UserError, check
from nca_jax.progress import Progress, silent

# Describes the shards of a folder. It is written last, so a folder with it is whole.
INDEX = 'index.json'
# Of a prepared folder; part of its key.
FORMAT = 2
# Of a published token count.
TOLERANCE = 0.001
# Documents encoded at once.
CHUNK = 256
# Of text in a shard; about 8M GPT-2 tokens, a few seconds of work.
SHARD_BYTES = 1 << 25


class TokenStore:
    """The tokens of one side as one long array over all its shards, read without loading them."""

    def __init__(self, folder: Path, side: str, shards: int, tokens: int, documents: int, bytes: int):
        """Raises UserError for a missing or damaged shard."""
        self.documents, self.bytes = documents, bytes
        self._shards = [open_shard(folder / f'{side}-{number:05d}.npy') for number in range(shards)]
        self._starts = np.cumsum([0, *map(len, self._shards)]).tolist()
        # Shards of another preparation would make other batches.
        if len(self) != tokens:
            raise UserError(f'{folder}: {side} has {len(self)} of {tokens} tokens; delete it to make it anew')

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, start: int, stop: int) -> np.ndarray:
        """int32 tokens [start, stop)."""
        starts = self._starts
        # A window may cross the border of shards.
        touched = range(bisect.bisect_right(starts, start) - 1, bisect.bisect_left(starts, stop))
        pieces = [self._shards[i][max(start - starts[i], 0) : stop - starts[i]] for i in touched]
        return np.concatenate(pieces, dtype=np.int32)


def open_shard(file: Path) -> np.ndarray:
    """The memory-mapped tokens of a shard. Raises UserError if it can't be read."""
    try:
        return np.load(file, mmap_mode='r')
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f'{file}: not a readable shard ({error}); delete {file.parent} to make it anew') from None


class PreparedText:
    """Token stores of both splits and their tokenizer, as `prepare_text` left them in a folder."""

    def __init__(self, folder: Path):
        """Raises UserError if a file is damaged."""
        index = files.read_json(folder / INDEX)
        self.folder = folder
        self.train = TokenStore(folder, 'train', **index['splits']['train'])
        self.valid = TokenStore(folder, 'valid', **index['splits']['valid'])
        self.tokenizer = bpe.load(str(folder / bpe.FILE))
        self.vocab = Vocab(self.tokenizer.get_vocab_size())
        self.token_bytes_V = bpe.token_bytes(self.tokenizer)
        # Hash of the texts and the tokenizer, free of paths.
        self.identity, self.tokenizer_identity = index['identity'], index['tokenizer']
        # Documents `dropped` as duplicates, `shared` by both sides of a published split, with U+FFFD (`replaced`).
        self.documents = index['documents']


def prepare_text(config: TextConfig, folder: Path | str, progress: Progress = silent) -> PreparedText:
    """The configured text as token shards, made in the config's cache (else in `folder`) if they are missing.

    Processes that want the same text at the same time wait for the one that makes it; a killed one is continued.
    progress(stage, done, total) is called often, with stages wait, scan and tokenize SIDE. Raises UserError.
    """
    corpus = corpora.open_corpus(config)
    tokenizer = bpe.load(config.tokenizer) if config.tokenizer else None
    if config.corpus in corpora.RECIPES:
        # Published counts of tokens hold for one tokenizer.
        gpt2 = tokenizer is not None and tokenizer.get_vocab_size() == corpora.GPT2_VOCAB
        allowed = f"must be GPT-2's tokenizer.json, of {corpora.GPT2_VOCAB} tokens, for {corpus.name}"
        check(gpt2, 'tokenizer', config.tokenizer, allowed)
    # All that decides the shards, so that any other text has a folder of its own.
    settings = [FORMAT, corpus.name, corpus.source, config.field, config.valid_share]
    settings.append(bpe.identity(tokenizer) if tokenizer else config.vocab_size)
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    root = Path(config.cache or folder).expanduser()
    out = root / 'tokens' / f'{corpus.name}-{key}'
    if not (out / INDEX).exists():
        files.make_folder(out, 'cache')
        with files.lock(root / 'lock', lambda: progress('wait', 0, None)):
            # Another process may have made it while this one waited.
            if not (out / INDEX).exists():
                _write(config, corpus, tokenizer, out, progress)
    return PreparedText(out)


def scan(documents: Iterable[Document], progress: Progress) -> np.ndarray:
    """SCANNED records of N documents."""

    def records() -> Iterator[tuple]:
        for number, document in enumerate(documents, 1):
            data = document.text.encode()
            digest = hashlib.blake2b(data, digest_size=16).digest()
            yield digest, len(data), '\ufffd' in document.text, document.valid
            progress('scan', number, None)

    # NumPy grows the array, so that the number of documents needn't be known.
    scanned_N = np.fromiter(records(), corpora.SCANNED)
    progress('scan', len(scanned_N), len(scanned_N))
    return scanned_N


def _write(config: TextConfig, corpus: Corpus, tokenizer: Tokenizer | None, out: Path, progress: Progress) -> None:
    """Writes a prepared folder; the index comes last, and makes it valid."""
    # Half-written files of a killed process. The lock proves that no other one is writing here.
    for scratch in out.glob('.*'):
        scratch.unlink()
    scanned_N = scan(corpus.read(), progress)
    sides = dict(zip(('train', 'valid'), corpus.recipe.divide(scanned_N, config.valid_share), strict=True))
    for side, chosen_N in sides.items():
        if not chosen_N.any():
            raise UserError(f'corpus {corpus.name}: no document for {side} (valid_share = {config.valid_share})')

    def texts(side: str) -> Iterator[str]:
        # Read anew, one at a time.
        return (document.text for document in itertools.compress(corpus.read(), sides[side]))

    if tokenizer is None:
        # It learns from the training side alone.
        tokenizer = bpe.train(texts('train'), config.vocab_size)
    # Beside the shards, so that a later stage finds the tokenizer that they were written with.
    files.write(out / bpe.FILE, tokenizer.to_str(pretty=True))
    # The shards depend on the tokenizer and on each side's texts in order, and on nothing else.
    content, splits = hashlib.sha256(bpe.identity(tokenizer).encode()), {}
    for side, chosen_N in sides.items():
        size_M = scanned_N['bytes'][chosen_N]
        splits[side] = _write_shards(out, side, texts(side), size_M, tokenizer, progress)
        tokens, expected = splits[side]['tokens'], corpus.recipe.expected.get(side)
        if expected and abs(tokens - expected) > TOLERANCE * expected:
            raise UserError(f'corpus {corpus.name}: {tokens:,} {side} tokens, published are {expected:,}')
        content.update(side.encode() + scanned_N['digest'][chosen_N].tobytes())
    # All passes must have read the same texts. The folder's key, too, knows them by sizes and times of files.
    if corpora.open_corpus(config).source != corpus.source:
        raise UserError(f'corpus {corpus.name}: changed while it was read; start again')
    train_N, valid_N = sides.values()
    index = {
        'corpus': corpus.name,
        'tokenizer': bpe.identity(tokenizer),
        'identity': content.hexdigest(),
        # Numbers of documents: in neither split, of validation that train has too, and with U+FFFD in them.
        'documents': {
            'dropped': int((~train_N & ~valid_N).sum()),
            'shared': int(np.isin(scanned_N['digest'][valid_N], scanned_N['digest'][train_N]).sum()),
            'replaced': int(scanned_N['replaced'].sum()),
        },
        'splits': splits,
    }
    files.write(out / INDEX, json.dumps(index, indent=1))


def _write_shards(
    out: Path, side: str, texts: Iterator[str], size_M: np.ndarray, tokenizer: Tokenizer, progress: Progress
) -> dict[str, int]:
    """Tokenizes M texts of these sizes into shards, with an end of text after each. Finished shards are kept.

    Returns the arguments of the side's TokenStore. Raises UserError for a tokenizer that loses text.
    """
    bytes_V, total, done, tokens = bpe.token_bytes(tokenizer), int(size_M.sum()), 0, 0
    # Two bytes hold most vocabularies, GPT-2's among them.
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.uint32
    end_of_text = bpe.end_of_text(tokenizer)

    def encode(chunk: list[str]) -> np.ndarray:
        encodings = tokenizer.encode_batch_fast(chunk, add_special_tokens=False)
        return np.concatenate([np.array([*encoding.ids, end_of_text], dtype) for encoding in encodings])

    # A shard ends with the document that fills it, so its documents are known before any is tokenized.
    shards = np.split(size_M, np.flatnonzero(np.diff(np.cumsum(size_M) // SHARD_BYTES)) + 1)
    for number, sizes in enumerate(shards):
        file, end = out / f'{side}-{number:05d}.npy', done + int(sizes.sum())
        # Read in any case, since the texts of the next shard come after these.
        own = list(itertools.islice(texts, len(sizes)))
        if not file.exists():
            chunks, pieces = [own[first : first + CHUNK] for first in range(0, len(own), CHUNK)], []
            # Encoding runs on all cores, outside Python's lock. With four chunks at a time, copying hides behind it.
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                for tokens_L in pool.map(encode, chunks):
                    pieces.append(tokens_L)
                    done += int(bytes_V[tokens_L].sum(dtype=np.int64))
                    progress(f'tokenize {side}', done, total)
            if done != end:
                reason = 'the tokenizer loses text, or the text changed while it was read'
                raise UserError(f'{side}: tokens stand for {done} of {end} bytes; {reason}')
            with files.replacing(file) as stream:
                np.save(stream, np.concatenate(pieces))
        done, tokens = end, tokens + len(open_shard(file))
    return {'shards': len(shards), 'tokens': tokens, 'documents': len(size_M), 'bytes': total}


def make_stream(
    prepared: PreparedText, seed: int, batch: int, length: int, sharding: jax.sharding.NamedSharding
) -> Callable[[int], Batch]:
    """`stream(step)`: the step-th Batch of training windows, each once an epoch, in an order of (seed, epoch)."""
    store = prepared.train
    # The tail that fills no window is left out.
    total = (len(store) - 1) // length
    if total < 1:
        raise UserError(f'train has {len(store)} tokens, fewer than a window of {length + 1}')

    def row_of(number: int) -> tuple[np.ndarray, np.ndarray]:
        # The order depends on the seed, so that runs of several seeds see the text in different orders.
        _, window = shuffled(number, total, f'{seed}/text/train')
        return _row(store, window, length)

    return make_read_stream(row_of, batch, length, sharding)


def make_eval_stream(
    prepared: PreparedText, batch: int, length: int, batches: int, sharding: jax.sharding.NamedSharding
) -> tuple[Callable[[int], Batch], int]:
    """`stream(step)` for step in range(batches), of windows spread evenly over validation, and their targets' bytes.

    The bytes are exact: bits per byte = summed nats / ln 2 / bytes. The end of a text costs nats and counts 0 bytes.
    """
    store, windows = prepared.valid, batch * batches
    total = (len(store) - 1) // length
    if total < windows:
        raise UserError(f'valid split: {total} windows of {length} tokens, evaluation wants {windows}')

    def row_of(number: int) -> tuple[np.ndarray, np.ndarray]:
        # Spread, since neighbouring windows are of one document, and a corpus may keep its documents in order.
        return _row(store, number * total // windows, length)

    sizes = (prepared.token_bytes_V[row_of(number)[0][1:]].sum(dtype=np.int64) for number in range(windows))
    return make_read_stream(row_of, batch, length, sharding), int(sum(sizes))


def _row(store: TokenStore, window: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """length + 1 tokens at stride `length`, so that every token but the first is a target once. All weights are 1."""
    return store.read(window * length, (window + 1) * length + 1), np.ones(length + 1, np.float32)
