"""Compiles a run for TPUs that aren't here: does it fit, what does it move, and how fast would it be, by estimate.

    python -m nca_jax.scale.aot --config=experiments/nca_pretrain.py:size=1b6 --topology=v5e:4x4 --config.mesh.fsdp=4
    python -m nca_jax.scale.aot --config=experiments/language.py:size=1b6,corpus=openwebtext --topology=v5p:2x2x4 \
        --search

The very train step of nca_jax.main is lowered and compiled by libtpu's compiler, and so are the evaluation's step, a
step of the benchmark's decoding, and of automata the generator of a batch. No data is read: a text's vocabulary is its
tokenizer's, or as large as the config says. Bytes are the compiler's: those alive at once, which it holds against the
chip's limit. Times are estimates: cycles as the compiler predicts them, loops multiplied out, over a clock at which one
large product of matrices reaches the published peak; to that come all collectives, from bytes over the bandwidth of the
links, as if none were hidden. Nothing of it was ever measured.

--search tries sequences a chip, remat and loss_chunks, and shows the best estimate that fits: some minutes for each
compilation at the largest size. Exit codes: 0 all fits, 1 something doesn't (a line says what), 2 bad input.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from nca_jax import cli, experiment, keys, run, stages, trees
from nca_jax import mesh as meshes
from nca_jax.batch import Batch, to_batch
from nca_jax.config import Config
from nca_jax.decode.decoder import DecodeConfig, lower_decoding
from nca_jax.decode.sampling import Sampling
from nca_jax.errors import UserError
from nca_jax.evals import held_out
from nca_jax.model.config import REMATS, step_flops
from nca_jax.nca import stream
from nca_jax.scale import topology
from nca_jax.scale.estimate import KERNEL_RULE, Estimate, estimate
from nca_jax.scale.report import GIB, DoesNotFitError, Step, Target, empty_record, report

LARGE_VOCAB = 16_384  # from here on the logits are worth cutting


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog='python -m nca_jax.scale.aot', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--config', required=True, metavar='FILE[:WORDS]', help='an experiment; --config.a.b=c changes')
    parser.add_argument('--topology', required=True, metavar='NAME', help='a TPU slice such as v5e:4x4 or v5p:2x2x4')
    parser.add_argument(
        '--search', action='store_true', help='find batch per chip, remat and loss_chunks that are best'
    )
    parser.add_argument(
        '--step-only', action='store_true', help='compile no evaluation, decoding and generator: half the time'
    )
    parser.add_argument('--json', action='store_true', help='print one JSON object and nothing else')
    args, changes = parser.parse_known_args(argv)
    try:
        topology.check_name(args.topology)
        config = experiment.from_dict(experiment.load_values(args.config, cli.split_changes(changes)[1]))
        target = make_target(config, args.topology)
        if args.search:
            target = search(target, lambda line: print(line, file=sys.stderr, flush=True))
        record, text = describe(target, args.step_only)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except DoesNotFitError as error:
        print(f'does not fit: {error}', file=sys.stderr)
        if args.json:
            print(json.dumps(empty_record(target, error)))
        return 1
    print(json.dumps(record) if args.json else text)
    return 0 if all(each['fits'] for each in record['programs'].values()) else 1


def make_target(config: Config, name: str) -> Target:
    """Raises UserError where config and slice don't fit together."""
    where = topology.open_slice(name)
    mesh = meshes.make_mesh(config.mesh, list(where.devices))
    run.check_fit(config, mesh)
    return Target(config, where, mesh, stages.vocabulary(config))


def programs(target: Target) -> dict[str, Callable[[], jax.stages.Lowered]]:
    """Whatever of the config's run goes to the chips, by name; each is lowered when it is asked for."""
    state, _, train_step = run.make_update(target.config, target.mesh, target.vocab)
    model, length = target.config.model, target.config.model.length
    rows = meshes.batch_sharding(target.mesh)

    def batch(size: int) -> Batch:
        kinds = jnp.int32, jnp.int32, jnp.float32
        return Batch(*(jax.ShapeDtypeStruct((size, length), kind, sharding=rows) for kind in kinds))

    def score() -> jax.stages.Lowered:
        sums = held_out.make_sums(model, target.vocab, lambda logits, batch: {})
        return sums.lower(state.params, batch(target.config.eval.batch))

    def decode() -> jax.stages.Lowered:
        """As the benchmark asks; without one each of an evaluation's sequences, half of it prompt and half answer."""
        asked, count = target.config.benchmark, target.config.eval.batch
        layout = asked.batch if asked else DecodeConfig(rows=count, share=1, chunk=1)
        sampling = asked.sampling if asked else Sampling(temperature=1.0, top_p=1.0, top_k=0)
        answer = asked.max_tokens if asked else length // 2
        return lower_decoding(model, target.vocab, target.mesh, layout, sampling, answer)

    found = {
        'train step': lambda: train_step.lower(state, batch(target.config.train.batch)),
        'evaluation': score,
        'decoding': decode,
    }
    if target.config.stage == 'nca':
        found['generator'] = lambda: lower_generator(target)
    return found


def lower_generator(target: Target) -> jax.stages.Lowered:
    """One batch of automata, from the names of its rows."""
    data, rows = target.config.data, meshes.batch_sharding(target.mesh)
    sequences = stream.make_sequences(data, target.config.model.length + 1, 'train', rows)
    names = jax.ShapeDtypeStruct((target.config.train.batch, 3), jnp.uint32, sharding=rows)
    root = jax.ShapeDtypeStruct((), jax.eval_shape(lambda: keys.key(0)).dtype, sharding=meshes.replicated(target.mesh))
    return jax.jit(lambda root, names: to_batch(sequences(root, names), data.first_loss_at), out_shardings=rows).lower(
        root, names
    )


def cost(target: Target, name: str) -> Estimate:
    """Compiles one of the programs. Raises DoesNotFitError."""
    lower = programs(target)[name]
    with meshes.use(target.mesh):
        lowered = lower()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        raise DoesNotFitError(*topology.out_of_memory(error), name) from None
    # Two programs have a loop whose length is no constant: the generator, and decoding, of which a step is counted.
    trips = updates_per_frame(target.config) if name == 'generator' else 1.0
    return estimate(compiled, target.where, target.mesh, unknown_trips=trips)


def updates_per_frame(config: Config) -> float:
    """The mean length of a rollout's loop from frame to frame."""
    frames = -(-(config.model.length + 1) // config.data.tokens_per_grid)
    return (config.data.burn_in + (frames - 1) * config.data.stride) / frames


def train_step(target: Target) -> Step:
    """The cost of the train step. Raises DoesNotFitError."""
    found = cost(target, 'train step')
    config, chips = target.config, len(target.where.devices)
    state, _, _ = run.make_update(config, target.mesh, target.vocab)
    parameters, optimizer, average = map(local_bytes, (state.params, state.opt_state, state.ema))
    model_flops = step_flops(config.model, target.vocab, config.train.batch)
    best = model_flops / (chips * target.where.chip.flops)  # seconds at the peak
    return Step(
        estimate=found,
        parameters=parameters,
        optimizer=optimizer,
        average=average,
        alias_share=found.memory.aliased / (parameters + optimizer + average),
        flops=found.reading.flops * chips,
        model_flops=model_flops,
        mfu=best / found.seconds,
        mfu_overlapped=best / found.seconds_overlapped,
        tokens_per_second=config.train.batch * config.model.length / found.seconds,
    )


def local_bytes(tree: Any) -> int:
    """Bytes of one device's shards."""
    leaves = jax.tree.leaves(tree)
    return sum(leaf.dtype.itemsize * trees.count([shard_of(leaf)]) for leaf in leaves)


def shard_of(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.sharding.shard_shape(leaf.shape), leaf.dtype)


def search(target: Target, say: Callable[[str], None]) -> Target:
    """The choice with the best estimate among those that fit; raises DoesNotFitError if none does.

    Of each remat policy it tries the most sequences a chip that fit, and half of them; then whole and cut logits.
    """
    tried: list[tuple[float, Target]] = []

    length = target.config.model.length

    def attempt(config: Config) -> bool:
        choice = dataclasses.replace(target, config=config)
        label = f'{config.model.remat:12} {choice.rows_per_chip:4} a chip, loss_chunks {config.model.loss_chunks:2}'
        try:
            found = train_step(choice)
        except (DoesNotFitError, jax.errors.JaxRuntimeError) as error:  # which may want more of other memory, too
            say(f'{label}: {str(error).splitlines()[0]}')
            return False
        say(f'{label}: {found.estimate.memory.total / GIB:6.2f} GiB, estimated MFU {found.mfu:.1%}')
        tried.append((found.mfu, choice))
        return True

    for remat in reversed(REMATS):
        for number, rows in enumerate(sizes(target)):
            fits = attempt(choose(target, rows, remat=remat))
            if fits and number + 1 < len(sizes(target)):
                attempt(choose(target, sizes(target)[number + 1], remat=remat))
            if fits:
                break
    if not tried:
        raise DoesNotFitError(None, target.where.hbm_limit)
    best = max(tried, key=lambda found: found[0])[1]
    for chunks in (1, 4, 8) if target.vocab.size > LARGE_VOCAB else (1,):
        if chunks != best.config.model.loss_chunks and length % chunks == 0:
            attempt(choose(target, best.rows_per_chip, remat=best.config.model.remat, loss_chunks=chunks))
    return max(tried, key=lambda found: found[0])[1]


def sizes(target: Target) -> list[int]:
    """Sequences a chip that divide the batch, the largest first."""
    most = target.config.train.batch // meshes.row_shards(target.mesh)
    return [rows for rows in range(most, 0, -1) if most % rows == 0]


def choose(target: Target, rows: int, **model: Any) -> Config:
    """The config with `rows` sequences a chip at a time and other fields of the model."""
    config = target.config
    accumulate = config.train.batch // meshes.row_shards(target.mesh) // rows
    return dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, accumulate=accumulate),
        model=dataclasses.replace(config.model, **model),
    )


def describe(target: Target, step_only: bool) -> tuple[dict[str, Any], str]:
    """The programs of a target, as a record and for people. Raises DoesNotFitError if the train step doesn't."""
    step, others = train_step(target), {}
    for name in [] if step_only else programs(target):
        if name == 'train step':
            continue
        try:
            others[name] = cost(target, name)
        except DoesNotFitError as error:
            others[name] = error
    record = empty_record(target, None) | {
        'fits': True,
        'hbm_bytes': step.estimate.memory.total,
        'flops': step.flops,
        'mfu_estimate': step.mfu,
        'tokens_per_second_estimate': step.tokens_per_second,
        'mfu_overlapped_estimate': step.mfu_overlapped,
        'step_seconds_estimate': step.estimate.seconds,
        'work_seconds_estimate': step.estimate.work,
        'kernel_seconds_estimate': step.estimate.kernels,
        'kernel_seconds_as_einsum_estimate': step.estimate.kernels_einsum,
        'collective_seconds_estimate': step.estimate.collectives,
        'parameter_bytes': step.parameters,
        'optimizer_bytes': step.optimizer,
        'temporary_bytes': step.estimate.memory.temporaries,
        'alias_share': step.alias_share,
        'bytes_accessed': step.estimate.reading.bytes,
        'collective_bytes': step.estimate.volumes(),
        'shares': step.estimate.parts,
        'kernel_rule': KERNEL_RULE,
        'programs': {
            name: {'fits': False, 'hbm_bytes': found.wanted, 'seconds_estimate': None}
            if isinstance(found, DoesNotFitError)
            else {'fits': True, 'hbm_bytes': found.memory.total, 'seconds_estimate': found.seconds}
            for name, found in others.items()
        },
    }
    return record, '\n'.join(report(target, step, others))


if __name__ == '__main__':
    jax.config.update(
        'jax_enable_compilation_cache', False
    )  # what is compiled for chips that aren't here can't be read back
    sys.exit(main())
