"""One run: from its config to the Program, its first state, and training in a folder."""

import contextlib
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax

from nca_jax import config as configs
from nca_jax import distributed, folders, keys, stages, trees
from nca_jax import mesh as meshes
from nca_jax.batch import Vocab
from nca_jax.checkpoint.manifest import environment
from nca_jax.checkpoint.store import Store, read_manifest, restore_params, saved_params
from nca_jax.config import Config
from nca_jax.errors import UserError, check
from nca_jax.hf import llama
from nca_jax.model import transformer
from nca_jax.model.attention import check_cudnn
from nca_jax.model.config import ModelConfig, step_flops
from nca_jax.progress import Progress, bars, silent
from nca_jax.train import loop
from nca_jax.train.loop import Program
from nca_jax.train.metrics import MetricWriter, SilentWriter, Wandb, check_installed, evaluated
from nca_jax.train.optimizer import check_paths, make_optimizer
from nca_jax.train.step import TrainState, init_ema, init_state, make_sum_loss, make_train_step

# Attention kernels of each platform; every platform has einsum.
KERNELS = {'gpu': ('cudnn',), 'tpu': ('splash',)}


def train(config: Config, folder: pathlib.Path, preemption: loop.Preemption) -> None:
    """Trains a run in its folder, from wherever it stands to its end.

    The checks come first: nothing is written before config, mesh and parent fit together. Raises UserError,
    NotFiniteError, or SystemExit after a signal.
    """
    clock = time.perf_counter()
    # A missing package shows here, not after an hour of preparing data.
    check_installed(config.track)
    mesh = meshes.make_mesh(config.mesh)
    check_fit(config, mesh)
    parent = folders.read_parent(config.init_from)
    if parent is not None:
        folders.check_layers(config, parent)
    identity = configs.identity(config, parent)
    # Processes with different configs would compile different programs and wait for each other forever.
    distributed.agree(identity, 'the config')
    first, checkpoints = distributed.is_first(), folders.checkpoints(folder)
    # Closed in reverse order at the end, also after an error: the folder's lock goes last.
    with contextlib.ExitStack() as stack:
        stack.enter_context(folders.owned(folder, identity))
        data_clock = time.perf_counter()
        # One display for the whole run: of its data, its updates and its answers.
        progress = stack.enter_context(bars()) if first else silent
        program = build(config, mesh, folder, progress)
        distributed.agree(json.dumps(program.data.hashes, sort_keys=True), 'the data')
        folders.check_data(folder, program.data.hashes)
        data_seconds = time.perf_counter() - data_clock
        store = stack.enter_context(Store(checkpoints, config.train.keep_last, program.timetable.keep))
        stack.enter_context(meshes.use(mesh))
        state, lineage = start(config, program, store, parent, print if first else lambda line: None)
        about, step = describe(config, program, identity, lineage), int(state.step)
        evaluated_before = distributed.first(lambda: evaluated(folder, step))
        writer = stack.enter_context(contextlib.closing(open_writer(config, program, folder, about, step, progress)))
        loop.train(
            state,
            program,
            about=about,
            store=store,
            writer=writer,
            traces=folder / 'profile',
            preemption=preemption,
            seconds={'prepare': time.perf_counter() - clock - data_seconds, 'data': data_seconds},
            evaluated=evaluated_before,
        )


def check_fit(config: Config, mesh: jax.sharding.Mesh) -> None:
    """Raises FieldError where the config's blocks, the mesh and the devices don't fit together. It touches no file."""
    stages.STAGES[config.stage].check_config(config)
    model, rows, tensor, fsdp = config.model, meshes.row_shards(mesh), mesh.shape['tensor'], mesh.shape['fsdp']

    def multiple(of: int, field: str, value: int, words: str, part: int | None = None) -> None:
        check((value if part is None else part) % of == 0, f'config.{field}', value, words)

    # Every device takes the same number of rows of each micro-batch.
    micro = config.train.batch // config.train.accumulate
    multiple(rows, 'train.batch', config.train.batch, f'/ accumulate must be a multiple of {rows} devices', micro)
    multiple(rows, 'eval.batch', config.eval.batch, f'must be a multiple of {rows} devices')
    multiple(tensor, 'model.heads', model.heads, f'must be a multiple of mesh.tensor = {tensor}')
    multiple(tensor, 'model.ffn', model.ffn, f'must be a multiple of mesh.tensor = {tensor}')
    multiple(fsdp, 'model.width', model.width, f'must be a multiple of mesh.fsdp = {fsdp}')
    if config.benchmark is not None:
        # Samples of one prompt share its prefill, so the prompts, not the rows, are spread over devices.
        batch = config.benchmark.batch
        words = f'/ share = {batch.share} must be a multiple of {rows} devices'
        multiple(rows, 'benchmark.batch.rows', batch.rows, words, batch.rows // batch.share)
    platform = mesh.devices.flat[0].platform
    backends = ('einsum', *KERNELS.get(platform, ()))
    words = f'must be one of those that a {platform} has: {", ".join(backends)}'
    check(model.attention in backends, 'config.model.attention', model.attention, words)
    # cuDNN also depends on the GPU's generation and its own version, which only a try can tell.
    if model.attention == 'cudnn':
        check_cudnn(model.head_width)
    # A pattern that matches no leaf is a slip. Paths don't depend on the vocabulary, so a table of one row will do.
    check_paths(config.optimizer, trees.flatten(transformer.abstract_params(model, Vocab(1))))


def build(config: Config, mesh: jax.sharding.Mesh, folder: pathlib.Path, progress: Progress = silent) -> Program:
    """Prepares the data, under the run's folder or where the config says, and jits what the loop calls.

    The config must fit the mesh (`check_fit`). Raises UserError where config and data don't fit together.
    """
    data = stages.STAGES[config.stage].prepare(config, mesh, folder, progress)
    abstract, init, train_step = make_update(config, mesh, data.vocab)
    flops = step_flops(config.model, data.vocab, config.train.batch)
    return Program(data, config.timetable, abstract, init, train_step, config.schedule, flops)


def make_update(config: Config, mesh: jax.sharding.Mesh, vocab: Vocab) -> tuple[TrainState, Callable, Callable]:
    """(abstract state, init, train_step): the part of a Program that needs no data, so it compiles ahead of time."""
    optimizer = make_optimizer(config.optimizer, config.schedule)

    def initialise() -> TrainState:
        params = transformer.init_params(config.model, vocab, keys.key(config.seed, 'init'))
        return init_state(params, optimizer, average=config.optimizer.ema is not None)

    shapes = jax.eval_shape(initialise)
    of_params = meshes.param_shardings(mesh, transformer.logical_axes(config.model, vocab), shapes.params)
    split = config.mesh.shard_optimizer
    of_moments = meshes.optimizer_shardings(mesh, shapes.params, of_params) if split else of_params
    shardings = meshes.state_shardings(mesh, shapes, of_params, of_moments)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    step = make_train_step(
        make_sum_loss(config.model, vocab, config.optimizer.frozen),
        optimizer,
        seed=config.seed,
        dropout=config.model.dropout > 0,
        accumulate=config.train.accumulate,
        # The paper's release clips the sum of the micro-batches' gradients, not their mean.
        gradient_scale=float(config.train.accumulate) if config.optimizer.clip_on == 'sum' else 1.0,
        replicas=mesh.shape['data'],
        gradient_shardings=of_moments if split else None,
        ema=config.optimizer.ema,
    )
    train_step = jax.jit(
        step,
        in_shardings=(shardings, meshes.batch_sharding(mesh)),
        out_shardings=(shardings, meshes.replicated(mesh)),
        # The new state takes the place of the old one in memory.
        donate_argnums=0,
    )
    # Jitted with output shardings, so that no device ever holds a whole large leaf.
    return abstract, jax.jit(initialise, out_shardings=shardings), train_step


def start(
    config: Config, program: Program, store: Store, parent: dict | None, say: Callable[[str], None]
) -> tuple[TrainState, dict | None]:
    """The state to train from, and the lineage for manifests.

    The order is fixed: 1. this run's own newest valid checkpoint, 2. a graft from the parent, 3. a fresh start.
    """
    restored = store.restore(program.abstract)
    if restored is not None:
        state, manifest = restored
        say(f'resumed from step {int(state.step)} of {store.folder}')
        return state, manifest['parent']
    state = program.init()
    # A resumed run never comes here: its weights have moved on from what was carried.
    if parent is None:
        return state, None
    params, lineage = folders.carry(config, program, state.params, parent, say)
    if state.ema is not None:
        # The average begins at the carried weights.
        layout = jax.tree.map(lambda leaf: leaf.sharding, program.abstract.ema)
        state = state.replace(ema=jax.jit(init_ema, out_shardings=layout)(params))
    return state.replace(params=params), lineage


def describe(config: Config, program: Program, identity: str, lineage: dict | None) -> dict[str, Any]:
    """The content of run.json and of every manifest of the run, but for step and tokens."""
    return {
        'name': config.name,
        'arm': config.arm,
        'stage': config.stage,
        'seed': config.seed,
        'identity': identity,
        'config': configs.to_dict(config),
        'parent': lineage,
        'data': program.data.hashes,
        # The report takes the run's result from this evaluator.
        'evaluator': next(iter(program.data.evaluators)),
        'vocab_size': program.data.vocab.size,
        'parameters': trees.count(program.abstract.params),
        'tokens_per_step': program.timetable.tokens_per_step,
        'stop': program.timetable.stop,
        **environment(),
    }


def open_writer(
    config: Config, program: Program, folder: pathlib.Path, about: dict[str, Any], step: int, progress: Progress
) -> MetricWriter | SilentWriter:
    """Opens the run's metrics, after its record and the files about its data are written. Only process 0 writes."""
    if not distributed.is_first():
        return SilentWriter()
    folders.write_record(folder, about)
    program.data.write_files(folder)
    title = f'{config.name}/{config.arm}/{config.seed}'
    tracker = Wandb(about, folder) if config.track == 'wandb' else None
    return MetricWriter(folder, step, program.timetable.stop, title, tracker, progress)


def load_model(
    folder: pathlib.Path, mesh: jax.sharding.Mesh, weights: str = 'params', step: int | None = None
) -> tuple[ModelConfig, Vocab, dict, dict[str, Any]]:
    """The model of a run or of adopted weights: (config, vocabulary, parameters or their 'ema', manifest).

    From the newest checkpoint unless a step is named. The config is for reading: no dropout, and what runs on every
    platform.
    """
    manifest = read_manifest(folders.checkpoints(folder), step)
    model, saved = manifest['config']['model'], saved_params(manifest, weights)
    if not saved:
        raise UserError(f'{folder}: kept no average of its weights (its optimizer.ema is None)')
    # All parameters of a run have one dtype.
    param_dtype = str(next(iter(saved.values())).dtype)
    # Adopted weights name no dtype of activations.
    config = llama.model_config(model, ({'dtype': param_dtype} | model)['dtype'], param_dtype)
    vocab = Vocab(manifest['vocab_size'])
    axes, abstract = transformer.logical_axes(config, vocab), transformer.abstract_params(config, vocab)
    shardings = meshes.param_shardings(mesh, axes, abstract)
    params, manifest = restore_params(folders.checkpoints(folder), manifest['step'], shardings, weights)
    return config, vocab, params, manifest
