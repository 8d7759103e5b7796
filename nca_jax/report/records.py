"""Reads the two files in which a run says what it is and what it measured, and refuses what isn't such a file."""

import contextlib
import json
from pathlib import Path
from typing import Any

from nca_jax import errors

# Evaluators that count solved problems, of the weights and of their kept average. They have no loss.
SOLVING = ('benchmark', 'benchmark_ema')
NUMBERS = ('step', 'tokens', 'loss')


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds. UserError, with the path, for anything else."""
    try:
        content = json.loads(path.read_text('utf-8'))
    except ValueError as error:
        raise errors.UserError(f'{path}: not JSON ({error})') from error
    except OSError as error:
        raise errors.UserError(f'{path}: {error.strerror}') from error
    if not isinstance(content, dict):
        raise errors.UserError(f'{path}: expected a JSON object, found {type(content).__name__}')
    return content


def read_metrics(path: Path) -> tuple[dict[str, Any], ...]:
    """The records of a metrics.jsonl.

    A killed writer leaves at most a last line without its newline: that one line is ignored if it doesn't parse.
    Any other line that isn't a record raises UserError with its number.
    """
    if not path.is_file():
        return ()
    *lines, last = path.read_bytes().split(b'\n')
    records = [_record(line, f'{path} line {number}') for number, line in enumerate(lines, 1)]
    if last:
        with contextlib.suppress(errors.UserError):  # the half-written line of a killed run
            records.append(_record(last, f'{path} line {len(lines) + 1}'))
    return tuple(records)


def _record(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise errors.UserError(f'{where}: not JSON ({error}); only an unfinished last line is forgiven') from error
    if not isinstance(record, dict) or 'kind' not in record:
        raise errors.UserError(f'{where}: not a metrics record, it has no field "kind"')
    solving = record['kind'] == 'eval' and record.get('evaluator') in SOLVING
    missing = _needed(record, solving) - record.keys()
    if record['kind'] in ('train', 'eval', 'done') and missing:
        raise errors.UserError(f'{where}: a record of kind {record["kind"]!r} without {", ".join(sorted(missing))}')
    for field in record if solving else record.keys() & set(NUMBERS):
        if field not in ('kind', 'evaluator') and not isinstance(record[field], int | float):
            raise errors.UserError(f'{where}: {field} = {record[field]!r}: must be a number')
    return record


def _needed(record: dict[str, Any], solving: bool) -> set[str]:
    """The fields that a record must have. Of programs that aren't judged yet there is no pass@k, of others pass@1."""
    needed = {'step', 'tokens'}
    if not solving:
        return needed | ({'evaluator', 'loss'} if record['kind'] == 'eval' else set())
    needed |= {'problems', 'samples'}
    for k in ks(record):
        needed |= {'pass@1', f'pass@{k}_low', f'pass@{k}_high'}
        if f'chance_pass@{k}' in record:
            needed |= {f'normalised@{k}', f'normalised_by_chance@{k}'}
    return needed


def ks(record: dict[str, Any]) -> list[int]:
    """Each k, in order, of which a record of solved problems has pass@k."""
    numbers = (name.removeprefix('pass@') for name in record if name.startswith('pass@'))
    return sorted(int(number) for number in numbers if number.isdecimal())
