"""Does attention let through what the mask forbids? Change one token and see which outputs change.

For every implementation, mesh and mask: the outputs that differ, bit for bit, after one token's query, key and
value were changed must be those that `masks.allowed` lets see it: no more (a leak), no fewer (a blind spot). The
backward pass has a mask of its own: the keys whose gradients are not zero, if one query alone has a cotangent, must
be those that it may see.

    attend = jax.jit(attention)
    heads = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 64}
    leakage.check(leakage.probe(attend, mask, [(0, 17)], **heads))
    leakage.check(leakage.probe_gradients(attend, mask, [(0, 17)], **heads))
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from anchorjax import processes
from anchorjax.attention.plan import Plan
from anchorjax.errors import LeakageError
from anchorjax.masks import Mask, allowed
from anchorjax.types import PAD_SEGMENT

# Added to the changed token's value: any weight above 1e-30 then shows in an output of bf16.
_PERTURBATION = 1e30


@dataclasses.dataclass(frozen=True)
class Finding:
    """What the change of one token, or the cotangent of one query, did.

    Attributes:
      row, token: the token's place in the batch.
      leaks: int [n, 2]; (row, place) of outputs that changed and may not see it. Backward: of keys that have a
        gradient, and the query may not see them.
      blind: int [n, 2]; (row, place) of outputs that may see it and did not change. Backward: of keys that the query
        may see, and dk or dv is zero.
      backward: True for the backward pass.
    """

    row: int
    token: int
    leaks: np.ndarray
    blind: np.ndarray
    backward: bool = False


def probe(
    attend: Callable[[jax.Array, jax.Array, jax.Array, Mask | Plan], jax.Array],
    mask_or_plan: Mask | Plan,
    tokens: Sequence[tuple[int, int]],
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: str = "float32",
    sharding: jax.sharding.PartitionSpec | None = None,
) -> list[Finding]:
    """Changes each of `tokens` in turn in random arrays and compares the outputs of `attend`.

    Costs one call of `attend` and one more for each token, and keeps no [T, T] array.

    Args:
      attend: (q_BTNH, k_BTKH, v_BTKH, mask_or_plan) -> out_BTNH, jitted: it is called again for each token.
      mask_or_plan: what `attend` takes. Its mask is self-attention of whole rows: query t and key t are one token.
      tokens: (row, place in the array) of the tokens to change.
      sharding: of q, k and v on the current mesh; None leaves them to the default device.
    """
    mask = _on_host(_mask_of(mask_or_plan))
    q_BTNH, k_BTKH, v_BTKH = _draw(mask.q_index_BT.shape, num_heads, num_kv_heads, head_dim, dtype, sharding)
    before_BTNH = attend(q_BTNH, k_BTKH, v_BTKH, mask_or_plan)
    findings = []
    for row, token in tokens:
        added = ((q_BTNH, 0), (k_BTKH, 0), (v_BTKH, _PERTURBATION))
        changed = (_change(x, row, token, perturbation) for x, perturbation in added)
        changed_BT = processes.to_host(_differs(attend(*changed, mask_or_plan), before_BTNH))
        wanted_BT = _sees(mask, row, token)
        leaks, blind = np.argwhere(changed_BT & ~wanted_BT), np.argwhere(wanted_BT & ~changed_BT)
        findings.append(Finding(row, token, leaks, blind))
    return findings


def probe_gradients(
    attend: Callable[[jax.Array, jax.Array, jax.Array, Mask | Plan], jax.Array],
    mask_or_plan: Mask | Plan,
    tokens: Sequence[tuple[int, int]],
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: str = "float32",
    sharding: jax.sharding.PartitionSpec | None = None,
) -> list[Finding]:
    """Gives the output of each of `tokens` in turn a cotangent, and compares which keys get a gradient.

    Costs a forward and a backward pass of `attend` for each token. The arguments are those of `probe`.
    """
    mask = _on_host(_mask_of(mask_or_plan))
    q_BTNH, k_BTKH, v_BTKH = _draw(mask.q_index_BT.shape, num_heads, num_kv_heads, head_dim, dtype, sharding)

    @jax.jit
    def reached(q_BTNH, k_BTKH, v_BTKH, row, token, mask_or_plan):
        """Bool [B, T]: is dk, is dv not zero?"""
        _, vjp = jax.vjp(lambda k, v: attend(q_BTNH, k, v, mask_or_plan), k_BTKH, v_BTKH)
        here_BT11 = _place(q_BTNH, row, token)
        cotangent_BTNH = jnp.where(here_BT11, q_BTNH, 0)  # any numbers: the query's own cost no more memory
        return [jnp.any(x != 0, axis=(2, 3)) for x in vjp(cotangent_BTNH)]

    findings = []
    for row, token in tokens:
        found = reached(q_BTNH, k_BTKH, v_BTKH, row, token, mask_or_plan)
        reached_by_dk_BT, reached_by_dv_BT = map(processes.to_host, found)
        wanted_BT = _seen(mask, row, token)
        missing_BT = ~reached_by_dv_BT
        if wanted_BT.sum() > 1:  # the weight of an only key is 1, whatever it is: dk is zero
            missing_BT |= ~reached_by_dk_BT
        leaks = np.argwhere((reached_by_dk_BT | reached_by_dv_BT) & ~wanted_BT)
        findings.append(Finding(row, token, leaks, np.argwhere(wanted_BT & missing_BT), backward=True))
    return findings


def _mask_of(mask_or_plan: Mask | Plan) -> Mask:
    return mask_or_plan if isinstance(mask_or_plan, Mask) else mask_or_plan.mask


def _on_host(mask: Mask) -> Mask:
    """The mask with numpy arrays, of all tokens."""
    return jax.tree.map(processes.to_host, mask)


@functools.partial(jax.jit, static_argnums=range(6))
def _draw(shape_BT, num_heads, num_kv_heads, head_dim, dtype, sharding) -> list[jax.Array]:
    """Random q, k and v."""
    draw = functools.partial(jax.random.normal, dtype=dtype, out_sharding=sharding)
    heads = (num_heads, num_kv_heads, num_kv_heads)
    keys = jax.random.split(jax.random.key(0), len(heads))
    return [draw(key, (*shape_BT, count, head_dim)) for key, count in zip(keys, heads, strict=True)]


@jax.jit
def _change(x_BTNH: jax.Array, row: int, token: int, perturbation: float) -> jax.Array:
    """The array with one token's vectors negated, and `perturbation` added to them."""
    return jnp.where(_place(x_BTNH, row, token), jnp.asarray(perturbation, x_BTNH.dtype) - x_BTNH, x_BTNH)


def _place(x_BTNH: jax.Array, row: int, token: int) -> jax.Array:
    """Bool [B, T, 1, 1], true at one token."""
    B, T = x_BTNH.shape[:2]
    return ((jnp.arange(B)[:, None] == row) & (jnp.arange(T) == token))[..., None, None]


@jax.jit
def _differs(x_BTNH: jax.Array, y_BTNH: jax.Array) -> jax.Array:
    return jnp.any(x_BTNH != y_BTNH, axis=(2, 3))


def _sees(mask: Mask, row: int, token: int) -> np.ndarray:
    """Bool [B, T]: which queries the rule lets see this token; only those of its own row."""
    return _by_rule(mask, row, np.s_[:], token)


def _seen(mask: Mask, row: int, token: int) -> np.ndarray:
    """Bool [B, T]: which keys the rule lets this token see."""
    return _by_rule(mask, row, token, np.s_[:])


def _by_rule(mask: Mask, row: int, queries, keys) -> np.ndarray:
    """Bool [B, T]: the rule between one token of a row and all of the row, false in other rows."""
    result_BT = np.zeros(mask.q_index_BT.shape, bool)
    q_index, q_segment = (x[row, queries] for x in (mask.q_index_BT, mask.q_segment_ids_BT))
    kv_index, kv_segment = (x[row, keys] for x in (mask.kv_index_BS, mask.kv_segment_ids_BS))
    result_BT[row] = allowed(q_index, kv_index, q_segment, kv_segment, mask.num_anchors, mask.window)
    return result_BT


def probe_tokens(segment_ids_BT: np.ndarray, index_BT: np.ndarray | None = None) -> list[tuple[int, int]]:
    """Few tokens where a wrong mask would show, as (row, place in the array); none if there is only padding.

    In the order of the row, they are the first and the last token of the first row that has any, both sides of the
    first three places there where the segment changes (anchor to document, document to document, or to padding), and
    the middle token of the last row that has any, if that is another row.

    Args:
      index_BT: int32 place of each token in its row; None: tokens are in their row's order.
    """
    segment_ids_BT = np.asarray(segment_ids_BT)
    order_BT = np.argsort(np.zeros_like(segment_ids_BT) if index_BT is None else index_BT, axis=1, kind="stable")
    segment_ids_BT = np.take_along_axis(segment_ids_BT, order_BT, axis=1)
    real_BT = segment_ids_BT != PAD_SEGMENT
    rows = np.flatnonzero(real_BT.any(axis=1))
    if not rows.size:
        return []
    first, last = int(rows[0]), int(rows[-1])
    real, changes = np.flatnonzero(real_BT[first]), np.flatnonzero(np.diff(segment_ids_BT[first]))[:3]
    tokens = [(first, index) for index in sorted({real[0], real[-1], *changes, *(changes + 1)})]
    if last != first:
        real = np.flatnonzero(real_BT[last])
        tokens.append((last, real[len(real) // 2]))
    return [(row, int(order_BT[row, index])) for row, index in tokens]


def check(findings: Sequence[Finding]) -> None:
    """Raises LeakageError naming the first token whose change, or gradient, reached others than it may."""
    for finding in findings:
        what = "the gradient of " if finding.backward else ""
        for fault, places in (("reaches", finding.leaks), ("does not reach", finding.blind)):
            if len(places):
                row, query = places[0]
                raise LeakageError(
                    f"attention does not keep its mask: {what}token {finding.token} of row {finding.row} {fault} "
                    f"token {query} of row {row} (and {len(places) - 1} others)"
                )
