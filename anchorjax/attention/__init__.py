"""One attention, several implementations: `attention(q, k, v, mask_or_plan)`.

| name      | file         | what it is                                             |
|-----------|--------------|--------------------------------------------------------|
| reference | reference.py | the definition: dense, fp32, O(T S) memory             |
| xla       | xla.py       | blockwise over live tiles, forward and backward        |
| pallas_tpu| pallas_tpu/  | Mosaic kernels over live tiles; compiled, never run yet |
| pallas_gpu| pallas_gpu/  | Triton kernels over live tiles; compiled, never run yet |

An implementation is a module here that describes itself, with its name in `types.IMPLEMENTATIONS`:

    BACKEND                                      "tpu", "gpu", or None: it runs on any
    default_tiles(device_kind, seq_len)          (q_tile, kv_tile) in tokens
    supports(q_tile, kv_tile, head_dim, dtype)   None, or (the argument that is not supported, what is allowed)
    apply(q_BTNH, k_BSKH, v_BSKH, plan)          (out_BTNH in q's dtype, fp32 lse_BTN), one device's arrays;
                                                 NotImplementedError for arrays that it does not support
    forward_pass(q, k, v, plan)                  the same without a gradient
    backward_pass(q, k, v, plan, dout, lse, delta)
                                                 fp32 (dq, dk, dv) without the anchors' share, see gradient.py; lse
                                                 may be of more keys than k holds

The contract suite (tests/attention/contract.py) runs on every name. What an implementation does not support is an
error; none is ever replaced silently by another.
"""

import dataclasses
import importlib

import jax
import jax.numpy as jnp

from anchorjax.attention.plan import Plan, make_plan
from anchorjax.config import AttentionConfig
from anchorjax.errors import ConfigError
from anchorjax.masks import Mask
from anchorjax.types import IMPLEMENTATIONS

DTYPES = ("float32", "bfloat16")
# All of them, as describing themselves imports no kernel.
MODULES = {name: importlib.import_module(f"anchorjax.attention.{name}") for name in IMPLEMENTATIONS}


def default_implementation(platform: str = "") -> str:
    """The fastest implementation for a platform of JAX, "cpu", "gpu" or "tpu"; default: this process's."""
    found = platform or jax.default_backend()
    return next((name for name, module in MODULES.items() if module.BACKEND == found), "xla")


def choose(config: AttentionConfig, seq_len: int, device: jax.Device | None = None) -> AttentionConfig:
    """`config` with an implementation and tiles in place of `auto` and 0, for rows on this device.

    Args:
      device: default: the process's first.

    Raises:
      ConfigError: tiles that the implementation does not take.
    """
    device = device or jax.devices()[0]
    name = default_implementation(device.platform) if config.implementation == "auto" else config.implementation
    module = MODULES[name]
    tiles = module.default_tiles(device.device_kind, seq_len)
    q_tile, kv_tile = (given or best for given, best in zip((config.q_tile, config.kv_tile), tiles, strict=True))
    refused = module.supports(q_tile, kv_tile)
    if refused:
        wrong, allowed = refused
        raise ConfigError(f"attention.{wrong}", getattr(config, wrong), f"{name} takes {allowed}, or 0 for its own")
    return dataclasses.replace(config, implementation=name, q_tile=q_tile, kv_tile=kv_tile)


def attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask_or_plan: Mask | Plan,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """softmax(q k' / sqrt(H)) v over the keys that `masks.allowed` admits.

    Differentiable in q, k and v. Queries that see no key (padding) give exact zeros and zero gradients.

    Padding in q, k, v and the cotangents may hold anything, also NaN and infinity: it is read as zeros. NaN or infinity
    at a real token can reach the other documents in its tile.

    Args:
      q_BTNH: queries. N must be a multiple of K (grouped-query attention, arXiv 2305.13245).
      k_BSKH, v_BSKH: keys and values, of q's dtype (float32 or bfloat16).
      mask_or_plan: which keys each query may attend to. A `Mask` gets a plan with the implementation's own tiles; a
        `Plan`, which holds its mask, is used as it is: pass one to all layers of a step.
      implementation: a name from `types.IMPLEMENTATIONS`; None takes `default_implementation()`.

    Returns:
      [B, T, N, H] in q's dtype; sums are fp32 inside.

    Raises:
      TypeError: mask_or_plan is something else, such as a bool array.
      ValueError: shapes, dtypes or a plan that do not fit each other, or an unknown implementation.
      NotImplementedError: tiles, a head width or a dtype that the implementation does not support.
    """
    return attention_with_lse(q_BTNH, k_BSKH, v_BSKH, mask_or_plan, implementation=implementation)[0]


def attention_with_lse(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask_or_plan: Mask | Plan,
    *,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`attention`, and the log-sum-exp of each query's logits: what merging parts of the keys needs.

    Returns:
      (out [B, T, N, H] in q's dtype, lse [B, T, N] fp32 in nats; `anchors.NOTHING` where no key is seen).
      Differentiable through both.
    """
    if not isinstance(mask_or_plan, Mask | Plan):
        given = getattr(mask_or_plan, "dtype", type(mask_or_plan).__name__)
        raise TypeError(f"attention: the mask is {given}; allowed: a masks.Mask, or a Plan made of one")
    check_arrays(q_BTNH, k_BSKH, v_BSKH)
    q_shape, kv_shape = q_BTNH.shape[:2], k_BSKH.shape[:2]
    name = implementation or default_implementation()
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"attention implementation {name!r} is unknown; there are {', '.join(IMPLEMENTATIONS)}")
    module = MODULES[name]
    if isinstance(mask_or_plan, Mask):
        check_mask(mask_or_plan, q_shape, kv_shape)
        plan = make_plan(mask_or_plan, *module.default_tiles(jax.devices()[0].device_kind, kv_shape[1]))
    else:
        plan = mask_or_plan
        check_plan(plan, q_shape, kv_shape)
    refused = module.supports(plan.q_tile, plan.kv_tile)
    if refused:
        _, allowed = refused
        raise NotImplementedError(f"attention {name}: tiles of {plan.q_tile} x {plan.kv_tile}; allowed: {allowed}")
    return module.apply(q_BTNH, k_BSKH, v_BSKH, plan)


def check_arrays(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array) -> None:
    """Raises ValueError naming the first shapes or dtypes that are not allowed."""
    for name, x in (("q", q_BTNH), ("k", k_BSKH), ("v", v_BSKH)):
        if x.ndim != 4:
            raise ValueError(f"attention: {name} has shape {x.shape}; allowed: [rows, tokens, heads, width]")
        if x.dtype not in DTYPES:
            raise ValueError(f"attention: {name} is {x.dtype}; allowed: {', '.join(DTYPES)}")
    if not q_BTNH.dtype == k_BSKH.dtype == v_BSKH.dtype:
        raise ValueError(f"attention: q {q_BTNH.dtype}, k {k_BSKH.dtype}, v {v_BSKH.dtype} must be one dtype")
    B, _, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    if k_BSKH.shape != (B, S, K, H) or v_BSKH.shape != k_BSKH.shape:
        raise ValueError(f"attention: q {q_BTNH.shape}, k {k_BSKH.shape} and v {v_BSKH.shape} do not fit")
    if N % K:
        raise ValueError(f"attention: {N} query heads are not a multiple of {K} key/value heads")


def check_mask(mask: Mask, q_shape: tuple[int, int], kv_shape: tuple[int, int]) -> None:
    """Raises ValueError naming the first array of the mask that does not fit, or a static field out of range."""
    arrays = {
        "q_segment_ids_BT": q_shape,
        "q_index_BT": q_shape,
        "kv_segment_ids_BS": kv_shape,
        "kv_index_BS": kv_shape,
    }
    for name, shape in arrays.items():
        x = getattr(mask, name)
        if x.shape != shape:
            raise ValueError(f"attention: mask.{name} has shape {x.shape}; q and k allow {shape}")
        if x.dtype != jnp.int32:
            raise ValueError(f"attention: mask.{name} is {x.dtype}; allowed: int32")
    if mask.num_anchors < 0:
        raise ValueError(f"attention: mask.num_anchors is {mask.num_anchors}; allowed: 0 or more")
    if mask.window is not None and mask.window < 1:
        raise ValueError(f"attention: mask.window is {mask.window}; allowed: None, or 1 or more")
    if mask.soft_cap is not None and not mask.soft_cap > 0:
        raise ValueError(f"attention: mask.soft_cap is {mask.soft_cap}; allowed: None, or above 0")


def check_plan(plan: Plan, q_shape: tuple[int, int], kv_shape: tuple[int, int]) -> None:
    """Raises ValueError for a plan of other rows or lengths: kernels would read the entries of other tiles.

    Its mask is checked too, as `check_mask` does. The numbers of tiles are looked at first, for a plan whose mask was
    replaced.
    """
    for side, visits, (rows, length), tile in (
        ("query", plan.by_query, q_shape, plan.q_tile),
        ("key", plan.by_key, kv_shape, plan.kv_tile),
    ):
        planned, needed = visits.lengths_1R.shape[-1], rows * -(-length // tile)
        if planned != needed:
            raise ValueError(
                f"attention: the plan has {planned} {side} tiles; {rows} rows of {length} tokens in tiles of {tile} "
                f"allow {needed}"
            )
    check_mask(plan.mask, q_shape, kv_shape)
