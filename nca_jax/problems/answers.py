"""Is it the right answer? What a model wrote, read as a number or as words; nothing that it wrote is run.

Numbers are compared exactly, as fractions of whole numbers, by a parser of one screen. Libraries that know more
mathematics evaluate what they are given: `9**9**9**9` has no end there, their time limits are signals, which reach the
main thread alone and no computation with huge integers. Here a text is refused for its length or its characters first,
and what remains has no operation that could grow past a few hundred digits.
"""

import re
from collections.abc import Iterable
from fractions import Fraction

from nca_jax.errors import UserError

MAX_CHARACTERS = 64  # of a number or an expression; every answer of GSM8K has 11 at most
MAX_DEPTH = 8  # of parentheses and signs
UNITS = '$€£¥%°'
AROUND = '*_`"\'\u2018\u2019\u201c\u201d'  # emphasis and quotation marks
# Minus sign, en dash, multiplication sign, middle dot and division sign.
SAME = str.maketrans({'\u2212': '-', '\u2013': '-', '\u00d7': '*', '\u00b7': '*', '\u00f7': '/'} | dict.fromkeys(UNITS))
TOKEN = re.compile(r'[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?(?![0-9,])|[0-9]+(?:\.[0-9]*)?(?![0-9,])|\.[0-9]+|[-+*/()]')


class _NotANumberError(Exception):
    """Of a text that isn't in the grammar or passes its limits."""


def last_word(text: str) -> str:
    """What follows the last white space: the final answer of a worked solution (arXiv 2603.10055); '' of nothing."""
    words = text.rsplit(maxsplit=1)
    return words[-1].strip() if words else ''


def number(word: str) -> Fraction | None:
    """The number that a word spells, exactly, or None.

    Digits with or without thousands' commas, decimals, fractions, and + - * / with parentheses; currency, percent and
    degree signs, quotation marks and a full stop at the end are dropped, and of `a=b` b counts. `50%` is therefore 50,
    as in GSM8K's own answers. There are no powers and no exponents. None where it is longer than MAX_CHARACTERS, nested
    deeper than MAX_DEPTH, or divides by zero.
    """
    if len(word) > MAX_CHARACTERS:
        return None
    text = word.rpartition('=')[2].strip(AROUND).rstrip('.,;:?').strip(AROUND).translate(SAME).strip()
    try:
        tokens = _tokens(text)
        value, rest = _sum(tokens, 0)
    except (_NotANumberError, ZeroDivisionError):
        return None
    return None if rest else value


def same_number(text: str, answers: Iterable[str]) -> bool:
    """Whether the last word of `text` is one of the numbers. UserError where an answer is no number, by `number`."""
    given = number(last_word(text))
    right = [(answer, number(answer)) for answer in answers]
    for answer, value in right:
        if value is None:
            raise UserError(f'answer = {answer!r}: must be a number, to be compared with')
    return given is not None and any(given == value for _, value in right)


def same_text(text: str, answers: Iterable[str]) -> bool:
    """Whether all of `text` is one of the answers, without white space around it and whatever its case."""
    return text.strip().casefold() in {answer.strip().casefold() for answer in answers}


def _tokens(text: str) -> list[str]:
    tokens, at = [], 0
    while at < len(text):
        found = TOKEN.match(text, at)
        if not found:
            raise _NotANumberError
        tokens.append(found[0])
        at = found.end()
    return tokens


def _sum(tokens: list[str], depth: int) -> tuple[Fraction, list[str]]:
    """The value of the longest sum that the tokens begin with, and the tokens after it."""
    value, rest = _product(tokens, depth)
    while rest and rest[0] in '+-':
        term, after = _product(rest[1:], depth)
        value, rest = value + term if rest[0] == '+' else value - term, after
    return value, rest


def _product(tokens: list[str], depth: int) -> tuple[Fraction, list[str]]:
    value, rest = _factor(tokens, depth)
    while rest and rest[0] in '*/':
        factor, after = _factor(rest[1:], depth)
        value, rest = value * factor if rest[0] == '*' else value / factor, after
    return value, rest


def _factor(tokens: list[str], depth: int) -> tuple[Fraction, list[str]]:
    if not tokens or depth > MAX_DEPTH:
        raise _NotANumberError
    first, rest = tokens[0], tokens[1:]
    if first in '+-':
        value, rest = _factor(rest, depth + 1)
        return value if first == '+' else -value, rest
    if first == '(':
        value, rest = _sum(rest, depth + 1)
        if not rest or rest[0] != ')':
            raise _NotANumberError
        return value, rest[1:]
    if first[0] not in '0123456789.':
        raise _NotANumberError
    return Fraction(first.replace(',', '').rstrip('.')), rest
