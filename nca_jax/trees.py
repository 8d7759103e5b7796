"""Parameters by path: plain nested dicts seen as `{'blocks/attn/q/kernel': leaf}`, and patterns over those paths."""

import re
from collections.abc import Callable, Iterable
from typing import Any

import jax

Tree = Any


def flatten(tree: Tree) -> dict[str, Any]:
    """`{path: leaf}` in the tree's own order; a path joins the keys with '/'."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


def map_with_path(function: Callable[[str, Any], Any], tree: Tree) -> Tree:
    """Like `jax.tree.map`, the function also receives the leaf's path."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(jax.tree_util.keystr(path, simple=True, separator='/'), leaf), tree
    )


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether any of the regular expressions matches the whole path."""
    return any(re.fullmatch(pattern, path) for pattern in patterns)


def mask(tree: Tree, patterns: Iterable[str]) -> Tree:
    """A tree of bools, True where a pattern matches the leaf's path: the mask that optax takes for weight decay."""
    patterns = tuple(patterns)
    return map_with_path(lambda path, _: matches(path, patterns), tree)


def count(tree: Tree) -> int:
    """Number of scalars in all leaves (arrays or shape structs)."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def table(tree: Tree) -> list[dict[str, Any]]:
    """One row per leaf: path, shape and dtype, as manifests keep them."""
    return [{'path': path, 'shape': list(leaf.shape), 'dtype': str(leaf.dtype)} for path, leaf in flatten(tree).items()]
