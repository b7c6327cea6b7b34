"""Next-token cross-entropy in fp32, chunk by chunk along the row.

A row of 1M tokens and a vocabulary of 128K would need 512 GB of logits; here only `chunk` tokens' logits
exist at once on a device, in the forward pass and, recomputed, in the backward pass.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from anchorjax.models.decoder import logits
from anchorjax.sharding import BATCH, ROWS


def token_nats(
    hidden_BTD: jax.Array, unembedding_DV: jax.Array, targets_BT: jax.Array, chunk: int, soft_cap: float = 0.0
) -> jax.Array:
    """-log p(target) of every token, in nats: fp32 [B, T].

    Args:
      hidden_BTD: final hidden states, rows and tokens sharded as usual.
      unembedding_DV: output matrix, cut over the vocabulary.
      targets_BT: int32 target ids; those without weight may be any id of the vocabulary.
      chunk: tokens per chunk on each device; it need not divide the row.
      soft_cap: of the logits; 0 leaves them.
    """
    # Summed over chunks in fp32 by being fp32 outside of the scan: a bf16 sum would lose small chunks' share.
    wide_DV = unembedding_DV.astype(jnp.float32)

    @jax.checkpoint
    def one_chunk(_, x):
        hidden_BXCD, targets_BXC = x
        logits_BXCV = logits(hidden_BXCD, wide_DV.astype(unembedding_DV.dtype), soft_cap)
        is_target_BXCV = jnp.arange(wide_DV.shape[1]) == targets_BXC[..., None]
        target_logit_BXC = jnp.sum(jnp.where(is_target_BXCV, logits_BXCV, 0.0), -1)
        return None, jax.nn.logsumexp(logits_BXCV, -1) - target_logit_BXC

    chunks = (_split(hidden_BTD, chunk), _split(targets_BT, chunk))
    _, nats_nBXC = jax.lax.scan(one_chunk, None, chunks)
    return _join(nats_nBXC, hidden_BTD.shape[1])


def _shards() -> int:
    return jax.sharding.get_abstract_mesh().shape["context"]


def _split(x_BT: jax.Array, chunk: int) -> jax.Array:
    """[B, T, ...] -> [chunks, B, X, C, ...], where X are the context shards: no token changes its device."""
    B, T, *rest = x_BT.shape
    local = T // _shards()
    chunk = min(chunk, local)
    none = (None,) * len(rest)
    x_BXt = jnp.reshape(x_BT, (B, _shards(), local, *rest), out_sharding=P(ROWS, "context", None, *none))
    x_BXt = jnp.pad(x_BXt, [(0, 0), (0, 0), (0, -local % chunk)] + [(0, 0)] * len(rest))
    return jnp.moveaxis(x_BXt.reshape(B, _shards(), -1, chunk, *rest), 2, 0)


def _join(x_nBXC: jax.Array, T: int) -> jax.Array:
    x_BXnC = jnp.moveaxis(x_nBXC, 0, 2)
    B, X = x_BXnC.shape[:2]
    x_BXt = x_BXnC.reshape(B, X, -1)[:, :, : T // X]
    return jnp.reshape(x_BXt, (B, T), out_sharding=BATCH)
