"""Every context strategy passes the compilers of TPUs and GPUs, with their own kernels on four devices."""

import pytest

from anchorjax.types import CONTEXT_STRATEGIES
from tests.compilers import require_compiler, run_program

PROGRAM = """
import json, sys
from anchorjax import targets
targets.prepare()
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding
from anchorjax import sharding
from anchorjax.attention import parallel
from anchorjax.config import AttentionConfig, MeshConfig
from anchorjax.masks import Mask

target, implementation, strategy = sys.argv[1:]
mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "context": 4, "tensor": 1}, targets.devices(target))
config, strategies = AttentionConfig(implementation, 128, 128), MeshConfig(context_strategy=strategy)

def gradients(q, k, v, segment_ids):
    plan = parallel.plan(Mask.from_segments(segment_ids, 1), config, strategies)
    loss = lambda *qkv: parallel.apply(*qkv, plan)[0].astype(jnp.float32).sum()
    return jax.grad(loss, (0, 1, 2))(q, k, v)

with jax.set_mesh(mesh):
    put = lambda spec, dtype, *shape: jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
    q, k, v = (put(sharding.HEADS, jnp.bfloat16, 1, 4096, heads, 128) for heads in (4, 2, 2))
    jax.jit(gradients).lower(q, k, v, put(sharding.BATCH, jnp.int32, 1, 4096)).compile()
print(json.dumps("compiled"))
"""


@pytest.mark.parametrize("strategy", CONTEXT_STRATEGIES)
@pytest.mark.parametrize(
    ("target", "implementation"),
    [
        ("h100", "pallas_gpu"),
        ("v5e", "pallas_tpu"),
        pytest.param("v5p", "pallas_tpu", marks=pytest.mark.slow),
    ],
)
def test_forward_and_backward_compile_on_a_mesh(target, implementation, strategy):
    require_compiler(target)
    assert run_program(PROGRAM, target, implementation, strategy) == "compiled"
