"""How widely a layer attends: the entropy of its weights, and the share of its first key.

    entropy   H_i = -sum_j A_ij log A_ij in nats, of each query and head: 0 if it attends to one key, and log n if it
              attends to n keys alike (8.3178 for 4096)
    relative  H_i / log n_i with n_i the keys that query i sees; queries that see one key have none
    first     A_i0, the weight of the row's first key: the anchor, where there is one

Means are of each query's own entropy, and not the entropy of mean weights. Logits go through one softmax, and
H = log sum_j e^(s_j - m) - sum_j A_j (s_j - m) takes no logarithm of a weight, which may be 0.

Entropies by context length are what Entropy-ABF (arXiv 2401.07004, Section 3) scales logits for.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from anchorjax.attention import reference
from anchorjax.experiments.attention_weights.capture import Layer
from anchorjax.masks import Mask

BLOCK = 256  # queries whose weights exist at once: memory for [N, BLOCK, T]


@dataclasses.dataclass(frozen=True, eq=False)
class Spread:
    """How each query of a layer spreads its attention.

    Attributes:
      entropy_NT: nats, fp32.
      first_NT: weight of the row's first key, 0 where it is not visible.
      visible_T: int, keys that a query sees.
    """

    entropy_NT: np.ndarray
    first_NT: np.ndarray
    visible_T: np.ndarray


def spread(layer: Layer) -> Spread:
    """Computes the weights of a layer by their dense definition in fp32, a block of queries after the other."""
    T = len(layer.q_TNH)
    blocks = []
    for start in range(0, T, BLOCK):
        queries, stop = slice(start, start + BLOCK), min(start + BLOCK, T)  # keys behind the block are not visible
        mask = dataclasses.replace(
            layer.mask,
            q_segment_ids_BT=layer.mask.q_segment_ids_BT[:, queries],
            q_index_BT=layer.mask.q_index_BT[:, queries],
            kv_segment_ids_BS=layer.mask.kv_segment_ids_BS[:, :stop],
            kv_index_BS=layer.mask.kv_index_BS[:, :stop],
        )
        blocks.append(jax.device_get(_of_block(layer.q_TNH[queries], layer.k_TKH[:stop], mask)))
    return Spread(*(np.concatenate(parts, -1) for parts in zip(*blocks, strict=True)))


@functools.partial(jax.jit)
def _of_block(q_qNH: jax.Array, k_SKH: jax.Array, mask: Mask) -> tuple[jax.Array, jax.Array, jax.Array]:
    logits_NqS = reference.logits(q_qNH[None], k_SKH[None], mask)[0]
    logits_NqS = logits_NqS.reshape(-1, *logits_NqS.shape[-2:])
    sees_NqS = logits_NqS > -jnp.inf
    below_NqS = jnp.where(sees_NqS, logits_NqS - jnp.max(logits_NqS, -1, keepdims=True), 0)
    weights_NqS = jnp.where(sees_NqS, jnp.exp(below_NqS), 0)
    total_Nq = jnp.sum(weights_NqS, -1)
    entropy_Nq = jnp.log(total_Nq) - jnp.sum(weights_NqS * below_NqS, -1) / total_Nq
    return entropy_Nq, weights_NqS[..., 0] / total_Nq, jnp.sum(sees_NqS[0], -1)


def by_visible(spreads: list[Spread]) -> dict[str, list]:
    """Means over the queries of several rows by head, in buckets of visible keys: bucket m has 2^m to 2^(m + 1) - 1.

    Returns:
      "queries" [M], and "entropy", "relative" and "first" [N, M]; None where a bucket has no query.
    """
    visible = np.concatenate([one.visible_T for one in spreads])
    entropy = np.concatenate([one.entropy_NT for one in spreads], 1).astype(np.float64)
    first = np.concatenate([one.first_NT for one in spreads], 1).astype(np.float64)
    bucket = np.frexp(visible)[1] - 1  # floor of log2
    count_M = np.bincount(bucket)

    def means(values_NT: np.ndarray, counts: np.ndarray) -> list:
        """The mean over the queries that count: [N, M]."""
        most = np.bincount(bucket, counts, len(count_M))
        sums = [np.bincount(bucket, np.where(counts, values, 0), len(count_M)) for values in values_NT]
        return [[float(s / n) if n else None for s, n in zip(row, most, strict=True)] for row in sums]

    several = visible > 1
    relative = entropy / np.log(np.where(several, visible, 2))
    every = np.ones_like(several)
    return {
        "queries": count_M.tolist(),
        "entropy": means(entropy, every),
        "relative": means(relative, several),
        "first": means(first, every),
    }
