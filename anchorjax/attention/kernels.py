"""What the Pallas kernels of every kind of device share: what they are compiled for, and the arithmetic of a score."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from anchorjax import precision
from anchorjax.attention.anchors import NOTHING
from anchorjax.attention.plan import Plan

LOG2E = math.log2(math.e)
MASKED = 2 * NOTHING
# exp2 of a masked score less any maximum or log-sum-exp must be 0 and never 1. The lowest ones are the forward pass's
# initial maximum, NOTHING, and in base 2 the log-sum-exp of a query that sees no key: 1.44 times as low.
assert MASKED < NOTHING * LOG2E < NOTHING
NT, NN, TN = (((1,), (1,)), ((), ())), (((1,), (0,)), ((), ())), (((0,), (0,)), ((), ()))  # x y', x y, x' y


@dataclasses.dataclass(frozen=True, kw_only=True)
class Static:
    """What a kernel is compiled for."""

    q_tile: int
    kv_tile: int
    group: int  # query heads per key head
    num_anchors: int
    scale: float
    window: int | None
    soft_cap: float | None
    precision: jax.lax.Precision | None  # true fp32 products for fp32 arrays

    @classmethod
    def of(cls, q_BTNH: jax.Array, k_BSKH: jax.Array, plan: Plan, **own) -> "Static":
        """Makes the fields from these arrays; `own` are the fields of a subclass."""
        return cls(
            q_tile=plan.q_tile,
            kv_tile=plan.kv_tile,
            group=q_BTNH.shape[2] // k_BSKH.shape[2],
            num_anchors=plan.mask.num_anchors,
            scale=q_BTNH.shape[3] ** -0.5,
            window=plan.mask.window,
            soft_cap=plan.mask.soft_cap,
            precision=precision.of(q_BTNH.dtype),
            **own,
        )

    def dot(self, x, y, dimensions):
        """In fp32. Devices round fp32 operands (Triton to TF32) unless told otherwise."""
        return jax.lax.dot_general(x, y, dimensions, precision=self.precision, preferred_element_type=jnp.float32)

    def softcap(self, s):
        """Capped logits in base 2 from dot products, and their derivative by the scaled dot products (None is 1)."""
        if self.soft_cap is None:
            return s * (self.scale * LOG2E), None
        ratio = jnp.tanh(s * (self.scale / self.soft_cap))
        return ratio * (self.soft_cap * LOG2E), 1.0 - ratio * ratio


def output(shape: tuple[int, ...], dtype, x: jax.Array) -> jax.ShapeDtypeStruct:
    """An output that, inside `shard_map`, differs between devices as the input x does."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(x).manual_axis_type)


def div(x, y: int):
    """x // y of traced x >= 0. Python's operators also treat negative numbers, for which Mosaic asks the device."""
    return jax.lax.div(x, jnp.asarray(y, x.dtype))


def rem(x, y: int):
    """x % y of traced x >= 0."""
    return jax.lax.rem(x, jnp.asarray(y, x.dtype))
