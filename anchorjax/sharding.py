"""The device mesh, what lies along its axes, and how arrays get there.

Axes: `data` and `fsdp` split the rows of a batch, `context` the tokens of a row, `tensor` the heads, the
feed-forward width and the vocabulary. Weights are cut along `fsdp` and `tensor` where they rest and gathered
over `fsdp` where they are used. The mesh is explicit: an array's sharding is part of its type, and a step
whose shardings do not fit fails when it is traced.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from anchorjax.types import Batch

AXES = ("data", "fsdp", "context", "tensor")
ROWS = ("data", "fsdp")  # the axes over which the rows of a batch are split
TOKENS = (*ROWS, "context")  # the axes over which tokens are split
BATCH = PartitionSpec(ROWS, "context")  # [B, T]
ACTIVATIONS = PartitionSpec(ROWS, "context", None)  # [B, T, D]
HEADS = PartitionSpec(ROWS, "context", "tensor", None)  # [B, T, N, H]


def make_mesh(shape: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """An explicit mesh over the devices (default: all); `shape` gives the size of each of `AXES`."""
    sizes = tuple(shape[axis] for axis in AXES)
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Explicit,) * len(AXES), devices=devices)


def shard_batch(batch: Batch, mesh: Mesh) -> Batch:
    """This process's rows of a batch (numpy, [B / processes, T]) -> global arrays [B, T] on the mesh."""
    sharding = NamedSharding(mesh, BATCH)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def abstract(make, *args):
    """Shapes, dtypes and shardings of `make(*args)` on the current mesh, without computing it."""
    mesh = jax.sharding.get_mesh()

    def concrete(leaf):
        spec = getattr(leaf.sharding, "spec", PartitionSpec())
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(concrete, jax.eval_shape(make, *args))


def zeros(make, *args):
    """Zeros where `make(*args)` would put its values: memory for them, and for nothing else."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), abstract(make, *args))
