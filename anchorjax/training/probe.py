"""The leakage probe on a run's own attention: its mesh, implementation, tiles, dtype and first batch."""

import jax

from anchorjax import processes
from anchorjax.attention import leakage, parallel
from anchorjax.masks import Mask
from anchorjax.models.decoder import masks_of_kinds
from anchorjax.models.spec import Spec
from anchorjax.sharding import HEADS
from anchorjax.types import Batch

GRADIENTS = 3  # each takes three to four times as long as the change of a token


def probe_attention(batch: Batch, spec: Spec) -> int:
    """Probes each kind of layer's attention at the tokens of `leakage.probe_tokens`; call it inside the run's mesh.

    The backward pass is probed at the last GRADIENTS of them.

    Args:
      batch: sharded arrays on the mesh.

    Returns:
      How many tokens were changed.

    Raises:
      LeakageError: a token, or its gradient, reaches others than the mask says.
    """
    tokens = leakage.probe_tokens(*map(processes.to_host, (batch.segment_ids_BT, batch.index_BT)))
    of_rows = Mask.from_segments(batch.segment_ids_BT, spec.num_anchors, index_BT=batch.index_BT)
    for mask in masks_of_kinds(of_rows, spec):
        _probe(mask, tokens, spec)
    return len(tokens)


def _probe(mask: Mask, tokens, spec: Spec) -> None:
    plan = jax.jit(parallel.plan, static_argnums=(1, 2))(mask, spec.attention, spec.mesh)

    def attend(q_BTNH, k_BTKH, v_BTKH, plan):
        return parallel.apply(q_BTNH, k_BTKH, v_BTKH, plan)[0]

    arrays = {
        "num_heads": spec.model.num_heads,
        "num_kv_heads": spec.model.num_kv_heads,
        "head_dim": spec.model.head_dim,
        "dtype": spec.model.compute_dtype,
        "sharding": HEADS,
    }
    attend = jax.jit(attend)
    leakage.check(leakage.probe(attend, plan, tokens, **arrays))
    leakage.check(leakage.probe_gradients(attend, plan, tokens[-GRADIENTS:], **arrays))
