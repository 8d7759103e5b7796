"""Handing weights from one stage to the next: a plan says, leaf by leaf and layer by layer, what is carried.

A plan is a tuple of entries `(pattern, action)` or `(pattern, action, dict(layers=(a, b), scale=s))`. They are tried in
order, per leaf and layer, and the first whose pattern matches the whole path decides:

* `carry` takes the source's values, times `scale`;
* `fresh` takes the target's own initialisation and also accounts for the source leaf of that path;
* `drop` is for source leaves that have no counterpart in the target.

An entry with `layers` claims layers a..b-1 of the stacked leaves (`blocks/...`) alone; the rest falls through. Nothing
is implied: a leaf of either side that no entry accounts for is an error, and so is an entry that claims nothing.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from nca_jax import trees
from nca_jax.errors import UserError

ACTIONS = ('carry', 'fresh', 'drop')
STACKED = 'blocks/'  # the leaves under it hold all layers, on axis 0
VOCAB_AXIS = {'embed/table': 0, 'head/kernel': 1, 'head/bias': 0}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of a plan. `layers` (a, b) restricts it to layers a..b-1 of the stacked leaves."""

    pattern: str
    action: str
    layers: tuple[int, int] | None = None
    scale: float = 1.0

    def claims(self, path: str, layer: int | None) -> bool:
        inside = self.layers is None or (layer is not None and self.layers[0] <= layer < self.layers[1])
        return inside and re.fullmatch(self.pattern, path) is not None

    def to_json(self) -> list[Any]:
        options = {'layers': list(self.layers)} if self.layers else {}
        return [self.pattern, self.action, options | ({'scale': self.scale} if self.scale != 1.0 else {})]


Plan = tuple[Entry, ...]
Unit = tuple[str, int | None]  # a path and, of a stacked leaf, one layer


@dataclasses.dataclass(frozen=True)
class Piece:
    """What happens to a whole leaf, or to layers a..b-1 of a stacked one."""

    action: str
    layers: tuple[int, int] | None
    scale: float


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A plan applied to two trees of shapes: for every target leaf, and every dropped source leaf, its pieces by path.

    `vocab_size` is the number of rows that the tables carry when their padding differs.
    """

    target: Mapping[str, tuple[Piece, ...]]
    dropped: Mapping[str, tuple[Piece, ...]]
    vocab_size: int


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the report. Norms are Euclidean, the source's before scaling, and None where there is nothing."""

    path: str
    action: str
    layers: tuple[int, int] | None
    scale: float
    source_norm: float | None
    result_norm: float | None


@dataclasses.dataclass(frozen=True)
class GraftReport:
    """What a graft did, leaf by leaf. It is printed at the start of a stage and kept in its manifests."""

    rows: tuple[Row, ...]

    def to_json(self) -> list[dict[str, Any]]:
        return [dataclasses.asdict(row) for row in self.rows]

    def lines(self) -> list[str]:
        """The report as an aligned table, with one line of counts at the end."""
        cells = [('leaf', 'layers', 'action', 'scale', 'source norm', 'result norm')]
        for row in self.rows:
            layers = '' if row.layers is None else f'{row.layers[0]}-{row.layers[1] - 1}'
            scale = f'{row.scale:g}' if row.action == 'carry' else ''
            norms = ('' if norm is None else f'{norm:.4g}' for norm in (row.source_norm, row.result_norm))
            cells.append((row.path, layers, row.action, scale, *norms))
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        table = ['  '.join(map(str.ljust, line, widths)).rstrip() for line in cells]
        paths = {action: {row.path for row in self.rows if row.action == action} for action in ACTIONS}
        return [*table, ', '.join(f'{action}: {len(paths[action])} leaves' for action in ACTIONS)]


def parse(plan: Iterable[Any]) -> Plan:
    """Checks a plan as written in a config (or read back from JSON); UserError names the entry and what is wrong."""
    return tuple(_parse_entry(f'plan entry {number} {entry!r}', entry) for number, entry in enumerate(plan))


def _parse_entry(where: str, entry: Any) -> Entry:
    def demand(ok: bool, allowed: str) -> None:
        if not ok:
            raise UserError(f'{where}: {allowed}')

    if isinstance(entry, Entry):
        entry = entry.to_json()
    shaped = isinstance(entry, tuple | list) and len(entry) in (2, 3)
    demand(shaped, 'must be (pattern, action) or (pattern, action, options)')
    pattern, action, options = (*entry, {}) if len(entry) == 2 else entry
    demand(isinstance(pattern, str), 'the pattern must be a string')
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(f'{where}: the pattern is not a regular expression: {error}') from error
    demand(action in ACTIONS, f'the action must be one of {", ".join(ACTIONS)}')
    demand(hasattr(options, 'keys') and set(options) <= {'layers', 'scale'}, 'the options may be layers and scale')
    layers, scale = dict(options).get('layers'), dict(options).get('scale', 1.0)
    if layers is not None:
        integers = isinstance(layers, tuple | list) and [type(bound) for bound in layers] == [int, int]
        demand(integers and 0 <= layers[0] < layers[1], 'layers must be (a, b) with 0 <= a < b')
    number = isinstance(scale, int | float) and not isinstance(scale, bool)
    demand(number and math.isfinite(scale) and scale >= 0, 'scale must be a finite number, at least 0')
    demand(action == 'carry' or scale == 1.0, 'scale applies to carry only')
    return Entry(pattern, action, None if layers is None else tuple(layers), float(scale))


def resolve(
    plan: Plan, source: trees.Tree, target: trees.Tree, source_vocab_size: int, target_vocab_size: int
) -> Resolved:
    """Applies a parsed plan to two parameter trees, of which only shapes and dtypes are looked at.

    `source` and `target` are nested dicts (or `{path: leaf}`) of arrays or shape structs. Raises UserError when a leaf
    is not accounted for, when an entry claims nothing, or when what is carried differs in shape, vocabulary or dtype.
    """
    source, target = trees.flatten(source), trees.flatten(target)
    target_units, source_units = _units(target), _units(source)
    claims = {unit: _claimant(plan, unit) for unit in [*target_units, *source_units]}
    for unit in target_units:
        _check_target(unit, None if claims[unit] is None else plan[claims[unit]].action, unit in source_units)
    for unit in source_units:
        if unit not in target_units and (claims[unit] is None or plan[claims[unit]].action != 'drop'):
            what = 'no entry covers it' if claims[unit] is None else f'{plan[claims[unit]].to_json()} claims it'
            raise UserError(f'plan: {_name(unit)} of the source has no counterpart in the target and {what}; drop it')
    for number, entry in enumerate(plan):
        if number not in claims.values():
            raise UserError(f'plan: entry {number} {entry.to_json()} claims nothing: {_idle(entry, claims)}')
    kept = {path: _pieces(plan, path, leaf, claims) for path, leaf in target.items()}
    sources = {path: _pieces(plan, path, leaf, claims) for path, leaf in source.items()}
    dropped = {path: tuple(piece for piece in pieces if piece.action == 'drop') for path, pieces in sources.items()}
    resolved = Resolved(kept, {path: pieces for path, pieces in dropped.items() if pieces}, target_vocab_size)
    for path in sorted(wanted(resolved)):
        _check_leaf(path, source[path], target[path], source_vocab_size, target_vocab_size)
    return resolved


def carries_layers(plan: Plan, target: trees.Tree) -> bool:
    """Whether anything of a stacked leaf is carried."""
    claims = {unit: _claimant(plan, unit) for unit in _units(trees.flatten(target)) if unit[1] is not None}
    return any(number is not None and plan[number].action == 'carry' for number in claims.values())


def wanted(resolved: Resolved) -> frozenset[str]:
    """The paths of the source leaves that the plan carries, in whole or in part: nothing else need be read."""
    return frozenset(
        path for path, pieces in resolved.target.items() if any(piece.action == 'carry' for piece in pieces)
    )


def graft(
    source: trees.Tree, fresh: trees.Tree, resolved: Resolved, out_shardings: trees.Tree | None = None
) -> tuple[trees.Tree, GraftReport]:
    """Parameters of the target's structure, and what was done.

    `source` holds at least the `wanted` leaves and may hold more; `fresh` is the target's own initialisation. Runs as
    one jitted function, so that nothing is gathered on a host; the result is laid out as `out_shardings` says.
    """
    source = trees.flatten(source)
    apply = jax.jit(lambda source, fresh: _apply(resolved, source, fresh), out_shardings=(out_shardings, None))
    params, norms = apply({path: source[path] for path in wanted(resolved)}, fresh)
    norms = jax.device_get(norms)
    rows = [
        Row(path, piece.action, piece.layers, piece.scale, *(None if norm is None else float(norm) for norm in found))
        for path, pieces in resolved.target.items()
        for piece, found in zip(pieces, norms[path], strict=True)
    ]
    rows += [
        Row(path, 'drop', piece.layers, 1.0, None, None) for path, found in resolved.dropped.items() for piece in found
    ]
    return params, GraftReport(tuple(rows))


def _layers(path: str, leaf: Any) -> Iterable[int | None]:
    return range(leaf.shape[0]) if path.startswith(STACKED) else (None,)


def _units(leaves: Mapping[str, Any]) -> dict[Unit, None]:
    """What a plan decides about: every (path, layer), in order; the layer of a leaf that isn't stacked is None."""
    return {(path, layer): None for path, leaf in leaves.items() for layer in _layers(path, leaf)}


def _claimant(plan: Plan, unit: Unit) -> int | None:
    """The number of the first entry that claims the unit."""
    return next((number for number, entry in enumerate(plan) if entry.claims(*unit)), None)


def _name(unit: Unit) -> str:
    path, layer = unit
    return path if layer is None else f'{path} (layer {layer})'


def _check_target(unit: Unit, action: str | None, in_source: bool) -> None:
    if action is None:
        raise UserError(f'plan: no entry covers {_name(unit)} of the target')
    if action == 'drop':
        raise UserError(f'plan: drop claims {_name(unit)}, which the target has; say fresh or carry')
    if action == 'carry' and not in_source:
        raise UserError(f'plan: carry claims {_name(unit)}, which the source does not have; say fresh')


def _idle(entry: Entry, units: Iterable[Unit]) -> str:
    """Why an entry claims nothing."""
    if any(entry.claims(*unit) for unit in units):
        return 'earlier entries claim all that it matches'
    if any(re.fullmatch(entry.pattern, path) for path, _ in units):
        return 'its layers match no layer of a stacked leaf'
    return 'its pattern matches no leaf'


def _pieces(plan: Plan, path: str, leaf: Any, claims: Mapping[Unit, int]) -> tuple[Piece, ...]:
    """The leaf cut where the action or the scale changes from one layer to the next."""
    entries = [(layer, plan[claims[path, layer]]) for layer in _layers(path, leaf)]
    runs = [list(run) for _, run in itertools.groupby(entries, lambda pair: (pair[1].action, pair[1].scale))]
    return tuple(
        Piece(run[0][1].action, None if len(runs) == 1 else (run[0][0], run[-1][0] + 1), run[0][1].scale)
        for run in runs
    )


def _check_leaf(path: str, source: Any, target: Any, source_vocab_size: int, target_vocab_size: int) -> None:
    """A carried leaf agrees in dtype and, apart from depth and padding, in shape."""
    if source.dtype != target.dtype:
        raise UserError(f'plan: {path} is {source.dtype} in the source and {target.dtype} in the target')
    if path in VOCAB_AXIS and source_vocab_size != target_vocab_size:
        sizes = f'{source_vocab_size} tokens in the source and {target_vocab_size} in the target'
        raise UserError(f'plan: {path} is carried between vocabularies of {sizes}; say fresh')
    free = VOCAB_AXIS.get(path, 0 if path.startswith(STACKED) else None)
    if len(source.shape) != len(target.shape) or any(
        ours != theirs
        for axis, (theirs, ours) in enumerate(zip(source.shape, target.shape, strict=True))
        if axis != free
    ):
        raise UserError(f'plan: {path} has shape {source.shape} in the source and {target.shape} in the target')


def _apply(resolved: Resolved, source: Mapping[str, jax.Array], fresh: trees.Tree) -> tuple[trees.Tree, Any]:
    """The grafted tree and, by path and piece, the norms of what the source gave and of the result."""
    done = {path: _graft_leaf(path, resolved, source.get(path), leaf) for path, leaf in trees.flatten(fresh).items()}
    return trees.map_with_path(lambda path, _: done[path][0], fresh), {path: norms for path, (_, norms) in done.items()}


def _graft_leaf(path: str, resolved: Resolved, source: jax.Array | None, fresh: jax.Array) -> tuple[jax.Array, Any]:
    result, norms = fresh, []
    for piece in resolved.target[path]:
        carried_norm = None
        if piece.action == 'carry':
            start, limit = _box(path, piece, source, fresh, resolved.vocab_size)
            carried = jax.lax.slice(source, start, limit)
            carried_norm = _norm(carried)
            carried = carried if piece.scale == 1.0 else carried * piece.scale
            result = carried if carried.shape == fresh.shape else jax.lax.dynamic_update_slice(result, carried, start)
        norms.append((carried_norm, _norm(result if piece.layers is None else result[slice(*piece.layers)])))
    return result, norms


def _box(path: str, piece: Piece, source: jax.Array, fresh: jax.Array, size: int) -> tuple[list[int], list[int]]:
    """First and past-the-last index per axis of what a piece carries: all, some layers, or the real rows of a table."""
    start, limit = [0] * fresh.ndim, list(fresh.shape)
    if piece.layers is not None:
        start[0], limit[0] = piece.layers
    if path in VOCAB_AXIS and source.shape != fresh.shape:
        limit[VOCAB_AXIS[path]] = size
    return start, limit


def _norm(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32))))
