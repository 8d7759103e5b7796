"""Lengths of training as people say them: '5000 steps', '164M tokens', '10%'."""

import re

from nca_jax.errors import FieldError

_UNITS = {'': 1, 'K': 10**3, 'M': 10**6, 'B': 10**9}
_ALLOWED = "must be a duration such as '5000 steps', '164M tokens' or '9.03B tokens'"


def to_steps(text: str, tokens_per_step: int, field: str, whole: int | None = None) -> int:
    """Number of updates in `text`; tokens are rounded to the nearest update.

    '10%' is a share of `whole` updates, allowed only where `whole` is given. Raises FieldError naming `field`.
    """
    if whole is not None and (match := re.fullmatch(r'(\d+(?:\.\d+)?) ?%', text)):
        return round(float(match[1]) / 100 * whole)
    match = re.fullmatch(r'(\d+(?:\.\d+)?) ?([KMB]?) ?(steps|tokens)', text)
    if not match:
        raise FieldError(field, text, _ALLOWED + ('' if whole is None else ", or a share such as '10%'"))
    amount = float(match[1]) * _UNITS[match[2]]
    return round(amount if match[3] == 'steps' else amount / tokens_per_step)
