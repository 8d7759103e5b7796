"""Durations, schedules, update rules against NumPy, what is chosen by path, and the average of the weights."""

import dataclasses
import functools
import json
import pathlib

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import baselines
from nca_jax import config as configs
from nca_jax import folders, run, trees
from nca_jax import mesh as meshes
from nca_jax.batch import Batch
from nca_jax.checkpoint.store import Store, read_manifest, restore_params
from nca_jax.errors import FieldError
from nca_jax.experiment import resolve
from nca_jax.model import transformer
from nca_jax.train import loop
from nca_jax.train.optimizer import (
    MATRICES,
    MuonConfig,
    OptimizerConfig,
    ScheduleConfig,
    check_paths,
    make_optimizer,
    make_schedule,
)
from nca_jax.train.step import TrainState, init_state, make_sum_loss, make_train_step
from nca_jax.train.timetable import to_steps
from tests.test_model import CONFIG as SHAPES
from tests.test_model import VOCAB

CONFIG = OptimizerConfig(
    name='adamw',
    lr=1e-4,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    weight_decay=0.1,
    decay=('.*kernel',),
    clip=None,
    clip_on='mean',
    schedule=ScheduleConfig('cosine', '5000 steps', '50000 steps', 0.0, '20%'),
    state_dtype='float32',
    ema=None,
    lr_scale=(),
    frozen=(),
    muon=MuonConfig(beta=0.95, steps=5, adam_lr=0.5, consistent_rms=0.2),
)
CONSTANT = ScheduleConfig('constant', '0 steps', '9 steps', 0.0, '20%')
MODEL = dataclasses.replace(SHAPES, layers=2, length=8, unroll=1, head_bias=True)


def changed(**fields) -> OptimizerConfig:
    return dataclasses.replace(CONFIG, **fields)


@pytest.mark.parametrize(
    ('text', 'steps'),
    [
        ('5000 steps', 5000),
        ('0 steps', 0),
        ('164M tokens', 5005),
        ('163.84M tokens', 5000),
        ('9.03B tokens', 275574),
        ('32K tokens', 1),
    ],
)
def test_durations(text, steps):
    assert to_steps(text, 32 * 1024, 'stop') == steps


def test_shares_need_a_whole():
    assert to_steps('10%', 1, 'warmup', whole=600) == 60
    assert to_steps('2.5 %', 1, 'warmup', whole=600) == 15
    for text in ('.%', '1.2.3%', '%'):
        with pytest.raises(FieldError, match='warmup = '):
            to_steps(text, 1, 'warmup', whole=600)
    with pytest.raises(FieldError, match=r"stop = '10%'.*164M tokens"):
        to_steps('10%', 1, 'stop')


@pytest.mark.parametrize('text', ['5000', 'soon', '-3 steps', '1T tokens', '5000 updates'])
def test_bad_durations_are_named(text):
    with pytest.raises(FieldError, match='stop = '):
        to_steps(text, 1, 'stop')


def rates(schedule: ScheduleConfig, steps: list[int], tokens_per_step: int = 1) -> list[float]:
    made = make_schedule(changed(schedule=schedule), tokens_per_step)
    return [float(made(np.array(step))) / 1e-4 for step in steps]


def test_the_papers_automata_stage_ends_at_the_peak():
    """5,000 updates of a 50,000-update schedule: linear warm-up from 0 that is just complete."""
    found = rates(CONFIG.schedule, [0, 2500, 5000, 27500, 50000, 60000], 32 * 1024)
    assert found == pytest.approx([0, 0.5, 1, 0.5, 0, 0], abs=1e-6)


def test_warm_up_stable_decay():
    """Of 100 steps 10 rise, the last 40 fall to a tenth in a straight line, and there it stays."""
    schedule = ScheduleConfig('wsd', '10 steps', '100 steps', 0.1, '40%')
    found = rates(schedule, [0, 5, 10, 59, 60, 80, 90, 100, 500])
    assert found == pytest.approx([0, 0.5, 1, 1, 1, 0.55, 0.325, 0.1, 0.1], abs=1e-6)
    at_once = dataclasses.replace(schedule, warmup='0 steps', decay='4K tokens')
    assert rates(at_once, [0, 59, 80, 100], 100) == pytest.approx([1, 1, 0.55, 0.1], abs=1e-6)


def test_constant_after_the_warm_up():
    found = rates(ScheduleConfig('constant', '10%', '100 steps', 0.1, ''), [0, 5, 10, 99, 500])
    assert found == pytest.approx([0, 0.5, 1, 1, 1], abs=1e-6)
    assert rates(CONSTANT, [0, 1, 500]) == pytest.approx([1, 1, 1], abs=1e-6)


@pytest.mark.parametrize(
    ('schedule', 'said'),
    [
        (('cosine', '60 steps', '50 steps', 0.0, '9%'), r"schedule.warmup = '60 steps'.*before the horizon \(50 steps"),
        (('constant', '60 steps', '50 steps', 0.0, '9%'), r"schedule.warmup = '60 steps'.*before the horizon"),
        (('wsd', '10%', '50 steps', 0.0, '46 steps'), r"schedule.decay = '46 steps': must be 1 to 45 steps"),
        (('wsd', '10%', '50 steps', 0.0, '0%'), r"schedule.decay = '0%': must be 1 to 45 steps"),
        (('wsd', '10%', '50 steps', 0.0, 'late'), r"schedule.decay = 'late'.*or a share such as"),
    ],
)
def test_impossible_schedules_are_named(schedule, said):
    with pytest.raises(FieldError, match=said) as error:
        make_schedule(changed(schedule=ScheduleConfig(*schedule)), 1)
    assert '\n' not in str(error.value)


def updates(config: OptimizerConfig, gradient: float) -> dict:
    optimizer = make_optimizer(config, make_schedule(config, 1))
    params = {'a': {'kernel': jnp.full(4, 10.0)}, 'norm': {'scale': jnp.full(4, 10.0)}}
    grads = {'a': {'kernel': jnp.full(4, gradient)}, 'norm': {'scale': jnp.zeros(4)}}
    return optimizer.update(grads, optimizer.init(params), params)[0]


def test_only_the_named_leaves_decay():
    found = updates(changed(schedule=CONSTANT), 0.0)
    np.testing.assert_allclose(found['a']['kernel'], -1e-4 * 0.1 * 10, rtol=1e-5)
    np.testing.assert_array_equal(found['norm']['scale'], 0)


def test_adam_has_no_decay():
    with pytest.raises(FieldError, match="'adam' has none"):
        changed(name='adam')
    plain = changed(name='adam', weight_decay=0.0, schedule=CONSTANT)
    np.testing.assert_allclose(updates(plain, 3.0)['a']['kernel'], -1e-4, rtol=1e-4)


def test_clip_bounds_the_norm():
    """With eps far above the gradient, Adam is linear in it, so that the clip shows."""
    base = changed(name='adam', weight_decay=0.0, eps=1e6, schedule=CONSTANT)
    free, clipped = (updates(dataclasses.replace(base, clip=clip), 3.0)['a']['kernel'] for clip in (None, 1.0))
    np.testing.assert_allclose(free / clipped, 6.0, rtol=1e-4)  # the norm of four threes is 6


@functools.cache
def params() -> dict:
    return transformer.init_params(MODEL, VOCAB, jax.random.key(0))


@functools.cache
def gradients() -> tuple[dict, ...]:
    """Two trees of random gradients, whose layers differ in size."""
    random = np.random.default_rng(0)

    def draw(path: str, leaf: jax.Array) -> np.ndarray:
        drawn = random.normal(size=leaf.shape).astype(np.float32)
        if path.startswith('blocks/'):
            drawn[1] *= 100
        return drawn

    return tuple(trees.map_with_path(draw, params()) for _ in range(2))


def run_updates(config: OptimizerConfig, only: str = '.*') -> tuple[list[dict], trees.Tree]:
    """Both updates by path, the parameters left where they are, and the state after them; of the matching leaves."""

    def pick(tree: dict) -> dict:
        chosen = {path: leaf for path, leaf in trees.flatten(tree).items() if trees.matches(path, [only])}
        return flax.traverse_util.unflatten_dict(chosen, sep='/')

    optimizer, found = make_optimizer(config, make_schedule(config, 1)), []
    state, update = optimizer.init(pick(params())), jax.jit(optimizer.update)
    for grads in gradients():
        changes, state = update(pick(grads), state, pick(params()))
        found.append(trees.flatten(changes))
    return found, state


def orthogonalised(matrix: np.ndarray) -> np.ndarray:
    """Five steps of the quintic Newton-Schulz iteration with Jordan's coefficients, in float64."""
    x = matrix / np.linalg.norm(matrix)
    x = x.T if x.shape[0] > x.shape[1] else x
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def muon_oracle(path: str, rms: float, layer: int) -> list[np.ndarray]:
    """Both updates of one layer's kernel as a matrix, each row an input: Nesterov's momentum with bias correction."""
    inputs = {'o': 2, 'q': 1, 'k': 1, 'v': 1}.get(path.split('/')[-2], 1)  # heads come in for o, and go out for q, k, v
    weights = np.asarray(trees.flatten(params())[path][layer], np.float64)
    rows = int(np.prod(weights.shape[:inputs]))
    weights, momentum, found = weights.reshape(rows, -1), 0.0, []
    for count, tree in enumerate(gradients(), 1):
        gradient = trees.flatten(tree)[path][layer].reshape(rows, -1).astype(np.float64)
        momentum = 0.95 * momentum + 0.05 * gradient
        ahead = 0.95 * momentum / (1 - 0.95 ** (count + 1)) + 0.05 * gradient / (1 - 0.95**count)
        size = rms * np.sqrt(max(weights.shape)) if rms else np.sqrt(max(1, weights.shape[1] / rows))
        decay = 0.1 if '/attn/' in path or '/up/' in path else 0.0
        found.append(-1e-4 * (size * orthogonalised(ahead) + decay * weights))
    return found


@pytest.mark.parametrize(
    ('rms', 'only', 'number'), [(0.2, 'blocks/.*/kernel', 7), (0.0, 'blocks/(attn/o|mlp/up|mlp/down)/kernel', 3)]
)
def test_muon_orthogonalises_every_layers_matrix(rms, only, number):
    muon = dataclasses.replace(CONFIG.muon, consistent_rms=rms)
    found, _ = run_updates(changed(name='muon', decay=('.*/(attn|up)/.*',), schedule=CONSTANT, muon=muon), only)
    kernels = found[0].keys()
    assert len(kernels) == number
    for path in kernels:
        for layer in range(MODEL.layers):
            for ours, expected in zip(found, muon_oracle(path, rms, layer), strict=True):
                np.testing.assert_allclose(
                    np.asarray(ours[path][layer]).reshape(expected.shape), expected, atol=1e-3 * np.abs(expected).max()
                )


def test_the_rest_is_adamws_at_its_own_rate():
    found, state = run_updates(changed(name='muon', schedule=CONSTANT))
    adamw, _ = run_updates(changed(lr=0.5e-4, schedule=CONSTANT))
    others = {path for path in found[0] if not (path.startswith('blocks/') and path.endswith('kernel'))}
    assert others >= {'embed/table', 'head/kernel', 'head/bias', 'final_norm/scale', 'blocks/attn_norm/scale'}
    for path in others:
        for ours, theirs in zip(found, adamw, strict=True):
            np.testing.assert_allclose(ours[path], theirs[path], rtol=1e-6)
    # One moment for a matrix of Muon's, two for a leaf of Adam's.
    for path in found[0]:
        assert len(state_leaves(state, path)) == (2 if path in others else 1), path


def state_leaves(state: trees.Tree, parameter: str) -> dict[str, jax.Array]:
    return {path: leaf for path, leaf in trees.flatten(state).items() if path.endswith('/' + parameter)}


def test_first_moments_may_be_kept_in_bfloat16():
    """Adam in NumPy, which rounds its mean from one update to the next and nothing else."""
    config = changed(weight_decay=0.0, schedule=CONSTANT, state_dtype='bfloat16')
    optimizer = make_optimizer(config, make_schedule(config, 1))
    draws = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    tree = {'w': jnp.zeros(64)}
    state, mean, square = optimizer.init(tree), 0.0, 0.0
    for count, gradient in enumerate(draws, 1):
        update, state = optimizer.update({'w': gradient}, state, tree)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        expected = mean / (1 - 0.9**count) / (np.sqrt(square / (1 - 0.999**count)) + 1e-8)
        np.testing.assert_allclose(update['w'], -1e-4 * expected, rtol=1e-4, atol=1e-9)
        mean = np.asarray(jnp.asarray(mean, jnp.bfloat16), np.float32)
    dtypes = {path.split('/')[-2]: str(leaf.dtype) for path, leaf in state_leaves(state, 'w').items()}
    assert dtypes == {'mu': 'bfloat16', 'nu': 'float32'}
    _, state = run_updates(dataclasses.replace(config, name='muon'), 'blocks/mlp/up/.*')
    (momentum,) = state_leaves(state, 'blocks/mlp/up/kernel').values()
    assert momentum.dtype == jnp.bfloat16


def test_parameters_in_bfloat16_have_moments_in_float32():
    config = changed(schedule=CONSTANT, clip=1.0)
    optimizer = make_optimizer(config, make_schedule(config, 1))
    tree = {'w': jnp.ones(8, jnp.bfloat16)}
    update, state = optimizer.update(tree, optimizer.init(tree), tree)
    assert {str(leaf.dtype) for leaf in (update['w'], *state_leaves(state, 'w').values())} == {'float32'}
    (mean,) = (leaf for path, leaf in state_leaves(state, 'w').items() if '/mu/' in path)
    np.testing.assert_allclose(mean, 0.1 / 8**0.5, rtol=1e-6)


def test_learning_rates_differ_by_path():
    """The first pattern that matches the whole path decides; decay is scaled as the rest of the update is."""
    scaled, _ = run_updates(changed(schedule=CONSTANT, lr_scale=(('blocks/attn/o/.*', 3.0), ('blocks/.*', 0.25))))
    plain, _ = run_updates(changed(schedule=CONSTANT))
    for path in plain[0]:
        factor = 3.0 if path == 'blocks/attn/o/kernel' else 0.25 if path.startswith('blocks/') else 1.0
        np.testing.assert_allclose(scaled[1][path], factor * plain[1][path], rtol=1e-6, err_msg=path)


@pytest.mark.parametrize('name', ['adamw', 'muon'])
def test_frozen_leaves_have_neither_update_nor_state_nor_a_part_in_the_clip(name):
    """The others move as if the model had nothing else: each frozen leaf's gradient is larger than the clip."""
    frozen = ('embed/.*', 'blocks/mlp/up/.*', '.*norm/scale')
    found, state = run_updates(changed(name=name, clip=1.0, schedule=CONSTANT, frozen=frozen))
    for path in found[0]:
        held = trees.matches(path, frozen)
        assert bool(state_leaves(state, path)) != held
        assert np.any(found[1][path]) != held
    kept = [path for path in found[0] if not trees.matches(path, frozen)]
    norm = np.sqrt(sum(np.sum(np.square(trees.flatten(gradients()[0])[path], dtype=np.float64)) for path in kept))
    first = {path: trees.flatten(gradients()[0])[path] / norm for path in kept}
    momenta = run_one(changed(name=name, clip=1.0, schedule=CONSTANT, frozen=frozen))
    share = {'blocks': 0.05 if name == 'muon' else 0.1, 'head': 0.1}
    for path in ('blocks/mlp/down/kernel', 'head/kernel'):
        (mu,) = (leaf for where, leaf in state_leaves(momenta, path).items() if '/mu/' in where)
        np.testing.assert_allclose(mu, share[path.split('/')[0]] * first[path], rtol=1e-5)


def run_one(config: OptimizerConfig) -> trees.Tree:
    optimizer = make_optimizer(config, make_schedule(config, 1))
    return jax.jit(optimizer.update)(gradients()[0], optimizer.init(params()), params())[1]


@pytest.mark.parametrize(
    ('fields', 'said'),
    [
        ({'decay': ('.*kernel', 'bias')}, r"config.optimizer.decay = 'bias': must match the whole path of a parameter"),
        ({'decay': ('(',)}, r"config.optimizer.decay = '\(': not a regular expression"),
        ({'frozen': ('[',)}, r"config.optimizer.frozen = '\[': not a regular expression"),
        ({'lr_scale': (('(', 2.0),)}, r"config.optimizer.lr_scale = '\(': not a regular expression"),
        ({'frozen': ('embed',)}, r"config.optimizer.frozen = 'embed': must match the whole path"),
        ({'frozen': ('.*',)}, r"config.optimizer.frozen = \('\.\*',\): must leave a parameter to train"),
        ({'lr_scale': (('blocks/attn', 2.0),)}, r"config.optimizer.lr_scale = 'blocks/attn': must match the whole"),
        ({'lr_scale': (('.*', 2.0), ('head/.*', 3.0))}, r"lr_scale = \('head/\.\*', 3.0\): .* claimed by earlier"),
        ({'lr_scale': (('head/.*', 3.0),), 'frozen': ('head/.*',)}, r"lr_scale = \('head/\.\*', 3.0\): .* is frozen"),
    ],
)
def test_patterns_that_do_nothing_are_named(fields, said):
    with pytest.raises(FieldError, match=said) as error:
        check_paths(changed(**fields), trees.flatten(params()))
    assert '\n' not in str(error.value)


def test_patterns_are_checked_before_any_work(tmp_path):
    file = baselines.get_config('source=noise,smoke')
    file.optimizer.frozen = ('embed',)
    with pytest.raises(FieldError, match=r"config.optimizer.frozen = 'embed': must match the whole path"):
        run.train(resolve(file), tmp_path / 'run', loop.Preemption())
    assert not (tmp_path / 'run').exists()


def test_every_matrix_of_the_blocks_is_muons():
    for path, leaf in trees.flatten(params()).items():
        assert trees.matches(path, MATRICES) == (path.startswith('blocks/') and leaf.ndim > 2), path


FULL = changed(
    name='muon', lr=1e-2, clip=1.0, schedule=CONSTANT, ema=0.75, frozen=('embed/.*',), state_dtype='bfloat16'
)


@functools.cache
def batch() -> Batch:
    inputs, targets = (jax.random.randint(jax.random.key(i), (8, 8), 0, VOCAB.size) for i in (1, 2))
    return Batch(inputs, targets, jnp.ones((8, 8)))


@functools.cache
def trained(shape: tuple[int, int, int]):
    """Three steps under FULL on a mesh: the compiled step, the states from the first to the last, and the metrics."""
    mesh = meshes.make_mesh(meshes.MeshConfig(*shape), jax.devices()[: int(np.prod(shape))])
    optimizer = make_optimizer(FULL, make_schedule(FULL, 1))

    def initialise() -> TrainState:
        return init_state(transformer.init_params(MODEL, VOCAB, jax.random.key(0)), optimizer, average=True)

    of_params = meshes.param_shardings(mesh, transformer.logical_axes(MODEL, VOCAB), params())
    layout = meshes.state_shardings(mesh, jax.eval_shape(initialise), of_params, of_params)
    sum_loss = make_sum_loss(MODEL, VOCAB, FULL.frozen)
    step = make_train_step(sum_loss, optimizer, seed=0, dropout=False, ema=FULL.ema)
    with meshes.use(mesh):
        state = jax.jit(initialise, out_shardings=layout)()
        placed = jax.device_put(batch(), meshes.batch_sharding(mesh))
        jitted = jax.jit(step, in_shardings=(layout, None), out_shardings=(layout, None), donate_argnums=0)
        compiled = jitted.lower(state, placed).compile()
        states, metrics = [jax.device_get(state)], []
        for _ in range(3):
            state, found = compiled(state, placed)
            states.append(jax.device_get(state))
            metrics.append(jax.device_get(found))
    return compiled, states, metrics, state, of_params


def test_the_average_follows_the_weights():
    _, states, _, _, _ = trained((1, 1, 1))
    expected = {path: np.asarray(leaf, np.float64) for path, leaf in trees.flatten(states[0].params).items()}
    for state in states[1:]:
        for path, leaf in trees.flatten(state.params).items():
            expected[path] = 0.75 * expected[path] + 0.25 * leaf
    for path, leaf in trees.flatten(states[-1].ema).items():
        assert leaf.dtype == np.float32
        np.testing.assert_allclose(leaf, expected[path], rtol=1e-5, atol=1e-7, err_msg=path)
        same = np.array_equal(leaf, trees.flatten(states[0].params)[path])
        assert same == trees.matches(path, FULL.frozen), path


def test_the_norm_of_the_gradient_leaves_out_what_is_frozen():
    _, states, metrics, _, _ = trained((1, 1, 1))
    sum_loss = make_sum_loss(MODEL, VOCAB)
    grads = jax.jit(jax.grad(lambda p: sum_loss(p, batch(), None)[0] / 64))(states[0].params)
    kept = [np.square(g, dtype=np.float64).sum() for path, g in trees.flatten(grads).items() if path != 'embed/table']
    assert np.any(grads['embed']['table'])
    assert float(metrics[0]['grad_norm']) == pytest.approx(np.sqrt(sum(kept)), rel=1e-5)


def test_a_mesh_gives_the_same_and_splits_every_leaf_like_its_parameter():
    compiled, states, metrics, state, of_params = trained((2, 2, 2))
    _, alone, alone_metrics, _, _ = trained((1, 1, 1))
    for found, expected in zip(metrics, alone_metrics, strict=True):
        assert float(found['loss']) == pytest.approx(float(expected['loss']), rel=1e-4)
    first, last, other = (trees.flatten(tree.params) for tree in (states[0], states[-1], alone[-1]))
    for path in last:
        assert np.linalg.norm(last[path] - other[path]) <= 1e-2 * np.linalg.norm(last[path] - first[path]), path
    by_path, shapes = trees.flatten(of_params), {path: leaf.shape for path, leaf in trees.flatten(params()).items()}
    found = set()
    for path, leaf in trees.flatten({'opt_state': state.opt_state, 'ema': state.ema, 'params': state.params}).items():
        name = next((name for name in by_path if path.endswith('/' + name)), None)
        if name is None:
            assert leaf.size <= 3, path  # counts, and the coefficients of Newton-Schulz
            continue
        assert leaf.shape == shapes[name], path
        assert leaf.sharding.is_equivalent_to(by_path[name], leaf.ndim), path
        found.add((path.split('/')[0], name))
    assert found == {(part, name) for part in ('opt_state', 'ema', 'params') for name in by_path} - {
        ('opt_state', 'embed/table')
    }
    local = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    assert compiled.memory_analysis().alias_size_in_bytes >= 0.99 * local


def test_a_checkpoint_gives_all_of_it_back(tmp_path):
    _, states, _, state, of_params = trained((2, 2, 2))
    with Store(tmp_path / 'checkpoints', keep=1) as store:
        store.save(3, state, {}, wait=True)
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        restored, _ = store.restore(abstract)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for (path, ours), theirs in zip(trees.flatten(restored).items(), jax.tree.leaves(states[-1]), strict=True):
        assert (ours.dtype, np.asarray(ours).tobytes()) == (theirs.dtype, theirs.tobytes()), path
    for weights in ('params', 'ema'):
        found, _ = restore_params(tmp_path / 'checkpoints', 3, of_params, weights)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), getattr(states[-1], weights))


def noise(folder: pathlib.Path, init_from: dict | None, stop: str, ema: float) -> pathlib.Path:
    """A run with Muon on independent tokens, evaluated at its start and its end."""
    file = baselines.get_config('source=noise,optimizer=muon,smoke')
    file.init_from = init_from
    file.train.stop = stop
    file.optimizer.ema = ema
    run.train(resolve(file), folder, loop.Preemption())
    return folder


def scores(folder) -> dict[tuple[str, int], float]:
    records = map(json.loads, (folder / 'metrics.jsonl').read_text().splitlines())
    return {(r['evaluator'], r['step']): r['loss'] for r in records if r['kind'] == 'eval'}


def test_runs_score_the_average_and_others_start_from_it(tmp_path):
    """The child's weights before its first update are the parent's average after its last."""
    parent = noise(tmp_path / 'parent', None, '2 steps', 0.5)
    start = {'run': str(parent), 'step': None, 'weights': 'ema', 'plan': (('.*', 'carry'),)}
    child = noise(tmp_path / 'child', start, '1 steps', 0.9)
    losses = scores(parent)
    assert losses.keys() == {(name, step) for name in ('held_out', 'held_out_ema') for step in (0, 2)}
    assert losses['held_out_ema', 0] == losses['held_out', 0]
    assert losses['held_out_ema', 2] != losses['held_out', 2]
    assert scores(child)['held_out', 0] == scores(child)['held_out_ema', 0] == losses['held_out_ema', 2]
    assert read_manifest(child / 'checkpoints')['parent']['weights'] == 'ema'


def test_a_parent_without_an_average_has_none_to_give(tmp_path):
    with Store(tmp_path / 'checkpoints', keep=1) as store:
        store.save(3, init_state({'w': jnp.zeros(3)}, optax.sgd(1.0)), {'stop': 3}, wait=True)
    wanted = configs.InitFrom(run=str(tmp_path), step=None, weights='ema', plan=(('.*', 'carry'),))
    assert folders.read_parent(dataclasses.replace(wanted, weights='params'))['step'] == 3
    with pytest.raises(FieldError, match=r"config.init_from.weights = 'ema': must be 'params': .* kept no average"):
        folders.read_parent(wanted)
