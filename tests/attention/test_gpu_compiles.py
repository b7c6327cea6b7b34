"""The GPU kernels pass XLA's compiler for three generations of GPUs: no GPU is needed, and none is run."""

import pytest

from tests.compilers import require_compiler, run_program

GPUS = ["a100", "h100", "b200"]

PROGRAM = """
import json, sys
from anchorjax import targets
targets.prepare()
import jax, jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from anchorjax.attention import attention, pallas_gpu
from anchorjax.attention.plan import make_plan
from anchorjax.masks import Mask

target, *cases = sys.argv[1:]
here = SingleDeviceSharding(targets.device(target))

def temporaries(T, H, dtype, N, K):
    tiles = pallas_gpu.default_tiles(target, T)
    segment_ids = jax.ShapeDtypeStruct((1, T), jnp.int32)
    mask = jax.eval_shape(lambda segment_ids: Mask.from_segments(segment_ids, 1), segment_ids)
    plan = jax.eval_shape(lambda mask: make_plan(mask, *tiles), mask)  # a step makes it once for all layers

    def gradients(q, k, v, plan):
        loss = lambda *qkv: attention(*qkv, plan, implementation="pallas_gpu").astype(jnp.float32).sum()
        return jax.grad(loss, (0, 1, 2))(q, k, v)

    arrays = [jax.ShapeDtypeStruct((1, T, heads, H), dtype) for heads in (N, K, K)]
    put = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here)
    with jax.default_device(targets.device(target)):
        compiled = jax.jit(gradients).lower(*jax.tree.map(put, (*arrays, plan))).compile()
    text = compiled.as_text()
    assert all(f"anchor_attention_{kernel}" in text for kernel in ("forward", "dq", "dkv")), "kernels are missing"
    return compiled.memory_analysis().temp_size_in_bytes

parsed = [case.split(",") for case in cases]
print(json.dumps([temporaries(int(T), int(H), dtype, int(N), int(K)) for T, H, dtype, N, K in parsed]))
"""


def temporaries(target: str, *cases) -> list[int]:
    """Bytes of a forward and backward pass at default tiles: cases of (tokens, head width, dtype, N, K)."""
    require_compiler(target)
    return run_program(PROGRAM, target, *(",".join(map(str, case)) for case in cases))


@pytest.mark.parametrize(
    "target", ["h100", *(pytest.param(one, marks=pytest.mark.slow) for one in GPUS if one != "h100")]
)
def test_every_head_dim_compiles(target):
    widths = [(H, "bfloat16") for H in (64, 80, 96, 128, 256)] + [(H, "float32") for H in (64, 80, 256)]
    temporaries(target, *((8192, *width, 4, 2) for width in widths))


@pytest.mark.parametrize("target", GPUS)
def test_memory_grows_linearly_with_the_row(target):
    """A dense mask of 64K tokens alone would be 4 GB, and four times that at 128K."""
    half, whole = temporaries(target, *((T, 128, "bfloat16", 4, 2) for T in (2**16, 2**17)))
    assert 1e6 < whole < 2.2 * half


# Bytes of temporaries: what XLA counts, 42.95e9 on all three, and a tenth more. q, k, v and their gradients are another
# 25.8e9. The cards have 85.2e9, 85.0e9 and 191.5e9.
AT_A_MILLION = {"a100": 47.3e9, "h100": 47.3e9, "b200": 47.3e9}


@pytest.mark.parametrize("target", GPUS)
def test_a_row_of_a_million_tokens_compiles(target):
    """32 query heads are 4 * 2^30 numbers: past what 32 bits count."""
    (memory,) = temporaries(target, (2**20, 128, "bfloat16", 32, 8))
    assert memory < AT_A_MILLION[target]
