"""What `nca_jax.scale.aot` says of a run on a slice, for people and as a record."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax

from nca_jax import mesh as meshes
from nca_jax.batch import Vocab
from nca_jax.config import Config
from nca_jax.model.config import step_flops
from nca_jax.scale.estimate import KERNEL_RULE, Estimate
from nca_jax.scale.topology import Slice

GIB = 2**30


class DoesNotFitError(Exception):
    """The compiler refused: `wanted` bytes on each chip (None where it doesn't say), `limit` it may use."""

    def __init__(self, wanted: float | None, limit: float, what: str = 'train step'):
        super().__init__(wanted, limit, what)
        self.wanted, self.limit, self.what = wanted, limit, what

    def __str__(self) -> str:
        wants = 'more' if self.wanted is None else f'{self.wanted / GIB:.2f} GiB'
        allowed = f'{self.limit / GIB:.2f} GiB of HBM that a program may use on each chip'
        return f'the {self.what} wants {wants} of the {allowed}'


@dataclasses.dataclass(frozen=True)
class Target:
    """A config on a slice: all that its programs are lowered from."""

    config: Config
    where: Slice
    mesh: jax.sharding.Mesh
    vocab: Vocab

    @property
    def rows_per_chip(self) -> int:
        """Sequences that each shard of the batch holds in one piece of the accumulation."""
        return self.config.train.batch // self.config.train.accumulate // meshes.row_shards(self.mesh)


@dataclasses.dataclass(frozen=True)
class Step:
    """What the train step costs: bytes of one chip, FLOPs of the whole slice; alias_share: of the state, donated."""

    estimate: Estimate
    parameters: int
    optimizer: int
    average: int
    alias_share: float
    flops: float
    model_flops: float
    mfu: float
    mfu_overlapped: float
    tokens_per_second: float


def empty_record(target: Target, error: DoesNotFitError | None) -> dict[str, Any]:
    """What is known without compiling."""
    config = target.config
    return {
        'name': config.name,
        'topology': target.where.name,
        'mesh': dict(target.mesh.shape),
        'batch': config.train.batch,
        'accumulate': config.train.accumulate,
        'sequences_per_chip': target.rows_per_chip,
        'remat': config.model.remat,
        'unroll': config.model.unroll,
        'attention': config.model.attention,
        'loss_chunks': config.model.loss_chunks,
        'dropout': config.model.dropout,
        'fits': False,
        'hbm_bytes': error and error.wanted,
        'hbm_limit': target.where.hbm_limit,
        'flops': None,
        'model_flops': step_flops(config.model, target.vocab, config.train.batch),
        'mfu_estimate': None,
        'tokens_per_second_estimate': None,
    }


def report(target: Target, step: Step, others: dict[str, Estimate | DoesNotFitError]) -> Iterator[str]:
    """The lines that people read."""
    config, found, where = target.config, step.estimate, target.where
    shape = ' x '.join(f'{axis} {size}' for axis, size in target.mesh.shape.items())
    yield f'{config.name} on {where.name}: {len(where.devices)} chips as {shape}'
    yield (
        f'{config.train.batch} sequences a step in {config.train.accumulate} pieces, {target.rows_per_chip} a shard at '
        f'a time; remat {config.model.remat}, attention {config.model.attention}, unroll {config.model.unroll}, '
        f'loss_chunks {config.model.loss_chunks}, dropout {config.model.dropout:g}'
    )
    yield ''
    yield 'As compiled, of the train step on each chip'
    state = step.parameters + step.optimizer + step.average
    rest = found.memory.total - state - found.memory.temporaries
    for name, size in (
        ('parameters', step.parameters),
        ('optimizer', step.optimizer),
        ('average of weights', step.average),
        ('temporaries', found.memory.temporaries),
        ('batch and the rest', rest),
    ):
        yield f'  {name:22}{size / GIB:10.2f} GiB'
    yield f'  {"all":22}{found.memory.total / GIB:10.2f} GiB of {where.hbm_limit / GIB:.2f} GiB that a program may use'
    yield f'  {"updated in place":22}{step.alias_share:10.1%} of the state, padding of its tiles included'
    ratio = f"{step.flops / step.model_flops:.2f} x the model's own {step.model_flops:.3g}"
    yield f'  {"FLOPs, all chips":22}{step.flops:10.3g} ({ratio})'
    yield f'  {"bytes from and to HBM":22}{found.reading.bytes / GIB:10.1f} GiB'
    for kind, size in found.volumes().items():
        yield f'  {kind:22}{size / GIB:10.2f} GiB received'
    yield ''
    yield "Estimated from the compiler's cycles; nothing was measured"
    yield f'  {"work":22}{found.work:10.3f} s ({shares(found)})'
    yield f'  {"collectives":22}{found.collectives:10.3f} s (of which {found.beside:.3f} s run beside work)'
    rate = f'MFU {step.mfu:.1%}, {step.tokens_per_second:,.0f} tokens/s'
    yield f'  {"step, nothing hidden":22}{found.seconds:10.3f} s, {rate}'
    yield f'  {"with these hidden":22}{found.seconds_overlapped:10.3f} s, MFU {step.mfu_overlapped:.1%}'
    if found.kernels:
        yield f'  {KERNEL_RULE}: {found.kernels:.3f} s;'
        yield f'  if they were no faster than the einsum backend at their shape: {found.kernels_einsum:.3f} s'
    yield '  MFU counts causal attention half and remat not at all'
    for name, other in others.items():
        if isinstance(other, DoesNotFitError):
            yield f'  does not fit: {other}'
        else:
            yield f'  {name:22}{other.seconds:10.3f} s, {other.memory.total / GIB:.2f} GiB on each chip'


def shares(found: Estimate) -> str:
    return ', '.join(f'{part} {share:.0%}' for part, share in found.parts.items() if share >= 0.005)
