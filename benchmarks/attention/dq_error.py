"""How far dq is from float64's: our kernels, which sum it in fp32, and tokamax's, whose three sums are of q's dtype.

    python -m benchmarks.attention.dq_error [--tokens=2048] [--json]

Measured on any machine, with the TPU kernels interpreted; tokamax 0.0.17 (Python 3.12). One causal row of one document,
one head of width 128, bf16 arrays, tiles of 128: a query tile's dq is a sum over the key tiles before it. Given is
the root mean square of dq less float64's by that of float64's, over the last quarter of the row (the longest sums),
with the rounding of float64's to bf16 beside it, which no bf16 dq can be below.
"""

import argparse
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import tpu as pltpu

from anchorjax.attention import attention
from anchorjax.attention.plan import make_plan
from anchorjax.masks import Mask
from benchmarks.compiled import peers

WIDTH, TILE = 128, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args()
    try:
        peers.require_pruning()
    except NotImplementedError as error:
        sys.exit(str(error))
    errors = measure(arguments.tokens)
    for name, error in errors.items():
        print(f"{name:8}  {error:.2e}")
    if arguments.json:
        print(json.dumps(errors))


def measure(T: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    q_TH, k_TH, v_TH, do_TH = (jnp.asarray(rng.normal(size=(T, WIDTH)), jnp.bfloat16) for _ in range(4))
    segment_ids_T = jnp.ones(T, jnp.int32)

    def ours(q_TH):
        mask = Mask.from_segments(segment_ids_T[None], 0)
        heads = (x[None, :, None] for x in (q_TH, k_TH, v_TH))
        return attention(*heads, make_plan(mask, TILE, TILE), implementation="pallas_tpu")[0, :, 0]

    def tokamax(q_TH):
        heads = (x[None] for x in (q_TH * WIDTH**-0.5, k_TH, v_TH))
        return peers.tokamax_splash(*heads, segment_ids_T, TILE, TILE, interpret=pltpu.InterpretParams())[0]

    exact_TH = exact_dq(*(np.asarray(x, np.float64) for x in (q_TH, k_TH, v_TH, do_TH)))
    with pltpu.force_tpu_interpret_mode():
        found = {"ours": jax.vjp(ours, q_TH)[1](do_TH)[0]}
    found["tokamax"] = jax.vjp(tokamax, q_TH)[1](do_TH)[0]
    found["rounding"] = jnp.asarray(exact_TH, jnp.bfloat16)
    late = slice(T - T // 4, None)
    scale = np.sqrt(np.mean(exact_TH[late] ** 2))
    return {
        name: float(np.sqrt(np.mean((np.asarray(dq_TH, np.float64) - exact_TH)[late] ** 2)) / scale)
        for name, dq_TH in found.items()
    }


def exact_dq(q_TH, k_TH, v_TH, do_TH):
    """dq of dense causal attention in float64."""
    s_TS = q_TH @ k_TH.T * WIDTH**-0.5
    s_TS[np.triu_indices(len(s_TS), 1)] = -np.inf
    p_TS = np.exp(s_TS - s_TS.max(axis=1, keepdims=True))
    p_TS /= p_TS.sum(axis=1, keepdims=True)
    dp_TS = do_TH @ v_TH.T
    delta_T1 = np.sum(p_TS * dp_TS, axis=1, keepdims=True)
    return p_TS * (dp_TS - delta_T1) @ k_TH * WIDTH**-0.5


if __name__ == "__main__":
    main()
