"""One attention, several implementations: `attention(q, k, v, mask)`.

| name      | file         | what it is                                             |
|-----------|--------------|--------------------------------------------------------|
| reference | reference.py | the definition: dense, fp32, O(T S) memory             |
| xla       | xla.py       | blockwise over live tiles, forward and backward        |

An implementation is a module here with `apply(q_BTNH, k_BSKH, v_BSKH, mask, plan) -> out_BTNH`; add its name
to `types.IMPLEMENTATIONS` and the contract suite (tests/attention) runs on it. One that cannot do something raises
`NotImplementedError` naming it; none is ever replaced silently by another.
"""

import importlib

import jax

from anchorjax.attention.plan import Plan, make_plan
from anchorjax.masks import Mask
from anchorjax.types import IMPLEMENTATIONS

DEFAULT_TILE = 256


def default_implementation() -> str:
    """The fastest implementation for this process's backend."""
    return "xla"


def attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask: Mask,
    *,
    plan: Plan | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """softmax(q k' / sqrt(H)) v over the keys that `masks.allowed` admits.

    Differentiable in q, k and v. Queries that see no key (pads) give exact zeros and zero gradients.

    Args:
      q_BTNH: queries. N must be a multiple of K (grouped-query attention, arXiv 2305.13245).
      k_BSKH, v_BSKH: keys and values, of q's dtype (float32 or bfloat16).
      mask: who may see whom.
      plan: the live tiles of `mask`; None builds them here. Pass one plan to all layers of a step.
      implementation: a name from `IMPLEMENTATIONS`; None takes `default_implementation()`.

    Returns:
      [B, T, N, H] in q's dtype; sums are fp32 inside.

    Raises:
      ValueError: shapes or dtypes that do not fit each other, or an unknown implementation.
    """
    check_shapes(q_BTNH, k_BSKH, v_BSKH, mask)
    name = implementation or default_implementation()
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"attention implementation {name!r} is unknown; there are {', '.join(IMPLEMENTATIONS)}")
    if plan is None:
        plan = make_plan(mask, DEFAULT_TILE, DEFAULT_TILE)
    module = importlib.import_module(f"anchorjax.attention.{name}")
    return module.apply(q_BTNH, k_BSKH, v_BSKH, mask, plan)


def check_shapes(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask: Mask) -> None:
    """Raises ValueError naming the first pair of shapes or dtypes that disagree."""
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    if k_BSKH.shape != (B, S, K, H) or v_BSKH.shape != k_BSKH.shape:
        raise ValueError(f"attention: q {q_BTNH.shape}, k {k_BSKH.shape} and v {v_BSKH.shape} do not fit")
    if N % K:
        raise ValueError(f"attention: {N} query heads are not a multiple of {K} key/value heads")
    if not q_BTNH.dtype == k_BSKH.dtype == v_BSKH.dtype:
        raise ValueError(f"attention: q {q_BTNH.dtype}, k {k_BSKH.dtype}, v {v_BSKH.dtype} must be one dtype")
    if mask.q_segment_ids_BT.shape != (B, T) or mask.kv_segment_ids_BS.shape != (B, S):
        raise ValueError(
            f"attention: the mask is for {mask.q_segment_ids_BT.shape} queries and "
            f"{mask.kv_segment_ids_BS.shape} keys, the arrays for {(B, T)} and {(B, S)}"
        )
