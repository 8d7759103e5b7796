"""Whether a text is a right answer: as a number or as words. Nothing that the model wrote is run.

A small parser compares numbers exactly, as fractions. Libraries that know more mathematics evaluate their input, and
`9**9**9**9` never ends: their time limits are signals, which can't stop a computation with huge integers. Here length
and characters are limited first, and the grammar has no operation that could grow past a few hundred digits.
"""

import operator
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
# How tightly an operator binds, and its function. A sign binds tighter than all of them.
OPERATORS = {'+': (1, operator.add), '-': (1, operator.sub), '*': (2, operator.mul), '/': (2, operator.truediv)}
SIGN = 3


def same_number(text: str, answers: Iterable[str]) -> bool:
    """Whether the last word of `text` is one of the numbers."""
    # The paper sets the answer last in a worked solution (arXiv 2603.10055).
    value = number((text.split() or [''])[-1])
    return value is not None and value in map(number, answers)


def same_text(text: str, answers: Iterable[str]) -> bool:
    """Whether `text` is one of the answers."""
    # White space around it and the case of letters say nothing; more words would.
    return text.strip().casefold() in {answer.strip().casefold() for answer in answers}


def number(word: str) -> Fraction | None:
    """The number that a word spells, exactly; None if it isn't one.

    - Read: digits with or without thousands' commas, decimals, fractions, + - * / and parentheses; of `a=b`, b.
    - Dropped: currency, percent and degree signs, quotation marks, a full stop at the end. `50%` is 50, as in GSM8K.
    - None: powers, exponents, division by zero, more than MAX_CHARACTERS or MAX_DEPTH.
    """
    # Before anything reads it, so that no text takes long.
    if len(word) > MAX_CHARACTERS:
        return None
    text = word.rpartition('=')[2].strip(AROUND).rstrip('.,;:?').strip(AROUND).translate(SAME).strip()
    tokens = TOKEN.findall(text)
    # `findall` skips what is no token.
    if ''.join(tokens) != text:
        return None
    # Reversed, since a list is popped at its end.
    tokens.reverse()
    try:
        value = _expression(tokens, 0)
    # IndexError where the text ends too early.
    except (IndexError, ValueError, ZeroDivisionError):
        return None
    return None if tokens else value


def _expression(tokens: list[str], depth: int, above: int = 0) -> Fraction:
    """Takes an expression off the end of the reversed `tokens`, as far as operators bind tighter than `above`."""
    if depth > MAX_DEPTH:
        raise ValueError
    token = tokens.pop()
    if token in '+-':
        value = _expression(tokens, depth + 1, SIGN)
        value = -value if token == '-' else value
    elif token == '(':
        value = _expression(tokens, depth + 1)
        if tokens.pop() != ')':
            raise ValueError
    else:
        # ValueError for a token that can't begin an expression.
        value = Fraction(token.replace(',', ''))
    while tokens and tokens[-1] in OPERATORS and OPERATORS[tokens[-1]][0] > above:
        binding, apply = OPERATORS[tokens.pop()]
        value = apply(value, _expression(tokens, depth, binding))
    return value
