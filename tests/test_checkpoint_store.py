"""A run's checkpoints through everything that may happen to them; what comes back is compared bit by bit."""

import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from nca_jax import trees
from nca_jax.checkpoint import store
from nca_jax.errors import UserError
from nca_jax.train.step import TrainState, init_state

ABOUT = {'identity': 'abc', 'vocab_size': 30, 'parent': None}


@functools.cache
def mesh(devices):
    found = jax.devices()[:devices]
    return jax.make_mesh((devices,), ('data',), axis_types=(jax.sharding.AxisType.Auto,), devices=found)


def on_one_device():
    """The layout of an array that lies on one device."""
    return NamedSharding(mesh(1), PartitionSpec())


def layout(tree, devices):
    """Splits the tables over the devices and replicates the rest."""

    def place(leaf):
        return NamedSharding(mesh(devices), PartitionSpec('data') if leaf.shape == (64, 32) else PartitionSpec())

    return jax.tree.map(place, tree)


def noise(random, leaf):
    """Random bits, finite as numbers: nothing that a compressor could shorten, so files hold them as they are."""
    bits = np.frombuffer(random.bytes(leaf.size * leaf.dtype.itemsize), leaf.dtype).reshape(leaf.shape)
    return np.where(np.isfinite(bits.astype(np.float32)), bits, np.ones_like(bits))


@functools.cache
def state(step, devices=8) -> TrainState:
    """A state with an optimizer of nested and empty parts, every leaf random, of about 100 kB."""
    params = {
        'embed': {'table': jnp.zeros((64, 32))},
        'blocks': {
            'mlp': {'up': {'kernel': jnp.zeros((2, 32, 64))}},
            'norm': {'scale': jnp.zeros((2, 32), jnp.bfloat16)},
        },
    }
    masked = optax.masked(optax.add_decayed_weights(0.1), trees.mask(params, ('embed/.*',)))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.constant_schedule(1e-3)), masked)
    blank = init_state(params, optimizer)
    random = np.random.default_rng(step)
    filled = jax.tree.map(lambda leaf: noise(random, leaf), blank)
    filled = filled.replace(step=jnp.int32(step))
    return jax.device_put(filled, layout(filled, devices))


def abstract(tree, devices=8):
    def describe(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(describe, tree, layout(tree, devices))


def same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for (path, a), b in zip(trees.flatten(left).items(), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype, path
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), path


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    """A folder with steps 1, 2 and 3, to be copied before it is damaged."""
    folder = tmp_path_factory.mktemp('written') / 'checkpoints'
    with store.Store(folder, keep=3) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state(step), ABOUT)
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return pathlib.Path(shutil.copytree(written, tmp_path / 'checkpoints'))


def restore(folder, like=None):
    with store.Store(folder, keep=3) as checkpoints:
        return checkpoints.restore(abstract(state(1)) if like is None else like)


def payload(folder, step):
    """The largest file of a step: most of the arrays' bytes."""
    return max((path for path in (folder / str(step) / 'state').rglob('*') if path.is_file()), key=os.path.getsize)


def edit_manifest(folder, step, change):
    path = folder / str(step) / 'manifest' / 'metadata'
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def leaf_row(manifest, path):
    return next(row for row in manifest['leaves'] if row['path'] == path)


def test_a_state_comes_back_whole_with_its_manifest(folder):
    found, manifest = restore(folder)
    same(found, state(3))
    assert manifest | ABOUT == manifest
    assert manifest['step'] == 3
    expected = {row['path']: (row['shape'], row['dtype']) for row in trees.table(state(3))}
    assert {row['path']: (row['shape'], row['dtype']) for row in manifest['leaves']} == expected
    assert leaf_row(manifest, 'params/blocks/norm/scale')['dtype'] == 'bfloat16'
    assert manifest == json.loads((folder / '3' / 'manifest' / 'metadata').read_text())


def test_a_stored_step_is_not_written_again(tmp_path):
    with store.Store(tmp_path / 'checkpoints', keep=3) as checkpoints:
        assert checkpoints.restore(abstract(state(1))) is None
        checkpoints.save(1, state(1), ABOUT | {'pair': (1, 2)}, wait=True)
        manifest = store.read_manifest(tmp_path / 'checkpoints')
        assert manifest == json.loads(json.dumps(manifest | ABOUT | {'pair': (1, 2), 'step': 1}))
        checkpoints.save(1, state(2), ABOUT, wait=True)
        assert store.read_manifest(tmp_path / 'checkpoints') == manifest
        same(checkpoints.restore(abstract(state(1)))[0], state(1))


@pytest.mark.parametrize('devices', [1, 2])
def test_another_number_of_devices_restores_the_same_bits(folder, devices):
    found, _ = restore(folder, abstract(state(3), devices))
    same(found, state(3))
    table = found.params['embed']['table']
    assert len(table.sharding.device_set) == devices
    assert table.addressable_shards[0].data.shape == (64 // devices, 32)


def test_buffers_may_be_donated_as_soon_as_save_returns(tmp_path):
    """An asynchronous write must not see what the next update writes into the same memory."""
    update = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    big = {'params': {'w': jax.device_put(np.random.default_rng(0).normal(size=(2048, 1024)).astype(np.float32))}}
    expected = []
    with store.Store(tmp_path / 'checkpoints', keep=3) as checkpoints:
        for step in (1, 2, 3):
            expected.append(np.array(big['params']['w']))
            checkpoints.save(step, big, ABOUT)
            big = update(big)
            jax.block_until_ready(big)
        checkpoints.wait()
    for step, values in enumerate(expected, 1):
        params, _ = store.restore_params(tmp_path / 'checkpoints', step, {'w': on_one_device()})
        np.testing.assert_array_equal(np.asarray(params['w']), values)


def test_the_newest_and_the_named_steps_stay(tmp_path):
    with store.Store(tmp_path / 'checkpoints', keep=2, named=(2, 5)) as checkpoints:
        for step in range(1, 7):
            checkpoints.save(step, state(step), ABOUT)
    assert store.committed(tmp_path / 'checkpoints') == [2, 5, 6]
    with store.Store(tmp_path / 'checkpoints', keep=1, named=(2,)) as checkpoints:
        checkpoints.save(7, state(7), ABOUT)
    assert store.committed(tmp_path / 'checkpoints') == [2, 7]


KERNEL, TABLE, MOMENT = 'params/blocks/mlp/up/kernel', 'params/embed/table', 'opt_state/1/0/nu/blocks/mlp/up/kernel'


def flip(path, position):
    """Damage that turns one bit of one element of a leaf of step 3."""

    def damage(folder):
        needle = np.asarray(trees.flatten(state(3))[path]).reshape(-1)[position : position + 8].tobytes()
        files = [file for file in (folder / '3' / 'state').rglob('*') if file.is_file() and needle in file.read_bytes()]
        assert files
        for file in files:
            file.write_bytes(file.read_bytes().replace(needle, bytes([needle[0] ^ 0x10]) + needle[1:]))

    return damage


def truncate(folder):
    path = payload(folder, 3)
    os.truncate(path, path.stat().st_size // 2)


def delete_payload(folder):
    payload(folder, 3).unlink()


def delete_state(folder):
    shutil.rmtree(folder / '3' / 'state')


def delete_manifest(folder):
    (folder / '3' / 'manifest' / 'metadata').unlink()


def garbage(text):
    def damage(folder):
        (folder / '3' / 'manifest' / 'metadata').write_text(text)

    return damage


def forget_a_leaf(folder):
    edit_manifest(folder, 3, lambda manifest: manifest['leaves'].pop())


def swap_manifests(folder):
    shutil.copy(folder / '2' / 'manifest' / 'metadata', folder / '3' / 'manifest' / 'metadata')


def other_checksum(folder):
    edit_manifest(
        folder, 3, lambda manifest: manifest['leaves'][-1].update(checksum=manifest['leaves'][-1]['checksum'] ^ 1)
    )


@pytest.mark.parametrize(
    'damage',
    [
        *(pytest.param(flip(path, 1000), id=f'flip in {path}') for path in (KERNEL, TABLE, MOMENT)),
        truncate,
        delete_payload,
        delete_state,
        delete_manifest,
        *(
            pytest.param(garbage(text), id=f'manifest {text!r}')
            for text in ('', '{"a": ', '[]', '{"step": 3, "leaves": 1}')
        ),
        pytest.param(garbage('{"step": 3, "leaves": [{}]}'), id='manifest with a bad row'),
        forget_a_leaf,
        swap_manifests,
        other_checksum,
    ],
)
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_restored(folder, caplog, damage):
    damage(folder)
    found, manifest = restore(folder)
    same(found, state(2))
    assert manifest['step'] == 2
    (message,) = [record.getMessage() for record in caplog.records if 'going back' in record.getMessage()]
    assert str(folder) in message
    assert 'going back to step 2' in message
    assert 'step 3: ' in message
    assert '\n' not in message


def test_a_flipped_bit_that_orbax_restores_without_a_word_is_found(folder):
    """Without the checksums the damage would be trained on: this flip raises nothing in Orbax itself."""
    flip(KERNEL, 1000)(folder)
    like = abstract(state(3))
    request = ocp.args.PyTreeRestore(item=like, restore_args=ocp.checkpoint_utils.construct_restore_args(like))
    silent = trees.flatten(ocp.PyTreeCheckpointer().restore(folder / '3' / 'state', args=request))
    for path, leaf in trees.flatten(state(3)).items():
        assert np.sum(np.asarray(leaf) != np.asarray(silent[path])) == (path == KERNEL)
    with pytest.raises(UserError, match=f'step 3: {KERNEL} is damaged'):
        store.restore_params(folder, 3, {'blocks/mlp/up/kernel': on_one_device()})


def test_a_damaged_step_is_set_aside_and_can_be_written_again(folder):
    with store.Store(folder, keep=3) as checkpoints:
        for _ in range(2):
            flip(KERNEL, 1000)(folder)
            assert checkpoints.restore(abstract(state(1)))[1]['step'] == 2
            assert store.committed(folder) == [1, 2]
            checkpoints.save(3, state(3), ABOUT, wait=True)
            assert store.committed(folder) == [1, 2, 3]
            same(checkpoints.restore(abstract(state(1)))[0], state(3))
    assert {path.name for path in folder.iterdir()} == {'1', '2', '3', '3.damaged', '3.damaged-1'}
    assert store.committed(folder) == [1, 2, 3]


def test_two_damaged_steps_lead_to_the_third(folder):
    truncate(folder)
    (folder / '2' / 'manifest' / 'metadata').write_text('?')
    found, _ = restore(folder)
    same(found, state(1))


def test_when_all_are_damaged_nothing_is_touched_and_nothing_starts_anew(folder):
    for step in (1, 2, 3):
        (folder / str(step) / 'manifest' / 'metadata').write_text('?')
    with pytest.raises(UserError, match=r'no valid checkpoint; step 3: .*; step 2: .*; step 1: ') as caught:
        restore(folder)
    assert str(folder) in str(caught.value)
    assert store.committed(folder) == [1, 2, 3]


def test_another_dtype_shape_or_structure_is_refused_before_restoring(folder, monkeypatch):
    monkeypatch.setattr(ocp, 'PyTreeCheckpointHandler', None)
    like = abstract(state(1))
    half = jax.tree.map(lambda leaf: leaf.update(dtype=jnp.bfloat16) if leaf.ndim == 3 else leaf, like)
    wide = jax.tree.map(lambda leaf: leaf.update(shape=(2, 32, 128)) if leaf.ndim == 3 else leaf, like)
    for other, ours in ((half, r'bfloat16\[2, 32, 64\]'), (wide, r'float32\[2, 32, 128\]')):
        words = rf'is float32\[2, 32, 64\] in it and {ours} in this run'
        with pytest.raises(UserError, match=words):
            restore(folder, other)
    with pytest.raises(UserError, match=r'opt_state/.* in it and missing in this run'):
        restore(folder, like.replace(opt_state=()))
    with pytest.raises(UserError, match=r'params/head is missing in it and int32\[\] in'):
        restore(folder, like.replace(params=like.params | {'head': like.step}))
    assert store.committed(folder) == [1, 2, 3]


def test_restore_params_reads_the_asked_leaves_alone(folder, monkeypatch):
    read = []
    deserialize = ocp.type_handlers.ArrayHandler.deserialize

    async def spy(self, infos, args=None):
        read.extend(info.name for info in infos)
        return await deserialize(self, infos, args)

    monkeypatch.setattr(ocp.type_handlers.ArrayHandler, 'deserialize', spy)
    edit_manifest(folder, 3, lambda found: leaf_row(found, 'params/embed/table').update(checksum=0))
    blocks = {'blocks': layout(state(3, 2).params, 2)['blocks']}
    params, manifest = store.restore_params(folder, None, blocks)
    assert sorted(read) == ['params.blocks.mlp.up.kernel', 'params.blocks.norm.scale']
    same(params, {'blocks': state(3).params['blocks']})
    assert len(params['blocks']['mlp']['up']['kernel'].sharding.device_set) == 2
    assert manifest['step'] == 3
    assert store.restore_params(folder, 3, {}) == ({}, manifest)
    with pytest.raises(UserError, match='params/head/kernel is not in it'):
        store.restore_params(folder, 3, {'head/kernel': on_one_device()})


def test_restore_params_goes_back_for_the_newest_and_never_for_a_given_step(folder, caplog):
    edit_manifest(folder, 3, lambda found: leaf_row(found, 'params/embed/table').update(checksum=0))
    params, manifest = store.restore_params(folder, None, {'embed/table': on_one_device()})
    same(params['embed'], state(2).params['embed'])
    assert manifest['step'] == 2
    assert 'step 3: params/embed/table is damaged' in caplog.text
    with pytest.raises(UserError, match='step 3: params/embed/table is damaged: its checksum is wrong; there are'):
        store.restore_params(folder, 3, {'embed/table': on_one_device()})
    assert store.committed(folder) == [1, 2, 3]


def test_a_manifest_of_another_step_is_not_taken_for_this_ones(folder, caplog):
    swap_manifests(folder)
    assert store.read_manifest(folder)['step'] == 2
    assert 'step 3: its manifest is not one of this step' in caplog.text
    assert (folder / '3').exists()


def test_saved_params_describe_the_parent(folder):
    found = store.saved_params(store.read_manifest(folder, 2))
    expected = trees.flatten(state(2).params)
    assert {path: (leaf.shape, leaf.dtype) for path, leaf in found.items()} == {
        path: (leaf.shape, leaf.dtype) for path, leaf in expected.items()
    }


def test_a_parent_that_is_not_there_is_named(folder, tmp_path):
    for read in (store.read_manifest, lambda *where: store.restore_params(*where, {'embed/table': on_one_device()})):
        with pytest.raises(UserError, match='no such folder') as caught:
            read(tmp_path / 'elsewhere', None)
        assert str(tmp_path / 'elsewhere') in str(caught.value)
        with pytest.raises(UserError, match=r'no checkpoint of step 7; there are \[1, 2, 3\]'):
            read(folder, 7)
        (tmp_path / 'empty').mkdir(exist_ok=True)
        with pytest.raises(UserError, match='no valid checkpoint'):
            read(tmp_path / 'empty', None)
    assert not (tmp_path / 'elsewhere').exists()
    assert not list((tmp_path / 'empty').iterdir())


def test_a_relative_folder_works(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    same(restore('checkpoints')[0], state(3))
    params, _ = store.restore_params('checkpoints', None, {'embed/table': on_one_device()})
    same(params['embed'], state(3).params['embed'])


def test_saving_works_under_a_transfer_guard(tmp_path):
    before = state(1)
    with jax.transfer_guard('disallow'), store.Store(tmp_path / 'checkpoints', keep=1) as checkpoints:
        checkpoints.save(1, before, ABOUT, wait=True)
        found, _ = checkpoints.restore(abstract(before))
    same(found, before)


KILLED = """
    import os, pathlib, signal, sys
    import jax, jax.numpy as jnp
    from nca_jax.checkpoint import store

    folder = pathlib.Path(sys.argv[1])
    checkpoints = store.Store(folder, keep=3)
    for step in (1, 2):
        checkpoints.save(step, {'params': {'w': jnp.full((4096, 1024), step, jnp.float32)}}, {}, wait=step == 1)
    while not any('2.' in path.name and any(path.iterdir()) for path in folder.iterdir()):
        pass
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_in_the_middle_of_a_write_leaves_the_step_before(tmp_path):
    folder = tmp_path / 'checkpoints'
    done = subprocess.run(
        [sys.executable, '-c', textwrap.dedent(KILLED), str(folder)], capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [path.name for path in folder.iterdir() if path.name.startswith('2')] == ['2.orbax-checkpoint-tmp']
    assert store.committed(folder) == [1]
    like = {'params': {'w': jax.ShapeDtypeStruct((4096, 1024), jnp.float32, sharding=on_one_device())}}
    found, manifest = restore(folder, like)
    assert manifest['step'] == 1
    assert np.all(np.asarray(found['params']['w']) == 1)
    assert [path.name for path in folder.iterdir()] == ['1']
