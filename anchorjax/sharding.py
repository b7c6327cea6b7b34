"""The device mesh, what lies along its axes, and how arrays get there.

Axes: `data` and `fsdp` split the rows of a batch, `context` the tokens of a row, `tensor` the heads, the
feed-forward width and the vocabulary. Weights are cut along `fsdp` and `tensor` where they rest. Those of the blocks
are gathered over `fsdp` where they are used. Embedding and output matrix are not: tokens travel to their parts.
The mesh is explicit: an array's sharding is part of its type, and a step whose shardings do not fit fails when it is
traced.
"""

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from anchorjax.types import Batch

AXES = ("data", "fsdp", "context", "tensor")
ROWS = ("data", "fsdp")  # the axes over which the rows of a batch are split
TOKENS = (*ROWS, "context")  # the axes over which tokens are split
HOST = "pinned_host"  # the memory kind of arrays that rest in the host's memory

# The one table of PartitionSpecs: tests/test_imports.py asserts that no other module makes one.

# Inputs and activations.
BATCH = PartitionSpec(ROWS, "context")  # [B, T]: tokens, positions, segment ids, targets
ACTIVATIONS = PartitionSpec(ROWS, "context", None)  # [B, T, D]: the residual stream
HEADS = PartitionSpec(ROWS, "context", "tensor", None)  # [B, T, N, H]: queries, keys, values, outputs
LSE = PartitionSpec(ROWS, "context", "tensor")  # [B, T, N]: log-sum-exp of attention
PER_DEVICE = PartitionSpec(TOKENS)  # [devices along data, fsdp and context, ...]: each device's lists of tiles
HIDDEN = PartitionSpec(ROWS, "context", "tensor")  # [B, T, F]: inside a feed-forward layer
MICRO_BATCHES = PartitionSpec(ROWS, None, "context")  # [B / parts, parts, T]: each device cuts its own rows
WHOLE_ROWS = PartitionSpec(ROWS)  # [B, ...]: whole rows, for what goes along a row and is no attention
EACH_DEVICE = PartitionSpec(AXES)  # [devices]: one number for each
REPLICATED = PartitionSpec()  # the same on each device: what the host reads

# Weights where they rest: D along fsdp, to which `at_rest` adds context where the configuration says so; heads and the
# feed-forward width along tensor. By their axes.
WEIGHTS = {
    "D->NH": PartitionSpec("fsdp", "tensor", None),
    "D->KH": PartitionSpec("fsdp", "tensor", None),
    "NH->D": PartitionSpec("tensor", None, "fsdp"),
    "D->F": PartitionSpec("fsdp", "tensor"),
    "F->D": PartitionSpec("tensor", "fsdp"),
}
HEAD_SCALES = PartitionSpec("tensor")  # [N]: a number for each query head
OUTPUTS = {"NH": HEADS, "KH": HEADS, "F": HIDDEN, "D": ACTIVATIONS}  # how the product with a weight lies

# Both ends of the decoder are cut along D by all devices that share weights, so that any number of words will do.
# `tensor` is the outer axis: the columns of the devices along fsdp are then neighbours, and together those of `tensor`.
VOCABULARY = ("tensor", "fsdp")
EMBEDDING = PartitionSpec(None, VOCABULARY)  # [V, D]
EMBEDDED = PartitionSpec(ROWS, "context", "tensor")  # [B, T, D]: tokens as they come back from their look-up
UNEMBEDDING = PartitionSpec(VOCABULARY, None)  # [D, V]

# Decoding: a device writes to any column of its rows of the cache.
DECODE_LAST = PartitionSpec(None, VOCABULARY)  # [B, D]: sums of logits travel, not the output matrix
CACHE = PartitionSpec(ROWS, None, "tensor", None)  # [B, S, K, H]

# Comparing rows with one another, for experiments: a device has its heads of all rows.
ALL_ROWS = PartitionSpec(None, None, "tensor", None)  # [B, T, N, H]


def at_rest(pspec: PartitionSpec, shard_weights_over: str) -> PartitionSpec:
    """A weight's spec of those above, cut along what `mesh.shard_weights_over` says: fsdp, or fsdp and context."""
    if shard_weights_over == "fsdp":
        return pspec
    return PartitionSpec(*((*names, "context") if "fsdp" in (names := axes_of(axis)) else axis for axis in pspec))


def axes_of(axis: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh's axes along which one axis of an array is cut, the outermost first."""
    return () if axis is None else (axis,) if isinstance(axis, str) else tuple(axis)


def used(pspec: PartitionSpec) -> PartitionSpec:
    """Where a weight is used: nothing is cut along fsdp, nor along context."""
    return PartitionSpec(*(None if "fsdp" in axes_of(axis) else axis for axis in pspec))


def gathering(pspec: PartitionSpec) -> list[PartitionSpec]:
    """The specs of a weight on its way to where it is used: along one axis of the mesh after the other."""
    along_fsdp = PartitionSpec(*("fsdp" if "fsdp" in axes_of(axis) else axis for axis in pspec))
    return [along_fsdp, used(pspec)]


def adapter(pspec: PartitionSpec, num_inputs: int) -> tuple[PartitionSpec, PartitionSpec]:
    """Both matrices of an adapter, [inputs..., r] and [r, outputs...]: cut as the weight, and never along r."""
    return PartitionSpec(*pspec[:num_inputs], None), PartitionSpec(None, *pspec[num_inputs:])


def bias(pspec: PartitionSpec, num_inputs: int) -> PartitionSpec:
    """A bias [outputs...]: cut as the weight's outputs."""
    return PartitionSpec(*used(pspec)[num_inputs:])


def one_layer(pspec: PartitionSpec) -> PartitionSpec:
    """One layer's weight, from the spec of the stack [L, ...]."""
    return PartitionSpec(*pspec[1:])


def logits(pspec: PartitionSpec, num_words: int) -> tuple[PartitionSpec, PartitionSpec]:
    """The output matrix [D, V] and logits [..., V], from the spec of the hidden states [..., D].

    Words are cut along `tensor` where D is not and `tensor` divides their number.
    """
    size = jax.sharding.get_abstract_mesh().shape["tensor"]
    words = "tensor" if pspec[-1] is None and num_words % size == 0 else None
    return PartitionSpec(pspec[-1], words), PartitionSpec(*pspec[:-1], words)


def with_whole_axis(pspec: PartitionSpec) -> PartitionSpec:
    """An array with one more axis at the end, which is not cut."""
    return PartitionSpec(*pspec, None)


def whole_tokens(pspec: PartitionSpec) -> PartitionSpec:
    """[B, T, ...] with all rows and tokens on each device."""
    return PartitionSpec(None, None, *pspec[2:])


def joined_tokens(pspec: PartitionSpec) -> PartitionSpec:
    """[B * T, ...] of arrays that lie as `whole_tokens`."""
    return PartitionSpec(None, *pspec[2:])


def heads_last(ndim: int) -> PartitionSpec:
    """An array of `ndim` axes whose last is heads, the same for all rows."""
    return PartitionSpec(*[None] * (ndim - 1), "tensor")


def count_slices(devices: Sequence[jax.Device]) -> int:
    """Slices of TPUs that the devices are in; only the hosts' network joins slices. 1 for other devices.

    GPUs need no count: their ids number one node after the other, so that the inner axes stay within a node.
    """
    return len({getattr(device, "slice_index", 0) for device in devices if device.platform == "tpu"} or {0})


def make_mesh(shape: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """An explicit mesh over the devices (default: the first of all); `shape` gives the size of each of `AXES`.

    The axes of `AXES` ask ever more of the links between devices, and the last ones are placed first. What goes along
    `tensor` (activations, twice a layer) and along `context` (keys and values) is waited for, and what goes along
    `fsdp` (weights) can be fetched a layer ahead. On TPUs each axis gets whole rings of the torus where one fits, and
    parts of rings elsewhere. On GPUs the last axes lie within a node. Slices split `data`, and `fsdp` by what is left.
    In each layer of each micro-batch the sum of a device's part of the gradients crosses the network along `data`;
    along `fsdp` whole weights would cross twice, and their gradients once.

    Raises:
      ValueError: the sizes do not multiply to the number of devices, or the slices do not divide `data` x `fsdp`.
    """
    sizes = [shape[axis] for axis in AXES]
    devices = jax.devices()[: math.prod(sizes)] if devices is None else devices
    slices = count_slices(devices)
    along_data = math.gcd(slices, shape["data"])
    outer = [along_data, slices // along_data, 1, 1]
    if shape["fsdp"] % outer[1]:
        raise ValueError(f"{slices} slices do not divide the axes data and fsdp of {dict(shape)}")
    if slices == 1:
        placed = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    else:
        inner = [size // parts for size, parts in zip(sizes, outer, strict=True)]
        placed = mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)
    return Mesh(placed, AXES, axis_types=(AxisType.Explicit,) * len(AXES))


def rows_here(mesh: Mesh, num_rows: int) -> list[int]:
    """The rows of a batch of `num_rows` of which this process's devices hold any token, ascending."""
    placed = NamedSharding(mesh, WHOLE_ROWS).addressable_devices_indices_map((num_rows,))
    return sorted({row for (rows,) in placed.values() for row in range(num_rows)[rows]})


def shard_batch(batch: Batch, mesh: Mesh, num_rows: int | None = None) -> Batch:
    """Puts a batch on the mesh: each device gets its rows, and its tokens of them.

    Args:
      batch: numpy arrays [len(rows_here), T]: this process's rows whole, in the order of `rows_here`.
      num_rows: of the batch that all processes have together; None: one process has them all.

    Returns:
      Arrays [num_rows, T] of all processes. `jax.make_array_from_process_local_data` would take two processes that
      share rows for two that have rows of their own, and make [2 num_rows, T / 2] of them without a word.

    Raises:
      ValueError: the batch has more or fewer rows than this process holds.
    """
    given = len(batch.tokens_BT)
    num_rows = given if num_rows is None else num_rows
    here = rows_here(mesh, num_rows)
    if given != len(here):
        raise ValueError(f"a batch has {given} rows; this process holds {len(here)} of {num_rows}")
    sharding, place = NamedSharding(mesh, BATCH), {row: place for place, row in enumerate(here)}

    def put(x_BT: np.ndarray) -> jax.Array:
        def of_device(index: tuple[slice, slice]) -> np.ndarray:
            rows = [place[row] for row in range(num_rows)[index[0]]]
            return x_BT[rows[0] : rows[-1] + 1, index[1]]

        return jax.make_array_from_callback((num_rows, *x_BT.shape[1:]), sharding, of_device)

    return jax.tree.map(lambda x: put(np.asarray(x)), batch)


def put(x: np.ndarray, pspec: PartitionSpec) -> jax.Array:
    """Puts an array that each process has whole on the current mesh. `jax.device_put` would first compare them all."""
    target = NamedSharding(jax.sharding.get_mesh(), pspec)
    return jax.make_array_from_callback(x.shape, target, lambda index: x[index])


def abstract(make, *args):
    """Shapes, dtypes, shardings and memories of `make(*args)` on the current mesh, without computing it."""
    mesh, program = jax.sharding.get_mesh(), jax.jit(make).trace(*args).jaxpr
    leaves, structure = jax.tree.flatten(jax.eval_shape(make, *args))

    def concrete(leaf, made):
        spec = getattr(leaf.sharding, "spec", PartitionSpec())
        kind = HOST if made.memory_space == jax.memory.Space.Host else None
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec, memory_kind=kind))

    return structure.unflatten(map(concrete, leaves, program.out_avals))


def zeros(make, *args):
    """Zeros where `make(*args)` would put its values: memory for them, and for nothing else."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), abstract(make, *args))
