"""Checksums against a NumPy oracle, and what a manifest says about the code."""

import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from nca_jax.checkpoint import manifest

checksum = jax.jit(manifest.checksum)


def oracle(array: np.ndarray) -> int:
    """The definition, one element after the other, with Python's integers."""

    def mix(x):
        x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
        x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
        return x ^ (x >> 16)

    width = f'u{min(array.dtype.itemsize, 4)}'
    return sum(mix(int(bits) ^ mix(index)) for index, bits in enumerate(array.reshape(-1).view(width))) % 2**32


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16', 'int32', 'uint8', 'bool'])
@pytest.mark.parametrize('shape', [(), (7,), (3, 1, 5)])
def test_checksum_is_the_definition(dtype, shape):
    array = np.asarray(np.random.default_rng(0).normal(size=shape) * 50).astype(jnp.dtype(dtype))
    assert int(checksum(array)) == oracle(array)


def test_checksum_shows_every_single_bit_and_every_swap():
    array = np.random.default_rng(1).normal(size=(4, 8)).astype(np.float32)
    array[1, 1], array[2, 5] = -array[0, 0], 0.0
    known = int(checksum(array))
    changed = {known}
    for bit in range(32 * array.size):
        other = array.copy()
        other.reshape(-1).view(np.uint32)[bit // 32] ^= np.uint32(1 << bit % 32)
        changed.add(int(checksum(other)))
    assert len(changed) == 1 + 32 * array.size
    for i in range(array.size):
        for j in range(i):
            other = array.copy().reshape(-1)
            other[[i, j]] = other[[j, i]]
            assert int(checksum(other.reshape(array.shape))) != known, (i, j)
    assert int(checksum(np.where(array == 0, np.float32(-0.0), array))) != known


@pytest.mark.parametrize(
    'spec', [PartitionSpec(), PartitionSpec('a'), PartitionSpec('b', 'a'), PartitionSpec(('b', 'a'))]
)
def test_checksum_does_not_depend_on_the_sharding(spec):
    mesh = jax.make_mesh((2, 4), ('a', 'b'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    array = np.random.default_rng(2).normal(size=(16, 8)).astype(np.float32)
    assert int(checksum(jax.device_put(array, NamedSharding(mesh, spec)))) == oracle(array)


def test_environment_names_code_versions_and_devices():
    found = manifest.environment()
    assert found['device'] == {'kind': jax.devices()[0].device_kind, 'count': jax.device_count()}
    assert found['versions']['jax'] == jax.__version__
    assert set(found['code']) == {'commit', 'dirty'}


def test_code_version_follows_commits_and_changes(tmp_path):
    def git(*arguments):
        identity = ('-c', 'user.name=n', '-c', 'user.email=e')
        return subprocess.run(
            ['git', *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    package = tmp_path / 'package'
    package.mkdir()
    code = package / 'module.py'
    code.write_text('a = 1\n')
    assert manifest.code_version(package) == {'commit': None, 'dirty': None}
    git('init')
    assert manifest.code_version(package)['commit'] is None
    git('add', '.')
    git('commit', '-m', 'first')
    clean = manifest.code_version(package)
    assert clean == {'commit': git('rev-parse', 'HEAD').strip(), 'dirty': None}
    code.write_text('a = 2\n')
    edited = manifest.code_version(package)
    assert (edited['commit'], len(edited['dirty'])) == (clean['commit'], 64)
    code.write_text('a = 3\n')
    assert manifest.code_version(package)['dirty'] != edited['dirty']
    code.write_text('a = 1\n')
    (package / 'new.py').write_text('b = 1\n')
    assert manifest.code_version(package)['dirty'] not in (None, edited['dirty'])
    (package / 'new.py').unlink()
    (package / '.#new.py').symlink_to('somebody@somewhere.7')  # as an editor marks what it has open
    assert manifest.code_version(package)['commit'] == clean['commit']
    (package / '.#new.py').unlink()
    (package / 'notes.txt').write_text('results')
    assert manifest.code_version(package) == clean
    (tmp_path / '.gitignore').write_text('installed\n')
    git('add', '.gitignore')
    git('commit', '-m', 'second')
    (tmp_path / 'installed').mkdir()
    assert manifest.code_version(tmp_path / 'installed') == {'commit': None, 'dirty': None}
