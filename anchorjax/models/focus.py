"""FocusLLM (arXiv 2408.11745): each chunk of a long memory becomes one key and value a layer, over a frozen model.

A row [anchor, memory of C chunks of c tokens, local part of n tokens] is taken in by two passes side by side:

    chunks     one packed row [anchor, chunk 0, prompt, chunk 1, prompt, ...] under the anchor mask. A chunk and the
               prompt behind it, the last m local tokens before the first target, are one document, at positions
               1 .. c + m. The last token of a document is its candidate: its projections q, k, v and o are trained.
    local      [C candidates' keys and values, anchor, local part] at positions 0 .. C + n, causal and frozen. In each
               layer the candidates' keys, before RoPE, and values come from the same layer of the first pass.

The published code puts BOS between chunk and prompt, where the document's length is the same; here it precedes both, as
the anchor that all documents share, so that one masked pass encodes all chunks. Only a candidate follows the ordinary
tokens of its document, so their stream has no trained part and no backward pass.

Letters: types.py; here C chunks, R ordinary tokens of their row, U local tokens with the anchor.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import reshard

from anchorjax import precision
from anchorjax.config import FocusConfig
from anchorjax.masks import Mask
from anchorjax.models.decoder import LAYER_INPUT, Attend, Block, Decoder, embedded, masks_of_kinds, remat
from anchorjax.models.layers import rms_norm
from anchorjax.models.linear import named_leaves
from anchorjax.models.spec import Spec
from anchorjax.models.variants import VARIANTS
from anchorjax.sharding import BATCH, CACHE, HEADS, WHOLE_ROWS
from anchorjax.types import PAD_SEGMENT

CANDIDATE = ".candidate"  # in the names of the leaves of their projections
ANCHORS = 1  # of a row of chunks, whatever mask the frozen model was trained with

# Keys before RoPE and values of the candidates of one layer, [B, C, K, H].
Condensed = tuple[jax.Array, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Chunks:
    """The packed rows of chunks, without their masks.

    Attributes:
      tokens_BR: int32; the anchor, and all tokens of the documents but the last of each.
      candidates_BC: int32; the last token of each document.
      is_real_BC: bool; whether the row has such a chunk. The others are padding.
    """

    tokens_BR: jax.Array
    candidates_BC: jax.Array
    is_real_BC: jax.Array

    @classmethod
    def of(cls, anchor_B1: jax.Array, memory_BCc: jax.Array, prompt_Bm: jax.Array, is_real_BC: jax.Array) -> "Chunks":
        B, C, _ = memory_BCc.shape
        prompt_BCm = jnp.broadcast_to(prompt_Bm[:, None], (B, C, prompt_Bm.shape[1]))
        documents_BCd = jnp.concatenate([memory_BCc, prompt_BCm], 2)
        ordinary_BR = documents_BCd[..., :-1].reshape(B, -1)
        return cls(jnp.concatenate([anchor_B1, ordinary_BR], 1), documents_BCd[..., -1], is_real_BC)

    def layout(self) -> "Layout":
        C, R = self.candidates_BC.shape[1], self.tokens_BR.shape[1]
        width = (R - 1) // C  # tokens of a document before its candidate
        place_R = np.concatenate([[-1], np.tile(np.arange(width), C)])
        chunk_R = np.concatenate([[0], np.repeat(np.arange(C), width)])
        index_BR = _like(self.tokens_BR, 1 + chunk_R * (width + 1) + place_R)
        index_BC = _like(self.candidates_BC, (1 + np.arange(C)) * (width + 1))
        segments_BC = jnp.where(self.is_real_BC, 1 + np.arange(C, dtype=np.int32), PAD_SEGMENT)
        segments_BR = jnp.pad(jnp.repeat(segments_BC, width, 1), ((0, 0), (1, 0)))  # the anchor's segment is 0
        index_BS = jnp.concatenate([index_BR, index_BC], 1)
        without, whole = (
            jnp.concatenate([segments_BR, x], 1) for x in (jnp.full_like(segments_BC, PAD_SEGMENT), segments_BC)
        )
        layout = Layout(
            (
                Mask(segments_BR, without, index_BR, index_BS, ANCHORS),
                Mask(segments_BC, whole, index_BC, index_BS, ANCHORS),
            ),
            (_like(index_BR, 1 + place_R), _like(index_BC, np.full(C, width + 1))),
        )
        return jax.tree.map(lambda x_BT: reshard(x_BT, BATCH), layout)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Layout:
    """Masks and positions of the ordinary tokens, and those of the candidates, whose keys come behind them.

    Attributes:
      masks: of R and of C queries, both of R + C keys. Ordinary tokens see no candidate.
      positions: int32 [B, R] and [B, C], relative to the anchor.
    """

    masks: tuple[Mask, Mask]
    positions: tuple[jax.Array, jax.Array]

    def contexts(self, spec: Spec) -> tuple:
        """What all layers share: a variant's context of each."""
        variant, starts = VARIANTS[spec.attention.variant], (0, self.positions[0].shape[1])
        return tuple(
            variant.contexts(masks_of_kinds(mask, spec)[:1], positions_BT, spec, jnp.int32(start))[0]
            for mask, positions_BT, start in zip(self.masks, self.positions, starts, strict=True)
        )


def anchor_of(tokens_BT: jax.Array) -> jax.Array:
    """The first token of each row [B, 1]. A slice of a single row forgets how that is sharded in jax 0.12."""
    return reshard(tokens_BT[:, :1], WHOLE_ROWS)


def _like(x_BT: jax.Array, values_T: np.ndarray) -> jax.Array:
    return jnp.zeros_like(x_BT, jnp.int32) + jnp.asarray(values_T, jnp.int32)


def condense(
    block: Block, streams: tuple[jax.Array, jax.Array], contexts: tuple, spec: Spec, layer
) -> tuple[tuple[jax.Array, jax.Array], Condensed]:
    """One layer of the pass of the chunks.

    Args:
      streams: residual streams of the ordinary tokens [B, R, D] and of the candidates [B, C, D].
      contexts: of `Layout.contexts`.

    Returns:
      Both streams behind the block, and the candidates' keys and values in it.
    """
    variant = VARIANTS[spec.attention.variant]
    x_BRD, x_BCD = streams
    cache = variant.cache(len(x_BRD), x_BRD.shape[1] + x_BCD.shape[1], spec)
    attend = functools.partial(variant.attend, spec=spec, layer=layer)
    x_BRD, cache = block(x_BRD, functools.partial(attend, context=contexts[0], cache=cache), spec)

    def attend_of_candidates(q_BCNH, k_BCKH, v_BCKH):
        out_BCNH, _ = attend(q_BCNH, k_BCKH, v_BCKH, context=contexts[1], cache=cache)
        return out_BCNH, (k_BCKH, v_BCKH)

    x_BCD, condensed = block(x_BCD, attend_of_candidates, spec, of_candidates=True)
    return (x_BRD, x_BCD), condensed


def chunks_of_rows(tokens_BT: jax.Array, focus: FocusConfig) -> Chunks:
    """The chunks of training rows [anchor, memory, local part]."""
    B, T = tokens_BT.shape
    memory_BCc = tokens_BT[:, 1 : T - focus.local].reshape(B, -1, focus.chunk)
    end = T - focus.local + focus.prompt_end
    is_real_BC = jnp.ones_like(memory_BCc[..., 0], bool)
    return Chunks.of(anchor_of(tokens_BT), memory_BCc, tokens_BT[:, end - focus.prompt : end], is_real_BC)


def entered(params: Decoder, chunks: Chunks, spec: Spec) -> tuple[jax.Array, jax.Array]:
    """The residual streams of ordinary tokens and candidates, as they enter the first layer."""
    return _embedded(params, chunks.tokens_BR, spec), _embedded(params, chunks.candidates_BC, spec)


def _embedded(params: Decoder, tokens_BT: jax.Array, spec: Spec) -> jax.Array:
    return embedded(reshard(tokens_BT, BATCH), precision.widened(params.embed_VD[...]), spec.model)


def hidden(params: Decoder, tokens_BT: jax.Array, spec: Spec) -> jax.Array:
    """Final hidden states of the anchor and the local part behind the condensed memory [B, 1 + n, D].

    Without memory (T = 1 + n) these are the frozen model's of one document.

    Args:
      tokens_BT: int32 rows of anchor, memory and local part, T = 1 + C c + n.
    """
    focus, variant = spec.focus, VARIANTS[spec.attention.variant]
    tokens_BT = reshard(tokens_BT, WHOLE_ROWS)
    B, T = tokens_BT.shape
    C, streams, of_chunks = focus.chunks(T), (), ()
    if C:
        chunks = chunks_of_rows(tokens_BT, focus)
        streams, of_chunks = entered(params, chunks, spec), chunks.layout().contexts(spec)
    local_BU = jnp.concatenate([anchor_of(tokens_BT), tokens_BT[:, T - focus.local :]], 1)
    index_BS = jnp.zeros((B, C + 1 + focus.local), jnp.int32, out_sharding=BATCH)
    index_BS = _like(index_BS, np.arange(index_BS.shape[1]))
    mask = Mask.from_segments(jnp.zeros_like(index_BS), 0)
    (of_local,) = variant.contexts(masks_of_kinds(mask, spec)[:1], index_BS, spec)

    def one_block(carry, layer):
        block, number = layer
        streams, x_BUD = jax.tree.map(lambda x: checkpoint_name(x, LAYER_INPUT), carry)
        attend = functools.partial(variant.attend, context=of_local, spec=spec, layer=number)
        if C:
            streams, condensed = condense(block, streams, of_chunks, spec, number)
            attend = behind(condensed, attend)
        return (streams, block(x_BUD, attend, spec)[0]), None

    layers = (params.blocks, jnp.arange(spec.model.num_layers))
    carry = streams, _embedded(params, local_BU, spec)
    (_, x_BUD), _ = jax.lax.scan(remat(one_block, spec.model.remat), carry, layers)
    return rms_norm(x_BUD, params.final_norm_D, spec.model)


def copied(params: Decoder) -> Decoder:
    """The decoder whose candidate projections are copies of the frozen ones."""
    leaves = named_leaves(params)
    copy = jax.jit(lambda x, like: jnp.copy(x).astype(like.dtype))  # an array of its own: a step donates both
    for name, leaf in leaves.items():
        if CANDIDATE in name:
            leaves[name] = copy(leaves[name.replace(CANDIDATE, "")], leaf)
    return jax.tree.unflatten(jax.tree.structure(params), leaves.values())


def behind(condensed: Condensed, attend: Attend) -> Attend:
    """`attend` of a row's tokens behind its candidates, which have keys and values and no queries."""
    C = condensed[0].shape[1]

    def joined(first_BCKH, then_BUKH):
        return reshard(jnp.concatenate([reshard(x, CACHE) for x in (first_BCKH, then_BUKH)], 1), HEADS)

    def attend_behind(q_BUNH, k_BUKH, v_BUKH):
        q_BSNH = joined(jnp.zeros_like(q_BUNH[:, :C], shape=(len(q_BUNH), C, *q_BUNH.shape[2:])), q_BUNH)
        k_BSKH, v_BSKH = (joined(*pair) for pair in zip(condensed, (k_BUKH, v_BUKH), strict=True))
        out_BSNH, kept = attend(q_BSNH, k_BSKH, v_BSKH)
        return out_BSNH[:, C:], kept

    return attend_behind
