"""Whether a text is a right answer: as a number or as words. Nothing that the model wrote is run.

A small parser compares numbers exactly, as fractions. Libraries that know more mathematics evaluate their input, and
`9**9**9**9` never ends: their time limits are signals, which can't stop a computation with huge integers. Here length
and characters are limited first, and the grammar has no operation that could grow past a few hundred digits.
"""

import re
from collections.abc import Iterable
from fractions import Fraction

# Of a number or an expression; every answer of GSM8K has 11 at most.
MAX_CHARACTERS = 64
# Of parentheses and signs.
MAX_DEPTH = 8
UNITS = '$€£¥%°'
# Emphasis and quotation marks.
AROUND = '*_`"\'\u2018\u2019\u201c\u201d'
# Minus sign, en dash, multiplication sign, middle dot and division sign.
SAME = str.maketrans({'\u2212': '-', '\u2013': '-', '\u00d7': '*', '\u00b7': '*', '\u00f7': '/'} | dict.fromkeys(UNITS))
TOKEN = re.compile(r'[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?(?![0-9,])|[0-9]+(?:\.[0-9]*)?(?![0-9,])|\.[0-9]+|[-+*/()]')


def same_number(text: str, answers: Iterable[str]) -> bool:
    """Whether the last word of `text` is one of the numbers."""
    value = number(last_word(text))
    return value is not None and value in map(number, answers)


def same_text(text: str, answers: Iterable[str]) -> bool:
    """Whether all of `text` is one of the answers, without white space around it and in any case."""
    return text.strip().casefold() in {answer.strip().casefold() for answer in answers}


def last_word(text: str) -> str:
    """The final answer of a worked solution (arXiv 2603.10055), '' if the text is blank."""
    words = text.rsplit(maxsplit=1)
    return words[-1].strip() if words else ''


def number(word: str) -> Fraction | None:
    """The number that a word spells, exactly; None if it isn't one.

    - Read: digits with or without thousands' commas, decimals, fractions, + - * / and parentheses; of `a=b`, b.
    - Dropped: currency, percent and degree signs, quotation marks, a full stop at the end. `50%` is 50, as in GSM8K.
    - None: powers, exponents, division by zero, more than MAX_CHARACTERS or MAX_DEPTH.
    """
    if len(word) > MAX_CHARACTERS:
        return None
    text = word.rpartition('=')[2].strip(AROUND).rstrip('.,;:?').strip(AROUND).translate(SAME).strip()
    try:
        tokens = _tokens(text)
        value, rest = _sum(tokens, 0)
    except (ValueError, ZeroDivisionError):
        return None
    return None if rest else value


def _tokens(text: str) -> list[str]:
    tokens, at = [], 0
    while at < len(text):
        match = TOKEN.match(text, at)
        if not match:
            raise ValueError
        tokens.append(match[0])
        at = match.end()
    return tokens


def _sum(tokens: list[str], depth: int) -> tuple[Fraction, list[str]]:
    """(value of the longest sum at the beginning of the tokens, the tokens after it)."""
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
        raise ValueError
    first, rest = tokens[0], tokens[1:]
    if first in '+-':
        value, rest = _factor(rest, depth + 1)
        return value if first == '+' else -value, rest
    if first == '(':
        value, rest = _sum(rest, depth + 1)
        if not rest or rest[0] != ')':
            raise ValueError
        return value, rest[1:]
    if first[0] not in '0123456789.':
        raise ValueError
    return Fraction(first.replace(',', '').rstrip('.')), rest
