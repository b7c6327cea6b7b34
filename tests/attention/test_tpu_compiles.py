"""The TPU kernels pass the compilers of five TPU generations: nothing is run, and no TPU is needed."""

import pytest

from anchorjax import targets
from anchorjax.attention import pallas_tpu
from tests.compilers import require_compiler, run_program

# Forward and backward of two query heads over one key head: bytes of temporaries by row length.
PROGRAM = """
import json, sys
from anchorjax import targets

targets.prepare()
import jax, jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from anchorjax.attention import attention, pallas_tpu
from anchorjax.attention.plan import make_plan
from anchorjax.masks import Mask

target, width, lengths = sys.argv[1], int(sys.argv[2]), [int(n) for n in sys.argv[3].split(",")]
sharding = SingleDeviceSharding(targets.device(target))

def step(q, k, v, segment_ids):
    mask = Mask.from_segments(segment_ids, 1)
    plan = make_plan(mask, *pallas_tpu.default_tiles(target))
    loss = lambda *qkv: attention(*qkv, plan, implementation="pallas_tpu").astype(jnp.float32).sum()
    return jax.grad(loss, (0, 1, 2))(q, k, v)

def temporaries(T):
    array = lambda heads: jax.ShapeDtypeStruct((1, T, heads, width), jnp.bfloat16, sharding=sharding)
    segment_ids = jax.ShapeDtypeStruct((1, T), jnp.int32, sharding=sharding)
    compiled = jax.jit(step).lower(array(2), array(1), array(1), segment_ids).compile()
    return compiled.memory_analysis().temp_size_in_bytes

print(json.dumps({T: temporaries(T) for T in lengths}))
"""

# What a token needs at head width 128: q, k, v, the output and its cotangent with heads in front (bf16), and
# dq, dk, dv in fp32 before the anchors' share: 2.6 KB, and 4.2 KB where the plan's list comes in chunks, whose
# outputs are joined (1M tokens). XLA keeps the arrays of short rows in memory on the chip instead: all of them at 8K
# on v4 and v5e (0.9 MB remain in HBM). On v5p and tpu7x, whose VMEM is half of v5e's, the kernels' reservation leaves
# nothing: 22 MB.
BYTES_PER_TOKEN = 4500


def temporaries(target: str, lengths: list[int], width: int = 128) -> list[int]:
    require_compiler(target)
    result = run_program(PROGRAM, target, width, ",".join(map(str, lengths)))
    return [result[str(length)] for length in lengths]


KINDS = """
import json
from anchorjax import targets
targets.prepare()
print(json.dumps({target: targets.device(target).device_kind for target in targets.TPUS}))
"""


def test_every_generation_s_own_name_is_known():
    require_compiler(next(iter(targets.TPUS)))
    assert {target: pallas_tpu.KINDS[kind] for target, kind in run_program(KINDS).items()} == {
        t: t for t in targets.TPUS
    }


@pytest.mark.parametrize(
    "target", ["v5e", *(pytest.param(t, marks=pytest.mark.slow) for t in targets.TPUS if t != "v5e")]
)
def test_short_rows(target):
    (at_8k,) = temporaries(target, [2**13])
    assert at_8k < BYTES_PER_TOKEN * 2**13


@pytest.mark.slow
@pytest.mark.parametrize("target", targets.TPUS)
def test_memory_is_linear_up_to_a_million_tokens(target):
    at_64k, at_128k, at_1m = temporaries(target, [2**16, 2**17, 2**20])
    if target != "v4":  # whose 128 MB of on-chip memory take two thirds of a 64K row's arrays and none of a 128K row's
        assert at_128k < 2.2 * at_64k
    assert at_1m < BYTES_PER_TOKEN * 2**20


@pytest.mark.slow
@pytest.mark.parametrize("width", [64, 80, 96, 256])
@pytest.mark.parametrize("target", targets.TPUS)
def test_other_head_dims(target, width):
    temporaries(target, [2**13], width)
