"""Windows: their order, their place on devices, their bytes."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from nca_jax.data import text
from nca_jax.errors import UserError

LENGTH, BATCH = 8, 8
CONFIG = text.TextConfig('python_stdlib', '', '', '', 300, 0.1, '')


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    """Token k of each split is k, over shards of uneven length; token k stands for k % 5 bytes."""
    folder = tmp_path_factory.mktemp('tokens')
    stores = {}
    for side, lengths in (('train', [5, 1, 200, 37, 60]), ('valid', [30, 41])):
        tokens = np.arange(sum(lengths))
        for number, part in enumerate(np.split(tokens, np.cumsum(lengths)[:-1])):
            np.save(folder / f'{side}-{number:05d}.npy', part.astype(np.uint16))
        stores[side] = text.TokenStore(folder, side, len(lengths), len(tokens), documents=1, bytes=0)
    return types.SimpleNamespace(**stores, token_bytes_V=np.arange(400, dtype=np.int32) % 5)


def sharding(devices):
    mesh = jax.make_mesh(
        (devices,), ('data',), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices]
    )
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))


def make(prepared, devices=1, seed=0, batch=BATCH, length=LENGTH):
    return text.make_stream(prepared, seed, batch, length, sharding(devices))


def test_reading_crosses_shards(prepared):
    for start in (0, 4, 5, 6, 200, 205, 206, 242, 243, 300):
        for stop in (start + 1, start + 2, min(start + 120, 303)):
            np.testing.assert_array_equal(prepared.train.read(start, stop), np.arange(start, stop))
    assert prepared.train.read(0, 9).dtype == np.int32


def test_a_batch_is_contiguous_windows_with_targets_shifted_by_one(prepared):
    batch = make(prepared)(0)
    assert batch.inputs_BxL.shape == batch.targets_BxL.shape == batch.weights_BxL.shape == (BATCH, LENGTH)
    assert batch.inputs_BxL.dtype == batch.targets_BxL.dtype == np.int32
    inputs = np.asarray(batch.inputs_BxL)
    np.testing.assert_array_equal(inputs[:, 0] % LENGTH, 0)
    np.testing.assert_array_equal(inputs, inputs[:, :1] + np.arange(LENGTH))
    np.testing.assert_array_equal(batch.targets_BxL, inputs + 1)
    np.testing.assert_array_equal(batch.weights_BxL, np.ones((BATCH, LENGTH), np.float32))


def test_every_window_comes_once_an_epoch_in_an_order_of_its_own(prepared):
    stream, windows = make(prepared), (303 - 1) // LENGTH
    assert windows == 37  # no divisor of the batch: epochs end within batches
    starts = np.concatenate([np.asarray(stream(step).inputs_BxL)[:, 0] for step in range(10)])
    first, second = starts[:windows], starts[windows : 2 * windows]
    expected = np.arange(windows) * LENGTH
    np.testing.assert_array_equal(np.sort(first), expected)
    np.testing.assert_array_equal(np.sort(second), expected)
    assert (first != second).any()
    assert (first != expected).any()
    assert (
        first != np.concatenate([np.asarray(make(prepared, seed=1)(k).inputs_BxL)[:, 0] for k in range(5)])[:37]
    ).any()


def test_a_batch_depends_on_its_step_alone(prepared):
    forward = [np.asarray(make(prepared)(step).inputs_BxL) for step in range(6)]
    stream = make(prepared)
    for step in (5, 0, 3, 3):
        np.testing.assert_array_equal(stream(step).inputs_BxL, forward[step])


def test_devices_do_not_change_a_batch(prepared):
    one, eight = make(prepared, devices=1), make(prepared, devices=8)
    for step in range(6):
        for left, right in zip(one(step), eight(step), strict=True):
            np.testing.assert_array_equal(left, right)
    shapes = {shard.data.shape for shard in eight(0).inputs_BxL.addressable_shards}
    assert shapes == {(BATCH // 8, LENGTH)}


def test_a_mesh_with_other_axes_holds_the_same_rows(prepared):
    mesh = jax.make_mesh((2, 2, 2), ('data', 'fsdp', 'tensor'), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(('data', 'fsdp')))
    batch = text.make_stream(prepared, 0, BATCH, LENGTH, place)(3)
    np.testing.assert_array_equal(batch.targets_BxL, make(prepared)(3).targets_BxL)


def test_a_process_reads_its_own_rows_only(prepared, monkeypatch):
    """A host's share of the batch is what its devices hold: here, one device of the eight."""
    reads = []

    class Counting:
        def __len__(self):
            return len(prepared.train)

        def read(self, start, stop):
            reads.append(start)
            return prepared.train.read(start, stop)

    def one_device(shape, place, callback):
        return callback(place.addressable_devices_indices_map(shape)[jax.devices()[2]])

    monkeypatch.setattr(jax, 'make_array_from_callback', one_device)
    counting = types.SimpleNamespace(train=Counting(), valid=None)
    batch = make(counting, devices=8, batch=16)(0)
    assert batch.inputs_BxL.shape == (2, LENGTH)
    assert len(reads) == 2


def test_batches_are_made_under_the_transfer_guard(prepared):
    stream = make(prepared, devices=8)
    with jax.transfer_guard('disallow'):
        stream(0)


def test_evaluation_windows_are_spread_evenly_and_scored_once_each(prepared):
    for devices, rows, batches, chosen in (
        (8, 8, 1, range(8)),
        (1, 2, 4, range(8)),
        (1, 5, 1, (0, 1, 3, 4, 6)),
        (1, 1, 1, (0,)),
    ):
        stream, size = text.make_eval_stream(prepared, rows, LENGTH, batches, sharding(devices))
        found = [stream(step) for step in range(batches)]
        scored = np.concatenate([np.asarray(b.targets_BxL)[np.asarray(b.weights_BxL) == 1] for b in found])
        expected = np.concatenate([np.arange(1, LENGTH + 1) + window * LENGTH for window in chosen])
        np.testing.assert_array_equal(scored, expected)
        assert size == (scored % 5).sum()


def test_too_little_text_is_refused(prepared):
    with pytest.raises(UserError, match='train has 303 tokens, fewer than a window of 304'):
        make(prepared, length=303)
    with pytest.raises(UserError, match='valid split: 8 windows of 8 tokens, evaluation wants 9'):
        text.make_eval_stream(prepared, 3, LENGTH, 3, sharding(1))


@pytest.mark.parametrize(('field', 'value'), [('valid_share', 0.0), ('valid_share', 1.0), ('vocab_size', 256)])
def test_impossible_fields_are_named(field, value):
    with pytest.raises(UserError, match=f'^{field} = '):
        dataclasses.replace(CONFIG, **{field: value})
