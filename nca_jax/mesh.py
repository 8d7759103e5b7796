"""Where arrays live: one device mesh `data x fsdp x tensor`, and one table from the model's logical axes to it."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator

import flax.linen as nn
import jax

from nca_jax import trees
from nca_jax.batch import VOCAB_MULTIPLE
from nca_jax.errors import UserError, check

# Logical axis -> mesh axis. Axes that stay whole are listed too, so that param_shardings refuses an unknown name.
RULES = (
    ('batch', ('data', 'fsdp')),
    ('vocab', 'tensor'),
    ('heads', 'tensor'),
    ('ffn', 'tensor'),
    ('embed', 'fsdp'),
    ('gathered', None),
    ('layers', None),
    ('head', None),
    ('length', None),
    ('residual', None),
)

LARGE_LEAF_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis."""

    # -1 takes all devices that the other two leave.
    data: int
    fsdp: int
    tensor: int
    # ZeRO-1: splits the optimizer's state over `data` too. Each device updates its piece; then all are gathered.
    shard_optimizer: bool = False

    def __post_init__(self):
        check(self.data > 0 or self.data == -1, 'data', self.data, 'must be positive, or -1 for all that are left')
        check(self.fsdp > 0, 'fsdp', self.fsdp, 'must be positive')
        allowed = f'must divide {VOCAB_MULTIPLE}, since vocabularies are padded to a multiple of it'
        check(self.tensor > 0 and VOCAB_MULTIPLE % self.tensor == 0, 'tensor', self.tensor, allowed)


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> jax.sharding.Mesh:
    """The mesh over `devices` (all by default). Raises FieldError unless the sizes use every device."""
    devices = jax.devices() if devices is None else devices
    split = config.fsdp * config.tensor
    data = len(devices) // split if config.data == -1 else config.data
    sizes = f'{config.data} x {config.fsdp} x {config.tensor}'
    check(data * split == len(devices), 'config.mesh', sizes, f'data x fsdp x tensor must be {len(devices)} devices')
    # Linen's logical partitioning refuses Explicit axes, which make_mesh would choose by default.
    shape, axes, kinds = (
        (data, config.fsdp, config.tensor),
        ('data', 'fsdp', 'tensor'),
        (jax.sharding.AxisType.Auto,) * 3,
    )
    return jax.make_mesh(shape, axes, axis_types=kinds, devices=devices)


@contextlib.contextmanager
def use(mesh: jax.sharding.Mesh) -> Iterator[None]:
    """Within it, the model's logical axes resolve on this mesh."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        yield


@contextlib.contextmanager
def within_replicas() -> Iterator[None]:
    """Within it, rows are split over fsdp alone, since a vmap with spmd_axis_name='data' splits them over data."""
    with nn.logical_axis_rules([(name, 'fsdp' if name == 'batch' else axis) for name, axis in RULES]):
        yield


def batch_sharding(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
    """Rows over data and fsdp, the rest whole."""
    return jax.NamedSharding(mesh, jax.P(('data', 'fsdp')))


def replicated(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
    return jax.NamedSharding(mesh, jax.P())


def row_shards(mesh: jax.sharding.Mesh) -> int:
    """The number of pieces of a batch, which must divide every batch."""
    return mesh.shape['data'] * mesh.shape['fsdp']


def param_shardings(mesh: jax.sharding.Mesh, logical_axes: dict, abstract_params: dict) -> dict:
    """A NamedSharding per leaf, from the logical axis names of the model.

    Raises UserError naming a leaf whose axes don't divide, or a leaf over 1 MiB that neither fsdp nor tensor splits,
    though one of them is larger than 1. Two logical axes of one leaf on the same mesh axis raise in JAX.
    """
    rules, names = dict(RULES), trees.flatten(logical_axes)

    def sharding_of(path: str, leaf) -> jax.sharding.NamedSharding:
        axes = [rules[name] for name in names[path]]
        for size, axis in zip(leaf.shape, axes, strict=True):
            if axis is not None and size % (parts := mesh.shape[axis]):
                raise UserError(f'{path}: axis of size {size} is not divisible by mesh axis {axis} = {parts}')
        pieces = math.prod(mesh.shape[axis] for axis in axes if axis is not None)
        size = leaf.size * leaf.dtype.itemsize
        if mesh.shape['fsdp'] * mesh.shape['tensor'] > 1 and pieces == 1 and size > LARGE_LEAF_BYTES:
            raise UserError(f'{path}: neither fsdp nor tensor splits its {size} bytes; add a rule to nca_jax/mesh.py')
        return jax.NamedSharding(mesh, jax.P(*axes))

    return trees.map_with_path(sharding_of, abstract_params)


def optimizer_shardings(mesh: jax.sharding.Mesh, abstract_params: dict, params_shardings: dict) -> dict:
    """Shardings of the moments: as their parameters, and over `data` too, along the first axis that divides."""

    def also_over_data(path: str, leaf) -> jax.sharding.NamedSharding:
        # A spec may be shorter than the shape, and holds None, a name or several for each axis.
        spec = (*by_path[path].spec, *(None,) * leaf.ndim)[: leaf.ndim]
        axes = [(axis,) if isinstance(axis, str) else axis or () for axis in spec]
        for i, size in enumerate(leaf.shape):
            more = (*axes[i], 'data')
            if size % math.prod(mesh.shape[axis] for axis in more) == 0:
                return jax.NamedSharding(mesh, jax.P(*axes[:i], more, *axes[i + 1 :]))
        return by_path[path]

    by_path = trees.flatten(params_shardings)
    return trees.map_with_path(also_over_data, abstract_params)


def state_shardings(mesh: jax.sharding.Mesh, abstract_state, params_shardings: dict, moments_shardings: dict):
    """Shardings of a whole train state: moments follow their parameter (same path ending), scalars are replicated."""
    by_path = {'params': trees.flatten(params_shardings), 'opt_state': trees.flatten(moments_shardings)}

    # By the ending of the path, because optax keeps moments in trees of its own around the tree of parameters. No
    # parameter's path ends in another's.
    def sharding_of(path: str, leaf) -> jax.sharding.NamedSharding:
        known = by_path['opt_state' if path.startswith('opt_state/') else 'params']
        parameter = next((name for name in known if path == name or path.endswith('/' + name)), None)
        return replicated(mesh) if parameter is None or leaf.ndim == 0 else known[parameter]

    return trees.map_with_path(sharding_of, abstract_state)
