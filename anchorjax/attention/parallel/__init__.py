"""Attention on the mesh, and strategies by which the devices along its `context` axis share a row.

| strategy | file       | sent over `context` in the forward pass         | each device attends with          |
|----------|------------|-------------------------------------------------|-----------------------------------|
| gather   | gather.py  | keys and values, to all devices                 | its queries, all keys, all heads  |
| ulysses  | ulysses.py | a part of queries, keys, values and outputs     | all queries, all keys, its heads  |

Every strategy takes and returns arrays whose rows are split over `data` and `fsdp`, tokens over `context` and heads
over `tensor`. `attention.context_parallel` selects one. A strategy is a file here with four functions:

    check(model, mesh_shape)          raises ConfigError for a model or a mesh that it cannot split
    tokens(seq_len, context)          -> (queries, keys) of one row on one device
    plan(mask, config)                -> Plan of sharded rows, for `apply` of the same strategy
    apply(q, k, v, plan, config)      -> (out, lse), differentiable through both

A new file is a new strategy, which tests/attention/test_parallel.py tests.
"""

import importlib

import jax

from anchorjax.attention.plan import Plan
from anchorjax.config import AttentionConfig
from anchorjax.masks import Mask
from anchorjax.types import CONTEXT_PARALLEL

STRATEGIES = {name: importlib.import_module(f"{__name__}.{name}") for name in CONTEXT_PARALLEL}


def plan(mask: Mask, config: AttentionConfig) -> Plan:
    """Plans sharded rows; build one for all layers of a step that share the mask.

    Args:
      mask: int32 arrays [B, T] and [B, S], sharded like `sharding.BATCH` on the current mesh.
      config: the result of `attention.choose`, with an implementation and tiles.

    Returns:
      A plan whose mask is `mask`. The leaves of its lists have one more axis in front, split like
      `sharding.PER_DEVICE`: entry d is the list that device d made.
    """
    return STRATEGIES[config.context_parallel].plan(mask, config)


def apply(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, plan: Plan, config: AttentionConfig
) -> tuple[jax.Array, jax.Array]:
    """`attention.attention_with_lse` of sharded rows.

    Args:
      q_BTNH, k_BSKH, v_BSKH: float32 or bfloat16, sharded like `sharding.HEADS` on the current mesh.
      plan: the result of `plan` with the same `config`.

    Returns:
      (out [B, T, N, H] in q's dtype, lse [B, T, N] fp32 in nats), sharded like the queries.
    """
    return STRATEGIES[config.context_parallel].apply(q_BTNH, k_BSKH, v_BSKH, plan, config)
