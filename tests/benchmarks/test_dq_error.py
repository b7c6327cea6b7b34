"""benchmarks/attention/dq_error.py: its float64 dq; what it finds is not a test's business."""

import jax
import jax.numpy as jnp
import numpy as np

from anchorjax.attention import attention
from anchorjax.masks import Mask
from benchmarks.attention import dq_error


def test_exact_dq_is_the_reference_s_gradient():
    rng = np.random.default_rng(0)
    q_TH, k_TH, v_TH, do_TH = rng.normal(size=(4, 48, dq_error.WIDTH))
    mask = Mask.from_segments(jnp.ones((1, 48), jnp.int32), 0)

    def attend(q_TH):
        heads = (jnp.asarray(x, jnp.float32)[None, :, None] for x in (q_TH, k_TH, v_TH))
        return attention(*heads, mask, implementation="reference")[0, :, 0]

    (dq_TH,) = jax.vjp(attend, jnp.asarray(q_TH, jnp.float32))[1](jnp.asarray(do_TH, jnp.float32))
    np.testing.assert_allclose(dq_error.exact_dq(q_TH, k_TH, v_TH, do_TH), dq_TH, atol=2e-5)
