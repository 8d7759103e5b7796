"""A run, assembled: from its config to the functions and arrays that the loop needs, and where it starts from."""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from nca_jax import keys, stages, trees
from nca_jax import mesh as meshes
from nca_jax.batch import Batch, Vocab
from nca_jax.checkpoint import graft
from nca_jax.checkpoint.store import Store, read_manifest, restore_params, saved_params
from nca_jax.config import Config, InitFrom
from nca_jax.errors import UserError, check
from nca_jax.model import transformer
from nca_jax.model.fused_attention import check_cudnn
from nca_jax.problems.sets import CODE
from nca_jax.progress import Progress, silent
from nca_jax.train import loop, profiler
from nca_jax.train.duration import to_steps
from nca_jax.train.optimizer import check_paths, make_optimizer, make_schedule
from nca_jax.train.state import TrainState, first_average, init_state
from nca_jax.train.step import hold, make_sum_loss, make_train_step

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Program:
    """Everything that a config determines. `abstract` is the train state's shapes, dtypes and shardings."""

    config: Config
    mesh: jax.sharding.Mesh
    vocab: Vocab
    plan: loop.Plan
    abstract: TrainState
    init: Callable[[], TrainState]
    train_step: Callable[[TrainState, Batch], tuple[TrainState, dict]]
    stream: Callable[[int], Batch]
    evaluators: dict[str, Callable[[Any, int], dict]]
    schedule: Callable[[int], float]
    data: dict[str, Any]  # hashes of what the streams read, for the manifest


def build(config: Config, mesh: jax.sharding.Mesh, folder: pathlib.Path, progress: Progress = silent) -> Program:
    """Prepares the data (cached under `folder`, or where the config says) and jits what the loop calls.

    Raises UserError before any training where config, mesh and data don't fit together.
    """
    check_fit(config, mesh)
    data = stages.prepare_data(config, mesh, folder, progress)
    tokens_per_step = config.train.batch * config.model.length
    abstract, init, train_step = make_update(config, mesh, data.vocab)
    return Program(
        config=config,
        mesh=mesh,
        vocab=data.vocab,
        plan=_plan(config, tokens_per_step),
        abstract=abstract,
        init=init,
        train_step=train_step,
        stream=data.stream,
        evaluators=data.evaluators,
        schedule=make_schedule(config.optimizer, tokens_per_step),
        data=data.hashes,
    )


def make_update(config: Config, mesh: jax.sharding.Mesh, vocab: Vocab) -> tuple[TrainState, Callable, Callable]:
    """(abstract state, init, train_step) of a Program: what takes no data, so that it also compiles ahead of time."""
    optimizer = make_optimizer(config.optimizer, config.train.batch * config.model.length)

    def initialise() -> TrainState:
        params = transformer.init_params(config.model, vocab, keys.key(config.seed, 'init'))
        return init_state(params, optimizer, average=config.optimizer.ema is not None)

    shapes = jax.eval_shape(initialise)
    logical_axes = transformer.logical_axes(config.model, vocab)
    of_params = of_moments = meshes.param_shardings(mesh, logical_axes, shapes.params)
    if config.mesh.shard_optimizer:
        of_moments = meshes.optimizer_shardings(mesh, shapes.params, of_params)
    shardings = meshes.state_shardings(mesh, shapes, of_params, of_moments)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    step = make_train_step(
        hold(make_sum_loss(config.model, vocab), config.optimizer.frozen),
        optimizer,
        seed=config.seed,
        dropout=config.model.dropout > 0,
        accumulate=config.train.accumulate,
        gradient_scale=float(config.train.accumulate) if config.optimizer.clip_on == 'sum' else 1.0,
        replicas=mesh.shape['data'],
        gradient_shardings=of_moments if config.mesh.shard_optimizer else None,
        ema=config.optimizer.ema,
    )
    batch_sharding, whole = meshes.batch_sharding(mesh), meshes.replicated(mesh)
    train_step = jax.jit(
        step,
        in_shardings=(shardings, batch_sharding),
        out_shardings=(shardings, whole),
        donate_argnums=0,
    )
    return abstract, jax.jit(initialise, out_shardings=shardings), train_step


def check_fit(config: Config, mesh: jax.sharding.Mesh) -> None:
    """Raises FieldError where sizes of the config don't divide as the mesh needs."""
    rows, tensor = meshes.row_shards(mesh), mesh.shape['tensor']
    micro = config.train.batch // config.train.accumulate
    check(
        micro % rows == 0,
        'config.train.batch',
        config.train.batch,
        f'/ accumulate must be a multiple of {rows} devices',
    )
    check(
        config.eval.batch % rows == 0, 'config.eval.batch', config.eval.batch, f'must be a multiple of {rows} devices'
    )
    for field, value in (('heads', config.model.heads), ('ffn', config.model.ffn)):
        check(value % tensor == 0, f'config.model.{field}', value, f'must be a multiple of mesh.tensor = {tensor}')
    check(
        config.model.width % mesh.shape['fsdp'] == 0,
        'config.model.width',
        config.model.width,
        f'must be a multiple of mesh.fsdp = {mesh.shape["fsdp"]}',
    )
    platform = mesh.devices.flat[0].platform
    backends = ('einsum', *{'gpu': ('cudnn',), 'tpu': ('splash',)}.get(platform, ()))
    allowed = f'must be one of those that a {platform} has: {", ".join(backends)}'
    check(config.model.attention in backends, 'config.model.attention', config.model.attention, allowed)
    if config.model.attention == 'cudnn':
        check_cudnn(config.model.head_width)
    tokens_per_step = config.train.batch * config.model.length
    plan = _plan(config, tokens_per_step)
    if config.stage == 'instruct' and config.data.problems.task == CODE:
        check(plan.stop == 0, 'config.train.stop', config.train.stop, f"must be '0 steps': {CODE} trains nothing")
    if config.benchmark is not None:
        groups, batch = 'config.benchmark.batch.rows', config.benchmark.batch
        allowed = f'/ share = {batch.share} must be a multiple of {rows} devices'
        check(batch.rows // batch.share % rows == 0, groups, batch.rows, allowed)
    make_schedule(config.optimizer, tokens_per_step)
    if config.optimizer.names_leaves:
        check_paths(config.optimizer, trees.flatten(transformer.abstract_params(config.model, Vocab(1))))


def start(program: Program, store: Store, parent: dict | None, say: Say = print) -> tuple[TrainState, dict | None]:
    """The state to train from, and the lineage that the manifests name.

    The order is fixed: 1. this run's own newest valid checkpoint, 2. a graft from the parent, 3. a fresh start.
    """
    restored = store.restore(program.abstract)
    if restored is not None:
        state, manifest = restored
        say(f'resumed from step {int(state.step)} of {store.folder}')
        return state, manifest['parent']
    state = program.init()
    if parent is None:
        return state, None
    params, lineage = carry(program, state.params, parent, say)
    if state.ema is not None:  # it begins at the carried weights
        layout = jax.tree.map(lambda leaf: leaf.sharding, program.abstract.ema)
        state = state.replace(ema=jax.jit(first_average, out_shardings=layout)(params))
    return state.replace(params=params), lineage


def carry(program: Program, fresh: dict, parent: dict, say: Say = print) -> tuple[dict, dict[str, Any]]:
    """`fresh` parameters with the parent's in place wherever the plan carries them, and the lineage of the result."""
    init_from = program.config.init_from
    plan = graft.parse(init_from.plan)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, program.abstract.params)
    params = saved_params(parent, shardings)
    resolved = graft.resolve(plan, params, program.abstract.params, parent['vocab_size'], program.vocab.size)
    saved, wanted = saved_params(parent, shardings, init_from.weights), graft.wanted(resolved)
    if not wanted.isdisjoint(graft.VOCAB_AXIS):
        _check_same_tokens(program, parent)
    source, _ = restore_params(checkpoints(init_from.run), parent['step'], wanted, saved, init_from.weights)
    source = trees.map_with_path(lambda path, leaf: leaf.astype(params[path].dtype), source)  # an average is float32
    params, report = graft.graft(source, fresh, resolved, out_shardings=shardings)
    for line in report.lines():
        say(line)
    lineage = {name: parent[name] for name in ('identity', 'name', 'step', 'tokens')}
    lineage |= {'weights': init_from.weights, 'plan': [entry.to_json() for entry in plan]}
    return params, lineage | {'graft': report.to_json()}


def _check_same_tokens(program: Program, parent: dict) -> None:
    """Raises UserError where carried tables would stand for other tokens than they did, which no shape tells."""
    known = [data['tokenizer'] for data in (parent['data'], program.data) if 'tokenizer' in data]
    if len(set(known)) > 1:
        folder = program.config.init_from.run
        raise UserError(f'config.data.tokenizer: must be that of {folder}, whose tables are carried; without one it is')


def check_parent(config: Config, parent: dict | None) -> None:
    """Raises FieldError where carried layers would not fit, or compute something else than they did."""
    if parent is None:
        return
    plan = graft.parse(config.init_from.plan)
    if not graft.carries_layers(plan, transformer.abstract_params(config.model, Vocab(1))):
        return
    theirs, ours = parent['config']['model'], config.model
    names = ['width', 'heads', 'ffn', 'rope_theta', 'norm_eps']
    if not any(entry.layers for entry in plan):  # else it may carry some of the layers
        names.insert(0, 'layers')
    for name in names:
        allowed = f'must be {theirs[name]}, as in {config.init_from.run}, whose layers are carried'
        check(getattr(ours, name) == theirs[name], f'config.model.{name}', getattr(ours, name), allowed)


def parent_manifest(init_from: InitFrom | None) -> dict[str, Any] | None:
    """The manifest of the checkpoint that a run starts from, which need not be its newest.

    Raises UserError where the parent isn't there, has no valid checkpoint, or hasn't finished and no step is named.
    """
    if init_from is None:
        return None
    manifest = read_manifest(checkpoints(init_from.run), init_from.step)
    if init_from.step is None and manifest['step'] < manifest['stop']:
        progress = f'is at step {manifest["step"]} of {manifest["stop"]}'
        raise UserError(f'{init_from.run} {progress}: finish it, or name the step in config.init_from.step')
    kept = bool(saved_params(manifest, weights=init_from.weights))
    allowed = f"must be 'params': {init_from.run} kept no average of them (its optimizer.ema is None)"
    check(kept, 'config.init_from.weights', init_from.weights, allowed)
    return manifest


def checkpoints(folder: str | pathlib.Path) -> pathlib.Path:
    return pathlib.Path(folder).absolute() / 'checkpoints'


def read_record(folder: pathlib.Path) -> dict[str, Any]:
    """The `run.json` of a run. UserError where there is none or it can't be read."""
    path = pathlib.Path(folder) / 'run.json'
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f'{folder} is no run: it has no run.json') from None
    except ValueError as error:
        raise UserError(f'{path} is not JSON: {error}') from None
    if not isinstance(record, dict) or not {'identity', 'config'} <= record.keys():
        raise UserError(f'{path}: not the record of a run, it lacks an identity or a config')
    return record


def _plan(config: Config, tokens_per_step: int) -> loop.Plan:
    def steps(field: str) -> int:
        found = to_steps(getattr(config.train, field), tokens_per_step, f'config.train.{field}')
        check(found > 0 or field == 'stop', f'config.train.{field}', getattr(config.train, field), 'at least one step')
        return found

    stop = steps('stop')
    traced = profiler.updates(config.profile)
    check(not traced or traced[-1] <= stop, 'config.profile', config.profile, f'the last update is {stop}')
    keep = {named: to_steps(named, tokens_per_step, 'config.train.keep') for named in config.train.keep}
    for named, step in keep.items():
        check(step <= stop, 'config.train.keep', named, f'step {step} comes after the last, {stop}')
    return loop.Plan(
        stop=stop,
        log_every=steps('log_every'),
        eval_every=steps('eval_every'),
        save_every=steps('save_every'),
        keep=frozenset(keep.values()),
        tokens_per_step=tokens_per_step,
    )
