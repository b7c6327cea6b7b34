"""Attention on the mesh, and strategies by which the devices along its `context` axis share a row.

| strategy   | sent over `context`                        | a device attends with     | bytes received, forward        |
|------------|--------------------------------------------|---------------------------|--------------------------------|
| all_gather | keys and values, to all devices            | its queries, all keys     | 2 S K H e (C - 1) / C          |
| ring       | keys and values, to devices that need them | its queries, needed keys  | 2 S K H e / C * sends / PIECES |
| ulysses    | parts of queries, keys, values, outputs    | all tokens, its heads     | 2 S (N + K') H e (C - 1) / C^2 |

C devices along `context`; e bytes of a number; K' = lcm(K, C), and more with chunks of heads; `sends` is at most
(C - 1) PIECES and depends on the documents. The backward pass sends as many bytes of gradients. It sends the forward
pass's bytes again where a layer is recomputed, and always in a ring.

Every strategy takes and returns arrays whose rows are split over `data` and `fsdp`, tokens over `context` and heads
over `tensor`. `mesh.context_strategy` selects one. A strategy is a file here with four functions:

    check(model, mesh, mesh_shape)    raises ConfigError for a model or a mesh that it cannot split
    tokens(seq_len, context)          -> (queries, keys) of one row on one device
    plan(mask, config, mesh)          -> ShardedPlan, for `apply` of the same strategy
    apply(q, k, v, plan)              -> (out, lse), differentiable through both

A new file is a new strategy, which tests/attention/test_parallel.py tests.
"""

import importlib

import jax

from anchorjax.attention.per_device import ShardedPlan
from anchorjax.config import AttentionConfig, MeshConfig
from anchorjax.masks import Mask
from anchorjax.types import CONTEXT_STRATEGIES

STRATEGIES = {name: importlib.import_module(f"{__name__}.{name}") for name in CONTEXT_STRATEGIES}


def plan(mask: Mask, config: AttentionConfig, mesh: MeshConfig) -> ShardedPlan:
    """Plans sharded rows; build one for all layers of a step that share the mask.

    Args:
      mask: int32 arrays [B, T] and [B, S], sharded like `sharding.BATCH` on the current mesh.
      config: the result of `attention.choose`, with an implementation and tiles.
      mesh: with the strategy; the sizes of the axes are those of the current mesh.
    """
    return STRATEGIES[mesh.context_strategy].plan(mask, config, mesh)


def apply(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, plan: ShardedPlan) -> tuple[jax.Array, jax.Array]:
    """`attention.attention_with_lse` of sharded rows.

    Args:
      q_BTNH, k_BSKH, v_BSKH: float32 or bfloat16, sharded like `sharding.HEADS` on the current mesh.
      plan: the result of `plan`, which says how.

    Returns:
      (out [B, T, N, H] in q's dtype, lse [B, T, N] fp32 in nats), sharded like the queries.
    """
    return STRATEGIES[plan.mesh.context_strategy].apply(q_BTNH, k_BSKH, v_BSKH, plan)
