"""Does attention let through what the mask forbids? Change one token and see which outputs change.

For every implementation, mesh and mask: the outputs that differ, bit for bit, after one token's query, key and
value were changed must be those that `masks.allowed` lets see it: no more (a leak), no fewer (a blind spot).

    attend = jax.jit(lambda q, k, v, mask, plan: attention(q, k, v, mask))
    findings = leakage.probe(attend, mask, [(0, 17)], num_heads=4, num_kv_heads=2, head_width=64)
    leakage.check(findings)
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from anchorjax.errors import LeakageError
from anchorjax.masks import Mask, allowed
from anchorjax.types import PAD_SEGMENT

# Added to the changed token's value: any weight above 1e-30 then shows in an output of bf16.
_SHOUT = 1e30


@dataclasses.dataclass(frozen=True)
class Finding:
    """What the change of one token did.

    Attributes:
      row, token: the changed token's place in the batch.
      leaks: int [n, 2]; (row, query) of outputs that changed and may not see it.
      blind: int [n, 2]; (row, query) of outputs that may see it and did not change.
    """

    row: int
    token: int
    leaks: np.ndarray
    blind: np.ndarray


def probe(
    attend: Callable[[jax.Array, jax.Array, jax.Array, Mask, Any], jax.Array],
    mask: Mask,
    tokens: Sequence[tuple[int, int]],
    plan: Any = None,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_width: int,
    dtype: str = "float32",
    sharding: jax.sharding.PartitionSpec | None = None,
) -> list[Finding]:
    """Changes each of `tokens` in turn in random arrays and compares what `attend` makes of them.

    Costs one call of `attend` and one more for each token, and keeps no [T, T] array.

    Args:
      attend: (q_BTNH, k_BTKH, v_BTKH, mask, plan) -> out_BTNH, jitted: it is called again for each token.
      mask: self-attention of whole rows: query t and key t are one token.
      tokens: (row, place in the array) of the tokens to change.
      plan: handed on to `attend`.
      sharding: of q, k and v on the current mesh; None leaves them to the default device.
    """
    heads = (num_heads, num_kv_heads, num_kv_heads)
    shapes = [(*mask.q_index_BT.shape, n, head_width) for n in heads]
    q_BTNH, k_BTKH, v_BTKH = jax.jit(_draw, static_argnums=(0, 1, 2))(tuple(shapes), dtype, sharding)
    before_BTNH = attend(q_BTNH, k_BTKH, v_BTKH, mask, plan)
    findings = []
    for row, token in tokens:
        changed = (_change(x, row, token, shout) for x, shout in ((q_BTNH, 0), (k_BTKH, 0), (v_BTKH, _SHOUT)))
        changed_BT = np.asarray(_differs(attend(*changed, mask, plan), before_BTNH))
        wanted_BT = _sees(mask, row, token)
        leaks, blind = np.argwhere(changed_BT & ~wanted_BT), np.argwhere(wanted_BT & ~changed_BT)
        findings.append(Finding(row, token, leaks, blind))
    return findings


def _draw(shapes, dtype, sharding):
    keys = jax.random.split(jax.random.key(0), len(shapes))
    draw = functools.partial(jax.random.normal, dtype=dtype, out_sharding=sharding)
    return [draw(key, shape) for key, shape in zip(keys, shapes, strict=True)]


@jax.jit
def _change(x_BTNH: jax.Array, row: int, token: int, shout: float) -> jax.Array:
    """The array with one token's vectors negated, and `shout` added to them."""
    B, T = x_BTNH.shape[:2]
    here_BT11 = ((jnp.arange(B)[:, None] == row) & (jnp.arange(T) == token))[..., None, None]
    return jnp.where(here_BT11, jnp.asarray(shout, x_BTNH.dtype) - x_BTNH, x_BTNH)


@jax.jit
def _differs(x_BTNH: jax.Array, y_BTNH: jax.Array) -> jax.Array:
    return jnp.any(x_BTNH != y_BTNH, axis=(2, 3))


def _sees(mask: Mask, row: int, token: int) -> np.ndarray:
    """Bool [B, T]: which queries the rule lets see this token; only those of its own row."""
    sees_BT = np.zeros(mask.q_index_BT.shape, bool)
    index_T, segments_T = (np.asarray(x)[row] for x in (mask.q_index_BT, mask.q_segment_ids_BT))
    kv_index, kv_segment = (np.asarray(x)[row, token] for x in (mask.kv_index_BS, mask.kv_segment_ids_BS))
    sees_BT[row] = allowed(index_T, kv_index, segments_T, kv_segment, mask.num_anchors, mask.window)
    return sees_BT


def telling_tokens(segment_ids_BT: np.ndarray) -> list[tuple[int, int]]:
    """Few tokens where a wrong mask would show; none if there are only pads.

    Of the first row that has tokens: its first and its last one, and both sides of the first three places where the
    segment changes (anchor to document, document to document, or to a pad). Of the last such row, if it is another:
    the one amid its tokens.
    """
    real_BT = np.asarray(segment_ids_BT) != PAD_SEGMENT
    rows = np.flatnonzero(real_BT.any(axis=1))
    if not rows.size:
        return []
    first, last = int(rows[0]), int(rows[-1])
    real, changes = np.flatnonzero(real_BT[first]), np.flatnonzero(np.diff(segment_ids_BT[first]))[:3]
    places = {int(place) for place in (real[0], real[-1], *changes, *(changes + 1))}
    tokens = [(first, place) for place in sorted(places)]
    if last != first:
        real = np.flatnonzero(real_BT[last])
        tokens.append((last, int(real[len(real) // 2])))
    return tokens


def check(findings: Sequence[Finding]) -> None:
    """Raises LeakageError naming the first token whose change reached another set of outputs than it may."""
    for finding in findings:
        for fault, places in (("reaches", finding.leaks), ("does not reach", finding.blind)):
            if len(places):
                row, query = places[0]
                raise LeakageError(
                    f"attention does not keep its mask: token {finding.token} of row {finding.row} {fault} "
                    f"token {query} of row {row} (and {len(places) - 1} others)"
                )
