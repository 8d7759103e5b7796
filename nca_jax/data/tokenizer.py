"""Byte-level BPE: trained here, or read from a tokenizer.json. Every token is a fixed number of bytes of the text."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from nca_jax.errors import UserError, check

END_OF_TEXT = '<|endoftext|>'
FILE = 'tokenizer.json'
# One printable character for each of the 256 bytes.
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
# GPT-2 writes a printable byte as its own character, the others in order as the characters from 256 on. The alphabet
# begins with the printable ones, and so do the bytes here.
BYTE_OF = dict(zip(ALPHABET, sorted(range(256), key=lambda byte: chr(byte) not in ALPHABET), strict=True))


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of `vocab_size` tokens, where 0 ends a text; a function of the texts and the size alone."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=ALPHABET, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    # The texts may have too little to merge.
    if tokenizer.get_vocab_size() != vocab_size:
        raise UserError(f'vocab_size = {vocab_size}: this corpus fills {tokenizer.get_vocab_size()} tokens at most')
    return _plain(tokenizer)


def load(file: str) -> Tokenizer:
    """Reads a tokenizer.json; UserError unless it is a byte-level BPE with an end-of-text token, like GPT-2's."""
    try:
        tokenizer = Tokenizer.from_str(Path(file).expanduser().read_text())
        layout = json.loads(tokenizer.to_str())
        # Raises for tokens that aren't byte-level or whose numbers have gaps.
        pieces(tokenizer)
    # The library raises bare Exceptions.
    except Exception as error:
        raise UserError(f'tokenizer = {file!r}: no readable tokenizer.json of a byte-level BPE ({error!r})') from error
    ends = [token for token in layout['added_tokens'] if token['content'] == END_OF_TEXT and token['special']]
    # A step that changes text before tokenisation makes counts of bytes wrong; dropout makes tokens random.
    allowed = f'must be a byte-level BPE with special {END_OF_TEXT}, no normalizer and no dropout'
    changes_text = layout['normalizer'] or layout['model'].get('dropout')
    check(layout['model']['type'] == 'BPE' and bool(ends) and not changes_text, 'tokenizer', file, allowed)
    return _plain(tokenizer)


def load_of_run(run: Path, manifest: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer in a run's folder, which must be the manifest's; None for runs without one."""
    expected = manifest['data'].get('tokenizer')
    if expected is None:
        return None
    tokenizer = load(str(run / FILE))
    if identity(tokenizer) != expected:
        raise UserError(f'{run}: was trained with a tokenizer of hash {expected[:12]}, and {FILE} is another one')
    return tokenizer


def identity(tokenizer: Tokenizer) -> str:
    """sha256 of the tokenizer's contents. Token shards and manifests carry it."""
    # Files of one tokenizer may be laid out differently.
    return hashlib.sha256(json.dumps(json.loads(tokenizer.to_str()), sort_keys=True).encode()).hexdigest()


def end_of_text(tokenizer: Tokenizer) -> int:
    return tokenizer.token_to_id(END_OF_TEXT)


def token_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """(V,) int32: the UTF-8 bytes that each token stands for; special tokens stand for none.

    The bytes of a text are the sum over its tokens, so bits per byte is exact over any range of tokens.
    """
    return np.array([len(piece) for piece in pieces(tokenizer)], np.int32)


def pieces(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes of every token, by its number; special tokens have none.

    Raises KeyError or IndexError for a tokenizer that `load` refuses.
    """
    special = {token['id'] for token in json.loads(tokenizer.to_str())['added_tokens'] if token['special']}
    pieces_V = [b''] * tokenizer.get_vocab_size()
    for token, number in tokenizer.get_vocab().items():
        if number not in special:
            pieces_V[number] = bytes(BYTE_OF[character] for character in token)
    return pieces_V


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    """Sets that text which spells a special token is text: only `prepare` writes the end of a document."""
    tokenizer.encode_special_tokens = True
    # A file may ask for either, which would lose text or add tokens.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
