"""Answers to problems in a JSONL file, a line for each problem when all of its samples are there.

The file's name holds what the answers depend on, so that an evaluation that was killed goes on with its own and no
other's. A half-written last line is cut off.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from nca_jax import files
from nca_jax.errors import UserError

FIELDS = {'id', 'task', 'answers', 'choices', 'texts', 'correct'}


def file_of(folder: Path, step: int, depends_on: Any) -> Path:
    """Where the answers of one evaluation lie; `depends_on` is JSON."""
    digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
    return folder / f'step-{step}-{digest[:12]}.jsonl'


def read(file: Path) -> dict[str, dict[str, Any]]:
    """The whole records of a file by their problem's id, none where there is no file. UserError for any other line."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f'{file}: {error.strerror}') from None
    lines = [line for line in content.splitlines(keepends=True) if line.endswith(b'\n')]
    records = [_record(line, f'{file}:{number}') for number, line in enumerate(lines, 1)]
    return {record['id']: record for record in records}


def make_ready(file: Path) -> None:
    """Has the file there with whole lines alone, so that more may be appended. UserError where that can't be."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open('ab').close()
        if (content := file.read_bytes()) and not content.endswith(b'\n'):
            files.write(file, content[: content.rfind(b'\n') + 1])
    except OSError as error:
        raise UserError(f'{file}: {error.strerror}') from None


def _record(line: bytes, name: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f'{name}: not JSON ({error}); remove the file to evaluate anew') from None
    if not isinstance(record, dict) or record.keys() != FIELDS:
        raise UserError(f'{name}: must have the fields {" ".join(sorted(FIELDS))}; remove the file to evaluate anew')
    return record
