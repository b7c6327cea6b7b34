"""Rotary position embedding with phases computed in float64 on the host.

A phase is position * theta^(-2i/H). In fp32 it is wrong by up to 4.6e-3 in the cosine at 64K tokens and
theta = 5e6, which is more than bfloat16 storage costs; so phases are never formed on the device. A table of
all positions would take 512 MB at 1M tokens and H = 128. Instead the position is split, p = FINE * a + b,
and two small tables of exact angles are joined by the addition theorem:

    cos(x + y) = cos x cos y - sin x sin y        sin(x + y) = sin x cos y + cos x sin y

which costs one more rounding of fp32 (measured against float64: below 2e-7 up to 1M tokens).

The base formula is RoFormer's (arXiv 2104.09864), Eq. 34, in the half-split layout of the Llama checkpoints.
A checkpoint can be run on longer rows than it was trained on if its pairs turn more slowly. `SCALINGS` holds
the ways to slow them, each as it is in Hugging Face's `modeling_rope_utils`, so that checkpoints keep their
meaning:

    linear     all pairs alike
    dynamic    slow pairs more than fast ones, by how long the rows are
    yarn       pairs that turn often within the original length stay, the others are linear
    llama3     the same with another ramp
    longrope   each pair by a factor found by search

In names: H head width, h = H / 2 pairs.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from anchorjax import sharding
from anchorjax.config import RopeConfig

FINE = 1024  # positions of the fine table; both tables have about 1K rows at 1M tokens


def frequencies(config: RopeConfig, head_dim: int, length: int, local: bool = False) -> tuple[np.ndarray, float]:
    """How fast each pair turns, and what the attention is multiplied by.

    Args:
      config: the scaling and its parameters.
      head_dim: H; must be even.
      length: tokens of a row (static). Dynamic and longrope depend on it.
      local: for layers with a window. If `local_theta` is set they have that base and no scaling, since
        within a window no distance is new to a checkpoint.

    Returns:
      float64 radians per position [h], and the factor of cosines and sines (of logits: its square).
    """
    if local and config.local_theta:
        return _unscaled(config.local_theta, head_dim), 1.0
    frequency_h, factor = SCALINGS[config.scaling](_unscaled(config.theta, head_dim), config, length)
    return frequency_h, config.attention_factor or factor  # RopeConfig lets only yarn and longrope have one


def _unscaled(theta: float, head_dim: int) -> np.ndarray:
    return np.float64(theta) ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)


def _none(frequency_h: np.ndarray, config: RopeConfig, length: int) -> tuple[np.ndarray, float]:
    return frequency_h, 1.0


def _linear(frequency_h: np.ndarray, config: RopeConfig, length: int) -> tuple[np.ndarray, float]:
    """Position interpolation (arXiv 2306.15595): position p turns as p / factor did."""
    return frequency_h / config.factor, 1.0


def _dynamic(frequency_h: np.ndarray, config: RopeConfig, length: int) -> tuple[np.ndarray, float]:
    """Dynamic NTK of bloc97 and emozilla, as arXiv 2309.00071 describes it.

    The base becomes theta * stretch^(H / (H - 2)), which is to divide pair i by stretch^(i / (h - 1)): the
    first stays and the last is stretched in full.
    """
    longest = max(length, config.original_length)
    stretch = config.factor * longest / config.original_length - (config.factor - 1)
    return frequency_h / stretch ** np.linspace(0, 1, frequency_h.size), 1.0


def _yarn(frequency_h: np.ndarray, config: RopeConfig, length: int) -> tuple[np.ndarray, float]:
    """YaRN (arXiv 2309.00071); the ramp runs over pairs from one whole number to another."""
    h = frequency_h.size

    def pair(rotations):
        """Which pair, as a real number, turns that often within the original length."""
        return h * math.log(config.original_length / (2 * math.pi * rotations)) / math.log(config.theta)

    first = max(math.floor(pair(config.beta_fast)), 0)
    last = min(math.ceil(pair(config.beta_slow)), 2 * h - 1)  # H - 1, not h - 1: as in the authors' code
    width = last - first or 0.001  # a step, if the ramp has no width
    stretched_h = np.clip((np.arange(h) - first) / width, 0, 1)
    return _mix(frequency_h, stretched_h, config.factor), 0.1 * math.log(config.factor) + 1


def _llama3(frequency_h: np.ndarray, config: RopeConfig, length: int) -> tuple[np.ndarray, float]:
    """Llama 3.1 (`apply_scaling` of Meta's model code): the ramp runs over rotations per original length."""
    low, high = config.low_freq_factor, config.high_freq_factor
    rotations_h = config.original_length * frequency_h / (2 * math.pi)
    return _mix(frequency_h, np.clip((high - rotations_h) / (high - low), 0, 1), config.factor), 1.0


def _longrope(frequency_h: np.ndarray, config: RopeConfig, length: int) -> tuple[np.ndarray, float]:
    """LongRoPE (arXiv 2402.13753); the attention factor is that of the Phi-3 checkpoints."""
    factors = config.long_factors if length > config.original_length else config.short_factors
    attention = math.sqrt(1 + math.log(config.factor) / math.log(config.original_length))
    return frequency_h / np.array(factors, np.float64), attention


def _mix(frequency_h: np.ndarray, stretched_h: np.ndarray, factor: float) -> np.ndarray:
    return frequency_h * (1 - stretched_h + stretched_h / factor)


# Each takes the unscaled frequencies and returns the scaled ones with its own attention factor.
SCALINGS: dict[str, Callable[[np.ndarray, RopeConfig, int], tuple[np.ndarray, float]]] = {
    "none": _none,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
}


def tables(
    positions_BT: jax.Array, length: int, head_dim: int, config: RopeConfig, local: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of every token's phases, times the attention factor.

    Args:
      positions_BT: int32, in [0, length). This is not checked, since values are unknown when a program is compiled:
        a position past the last whole FINE gets the phase of a smaller one, a negative one that of a larger one. The
        host checks rows before they are batched.
      length, head_dim, config, local: as in `frequencies`.

    Returns:
      Two fp32 arrays [B, T, h], cut as `positions_BT` is; without a mesh, on one device.
    """
    frequency_h, factor = frequencies(config, head_dim, length, local)
    fine, coarse = np.arange(FINE), FINE * np.arange(-(-length // FINE))
    # Each product below has one fine term, so the factor goes there, before anything is rounded.
    cos_fine, sin_fine = (_rows(factor * x, positions_BT % FINE) for x in _exact(fine, frequency_h))
    cos_coarse, sin_coarse = (_rows(x, positions_BT // FINE) for x in _exact(coarse, frequency_h))
    return cos_coarse * cos_fine - sin_coarse * sin_fine, sin_coarse * cos_fine + cos_coarse * sin_fine


def _exact(positions: np.ndarray, frequency_h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    phases = positions.astype(np.float64)[:, None] * frequency_h
    return np.cos(phases), np.sin(phases)


def _rows(table: np.ndarray, index_BT: jax.Array) -> jax.Array:
    has_mesh = not jax.sharding.get_abstract_mesh().empty
    pspec = sharding.with_whole_axis(jax.typeof(index_BT).sharding.spec) if has_mesh else None
    return jnp.asarray(table, jnp.float32).at[index_BT].get(out_sharding=pspec)


def rotate(x_BTNH: jax.Array, cos_BTh: jax.Array, sin_BTh: jax.Array, dtype: str) -> jax.Array:
    """Turns each pair (i, i + H/2) by its phase; computed in `dtype`, returned in x's dtype.

    float32 is exact enough at any length. bfloat16 rounds tables and products to 8 bits: the usual fault.
    """
    x1, x2 = jnp.split(x_BTNH.astype(dtype), 2, axis=-1)
    cos, sin = (t[:, :, None].astype(dtype) for t in (cos_BTh, sin_BTh))
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).astype(x_BTNH.dtype)
