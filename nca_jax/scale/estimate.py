"""From costs to an estimate of time. Nothing here was ever measured: numbers of this module are a compiler's opinion.

A step takes the time of its own work and of its collectives, one after the other, as if nothing were hidden:

    work         cycles / clock + bytes of what has no cycles / HBM's rate + attention kernels by KERNEL_RULE
    collectives  bytes that each chip receives / one direction of one link per axis of the torus that a group spans
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from nca_jax.model.attention import causal_attention
from nca_jax.scale import hlo
from nca_jax.scale.collectives import Collective
from nca_jax.scale.topology import Slice, open_slice

EFFICIENCY = 0.25  # of the peak, at which an attention kernel is taken to work; masked products count as work
KERNEL_RULE = f'attention kernels, which have no cycles, are charged their FLOPs at {EFFICIENCY:.0%} of the peak'


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each chip. aliased: of arguments, what is updated in place (donated).

    total: of all that is alive at once, which is what the compiler compares with the chip's limit when it refuses a
    program. The space that it sets aside for temporaries (`temp_size_in_bytes`) is larger, at times beyond the limit.
    """

    arguments: float
    results: float
    aliased: float
    total: float

    @property
    def temporaries(self) -> float:
        return self.total - self.arguments - self.results + self.aliased


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of one program on one slice.

    work holds the kernels by KERNEL_RULE, `kernels` of its seconds; kernels_einsum is what they'd take if they were no
    faster than the einsum backend at their shape, a backward kernel as both its passes. collectives are all, `beside`
    those that the compiler runs beside other work. parts: shares of the work.
    """

    reading: hlo.Reading
    memory: Memory
    work: float
    kernels: float
    kernels_einsum: float
    collectives: float
    beside: float
    parts: dict[str, float]

    @property
    def seconds(self) -> float:
        """Nothing hidden."""
        return self.work + self.collectives

    @property
    def seconds_overlapped(self) -> float:
        """With the collectives hidden that the compiler runs beside other work."""
        return self.work + self.collectives - self.beside

    def volumes(self) -> dict[str, float]:
        """Bytes that each chip receives, by kind of collective."""
        kinds = sorted({each.kind for each in self.reading.collectives})
        return {k: sum(c.bytes * c.times for c in self.reading.collectives if c.kind == k) for k in kinds}


def estimate(
    compiled: jax.stages.Compiled, where: Slice, mesh: jax.sharding.Mesh, unknown_trips: float = 1.0
) -> Estimate:
    """What `compiled` costs on the slice that `mesh` arranges. Kernels make it compile their einsum versions first."""
    reading = hlo.read(compiled.as_text(), unknown_trips)
    kernels = sum(kernel.times * kernel.flops for kernel in reading.kernels) / (EFFICIENCY * where.chip.flops)
    as_einsum = [kernel.times * kernel_cycles(where.name, kernel.direction, kernel.shape) for kernel in reading.kernels]
    uncounted = reading.uncounted / where.memory
    work = reading.cycles / where.clock + uncounted + kernels
    parts = {part: cycles / where.clock for part, cycles in reading.cycles_by_part.items()}
    parts['attention'] = parts.get('attention', 0.0) + kernels
    parts['rest'] = parts.get('rest', 0.0) + uncounted
    seconds = [(each.times * collective_seconds(each, where, mesh), each.beside) for each in reading.collectives]
    return Estimate(
        reading=reading,
        memory=memory(compiled),
        work=work,
        kernels=kernels,
        kernels_einsum=sum(as_einsum) / where.clock,
        collectives=sum(duration for duration, _ in seconds),
        beside=sum(duration for duration, beside in seconds if beside),
        parts={part: duration / work for part, duration in sorted(parts.items(), key=lambda item: -item[1])},
    )


def memory(compiled: jax.stages.Compiled) -> Memory:
    need = compiled.memory_analysis()
    results, aliased = need.output_size_in_bytes, need.alias_size_in_bytes
    return Memory(need.argument_size_in_bytes, results, aliased, need.peak_memory_in_bytes)


def collective_seconds(one: Collective, where: Slice, mesh: jax.sharding.Mesh) -> float:
    """Its bytes over one direction of one link for each axis along which its members differ, not around the torus."""
    devices = mesh.devices.flat
    places = [devices[member].coords for member in one.members]
    spanned = sum(len(set(along)) > 1 for along in zip(*places, strict=True))
    return one.bytes / (where.chip.link * max(1, spanned))


@functools.cache
def kernel_cycles(slice_name: str, direction: str, shape: tuple[int, int, int, int]) -> float:
    """Cycles of einsum attention, (B, H, L, Dh) in bfloat16: its forward pass, or, of 'backward', both."""
    where = open_slice(slice_name)
    part = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=where.replicated)

    def forward(q, k, v):
        return causal_attention(q, k, v, lambda weights, start: weights)

    def both(q, k, v, cotangent):
        return jax.vjp(forward, q, k, v)[1](cotangent)

    program, arguments = {'forward': (forward, 3), 'backward': (both, 4)}[direction]
    return hlo.read(jax.jit(program).lower(*[part] * arguments).compile().as_text()).cycles
