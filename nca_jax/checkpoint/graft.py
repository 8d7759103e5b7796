"""Hands weights from one stage to the next: a plan decides, leaf by leaf and layer by layer.

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
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from nca_jax import trees
from nca_jax.errors import UserError

ACTIONS = ('carry', 'fresh', 'drop')
ENTRY = (
    'must be (pattern, action) or (pattern, action, dict(layers=(a, b), scale=s)) with a regular expression, an action '
    f'of {", ".join(ACTIONS)}, integers 0 <= a < b, and a finite scale of at least 0, for carry only'
)
# The leaves under this path hold all layers, on axis 0.
STACKED = 'blocks/'
# The tables, whose padded sizes may differ between models of one vocabulary.
VOCAB_AXIS = {'embed/table': 0, 'head/kernel': 1, 'head/bias': 0}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One entry of a plan, or of a resolved plan. Raises ValueError, TypeError or re.error for an impossible one."""

    # A regular expression for whole paths. In a resolved plan it is the path of one leaf.
    path: str
    action: str
    # (a, b) restricts the entry to layers a..b-1 of the stacked leaves.
    layers: tuple[int, int] | None = None
    scale: float = 1.0

    def __post_init__(self):
        re.compile(self.path)
        possible = self.action in ACTIONS and (self.action == 'carry' or self.scale == 1.0)
        # True is an int to Python, but no scale.
        possible &= type(self.scale) in (int, float) and math.isfinite(self.scale) and self.scale >= 0
        if self.layers is not None:
            first, end = self.layers
            possible &= type(first) is type(end) is int and 0 <= first < end
        if not possible:
            raise ValueError(ENTRY)

    def claims(self, path: str, layer: int | None) -> bool:
        inside = self.layers is None or (layer is not None and self.layers[0] <= layer < self.layers[1])
        return inside and re.fullmatch(self.path, path) is not None


def parse(plan: Iterable[Any]) -> tuple[Entry, ...]:
    """The entries of a plan as a config or JSON has it. UserError names the malformed entry."""
    entries = []
    for number, words in enumerate(plan):
        try:
            path, action, *rest = words
            (options,) = rest or [{}]
            # A config's dict is no dict, and JSON has lists for tuples.
            options = {name: tuple(value) if name == 'layers' else value for name, value in dict(options).items()}
            entries.append(Entry(path, action, **options))
        except (TypeError, ValueError, re.error):
            raise UserError(f'plan entry {number} {words!r}: {ENTRY}') from None
    return tuple(entries)


def resolve(
    plan: Sequence[Entry], source: trees.Tree, target: trees.Tree, source_vocab_size: int, target_vocab_size: int
) -> tuple[Entry, ...]:
    """The plan applied to two parameter trees: one entry for each piece of a leaf, the target's leaves first.

    `source` and `target` are nested dicts (or `{path: leaf}`) of arrays or shape structs. Raises UserError when a leaf
    is not accounted for, when an entry claims nothing, or when a carried leaf differs in shape, vocabulary or dtype.
    """
    source, target = trees.flatten(source), trees.flatten(target)
    of_source, of_target = _claims(plan, source), _claims(plan, target)
    # The target's units come first, so that what only the source has stands at the report's end.
    claims = of_target | of_source
    for (path, layer), entry in claims.items():
        name, action = path if layer is None else f'{path} (layer {layer})', entry and entry.action
        if (path, layer) not in of_target and action != 'drop':
            # Nothing is lost in silence: weights that the target has no place for must be named.
            claim = 'no entry covers it' if entry is None else f'{entry} claims it'
            raise UserError(f'plan: {name} of the source has no counterpart in the target and {claim}; drop it')
        if entry is None:
            raise UserError(f'plan: no entry covers {name} of the target')
        if (path, layer) in of_target and action == 'drop':
            raise UserError(f'plan: drop claims {name}, which the target has; say fresh or carry')
        # The parent may lack a leaf (a tied head), or a layer where it is less deep.
        if action == 'carry' and (path, layer) not in of_source:
            raise UserError(f'plan: carry claims {name}, which the source does not have; say fresh')
    # By identity, since a plan may hold the same entry twice: then the second claims nothing.
    for number, entry in enumerate(plan):
        if not any(entry is claim for claim in claims.values()):
            why = 'no leaf has its pattern and layers, or earlier entries claim them all'
            raise UserError(f'plan: entry {number} {entry} claims nothing: {why}')
    pieces = []
    # A leaf is cut where the action or the scale changes from one layer to the next.
    runs = itertools.groupby(claims.items(), lambda claim: (claim[0][0], claim[1].action, claim[1].scale))
    for (path, action, scale), run in runs:
        layers = [layer for (_, layer), _ in run]
        # Only the source has what is dropped.
        leaf = source[path] if action == 'drop' else target[path]
        # A leaf in one piece is treated as a whole, stacked or not.
        complete = layers == [None] or len(layers) == leaf.shape[0]
        pieces.append(Entry(path, action, None if complete else (layers[0], layers[-1] + 1), scale))
        if action == 'carry':
            _check_leaf(path, source[path], target[path], source_vocab_size, target_vocab_size)
    return tuple(pieces)


def carries_layers(plan: Sequence[Entry], target: trees.Tree) -> bool:
    """Whether the plan carries anything of a stacked leaf."""
    claims = _claims(plan, trees.flatten(target))
    return any(entry and entry.action == 'carry' for (_, layer), entry in claims.items() if layer is not None)


def carried(pieces: Iterable[Entry]) -> frozenset[str]:
    """The paths of the source leaves that are carried, wholly or in part: no other leaf need be read."""
    return frozenset(piece.path for piece in pieces if piece.action == 'carry')


def graft(
    source: trees.Tree,
    fresh: trees.Tree,
    pieces: Sequence[Entry],
    vocab_size: int,
    out_shardings: trees.Tree | None = None,
) -> tuple[trees.Tree, list[dict[str, Any]]]:
    """Parameters of the target's structure, and a report as manifests keep it: one row per piece, with its norm.

    `source` holds at least the `carried` leaves; `fresh` is the target's own initialisation. Tables of another padding
    give their first `vocab_size` rows. Norms are Euclidean, of the result; None for what is dropped.
    """

    def apply(source: dict[str, jax.Array], fresh: trees.Tree) -> tuple[trees.Tree, list[jax.Array | None]]:
        result, norms = trees.flatten(fresh), []
        for piece in pieces:
            if piece.action == 'drop':
                norms.append(None)
                continue
            # A leaf's pieces are applied one after another, each to its own layers of the result so far.
            if piece.action == 'carry':
                result[piece.path] = _carry(piece, source[piece.path], result[piece.path], vocab_size)
            part = result[piece.path] if piece.layers is None else result[piece.path][slice(*piece.layers)]
            norms.append(jnp.linalg.norm(part.astype(jnp.float32)))
        return trees.map_with_path(lambda path, _: result[path], fresh), norms

    source, paths = trees.flatten(source), carried(pieces)
    # One jitted function with the target's shardings, so no leaf is gathered on a host.
    params, norms = jax.jit(apply, out_shardings=(out_shardings, None))({path: source[path] for path in paths}, fresh)
    norms = [None if norm is None else float(norm) for norm in jax.device_get(norms)]
    return params, [dataclasses.asdict(piece) | {'norm': norm} for piece, norm in zip(pieces, norms, strict=True)]


def lines(report: Iterable[Mapping[str, Any]]) -> list[str]:
    """A graft's report as an aligned table."""
    cells = [('leaf', 'layers', 'action', 'scale', 'norm')]
    for row in report:
        layers = '' if row['layers'] is None else f'{row["layers"][0]}-{row["layers"][1] - 1}'
        scale = f'{row["scale"]:g}' if row['action'] == 'carry' else ''
        norm = '' if row['norm'] is None else f'{row["norm"]:.4g}'
        cells.append((row['path'], layers, row['action'], scale, norm))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ['  '.join(map(str.ljust, line, widths)).rstrip() for line in cells]


def _claims(plan: Sequence[Entry], leaves: Mapping[str, Any]) -> dict[tuple[str, int | None], Entry | None]:
    """The first entry that claims each unit of the leaves, by leaf, then by layer; None where no entry does."""
    claims = {}
    for path, leaf in leaves.items():
        for layer in range(leaf.shape[0]) if path.startswith(STACKED) else [None]:
            claims[path, layer] = next((entry for entry in plan if entry.claims(path, layer)), None)
    return claims


def _check_leaf(path: str, source: Any, target: Any, source_vocab_size: int, target_vocab_size: int) -> None:
    """UserError unless a carried leaf agrees in dtype and, apart from depth and padding, in shape."""
    if source.dtype != target.dtype:
        raise UserError(f'plan: {path} is {source.dtype} in the source and {target.dtype} in the target')
    if path in VOCAB_AXIS and source_vocab_size != target_vocab_size:
        sizes = f'{source_vocab_size} tokens in the source and {target_vocab_size} in the target'
        raise UserError(f'plan: {path} is carried between vocabularies of {sizes}; say fresh')
    # Depth may differ, since the plan speaks of each layer; padding may differ, since it is never carried.
    free = VOCAB_AXIS.get(path, 0 if path.startswith(STACKED) else None)
    theirs, ours = ([n for axis, n in enumerate(leaf.shape) if axis != free] for leaf in (source, target))
    if theirs != ours:
        raise UserError(f'plan: {path} has shape {source.shape} in the source and {target.shape} in the target')


def _carry(piece: Entry, source: jax.Array, target: jax.Array, vocab_size: int) -> jax.Array:
    """The target with the piece's values from the source, times its scale."""
    # The piece fills a box of the target: its own layers, and the real tokens alone where the padding differs.
    box = [slice(size) for size in target.shape]
    if piece.layers is not None:
        box[0] = slice(*piece.layers)
    if piece.path in VOCAB_AXIS and source.shape != target.shape:
        box[VOCAB_AXIS[piece.path]] = slice(vocab_size)
    values = source[tuple(box)]
    # At scale 1 no arithmetic touches the bits, which it could alter in a NaN.
    scaled = values if piece.scale == 1.0 else values * piece.scale
    return target.at[tuple(box)].set(scaled)
