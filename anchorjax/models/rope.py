"""Rotary position embedding with phases computed in float64 on the host.

A phase is position * theta^(-2i/H). In fp32 it is wrong by up to 4.6e-3 in the cosine at 64K tokens and
theta = 5e6, which is more than bfloat16 storage costs; so phases are never formed on the device. A table of
all positions would take 512 MB at 1M tokens and H = 128. Instead the position is split, p = FINE * a + b,
and two small tables of exact angles are joined by the addition theorem:

    cos(x + y) = cos x cos y - sin x sin y        sin(x + y) = sin x cos y + cos x sin y

which costs one more rounding of fp32 (measured against float64: below 2e-7 up to 1M tokens).

Source: RoFormer (arXiv 2104.09864), Eq. 34, in the half-split layout of the Llama checkpoints.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

FINE = 1024  # positions of the fine table; both tables have about 1K rows at 1M tokens


def tables(positions_BT: jax.Array, max_position: int, head_width: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of every token's phases.

    Args:
      positions_BT: int32, in [0, max_position).
      max_position: bound of the positions (static).
      head_width: H; must be even.
      theta: the base of the frequencies.

    Returns:
      Two fp32 arrays [B, T, H / 2].
    """
    fine, coarse = np.arange(FINE), FINE * np.arange(-(-max_position // FINE))
    cos_fine, sin_fine = (_rows(x, positions_BT % FINE) for x in _exact(fine, head_width, theta))
    cos_coarse, sin_coarse = (_rows(x, positions_BT // FINE) for x in _exact(coarse, head_width, theta))
    return cos_coarse * cos_fine - sin_coarse * sin_fine, sin_coarse * cos_fine + cos_coarse * sin_fine


def _exact(positions: np.ndarray, head_width: int, theta: float) -> tuple[jax.Array, jax.Array]:
    frequencies = np.float64(theta) ** (-np.arange(0, head_width, 2, dtype=np.float64) / head_width)
    phases = positions.astype(np.float64)[:, None] * frequencies
    return jnp.asarray(np.cos(phases), jnp.float32), jnp.asarray(np.sin(phases), jnp.float32)


def _rows(table: jax.Array, index_BT: jax.Array) -> jax.Array:
    spec = jax.typeof(index_BT).sharding.spec
    return table.at[index_BT].get(out_sharding=PartitionSpec(*spec, None))


def rotate(x_BTNH: jax.Array, cos_BTh: jax.Array, sin_BTh: jax.Array, dtype: str) -> jax.Array:
    """Turns each pair (i, i + H/2) by its phase; computed in `dtype`, returned in x's dtype.

    float32 is exact enough at any length. bfloat16 rounds tables and products to 8 bits: the usual fault.
    """
    x1, x2 = jnp.split(x_BTNH.astype(dtype), 2, axis=-1)
    cos, sin = (t[:, :, None].astype(dtype) for t in (cos_BTh, sin_BTh))
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).astype(x_BTNH.dtype)
