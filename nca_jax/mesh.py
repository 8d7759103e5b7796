"""Where arrays live: one device mesh `data x fsdp x tensor`, and one table from the model's logical axes to it."""

import contextlib
import dataclasses
from collections.abc import Iterator

import flax.linen as nn
import jax
import numpy as np

from nca_jax import trees
from nca_jax.errors import UserError, check

AXES = ('data', 'fsdp', 'tensor')

# Logical axis -> mesh axis. Axes that aren't split are named too, so that a new one can't slip in unseen.
RULES = (
    ('batch', ('data', 'fsdp')),
    ('vocab', 'tensor'),
    ('heads', 'tensor'),
    ('ffn', 'tensor'),
    ('embed', 'fsdp'),
    ('layers', None),
    ('head', None),
    ('length', None),
    ('residual', None),
)

LARGE_LEAF_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis. `data = -1` takes all that the other two leave; one device is the 1 x 1 x 1 case."""

    data: int
    fsdp: int
    tensor: int

    def __post_init__(self):
        check(self.data > 0 or self.data == -1, 'data', self.data, 'must be positive, or -1 for all that are left')
        check(self.fsdp > 0, 'fsdp', self.fsdp, 'must be positive')
        check(self.tensor > 0, 'tensor', self.tensor, 'must be positive')


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> jax.sharding.Mesh:
    """The mesh over `devices` (all by default). Raises FieldError where the sizes don't use every device."""
    devices = jax.devices() if devices is None else devices
    split = config.fsdp * config.tensor
    check(
        len(devices) % split == 0,
        'mesh',
        f'fsdp {config.fsdp} x tensor {config.tensor}',
        f'must divide {len(devices)} devices',
    )
    data = len(devices) // split if config.data == -1 else config.data
    check(
        data * split == len(devices),
        'mesh',
        f'{data} x {config.fsdp} x {config.tensor}',
        f'must use all {len(devices)} devices',
    )
    # Linen's logical partitioning refuses Explicit axes, which make_mesh would choose by default.
    return jax.make_mesh(
        (data, config.fsdp, config.tensor), AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3, devices=devices
    )


@contextlib.contextmanager
def use(mesh: jax.sharding.Mesh) -> Iterator[None]:
    """Traces inside it resolve the model's logical constraints on this mesh."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        yield


def batch_sharding(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
    """Rows over data and fsdp, the rest whole."""
    return jax.NamedSharding(mesh, jax.P(('data', 'fsdp')))


def replicated(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
    return jax.NamedSharding(mesh, jax.P())


def row_shards(mesh: jax.sharding.Mesh) -> int:
    """Into how many pieces a batch is split; it must divide every batch."""
    return mesh.shape['data'] * mesh.shape['fsdp']


def param_shardings(mesh: jax.sharding.Mesh, logical_axes: dict, abstract_params: dict) -> dict:
    """A NamedSharding per leaf, from the logical axis names of the model.

    Raises UserError naming the leaf where an axis doesn't divide, where two logical axes of one leaf want the same mesh
    axis, or where a leaf over 1 MiB is split by neither fsdp nor tensor though one of them is larger than 1.
    """
    rules = dict(RULES)
    shapes, specs = trees.flatten(abstract_params), trees.flatten(logical_axes)
    shardings = {}
    for path, leaf in shapes.items():
        axes = [rules[name] for name in specs[path]]
        used = [axis for axis in axes if axis is not None]
        if len(used) != len(set(used)):
            raise UserError(f'{path}: logical axes {tuple(specs[path])} share a mesh axis ({used})')
        for size, axis in zip(leaf.shape, axes, strict=True):
            if axis is not None and size % mesh.shape[axis]:
                raise UserError(
                    f'{path}: axis of size {size} is not divisible by mesh axis {axis} = {mesh.shape[axis]}'
                )
        pieces = int(np.prod([mesh.shape[axis] for axis in used]))
        whole = leaf.size * leaf.dtype.itemsize
        if mesh.shape['fsdp'] * mesh.shape['tensor'] > 1 and pieces == 1 and whole > LARGE_LEAF_BYTES:
            raise UserError(
                f'{path}: {whole} bytes are split by neither fsdp nor tensor; add a rule to nca_jax/mesh.py'
            )
        shardings[path] = jax.NamedSharding(mesh, jax.P(*axes))
    return trees.map_with_path(lambda path, _: shardings[path], abstract_params)


def state_shardings(mesh: jax.sharding.Mesh, abstract_state, params_shardings: dict):
    """Shardings of a whole train state: moments follow their parameter (same path ending), scalars are replicated."""
    by_path = trees.flatten(params_shardings)

    def sharding_of(path: str, leaf) -> jax.sharding.NamedSharding:
        parameter = next((name for name in by_path if path == name or path.endswith('/' + name)), None)
        return replicated(mesh) if parameter is None or leaf.ndim == 0 else by_path[parameter]

    return trees.map_with_path(sharding_of, abstract_state)
