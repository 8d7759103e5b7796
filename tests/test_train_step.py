"""One update: accumulation, meshes, and a golden loss."""

import dataclasses
import functools
import re

import jax
import numpy as np
import optax
import pytest

from nca_jax import mesh as meshes
from nca_jax import trees
from nca_jax.batch import Batch
from nca_jax.errors import FieldError, UserError
from nca_jax.model import transformer
from nca_jax.train.optimizer import ScheduleConfig, make_optimizer, make_schedule
from nca_jax.train.step import init_state, loss_and_grads, make_sum_loss, make_train_step
from tests import test_optimizer
from tests.test_model import CONFIG, VOCAB

MODEL = dataclasses.replace(CONFIG, layers=2, heads=4, length=16, remat='full', unroll=1)
OPTIMIZER = dataclasses.replace(
    test_optimizer.CONFIG,
    lr=1e-2,
    b2=0.95,
    weight_decay=1e-2,
    clip=1.0,
    schedule=ScheduleConfig('cosine', '2 steps', '10 steps', 0.1, '20%'),
)
GOLDEN_LOSSES = (7.21168, 7.21168, 6.57220)


@functools.cache
def batch() -> Batch:
    """16 rows whose loss weights differ from row to row and within a row."""
    keys = jax.random.split(jax.random.key(1), 3)
    inputs, targets = (jax.random.randint(key, (16, 16), 0, VOCAB.size) for key in keys[:2])
    weights = (jax.random.uniform(keys[2], (16, 16)) < np.linspace(0.1, 1, 16)[:, None]).astype(np.float32)
    return Batch(inputs, targets, weights)


@functools.cache
def params() -> dict:
    return transformer.init_params(MODEL, VOCAB, jax.random.key(0))


@functools.cache
def gradients(accumulate: int, shape: tuple[int, int, int] = (1, 1, 1), **changes):
    mesh = meshes.make_mesh(meshes.MeshConfig(*shape), jax.devices()[: int(np.prod(shape))])
    shardings = meshes.param_shardings(mesh, transformer.logical_axes(MODEL, VOCAB), params())
    sum_loss = make_sum_loss(dataclasses.replace(MODEL, **changes), VOCAB)
    with meshes.use(mesh):
        placed = jax.device_put(params(), shardings), jax.device_put(batch(), meshes.batch_sharding(mesh))
        return jax.jit(lambda p, b: loss_and_grads(sum_loss, p, b, None, accumulate, shape[0]))(*placed)


def assert_same(found, expected):
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]), strict=True):
        error = np.linalg.norm(np.asarray(ours) - np.asarray(theirs)) / np.linalg.norm(theirs)
        assert error < 1e-5


@pytest.mark.parametrize('accumulate', [2, 8])
def test_accumulation_equals_the_full_batch(accumulate):
    """With weights that differ between micro-batches, a mean of their means would be wrong."""
    assert_same(gradients(accumulate), gradients(1))


@pytest.mark.parametrize('shape', [(8, 1, 1), (1, 8, 1), (1, 4, 2), (2, 2, 2)])
def test_every_mesh_gives_the_same_gradients(shape):
    assert_same(gradients(1, shape), gradients(1))


@pytest.mark.parametrize(('chunks', 'shape'), [(4, (1, 1, 1)), (2, (2, 2, 2))])
def test_a_loss_in_pieces_has_the_same_gradients(chunks, shape):
    assert_same(gradients(1, shape, loss_chunks=chunks), gradients(1))


def test_tied_tables_get_both_gradients_in_pieces():
    tied = dataclasses.replace(MODEL, tied=True)
    tree = {name: leaf for name, leaf in params().items() if name != 'head'}

    def with_gradient(loss_of_logits):
        def loss(tree):
            return loss_of_logits(tree) / 100

        return jax.jit(jax.value_and_grad(loss))(tree)

    def from_logits(tree):
        logits = transformer.apply(tied, tree, batch().inputs_BxL, VOCAB)
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch().targets_BxL)
        return (nll * batch().weights_BxL).sum()

    chunked = dataclasses.replace(tied, loss_chunks=4)
    assert_same(
        with_gradient(lambda tree: transformer.sum_loss(chunked, tree, batch(), VOCAB)), with_gradient(from_logits)
    )


def test_no_device_holds_all_logits():
    """Neither a whole vocabulary where `tensor` splits it, nor the whole length where the loss comes in pieces."""
    mesh = meshes.make_mesh(meshes.MeshConfig(2, 2, 2))
    shardings = meshes.param_shardings(mesh, transformer.logical_axes(MODEL, VOCAB), params())
    config = dataclasses.replace(MODEL, loss_chunks=2)
    with meshes.use(mesh):
        placed = jax.device_put(params(), shardings), jax.device_put(batch(), meshes.batch_sharding(mesh))
        step = jax.jit(lambda p, b: loss_and_grads(make_sum_loss(config, VOCAB), p, b, None, 1))
        program = step.lower(*placed).compile().as_text()
    assert 'f32[4,8,128]' in program  # rows over data and fsdp, half of the length, half of the vocabulary
    assert not re.search(r'f32\[(16|4),(16|8),256\]|f32\[(16|4),16,128\]', program)


@pytest.mark.parametrize('shape', [(2, 2, 2), (8, 1, 1), (1, 4, 2)])
def test_accumulation_on_a_mesh(shape):
    assert_same(gradients(2, shape), gradients(1))


def test_replicas_meet_once():
    """No collective in the loop over micro-batches: of data parallelism's, all come after it."""
    mesh = meshes.make_mesh(meshes.MeshConfig(8, 1, 1))
    with meshes.use(mesh):
        placed = jax.device_put(batch(), meshes.batch_sharding(mesh))
        step = jax.jit(lambda p, b: loss_and_grads(make_sum_loss(MODEL, VOCAB), p, b, None, 2, 8))
        program = step.lower(params(), placed).compile().as_text()
    entry = program[program.index('\nENTRY') :]
    assert entry.count(' all-reduce(') == program.count(' all-reduce(') > 0
    assert ' all-gather(' not in program


def test_gradients_of_split_kernels_are_summed_over_replicas_in_pieces():
    mesh = meshes.make_mesh(meshes.MeshConfig(2, 4, 1))
    layout = meshes.param_shardings(mesh, transformer.logical_axes(MODEL, VOCAB), params())
    with meshes.use(mesh):
        placed = jax.device_put(params(), layout), jax.device_put(batch(), meshes.batch_sharding(mesh))
        step = jax.jit(lambda p, b: loss_and_grads(make_sum_loss(MODEL, VOCAB), p, b, None))
        program = step.lower(*placed).compile().as_text()
    summed = set(re.findall(r'f32\[([\d,]+)\]\S* all-reduce\(', program))
    whole, piece = MODEL.width, MODEL.width // 4
    assert f'{piece},{MODEL.ffn}' in summed
    assert f'{whole},{MODEL.ffn}' not in summed


@functools.cache
def losses(dropout: float, shape: tuple[int, int, int] = (1, 1, 1), over_data: bool = False) -> tuple[float, ...]:
    """The losses of three updates on one batch."""
    model = dataclasses.replace(MODEL, dropout=dropout)
    mesh = meshes.make_mesh(meshes.MeshConfig(*shape), jax.devices()[: int(np.prod(shape))])
    optimizer = make_optimizer(OPTIMIZER, make_schedule(OPTIMIZER, 256))
    state = init_state(params(), optimizer)
    of_params = of_moments = meshes.param_shardings(mesh, transformer.logical_axes(MODEL, VOCAB), params())
    if over_data:
        of_moments = meshes.optimizer_shardings(mesh, params(), of_params)
        state = jax.device_put(state, meshes.state_shardings(mesh, state, of_params, of_moments))
    step = make_train_step(
        make_sum_loss(model, VOCAB),
        optimizer,
        seed=0,
        dropout=dropout > 0,
        accumulate=2,
        replicas=shape[0],
        gradient_shardings=of_moments if over_data else None,
    )
    found = []
    with meshes.use(mesh):
        placed = jax.device_put(batch(), meshes.batch_sharding(mesh))
        jitted = jax.jit(step)
        for _ in range(3):
            state, metrics = jitted(state, placed)
            found.append(float(metrics['loss']))
    assert int(state.step) == 3
    return tuple(found)


def test_dropout_is_the_same_on_one_device_and_eight():
    np.testing.assert_allclose(losses(0.3, (8, 1, 1)), losses(0.3), rtol=1e-5)
    assert abs(losses(0.3)[0] - losses(0.0)[0]) > 1e-3


@pytest.mark.parametrize('shape', [(8, 1, 1), (2, 2, 2)])
def test_an_optimizer_split_over_data_takes_the_same_steps(shape):
    np.testing.assert_allclose(losses(0.0, shape, over_data=True), losses(0.0), rtol=1e-5)


def test_moments_are_split_over_data_where_an_axis_divides():
    mesh = meshes.make_mesh(meshes.MeshConfig(2, 2, 2))
    of_params = meshes.param_shardings(mesh, transformer.logical_axes(MODEL, VOCAB), params())
    of_moments = trees.flatten(meshes.optimizer_shardings(mesh, params(), of_params))
    assert of_moments['blocks/attn/q/kernel'].spec == jax.P(('data',), ('fsdp',), ('tensor',), ())
    assert of_moments['head/kernel'].spec == jax.P(('fsdp', 'data'), ('tensor',))
    for path, leaf in trees.flatten(params()).items():
        pieces = leaf.size // np.prod(of_moments[path].shard_shape(leaf.shape))
        assert pieces == 2 * leaf.size // np.prod(trees.flatten(of_params)[path].shard_shape(leaf.shape))


def test_dropout_differs_from_step_to_step():
    """At rate 0 and on one batch, dropout alone can make a difference."""
    sum_loss = make_sum_loss(dataclasses.replace(MODEL, dropout=0.3), VOCAB)
    step = jax.jit(make_train_step(sum_loss, optax.sgd(0.0), seed=0, dropout=True, accumulate=2))
    state, first = step(init_state(params(), optax.sgd(0.0)), batch())
    _, second = step(state, batch())
    assert abs(float(first['loss'] - second['loss'])) > 1e-4


@pytest.mark.parametrize(('accumulate', 'replicas'), [(1, 1), (4, 1), (2, 2)])
def test_every_row_keeps_its_number_for_dropout(accumulate, replicas):
    """In place of a loss, the sum of row number times what tells the row: the same however the batch is cut."""

    def sum_loss(params, batch, dropout):
        told = batch.inputs_BxL.sum(1).astype(jax.numpy.float32)
        return (dropout.rows_B * told).sum() + 0 * params['w'], jax.numpy.ones(()) * len(told)

    tree = {'w': jax.numpy.zeros(())}
    found = loss_and_grads(sum_loss, tree, batch(), jax.random.key(0), accumulate, replicas)[0]
    np.testing.assert_allclose(found, np.mean(np.arange(16) * np.asarray(batch().inputs_BxL).sum(1)), rtol=1e-5)


def test_golden_losses():
    assert losses(0.0) == pytest.approx(GOLDEN_LOSSES, rel=1e-4), (
        'the arithmetic of a training step has changed: update GOLDEN_LOSSES only in a commit that means to change '
        'initialisation, loss, optimizer or schedule, and say so there'
    )


@pytest.mark.parametrize(('scale', 'length'), [(1.0, 1.0), (1.5, 1.5), (4.0, 2.0)])
def test_summed_gradients_meet_the_clip_at_a_fraction(scale, length):
    """In units of the mean gradient's norm: the clip lies at 2, and the gradient is summed before it gets there."""
    mean_norm = float(optax.tree.norm(gradients(1)[1]))
    optimizer = optax.chain(optax.clip_by_global_norm(2 * mean_norm), optax.sgd(1.0))
    step = make_train_step(make_sum_loss(MODEL, VOCAB), optimizer, seed=0, dropout=False, gradient_scale=scale)
    state, metrics = jax.jit(step)(init_state(params(), optimizer), batch())
    moved = jax.tree.map(lambda new, old: new - old, state.params, params())
    assert float(optax.tree.norm(moved)) / mean_norm == pytest.approx(length, rel=1e-4)
    assert float(metrics['grad_norm']) == pytest.approx(mean_norm, rel=1e-4)


def test_large_leaves_must_be_split(monkeypatch):
    monkeypatch.setattr(meshes, 'LARGE_LEAF_BYTES', 100)
    mesh = meshes.make_mesh(meshes.MeshConfig(4, 1, 2))
    with pytest.raises(UserError, match='blocks/attn_norm/scale: neither fsdp nor tensor splits its 128 bytes'):
        meshes.param_shardings(mesh, transformer.logical_axes(MODEL, VOCAB), params())


def test_sizes_that_do_not_divide_are_named():
    mesh = meshes.make_mesh(meshes.MeshConfig(1, 1, 8))
    with pytest.raises(UserError, match=r'blocks/attn/k/kernel: axis of size 4 .* tensor = 8'):
        meshes.param_shardings(mesh, transformer.logical_axes(MODEL, VOCAB), params())


def test_tensor_must_divide_every_vocabulary():
    with pytest.raises(FieldError, match='tensor = 3: must divide 128'):
        meshes.MeshConfig(1, 1, 3)


@pytest.mark.parametrize('shape', [(3, 1, 1), (-1, 3, 1), (2, 2, 1)])
def test_meshes_use_every_device(shape):
    with pytest.raises(FieldError, match='8 devices'):
        meshes.make_mesh(meshes.MeshConfig(*shape))
