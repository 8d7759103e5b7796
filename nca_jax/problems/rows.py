"""How problems become rows of tokens, and where shots come from."""

import itertools
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from nca_jax.problems.problem import Problem


class Tokens(NamedTuple):
    """A problem's int32 tokens; the target's end with the end of text."""

    prompt: np.ndarray
    target: np.ndarray


def tokenise(found: Sequence[Problem], tokenizer: Tokenizer, end: int) -> list[Tokens]:
    """Prompts and targets apart; `end` is the end of text."""
    texts = itertools.chain.from_iterable((problem.prompt, problem.target) for problem in found)
    encoded = [code.ids for code in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
    pairs = zip(encoded[::2], encoded[1::2], strict=True)
    return [Tokens(np.array(prompt, np.int32), np.array([*target, end], np.int32)) for prompt, target in pairs]


def draw(name: str, shots: tuple[int, int], pool: int, own: int | None) -> list[int]:
    """Distinct places in 0..pool - 1 without `own`, least..most of them, each choice as likely as any other.

    From the generator's raw numbers, which NumPy promises never to change.
    """
    least, most = shots
    raw = np.random.Philox(key=zlib.crc32(name.encode())).random_raw(most + 1).tolist()
    taken = [] if own is None else [own]
    drawn = []
    for number in raw[1 : 1 + least + raw[0] % (most - least + 1)]:
        place = number % (pool - len(taken))
        for other in sorted(taken):  # counts free places only
            place += place >= other
        taken.append(place)
        drawn.append(place)
    return drawn


def room_for_shots(own: Tokens, length: int) -> int:
    """Tokens that a row of length + 1 has for shots before a problem of its own."""
    return length + 1 - len(own.prompt) - len(own.target)


def last_that_fit(shots: Sequence[Tokens], room: int) -> list[Tokens]:
    """The longest run of shots, up to the last, that has no more than `room` tokens."""
    kept: list[Tokens] = []
    for shot in reversed(shots):
        room -= len(shot.prompt) + len(shot.target)
        if room < 0:
            break
        kept.insert(0, shot)
    return kept


def assemble(own: Tokens, shots: list[Tokens], length: int, end: int, loss_on: str) -> tuple[np.ndarray, np.ndarray]:
    """(L+1,) int32 tokens and (L+1,) float32 weights of each token as a target."""
    tokens_L1 = np.full(length + 1, end, np.int32)
    weights_L1 = np.zeros(length + 1, np.float32)
    kept = last_that_fit(shots, room_for_shots(own, length))
    at = 0
    for example in (*kept, own):
        start = at + len(example.prompt)
        stop = start + len(example.target)
        tokens_L1[at:start], tokens_L1[start:stop] = example
        weights_L1[start:stop] = example is own or loss_on == 'all_answers'
        at = stop
    return tokens_L1, weights_L1
