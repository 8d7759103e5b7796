"""Parts of a checkpoint's manifest: the checksums of its arrays, and the code, packages and devices that made it."""

import hashlib
import importlib.metadata
import os
import pathlib
import platform
import subprocess
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import nca_jax
from nca_jax import trees

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def leaf_table(tree: trees.Tree) -> list[dict[str, Any]]:
    """Path, shape, dtype and checksum of every leaf, as manifests keep them. Collective: every process calls it."""
    # All leaves in one program and one transfer.
    sums = jax.device_get(_checksums(tree))
    return [row | {'checksum': int(value)} for row, value in zip(trees.table(tree), sums, strict=True)]


def checksum(x: jax.Array) -> jax.Array:
    """A uint32 that depends on every bit of x and its position, but not on the sharding.

    It is the sum modulo 2**32 of mix(bits ^ mix(index)).
    """
    # A bool has no bits to cast to.
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    # Wider elements split into words of four bytes.
    size = min(x.dtype.itemsize, 4)
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f'uint{8 * size}')).astype(jnp.uint32)
    # The element's number in row-major order, built by axis, so that each shard needs its own part alone.
    strides = np.cumprod([1, *bits.shape[:0:-1]], dtype=np.uint64)[::-1] if bits.ndim else ()
    index = jnp.zeros(bits.shape, jnp.uint32)
    for axis, stride in enumerate(strides):
        index += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * np.uint32(stride % 2**32)
    # Addition commutes, so any sharding gives the same. `_mix` is a bijection, so one changed element always shows. A
    # sum weighted by odd numbers would miss that x and -x swap places.
    return jnp.sum(_mix(bits ^ _mix(index)), dtype=jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
    """Murmur3's finaliser: a bijection of the uint32s in which every input bit moves every output bit."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


@jax.jit
def _checksums(tree: trees.Tree) -> jax.Array:
    return jnp.stack([checksum(leaf) for leaf in jax.tree.leaves(tree)])


def environment() -> dict[str, Any]:
    """Code, versions of packages, and devices: results depend on them as on the config."""
    device = jax.devices()[0]
    return {
        'code': code_version(pathlib.Path(nca_jax.__file__).parent),
        'versions': {'python': platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
        'device': {'kind': device.device_kind, 'count': jax.device_count()},
    }


def code_version(folder: pathlib.Path) -> dict[str, str | None]:
    """`commit`, and in `dirty` the sha256 of the changes since, new Python files included (None without any).

    Both are None when the folder is not part of a git repository: an installed copy, even inside somebody's checkout.
    """
    commit = _git(folder, 'rev-parse', 'HEAD')
    # Where git ignores the package, as in a .venv inside a checkout, the commit says nothing about it.
    if commit is None or _git(folder, 'check-ignore', str(folder)) is not None:
        return {'commit': None, 'dirty': None}
    # Binary, so that any changed file counts; untracked notes and results don't.
    changes = [_git(folder, 'diff', '--binary', 'HEAD') or b'']
    untracked = _git(folder, 'ls-files', '--others', '--exclude-standard', '-z', '--', ':/*.py') or b''
    for name in untracked.split(b'\0')[:-1]:
        path = folder / os.fsdecode(name)
        # It may be a link to nowhere, such as an editor's lock.
        changes += [name, path.read_bytes() if path.is_file() else b'']
    dirty = hashlib.sha256(b'\0'.join(changes)).hexdigest() if any(changes) else None
    return {'commit': commit.decode().strip(), 'dirty': dirty}


def _git(folder: pathlib.Path, *arguments: str) -> bytes | None:
    """git's output, or None where git isn't installed or fails."""
    try:
        done = subprocess.run(['git', '-C', str(folder), *arguments], capture_output=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None
