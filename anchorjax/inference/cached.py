"""The decoder with a cache of keys and values: a prompt in chunks, then token by token.

- Rows of a batch end in the same column: shorter prompts have pads in front. Every row writes at the same place, so a
  step is one slice update, and one length serves all.
- A row is one document behind its anchor, which is plain causal attention, whatever mask the model was trained with.
  In layers with a window the anchor stays in sight if it did in training (`Spec.num_anchors`).
- Layers are unrolled, their weights apart and in compute_dtype: a scan would copy every layer's weights out of the
  stack for each token, which takes three times the memory traffic that decoding is bound by.

Letters: types.py; S columns of the cache.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import reshard

from anchorjax import sharding
from anchorjax.attention.plan import Plan
from anchorjax.attention.sharded import apply as attend_by_tiles
from anchorjax.config import ModelConfig
from anchorjax.inference import decode
from anchorjax.masks import Mask
from anchorjax.models.decoder import Block, Decoder, View, embedded, is_global, kinds_of_layers, logits, rotated
from anchorjax.models.layers import rms_norm
from anchorjax.models.spec import Spec
from anchorjax.sharding import ACTIVATIONS, BATCH, CACHE, HEADS, WHOLE_ROWS
from anchorjax.types import PAD_SEGMENT


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeParams:
    """A decoder's weights, layer by layer; matrices in compute_dtype."""

    embed_VD: jax.Array
    blocks: tuple[Block, ...]
    final_norm_D: jax.Array
    unembed_DV: jax.Array | None  # None if tied

    @classmethod
    def of(cls, params: Decoder, spec: Spec) -> "DecodeParams":
        """`params` is used up: its arrays are deleted one by one, so that two copies of one leaf are the most."""
        dtype, count = spec.model.compute_dtype, spec.model.num_layers

        def prepare(x, split: bool):
            narrow = x.astype(dtype) if x.ndim > 1 + split else x  # norms are used in fp32
            parts = [narrow[i] for i in range(count)] if split else narrow
            jax.block_until_ready(parts)
            if split or narrow is not x:
                x.delete()
            return parts

        leaves, structure = jax.tree.flatten(params.blocks)
        split = [prepare(x, split=True) for x in leaves]
        blocks = tuple(jax.tree.unflatten(structure, [parts[i] for parts in split]) for i in range(count))
        unembed = None if spec.model.tie_embeddings else prepare(params.unembed_DV[...], split=False)
        embed_VD = reshard(prepare(params.embed_VD[...], split=False), sharding.DECODE_EMBEDDING)
        return cls(embed_VD, blocks, params.final_norm_D[...], unembed)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """What is kept of the tokens so far.

    Attributes:
      keys, values: [B, S, K, H] of each layer, in compute_dtype; keys are rotated.
      length: int32 scalar; columns in use, the same for all rows.
      start_B: int32; the column of each row's first token. Those before it are pads.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    length: jax.Array
    start_B: jax.Array

    @classmethod
    def empty(cls, start_B: jax.Array, columns: int, model: ModelConfig) -> "Cache":
        """On the current mesh: rows along data and fsdp, heads along tensor."""
        shape = len(start_B), columns, model.num_kv_heads, model.head_dim

        def zeros():
            return tuple(jnp.zeros(shape, model.compute_dtype, out_sharding=CACHE) for _ in range(model.num_layers))

        return cls(zeros(), zeros(), jnp.int32(0), reshard(start_B, WHOLE_ROWS))


def advance(params: DecodeParams, cache: Cache, tokens_BT: jax.Array, spec: Spec):
    """Takes in the next T columns: (fp32 logits [B, V] behind the last of them, the longer cache).

    One column is attended densely, more by tiles. Pads may be any token.

    Args:
      spec: static; `attention` must suit the cache's length.
    """
    config = spec.model
    views = [_view(window, cache, tokens_BT, spec) for window in kinds_of_layers(config)]
    x_BTD = embedded(reshard(tokens_BT, sharding.REPLICATED), params.embed_VD, config, sharding.DECODE_EMBEDDED)
    x_BTD = reshard(x_BTD, ACTIVATIONS)
    kept = []
    for number, block in enumerate(params.blocks):
        view = views[0] if is_global(number, config) else views[-1]
        column = cache.keys[number], cache.values[number], cache.length
        attend = functools.partial(_attend, view=view, column=column, spec=spec)
        x_BTD, keys_and_values = block(x_BTD, attend, spec)
        kept.append(keys_and_values)
    last_BD = rms_norm(reshard(x_BTD, WHOLE_ROWS)[:, -1], params.final_norm_D, config)
    keys, values = zip(*kept, strict=True)
    longer = dataclasses.replace(cache, keys=keys, values=values, length=cache.length + tokens_BT.shape[1])
    # Each device multiplies its part of D: sums of logits travel, not the matrix.
    matrix_DV = params.embed_VD.T if params.unembed_DV is None else params.unembed_DV
    arrays = reshard(last_BD, sharding.DECODE_LAST), reshard(matrix_DV, sharding.WEIGHTS["D->V"])
    return logits(*arrays, config.final_soft_cap), longer


def _view(window: int | None, cache: Cache, tokens_BT: jax.Array, spec: Spec) -> View:
    """The new columns to all columns up to them."""
    T, S = tokens_BT.shape[1], cache.keys[0].shape[1]
    start_B1 = cache.start_B[:, None]

    def index_of(columns):
        return reshard(columns[None] - start_B1, BATCH)

    q_index_BT, kv_index_BS = index_of(cache.length + jnp.arange(T)), index_of(jnp.arange(S))
    q_segments_BT, kv_segments_BS = (jnp.where(x < 0, PAD_SEGMENT, 0) for x in (q_index_BT, kv_index_BS))
    soft_cap = spec.model.attention_soft_cap or None
    mask = Mask(q_segments_BT, kv_segments_BS, q_index_BT, kv_index_BS, spec.num_anchors, window, soft_cap)
    positions_BT = jnp.maximum(q_index_BT, 0)
    return View.of(mask, positions_BT, spec, tiled=T > 1)


def _attend(q_BTNH, k_BTKH, v_BTKH, *, view: View, column, spec: Spec):
    """Writes the new keys and values and attends to all; keeps both."""
    k_BSKH, v_BSKH, length = column
    q_BTNH, k_BTKH = rotated(q_BTNH, k_BTKH, view, spec)
    k_BSKH, v_BSKH = (
        jax.lax.dynamic_update_slice_in_dim(old, reshard(new, CACHE), length, axis=1)
        for old, new in ((k_BSKH, k_BTKH), (v_BSKH, v_BTKH))
    )
    arrays = [reshard(x, HEADS) for x in (q_BTNH, k_BSKH, v_BSKH)]
    if isinstance(view.mask, Plan):
        out_BTNH, _ = attend_by_tiles(*arrays, view.mask, spec.attention)
    else:
        dense = jax.shard_map(decode.attend, in_specs=(HEADS, HEADS, HEADS, BATCH), out_specs=HEADS)
        out_BTNH = dense(*arrays, view.mask)
    return out_BTNH, (k_BSKH, v_BSKH)
