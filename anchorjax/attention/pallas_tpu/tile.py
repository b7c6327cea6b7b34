"""What is a TPU's own in both kernels: registers, memory, and the call."""

import dataclasses

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from anchorjax.attention import kernels
from anchorjax.attention.pallas_tpu import LANES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Static(kernels.Static):
    """What a TPU kernel is compiled for."""

    q_tiles_per_row: int


# The largest tiles (1024 x 1024) need about 30 MB. The rest keeps XLA from holding a middling row's arrays in VMEM
# too, so that memory in HBM grows evenly with the row.
_VMEM_LIMIT = 100 * 2**20


def run(kernel, arguments, *, grid_spec, **kwargs):
    """Calls a kernel. Heads are independent, so that a chip's two cores may share them."""
    semantics = ("parallel",) + ("arbitrary",) * (len(grid_spec.grid) - 1)
    params = pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=_VMEM_LIMIT)
    return pl.pallas_call(kernel, grid_spec=grid_spec, compiler_params=params, **kwargs)(*arguments)


def column(row_1t):
    """A row of numbers along lanes as a column, repeated over 128 lanes: [1, t] -> [t, 128]."""
    return jnp.broadcast_to(row_1t, (LANES, row_1t.shape[1])).T


def lanes(x_t128, width):
    """[t, 128] of equal lanes -> [t, width]."""
    if width <= LANES:
        return x_t128[:, :width]
    repeated = jnp.tile(x_t128, (1, -(-width // LANES)))
    return repeated[:, :width]
