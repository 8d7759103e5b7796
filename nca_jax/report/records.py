"""The fields that a report reads from a run's files, with their types."""

from pathlib import Path
from typing import Any

from nca_jax import files
from nca_jax.errors import UserError

# The evaluator that counts solved problems.
BENCHMARK = 'benchmark'

NUMBER = int | float
RUN = {
    **dict.fromkeys(('name', 'arm', 'stage', 'evaluator', 'identity'), str),
    **dict.fromkeys(('seed', 'vocab_size', 'parameters', 'tokens_per_step'), int),
    **dict.fromkeys(('config', 'code', 'versions', 'data'), dict),
    'device': {'kind': str, 'count': int},
    'parent': dict | None,
}
PARENT = {'identity': str, 'step': int, 'plan': list}
# The fields of config.benchmark on which scores depend.
PROTOCOL = {
    **dict.fromkeys(('limit', 'shots', 'samples', 'max_tokens'), int),
    'problems': {'task': str},
    'stops': list,
    'sampling': {'temperature': NUMBER, 'top_p': NUMBER},
}
COMPLEXITY = {
    **{field: [NUMBER] for field in ('edges', 'counts', 'band')},
    **dict.fromkeys(('candidates', 'accepted', 'bytes_per_token'), NUMBER),
    'score': str,
}


def check(value: Any, schema: Any, file: str, field: str = '') -> None:
    """Raises UserError unless a value fits a schema: a type, {field: schema} (more fields are allowed), or [schema]."""
    place = f'{file}: {field}'.rstrip()
    kind = type(schema) if isinstance(schema, dict | list) else schema
    if not isinstance(value, kind):
        raise UserError(f'{place} = {value!r}: must be of type {getattr(kind, "__name__", kind)}')
    if isinstance(schema, list):
        for index, item in enumerate(value):
            check(item, schema[0], file, f'{field}[{index}]')
    elif isinstance(schema, dict):
        if missing := [name for name in schema if name not in value]:
            raise UserError(f'{place} lacks {", ".join(missing)}')
        for name, inner in schema.items():
            check(value[name], inner, file, f'{field}.{name}'.lstrip('.'))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, without an unfinished last line."""
    records = files.read_records(path)
    for number, record in enumerate(records, 1):
        check(record, _metrics_schema(record), f'{path}:{number}')
    return records


def _metrics_schema(record: dict[str, Any]) -> dict[str, Any]:
    """The fields that a line must have: those of its kind, and of its scores if it counts solved problems."""
    if record.get('kind') not in ('train', 'eval', 'done'):
        return {'kind': str}
    schema = {'step': NUMBER, 'tokens': NUMBER} | ({'loss': NUMBER} if 'loss' in record else {})
    if record['kind'] != 'eval':
        return schema
    # Solved by the weights and by their kept average; such a line has scores and no loss.
    if record.get('evaluator') not in (BENCHMARK, f'{BENCHMARK}_ema'):
        return schema | {'evaluator': str, 'loss': NUMBER}
    fields = ['problems', 'samples', *(name for name in record if name not in ('kind', 'evaluator'))]
    for k in ks(record):
        fields += ['pass@1', f'pass@{k}_low', f'pass@{k}_high']
        if f'chance_pass@{k}' in record:
            fields += [f'normalised@{k}', f'normalised_by_chance@{k}']
    return schema | dict.fromkeys(fields, NUMBER)


def ks(record: dict[str, Any]) -> list[int]:
    """The numbers k for which a count of solved problems has pass@k, in order. Programs not yet judged have none."""
    numbers = (name.removeprefix('pass@') for name in record if name.startswith('pass@'))
    return sorted(int(number) for number in numbers if number.isdecimal())
