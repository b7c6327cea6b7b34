"""LongCE (arXiv 2410.23771, Section 4): targets that the long context makes easier to predict weigh more.

    weight_t = min(exp(CE_short_t - CE_long_t), limit)

CE_long is the forward pass's own loss of the target. CE_short is the loss by the same weights in a short window: K to
K + w - 1 tokens of the target's own document, behind the row's first token. `prepare` computes it before the full pass
and keeps no activation, so the two passes are never in memory together. A target with fewer than K tokens of context
has weight 1, as in the authors' code; so have all targets of documents of K tokens or fewer.

A window is a packed row of one document, with positions from 0: the row's first token, then K + w - 1 tokens of the
document, of which the last w are scored. All of them see the first token under the masks `anchor` and `full`, and none
under `intra_doc`, as in the row. Windows never cross documents. Without the first token CE_short would measure the loss
of the anchor, and not that of the context. Nothing is dropped out in windows.

Windows run in groups, and a loop makes as many groups as the rows of the micro-batch need. Its length is the same on
all devices, as the windows of all rows are dealt out evenly over the devices that hold rows. Token ids travel to all
devices for this: 16 bytes a token. The devices along `context` share each window like a row, by the strategy of the
mesh. Letters: K, w as above; W windows of a group, L tokens of a window, of which S are scored; N tokens of a
micro-batch; C devices along `context`.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import reshard

from anchorjax.attention import choose
from anchorjax.config import Config
from anchorjax.errors import ConfigError
from anchorjax.models.decoder import Decoder
from anchorjax.models.loss import token_nats
from anchorjax.models.spec import Spec
from anchorjax.sharding import ACTIVATIONS, BATCH, REPLICATED, ROWS, WHOLE_ROWS
from anchorjax.types import PAD_SEGMENT, Batch

SCOPE = "short_windows"  # in the names of the compiled operations, by which the planner knows them
NOT_SCORED = -1.0  # in place of a target's nats in a short window, which are 0 or more
GROUP_TOKENS = 2**14  # of a device in one pass over windows: enough to fill its matrix units; a row has often more
_ABSENT = 2**30  # a place of a window that holds no token: behind the end of any document
_NO_DOCUMENT = jnp.iinfo(jnp.int32).max


@dataclasses.dataclass(frozen=True)
class LongCE:
    """Weights from the nats in a short window and in the whole row.

    Attributes:
      context: K, least tokens of a short context.
      stride: w, tokens that a window scores.
      limit: the largest weight.
      mask: `data.mask`, by which a window is laid out.
      tiles: (q_tile, kv_tile) of attention for rows of K + w tokens.
      loss_chunk: tokens of a device whose logits exist at once.
    """

    context: int
    stride: int
    limit: float
    mask: str
    tiles: tuple[int, int]
    loss_chunk: int

    @jax.named_scope(SCOPE)
    def prepare(self, params: Decoder, batch: Batch, spec: Spec) -> jax.Array:
        """CE_short of every target in nats, fp32 [B, T]; NOT_SCORED where no window scores it."""
        cut = functools.partial(in_documents, context=self.context, stride=self.stride)
        rows = batch.tokens_BT, batch.targets_BT, batch.is_target_BT, batch.segment_ids_BT, batch.index_BT
        rows = [reshard(x_BT, WHOLE_ROWS) for x_BT in rows]
        *rows, place_BT = jax.shard_map(jax.vmap(cut), in_specs=WHOLE_ROWS, out_specs=WHOLE_ROWS)(*rows)
        short_N = self._short(params, *(reshard(x, REPLICATED) for x in rows), spec)
        short_BT = reshard(short_N.reshape(place_BT.shape), WHOLE_ROWS)
        put_back = jax.vmap(lambda short_T, place_T: jnp.zeros_like(short_T).at[place_T].set(short_T))
        return reshard(jax.shard_map(put_back, in_specs=WHOLE_ROWS, out_specs=WHOLE_ROWS)(short_BT, place_BT), BATCH)

    def weigh(self, nats_c: jax.Array, weights_c: jax.Array, aux_c: jax.Array) -> jax.Array:
        gain_c = jnp.minimum(jnp.exp(aux_c - nats_c), self.limit)
        return weights_c * jnp.where(aux_c >= 0, gain_c, 1.0)

    def _short(self, params, tokens_BT, targets_BT, end_BT, first_B, spec: Spec) -> jax.Array:
        """CE_short [N] of tokens in the order of `in_documents`, whose arrays these are."""
        (B, T), mesh = tokens_BT.shape, jax.sharding.get_abstract_mesh().shape
        place_CL, scored = places(self.context, self.stride, mesh["context"])
        W = windows_of_group(place_CL.size, T, mesh)
        most = B * ((T - 1) // min(self.context, self.stride) + 1)
        row_B1 = T * jnp.arange(B, dtype=jnp.int32)[:, None]  # where each row begins in all rows end to end
        end_BT = jnp.where(end_BT > 0, end_BT + row_B1, 0)
        tokens_N, targets_N, end_N = (x_BT.reshape(B * T) for x_BT in (tokens_BT, targets_BT, end_BT))
        (starts,) = jnp.nonzero(end_N, size=-(-most // W) * W, fill_value=B * T)
        groups = -(-jnp.count_nonzero(end_N) // W)
        q_tile, kv_tile = self.tiles
        attention = dataclasses.replace(spec.attention, q_tile=q_tile, kv_tile=kv_tile)
        spec, unembedding_DV = dataclasses.replace(spec, attention=attention), params.unembedding_DV(spec)

        def one_group(group, short_N):
            start_W1 = jax.lax.dynamic_slice_in_dim(starts, group * W, W)[:, None]
            end_W1 = end_N.at[start_W1].get(mode="fill", fill_value=0)
            window = self._window(place_CL.ravel(), start_W1, end_W1, first_B, tokens_N)
            hidden_WLD = params.hidden(*window[:3], spec, None, window[3])
            hidden_WSD = jax.shard_map(lambda x: x[:, -scored:], in_specs=ACTIVATIONS, out_specs=ACTIVATIONS)(
                hidden_WLD
            )
            at_WS = start_W1 + place_CL[:, -scored:].ravel()
            targets_WS = targets_N.at[reshard(at_WS, BATCH)].get(mode="clip", out_sharding=BATCH)
            nats_WS = token_nats(hidden_WSD, unembedding_DV, targets_WS, self.loss_chunk, spec.model.final_soft_cap)
            at_WS = jnp.where(at_WS < end_W1, at_WS, B * T)
            return short_N.at[at_WS].set(jnp.maximum(reshard(nats_WS, REPLICATED), 0.0), mode="drop")

        return jax.lax.fori_loop(0, groups, one_group, jnp.full(B * T, NOT_SCORED, jnp.float32))

    def _window(self, place_L: np.ndarray, start_W1, end_W1, first_B, tokens_N) -> tuple[jax.Array, ...]:
        """Tokens, positions, segment ids and index of windows, int32 [W, L] each, sharded like a batch."""
        at_WL = reshard(start_W1 + place_L, BATCH)
        is_first_L, is_absent_L = place_L < 0, place_L == _ABSENT
        first_W1 = first_B.at[start_W1 // (len(tokens_N) // len(first_B))].get(mode="clip")
        tokens_WL = tokens_N.at[jnp.maximum(at_WL, 0)].get(mode="clip", out_sharding=BATCH)
        tokens_WL = jnp.where(is_first_L, first_W1, tokens_WL)
        document_L = np.where(is_first_L | (self.mask == "full"), 0, 1).astype(np.int32)
        segment_ids_WL = jnp.where(at_WL < end_W1, document_L, PAD_SEGMENT)
        position_L = np.where(is_absent_L, 0, place_L + 1).astype(np.int32)
        # The index of a token is its position, as a layer's window counts it. No token has that of an absent one.
        index_L = np.where(is_absent_L, len(place_L) + np.arange(len(place_L)), place_L + 1).astype(np.int32)
        along_WL = jnp.zeros_like(at_WL)
        return tokens_WL, along_WL + position_L, segment_ids_WL, along_WL + index_L


def windows_of_group(length: int, seq_len: int, mesh_shape: Mapping[str, int]) -> int:
    """W: on each device at least one window, and no more than GROUP_TOKENS tokens or a row."""
    of_rows = max(1, min(seq_len, GROUP_TOKENS * mesh_shape["context"]) // length)
    return math.prod(mesh_shape[axis] for axis in ROWS) * of_rows


def in_documents(
    tokens_T: jax.Array,
    targets_T: jax.Array,
    is_target_T: jax.Array,
    segment_ids_T: jax.Array,
    index_T: jax.Array,
    context: int,
    stride: int,
) -> tuple[jax.Array, ...]:
    """One row's tokens, document by document, each document's in their order; and the windows that score targets.

    The row's first token, which belongs to no document, and padding come last. Interleaved documents are put together.

    Returns:
      tokens_T, targets_T: in that order.
      end_T: int32; where a window of targets begins, the place behind its document's last token, and 0 elsewhere.
      first: int32, the row's first token.
      place_T: int32, where in the given arrays each token was.
    """
    place_T = jnp.arange(len(tokens_T), dtype=jnp.int32)
    first = jnp.sum(jnp.where(index_T == 0, tokens_T, 0))
    document_T = jnp.where((segment_ids_T == PAD_SEGMENT) | (index_T == 0), _NO_DOCUMENT, segment_ids_T)
    arrays = document_T, index_T, tokens_T, targets_T, is_target_T, place_T
    document_T, _, tokens_T, targets_T, is_target_T, from_T = jax.lax.sort(arrays, num_keys=2)
    is_first_T = jnp.append(True, document_T[1:] != document_T[:-1])
    start_T = jax.lax.cummax(jnp.where(is_first_T, place_T, 0))
    end_T = jax.lax.cummin(jnp.where(jnp.append(is_first_T[1:], True), place_T + 1, _NO_DOCUMENT), reverse=True)
    behind_T = place_T - start_T - (context - 1)  # tokens of context that a target has beyond K
    is_scored_T = is_target_T & (document_T != _NO_DOCUMENT) & (behind_T >= 0)
    window_T = start_T + behind_T // stride * stride
    begins_T = jnp.zeros_like(is_target_T).at[jnp.where(is_scored_T, window_T, len(place_T))].set(True, mode="drop")
    return tokens_T, targets_T, jnp.where(begins_T, end_T, 0), first, from_T


def places(context: int, stride: int, shards: int) -> tuple[np.ndarray, int]:
    """Which token of a window each device along `context` has at each place.

    Every device gets an early and a late stretch of the context and of the scored tokens each, so that the work of
    attention and of the loss is even.

    Returns:
      int32 [C, L / C]: the number of a token in the window's part of its document, -1 for the row's first token, and
      _ABSENT where stretches would not be equal; and how many tokens at the end of each device's are scored.
    """

    def dealt(numbers: np.ndarray) -> np.ndarray:
        if shards == 1:
            return numbers[None]
        absent = np.full(-len(numbers) % (2 * shards), _ABSENT)
        stretches = np.append(numbers, absent).reshape(2 * shards, -1)
        return np.concatenate([stretches[:shards], stretches[: shards - 1 : -1]], axis=1)

    scored_Cs = dealt(np.arange(context - 1, context + stride - 1))
    both_CL = np.concatenate([dealt(np.arange(-1, context - 1)), scored_Cs], axis=1)
    return both_CL.astype(np.int32), scored_Cs.shape[1]


def make(config: Config, targets_K: np.ndarray | None) -> LongCE:
    train, mask = config.train, config.data.mask
    context, stride = train.longce_context, train.longce_stride
    # A bucket of contexts may reach from below K to above it, so this refuses only what is certain.
    if targets_K is not None and (longest := 2 ** (int(np.flatnonzero(targets_K).max(initial=0)) + 1)) <= context:
        allowed = f"no target would get another weight than 1: all see fewer than {longest} keys"
        raise ConfigError("train.longce_context", context, allowed)
    chosen = choose(config.attention, context + stride)
    return LongCE(context, stride, train.longce_limit, mask, (chosen.q_tile, chosen.kv_tile), train.loss_chunk)
