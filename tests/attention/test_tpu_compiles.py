"""The TPU kernels pass the real TPU compiler, which libtpu brings along: no TPU is needed, and none is run."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tests.training.jobs import ROOT

PROGRAM = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from anchorjax.attention import attention
from anchorjax.attention.plan import make_plan
from anchorjax.masks import Mask

topology, T = sys.argv[1], int(sys.argv[2])
device = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
sharding = NamedSharding(Mesh(np.array([device]), ("x",)), P())
array = lambda heads: jax.ShapeDtypeStruct((1, T, heads, 128), jnp.bfloat16, sharding=sharding)

def step(q, k, v, segment_ids):
    mask = Mask.from_segments(segment_ids, 1)
    plan = make_plan(mask, 512, 512)
    loss = lambda *qkv: attention(*qkv, mask, plan=plan, implementation="pallas_tpu").astype(jnp.float32).sum()
    return jax.grad(loss, (0, 1, 2))(q, k, v)

segment_ids = jax.ShapeDtypeStruct((1, T), jnp.int32, sharding=sharding)
memory = jax.jit(step).lower(array(2), array(1), array(1), segment_ids).compile().memory_analysis()
print(json.dumps({"temporaries": memory.temp_size_in_bytes}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2"])
def test_forward_and_backward_compile_with_linear_memory(topology):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("the TPU compiler is missing: pip install libtpu")
    env = os.environ | {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "XLA_FLAGS": ""}

    def temporaries(T):
        command = [sys.executable, "-c", PROGRAM, topology, str(T)]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])["temporaries"]

    assert temporaries(2**16) < 2.2 * temporaries(2**15)
