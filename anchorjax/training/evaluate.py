"""Held-out loss of packed rows: nats per target, bits per byte, and the loss by place in row and document.

Bits per byte compares models with different tokenizers: all nats of the scored targets over all bytes of
text that those targets stand for. The end-of-document token has nats but no bytes, which makes the figure
slightly pessimistic rather than slightly flattering.
"""

import math
import operator
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, reshard

from anchorjax.models.decoder import Decoder
from anchorjax.sharding import WHOLE_ROWS, shard_batch
from anchorjax.training.step import Steps
from anchorjax.types import Batch

FIRST_BUCKET = 64  # tokens; each bucket after the first is as wide as all before it


def bucket_edges(seq_len: int) -> list[int]:
    """Upper edges of the buckets: 64, 128, 256, ... up to the row's length."""
    edges = [FIRST_BUCKET]
    while edges[-1] < seq_len:
        edges.append(edges[-1] * 2)
    return edges


def loss_by_bucket(edges: list[int], nats_E: Sequence[float], weights_E: Sequence[float]) -> dict[str, float]:
    """{"0-64": loss, ...}; buckets without a target are left out."""
    return {
        f"{start}-{end}": float(nats / weight)
        for start, end, nats, weight in zip([0, *edges[:-1]], edges, nats_E, weights_E, strict=True)
        if weight
    }


class Evaluator:
    """Compiled once; call it with weights and host batches."""

    def __init__(self, steps: Steps, token_bytes_V: np.ndarray, mesh: Mesh):
        self._mesh, self._num_rows = mesh, steps.config.data.batch_size
        self._edges = bucket_edges(steps.config.data.seq_len)
        self._num_anchors = steps.num_anchors
        self._knows_documents = steps.config.data.mask != "full"  # there all tokens have one segment id

        def sums(params: Decoder, batch: Batch) -> dict[str, jax.Array]:
            whole_rows = jax.tree.map(lambda x: reshard(x, WHOLE_ROWS), (steps.nats(params, batch), batch))
            return self._count(*whole_rows, token_bytes_V)

        self._sums = jax.jit(sums)

    def _count(self, nats_BT: jax.Array, batch: Batch, token_bytes_V: np.ndarray) -> dict[str, jax.Array]:
        weights_BT = batch.is_target_BT.astype(jnp.float32)
        nats_BT = nats_BT * weights_BT
        # A special token beyond those of texts has no bytes.
        by_token = jnp.asarray(token_bytes_V).at[batch.targets_BT]
        bytes_BT = by_token.get(mode="fill", fill_value=0, out_sharding=WHOLE_ROWS)

        def by(place_BT):
            bucket_BT1 = jnp.sum(place_BT[..., None] >= np.asarray(self._edges), -1, keepdims=True)
            in_bucket_BTE = bucket_BT1 == np.arange(len(self._edges))
            return [jnp.sum(jnp.where(in_bucket_BTE, x[..., None], 0), (0, 1)) for x in (nats_BT, weights_BT)]

        return {
            "nats": jnp.sum(nats_BT),
            "targets": jnp.sum(batch.is_target_BT, dtype=jnp.int32),  # float32 is exact to 2^24 only
            "bytes": jnp.sum(jnp.where(batch.is_target_BT, bytes_BT, 0), dtype=jnp.int32),
            "by_position": by(batch.index_BT),
            "by_context": by(batch.visible_BT - 1 - self._num_anchors),  # the anchor's own -1 is in the first bucket
        }

    def __call__(self, params: Decoder, batches: Iterable[Batch]) -> dict:
        """The `summary` of all batches."""
        return self.summary(self.sums(params, batch) for batch in batches)

    def sums(self, params: Decoder, batch: Batch) -> dict:
        """The sums of one batch, of which this process has its rows, as JSON keeps them to the last bit."""
        part = self._sums(params, shard_batch(batch, self._mesh, self._num_rows))
        return jax.tree.map(lambda x: np.asarray(x, np.float64).tolist(), part)

    def summary(self, parts: Iterable[dict]) -> dict:
        """`loss` (nats per target), `bits_per_byte`, `targets`, and the loss in buckets of places.

        `by_position` goes by place in the row, `by_context` by tokens of the same document before it in the
        row; the latter is missing under the `full` mask, where documents are not told apart.

        Raises:
          ValueError: the batches hold no target at all.
        """
        total = None
        for part in parts:
            total = part if total is None else jax.tree.map(operator.add, total, part)
        if total is None or not total["targets"]:
            raise ValueError("there is no held-out text to evaluate on")
        places = ("by_position", "by_context") if self._knows_documents else ("by_position",)
        return {
            "loss": total["nats"] / total["targets"],
            "bits_per_byte": total["nats"] / math.log(2) / total["bytes"] if total["bytes"] else math.inf,
            "targets": int(total["targets"]),
            **{name: loss_by_bucket(self._edges, *total[name]) for name in places},
        }
