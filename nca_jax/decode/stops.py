"""Stop strings as an automaton over tokens, so that a decoding loop on the device knows when one has been written."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Stops:
    """Where a text ends. tokens: any of them ends it. next_SxV: the state after each token in each state; state 0 has
    read nothing of a stop string, and the last state has read a whole one, within its last token or at its end."""

    tokens: tuple[int, ...]
    next_SxV: np.ndarray


def make_stops(tokens: Sequence[int], strings: Sequence[str], pieces: Sequence[bytes]) -> Stops:
    """Stops for a vocabulary whose token t stands for the bytes pieces[t]; ValueError for an empty string.

    Strings are compared as UTF-8 bytes, wherever the borders of tokens fall.
    """
    if not all(strings):
        raise ValueError('a stop string is empty')
    next_Sx256 = _by_byte([string.encode() for string in strings])
    longest = max(map(len, pieces), default=0)
    byte_VxK = np.array([list(piece.ljust(longest, b'\0')) for piece in pieces], np.int64).reshape(len(pieces), longest)
    length_V = np.array(list(map(len, pieces)))
    state_SxV = np.repeat(np.arange(len(next_Sx256))[:, None], len(pieces), axis=1)
    for place in range(longest):
        state_SxV = np.where(place < length_V, next_Sx256[state_SxV, byte_VxK[:, place]], state_SxV)
    return Stops(tuple(tokens), state_SxV.astype(np.int32))


def cut(text: str, strings: Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    return text[: min((place for string in strings if (place := text.find(string)) >= 0), default=len(text))]


def _by_byte(strings: Sequence[bytes]) -> np.ndarray:
    """The automaton of Aho and Corasick, (S, 256): states are the strings' beginnings, the last one is absorbing."""
    beginnings = sorted({string[:end] for string in strings for end in range(len(string))} | {b''}, key=len)
    number = {beginning: state for state, beginning in enumerate(beginnings)}
    done = len(beginnings)
    next_Sx256 = np.zeros((done + 1, 256), np.int64)
    for beginning, state in number.items():
        for byte in range(256):
            read = beginning + bytes([byte])
            ended = read.endswith(tuple(strings))
            known = (read[start:] for start in range(len(read) + 1) if read[start:] in number)
            next_Sx256[state, byte] = done if ended else number[next(known)]
    next_Sx256[done] = done
    return next_Sx256
