"""The decoder with a cache of keys and values: a prompt in chunks, then token by token.

- Rows of a batch end in the same column: padding precedes shorter prompts. Every row writes at the same place, so
  a step is one slice update, and one length serves all.
- A row is one document behind its anchor, which is plain causal attention, whatever mask the model was trained with.
  In layers with a window the anchor stays in sight if it did in training (`Spec.num_anchors`).
- Layers are unrolled, their weights apart and in compute_dtype: a scan would copy every layer's weights out of the
  stack for each token, which takes three times the memory traffic that decoding is bound by.

Letters: types.py; S columns of the cache.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import reshard

from anchorjax import sharding
from anchorjax.inference.focus import Memory
from anchorjax.masks import Mask
from anchorjax.models.decoder import Block, Decoder, embedded, is_global, logits, masks_of_kinds
from anchorjax.models.layers import rms_norm
from anchorjax.models.spec import Spec
from anchorjax.models.variants import VARIANTS
from anchorjax.sharding import BATCH, WHOLE_ROWS
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
        return cls(prepare(params.embed_VD[...], split=False), blocks, params.final_norm_D[...], unembed)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """What is kept of the tokens so far.

    Attributes:
      layers: what the attention variant keeps of each layer, rows of the batch and columns in front.
      length: int32 scalar; columns in use, the same for all rows.
      start_B: int32; the column of each row's first token. Those before it are padding.
      columns: S, how many there are (static).
    """

    layers: tuple[Any, ...]
    length: jax.Array
    start_B: jax.Array
    columns: int = dataclasses.field(metadata={"static": True})

    @classmethod
    def empty(cls, start_B: jax.Array, columns: int, spec: Spec) -> "Cache":
        """Lies on the current mesh."""
        variant = VARIANTS[spec.attention.variant]
        layers = tuple(variant.cache(len(start_B), columns, spec) for _ in range(spec.model.num_layers))
        return cls(layers, jnp.int32(0), reshard(start_B, WHOLE_ROWS), columns)


def advance(params: DecodeParams, cache: Cache, tokens_BT: jax.Array, spec: Spec, memory: Memory | None = None):
    """Takes in the next T columns: (fp32 logits [B, V] behind the last of them, the longer cache).

    One column is attended densely, more by tiles. Padding may be any token.

    Args:
      spec: static; `attention` must suit the cache's length.
      memory: FocusLLM's candidates, whose keys and values are those of each row's first columns.
    """
    config = spec.model
    variant = VARIANTS[spec.attention.variant]
    masks, positions_BT = _masks(cache, tokens_BT.shape[1], spec)
    contexts = variant.contexts(masks, positions_BT, spec, cache.length)
    x_BTD = embedded(tokens_BT, params.embed_VD, config)
    kept = []
    for number, block in enumerate(params.blocks):
        context = contexts[0] if is_global(number, config) else contexts[-1]
        named = {"context": context, "spec": spec, "cache": cache.layers[number], "layer": number}
        attend = functools.partial(variant.attend, **named)
        if memory is not None:
            attend = memory.given(number, masks[0].q_index_BT, attend)
        x_BTD, of_layer = block(x_BTD, attend, spec)
        kept.append(of_layer)
    last_BD = rms_norm(reshard(x_BTD, WHOLE_ROWS)[:, -1], params.final_norm_D, config)
    longer = dataclasses.replace(cache, layers=tuple(kept), length=cache.length + tokens_BT.shape[1])
    # Each device multiplies its part of D: sums of logits travel, not the matrix.
    matrix_DV = params.embed_VD.T if params.unembed_DV is None else params.unembed_DV
    return logits(reshard(last_BD, sharding.DECODE_LAST), matrix_DV, config.final_soft_cap), longer


def _masks(cache: Cache, T: int, spec: Spec) -> tuple[list[Mask], jax.Array]:
    """(masks of each kind of layer, positions [B, T]) of the next T columns, which see all columns up to them."""
    start_B1 = cache.start_B[:, None]

    def index_of(columns):
        return reshard(columns[None] - start_B1, BATCH)

    q_index_BT, kv_index_BS = index_of(cache.length + jnp.arange(T)), index_of(jnp.arange(cache.columns))
    q_segments_BT, kv_segments_BS = (jnp.where(x < 0, PAD_SEGMENT, 0) for x in (q_index_BT, kv_index_BS))
    mask = Mask(q_segments_BT, kv_segments_BS, q_index_BT, kv_index_BS, spec.num_anchors)
    return masks_of_kinds(mask, spec), jnp.maximum(q_index_BT, 0)
