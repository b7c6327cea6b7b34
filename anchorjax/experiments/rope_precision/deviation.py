"""How far attention moves when only positions do: one text at several sets of positions, compared layer by layer.

RoPE's attention depends on distances alone, so that a row whose positions are all shifted by D should attend as
before. What rounding makes of that is measured as in "When Precision Meets Position" (arXiv 2411.13476), Section 2:

    Eq. 4   attention = sum over layers, heads, keys j of n_j sum_i |A_ij - A'_ij|    n_j = 1 / (queries that see j)
    Eq. 5   logit     = sum over layers, heads of 1/T sum_i |a_i1 - a'_i1|            a_i1 of the first key

A and A' are of whole forward passes, as in the paper: a layer's inputs already differ by what the layers before it made
of the shift. All sets go through the decoder as rows of one batch, and attention weights are subtracted where they
arise, some queries at a time: memory for [B, N, BLOCK, T] is needed, and never for [T, T].

Rows are causal, so that the first t tokens of a row are what a row of t tokens would be: one pass measures all lengths.

In names, beside those of types.py: P sets of positions, p = P - 1 those that are compared with the first, M lengths,
g groups of keys (GROUPS), q the queries of a block.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import reshard

from anchorjax import processes, sharding
from anchorjax.attention import reference
from anchorjax.experiments.rope_precision.rotation import Precision, tables
from anchorjax.inference.language_model import LanguageModel
from anchorjax.masks import Mask, allowed
from anchorjax.models.decoder import Decoder, masks_of_kinds
from anchorjax.models.spec import Spec
from anchorjax.models.variants import plain
from anchorjax.precision import EXACT
from anchorjax.sharding import ALL_ROWS, BATCH, HEADS, REPLICATED, heads_last
from anchorjax.types import PAD_SEGMENT

BLOCK = 128  # queries whose weights exist at once; rows are padded to whole blocks
STRIPES = 4  # of a row's queries, each of which sees no key behind its end
GROUPS = ("first", "starts", "others")  # the row's first token; first tokens of documents behind it; all other keys

# Otherwise XLA may leave out a rounding to bfloat16 and back, which is what is to be measured.
EXACTLY = {"xla_allow_excess_precision": False}


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """A text, who sees whom in it, and its sets of positions.

    Attributes:
      tokens_T, segment_ids_T: int32, without padding.
      num_anchors: leading tokens that every later one sees.
      positions_PT: int32; the first set is what the others are compared with.
    """

    tokens_T: np.ndarray
    segment_ids_T: np.ndarray
    num_anchors: int
    positions_PT: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Deviation:
    """From the first set of positions, of each other one; float64 sums of fp32 parts.

    Attributes:
      attention_pgML: Eq. 4 by group of keys, length and layer, summed over heads.
      logit_pML: Eq. 5 by length and layer, summed over heads.
      all_logits_pML: Eq. 5 with the mean over all keys that a query sees in place of its first key.
      columns_pT: Eq. 4 by key, of the longest length.
    """

    attention_pgML: np.ndarray
    logit_pML: np.ndarray
    all_logits_pML: np.ndarray
    columns_pT: np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Compared:
    """What a kind of layer sees, and how its differences are added up.

    Attributes:
      plain: without a plan; its mask is of one row, as the text is the same in all.
      norm_MS: n_j of each length.
      group_gS, short_MT: 1 for keys of a group, and for queries of a length.
    """

    plain: plain.LayerContext
    norm_MS: jax.Array
    group_gS: jax.Array
    short_MT: jax.Array


def measure(
    model: LanguageModel, row: Row, precision: Precision, lengths: Sequence[int], max_position: int
) -> Deviation:
    """Runs the model at every set of positions.

    Args:
      lengths: leading tokens of the row to measure on, ascending; the last is the row's.
      max_position: every position is below it. Scalings that go by the length of rows take it for that.
    """
    description, T = model.description, len(row.tokens_T)
    config = dataclasses.replace(description.model, compute_dtype=precision.compute)
    turning = dataclasses.replace(description.rope, dtype=precision.rotation)
    spec = dataclasses.replace(description.spec(max_position), model=config, rope=turning, num_anchors=row.num_anchors)
    shards = model.mesh.shape["data"] * model.mesh.shape["fsdp"]
    rows = -(-len(row.positions_PT) // shards) * shards

    def padded(x, value):
        return np.pad(x, (0, -T % BLOCK), constant_values=value)

    segment_ids_T = padded(row.segment_ids_T, PAD_SEGMENT)
    positions_BT = np.stack([padded(x, x[-1]) for x in row.positions_PT])
    positions_BT = np.concatenate([positions_BT, np.repeat(positions_BT[:1], rows - len(positions_BT), 0)])
    tokens_BT = np.repeat(padded(row.tokens_T, 0)[None], rows, 0)
    with jax.set_mesh(model.mesh):
        put = functools.partial(sharding.put, pspec=BATCH)
        contexts = tuple(
            _context(mask, put(positions_BT), lengths, spec, precision)
            for mask in masks_of_kinds(Mask.from_segments(jnp.asarray(segment_ids_T)[None], spec.num_anchors), spec)
        )
        found = jax.tree.map(processes.to_host, _forward(model.params, put(tokens_BT), contexts, spec))
    attention_LpgMN, logit_LpMN, all_logits_LpMN, columns_LpS = (x.astype(np.float64) for x in found)
    compared = len(row.positions_PT) - 1
    return Deviation(
        np.moveaxis(attention_LpgMN.sum(-1), 0, -1)[:compared],
        np.moveaxis(logit_LpMN.sum(-1), 0, -1)[:compared],
        np.moveaxis(all_logits_LpMN.sum(-1), 0, -1)[:compared],
        columns_LpS.sum(0)[:compared, :T],
    )


def column_norms(segment_ids_T: np.ndarray, num_anchors: int, window: int | None, lengths: Sequence[int]) -> np.ndarray:
    """n_j of Eq. 4 [M, T]: one over the queries of the first t tokens that see key j; 0 where none does."""
    index_T = np.arange(len(segment_ids_T), dtype=np.int32)
    sees_TS = allowed(index_T[:, None], index_T[None], segment_ids_T[:, None], segment_ids_T[None], num_anchors, window)
    count_MS = np.stack([sees_TS[:length].sum(0) for length in lengths])
    return np.where(count_MS, 1 / np.maximum(count_MS, 1), 0)


def column_groups(segment_ids_T: np.ndarray) -> np.ndarray:
    """bool [g, T], GROUPS; each key is in one of them, padding in none."""
    index_T = np.arange(len(segment_ids_T))
    real_T = segment_ids_T != PAD_SEGMENT
    first_of_segment = np.unique(segment_ids_T, return_index=True)[1]
    starts_T = np.isin(index_T, first_of_segment) & (index_T > 0) & real_T
    first_T = index_T == 0
    return np.stack([first_T, starts_T, real_T & ~first_T & ~starts_T])


def _context(mask: Mask, positions_BT, lengths, spec: Spec, precision: Precision) -> _Compared:
    segment_ids_T, window = np.asarray(mask.q_segment_ids_BT[0]), mask.window
    pair = tables(positions_BT, spec.max_position, spec.model.head_dim, spec.rope, precision, local=window is not None)
    short_MT = np.arange(len(segment_ids_T)) < np.asarray(lengths)[:, None]
    sums = column_norms(segment_ids_T, spec.num_anchors, window, lengths), column_groups(segment_ids_T), short_MT
    return _Compared(plain.LayerContext(mask, *pair), *(jnp.asarray(x, jnp.float32) for x in sums))


@functools.partial(jax.jit, static_argnames="spec", compiler_options=EXACTLY)
def _forward(params: Decoder, tokens_BT: jax.Array, contexts: tuple[_Compared, ...], spec: Spec):
    """(attention [L, p, g, M, N], logit, all_logits [L, p, M, N], columns [L, p, S]) of B - 1 = p rows."""
    return params.through_blocks(tokens_BT, contexts, compare_rows, spec)[1]


def compare_rows(q_BTNH, k_BTKH, v_BTKH, context: _Compared, spec: Spec, layer=None):
    """The attention of the variant `plain` by its dense definition, and how rows differ in it.

    It is no variant of its own: it has neither plan nor cache, and no key selects it. Queries and keys are rotated by
    `plain`, with tables of the positions and precision that are measured.

    Returns:
      (out [B, T, N, H] in q's dtype, the sums of differences from row 0 that `_forward` stacks by layer).
    """
    q_BTNH, k_BTKH = plain.rotated(q_BTNH, k_BTKH, context.plain, spec)
    arrays = [reshard(x, ALL_ROWS) for x in (q_BTNH, k_BTKH, v_BTKH)]
    sums = heads_last(4), heads_last(3), heads_last(3), REPLICATED
    compare = jax.shard_map(_compare, in_specs=(*[ALL_ROWS] * 3, *[REPLICATED] * 4), out_specs=(ALL_ROWS, sums))
    out_BTNH, found = compare(*arrays, context.plain.mask, context.norm_MS, context.group_gS, context.short_MT)
    return reshard(out_BTNH.astype(q_BTNH.dtype), HEADS), found


def _compare(q_BTNH, k_BTKH, v_BTKH, mask: Mask, norm_MS, group_gS, short_MT):
    """All rows on one device, with its heads, a block of queries after the other."""
    T = q_BTNH.shape[1]
    # Of a row's quarters the last alone sees all keys: three eighths of all pairs are never computed.
    edges = sorted({T * quarter // STRIPES // BLOCK * BLOCK for quarter in range(STRIPES + 1)})
    outs, sums = [], []
    for first, stop in itertools.pairwise(edges):
        seen_mask = dataclasses.replace(
            mask, kv_segment_ids_BS=mask.kv_segment_ids_BS[:, :stop], kv_index_BS=mask.kv_index_BS[:, :stop]
        )
        keys = k_BTKH[:, :stop], v_BTKH[:, :stop], norm_MS[:, :stop], group_gS[:, :stop]
        block = functools.partial(_compare_block, q_BTNH, *keys, seen_mask, short_MT)
        out_xBqNH, (*parts, columns_xpS) = jax.lax.map(block, jnp.arange(first, stop, BLOCK))
        outs.append(jnp.moveaxis(out_xBqNH, 0, 1).reshape(q_BTNH.shape[0], stop - first, *q_BTNH.shape[2:]))
        columns_pT = jnp.pad(jnp.sum(columns_xpS, 0), ((0, 0), (0, T - stop)))
        sums.append((*(jnp.sum(part, 0) for part in parts), columns_pT))
    attention_pgMN, logit_pMN, all_logits_pMN, columns_pT = (sum(x) for x in zip(*sums, strict=True))
    length_M1 = jnp.sum(short_MT, -1)[:, None]
    sums = attention_pgMN, logit_pMN / length_M1, all_logits_pMN / length_M1, jax.lax.psum(columns_pT, "tensor")
    return jnp.concatenate(outs, 1), sums


def _compare_block(q_BTNH, k_BSKH, v_BSKH, norm_MS, group_gS, mask: Mask, short_MT, start):
    """Compares rows over BLOCK queries: (outputs [B, q, N, H], sums of differences over them)."""
    cut = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=BLOCK, axis=1)
    mask = dataclasses.replace(mask, q_segment_ids_BT=cut(mask.q_segment_ids_BT), q_index_BT=cut(mask.q_index_BT))
    short_Mq = cut(short_MT)

    def one_row(arrays):
        q_1qNH, k_1SKH, v_1SKH = (x[None] for x in arrays)
        logits_1KGqS = reference.logits(q_1qNH, k_1SKH, mask)
        weights_1KGqS, _ = reference.softmax(logits_1KGqS)
        finite_1KGqS = jnp.where(logits_1KGqS > -jnp.inf, logits_1KGqS, 0)
        by_head = (x.reshape(-1, *x.shape[3:]) for x in (finite_1KGqS, weights_1KGqS))
        return reference.weighted(weights_1KGqS, v_1SKH)[0], *by_head

    # Row by row: of all at once, XLA would compile the first otherwise than those that it is subtracted from, and
    # equal rows would differ in the last bit of exp.
    out_BqNH, logits_BNqS, weights_BNqS = jax.lax.map(one_row, (cut(q_BTNH), k_BSKH, v_BSKH))
    sum_up = functools.partial(jnp.einsum, precision=EXACT)
    moved_pNqS = jnp.abs(weights_BNqS[1:] - weights_BNqS[:1])
    attention_pgMN = sum_up("pnqs,gs,ms,mq->pgmn", moved_pNqS, group_gS, norm_MS, short_Mq)
    columns_pS = sum_up("pnqs,ms,mq->ps", moved_pNqS, norm_MS[-1:], short_Mq[-1:])
    moved_pNqS = jnp.abs(logits_BNqS[1:] - logits_BNqS[:1])
    logit_pMN = sum_up("pnq,mq->pmn", moved_pNqS[..., 0], short_Mq)
    seen_q = jnp.maximum(jnp.sum(mask.materialize()[0], -1), 1)
    all_logits_pMN = sum_up("pnq,mq->pmn", jnp.sum(moved_pNqS, -1) / seen_q, short_Mq)
    return out_BqNH, (attention_pgMN, logit_pMN, all_logits_pMN, columns_pS)
