"""An oracle written by others: tokamax's splash attention, by segment ids and with the anchor's rule as its mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from anchorjax.attention import attention
from anchorjax.masks import Mask
from benchmarks.compiled import peers
from tests.attention.contract import make_case, max_error

# tokamax multiplies p and dp in the arrays' dtype with XLA's default precision, which is full fp32 on a CPU.
TOLERANCE = 2e-5
TILES = (128, 128)


@pytest.mark.parametrize("peer", [peers.tokamax_anchor, peers.tokamax_splash])
def test_xla_equals_tokamax(peer):
    """One packed row of a token and three documents, two query heads over one key head; output and gradients.

    The token in front is everyone's anchor, or a document of its own.
    """
    if peer is peers.tokamax_splash:
        require_pruning()
    segments = np.repeat([0, 1, 2, 3], [1, 90, 200, 221])[None]
    anchors = int(peer is peers.tokamax_anchor)
    case = make_case(segments, anchors, 2, 1, 128)
    segment_ids_T = jnp.asarray(segments[0], jnp.int32)

    def ours(q, k, v):
        mask = Mask.from_segments(segment_ids_T[None], anchors)
        return attention(q, k, v, mask, implementation="xla")

    def tokamax(q, k, v):
        heads_in_front = (x[0].swapaxes(0, 1) for x in (q * q.shape[-1] ** -0.5, k, v))
        # Plain interpret=True does not model arrays that kernels write in place: its gradients are wrong.
        interpret = pltpu.InterpretParams()
        out_NTH = peer(*heads_in_front, segment_ids_T, *TILES, interpret=interpret)
        return out_NTH.swapaxes(0, 1)[None]

    def both(attend):
        out, vjp = jax.vjp(attend, case.q, case.k, case.v)
        return out, *vjp(case.cotangent)

    names = ("out", "dq", "dk", "dv")
    for name, one, other in zip(names, jax.jit(both, static_argnums=0)(ours), both(tokamax), strict=True):
        assert max_error([one], [other]) < TOLERANCE, name


def require_pruning():
    """Skips the calling test where tokamax is too old to list tiles by segment ids."""
    try:
        peers.require_pruning()
    except NotImplementedError as error:
        pytest.skip(str(error))
