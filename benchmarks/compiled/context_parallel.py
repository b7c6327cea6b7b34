"""Bytes that each strategy of context parallelism exchanges in one layer's attention, in programs compiled for v5p.

    python -m benchmarks.compiled.context_parallel [--strategies=all_gather,ulysses] [--seq_len=131072] [--json]

Compiled, not measured: no TPU is needed, and bytes say nothing about time. The attention is Llama-3-8B's (32 query
heads over 8 key heads of 128, bf16) for one row on eight chips along `context`. Bytes are those that one device
receives from the seven others, by the shapes of the collectives in the optimized HLO. The layer is recomputed in the
backward pass as `model.remat=attention` recomputes it: its collectives run again, and its kernel does not.
"""

import argparse
import json
import math
import re
from collections import Counter

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding

from anchorjax import sharding, targets
from anchorjax.attention import gradient, pallas_tpu, parallel
from anchorjax.config import AttentionConfig, MeshConfig
from anchorjax.masks import Mask

TARGET, TOPOLOGY, CONTEXT = "v5p", "v5p:2x2x2", 8
N, K, H = 32, 8, 128
MIB = 2**20
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
# What a device receives, in sizes of the collective's result on that device, among C devices.
RECEIVED = {
    "all-gather": lambda C: (C - 1) / C,
    "all-to-all": lambda C: (C - 1) / C,
    "reduce-scatter": lambda C: C - 1,
    "all-reduce": lambda C: 2 * (C - 1) / C,  # a reduce-scatter and an all-gather
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strategies", default=",".join(parallel.STRATEGIES))
    parser.add_argument("--seq_len", type=int, default=2**17)
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args()
    targets.prepare()
    rows = [figures(name, arguments.seq_len) for name in arguments.strategies.split(",")]
    for row in rows:
        for which in ("forward", "backward"):
            parts = ", ".join(f"{kind} {count / MIB:.1f}" for kind, count in row[which].items())
            print(f"{row['strategy']:>8} {which:>8}: {parts}; {sum(row[which].values()) / MIB:.1f} MiB received")
        print(f"{row['strategy']:>8} both: {row['temporaries'] / MIB:.0f} MiB of temporaries")
    if arguments.json:
        print(json.dumps(rows))


def figures(strategy: str, T: int) -> dict:
    """Bytes that a device receives, by collective, in each pass, and its bytes of temporaries in both together."""
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "context": CONTEXT, "tensor": 1}, devices())
    tiles = pallas_tpu.default_tiles(mesh.devices.flat[0].device_kind, T)
    config, strategies = AttentionConfig("pallas_tpu", *tiles), MeshConfig(context_strategy=strategy)

    def layer(q, k, v, plan):
        # The square stands for the output projection: its gradient needs the output, too.
        return jnp.square(parallel.apply(q, k, v, plan)[0])

    def step(q, k, v, plan):
        remat = jax.checkpoint(layer, policy=jax.checkpoint_policies.save_only_these_names(gradient.NAME))
        loss = lambda *qkv: remat(*qkv, plan).astype(jnp.float32).sum()  # noqa: E731
        return jax.value_and_grad(loss, (0, 1, 2))(q, k, v)

    with jax.set_mesh(mesh):
        put = lambda spec, dtype, *shape: jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))  # noqa: E731
        segments = put(sharding.BATCH, jnp.int32, 1, T)
        plan = sharding.abstract(lambda ids: parallel.plan(Mask.from_segments(ids, 1), config, strategies), segments)
        inputs = [put(sharding.HEADS, jnp.bfloat16, 1, T, heads, H) for heads in (N, K, K)]
        forward, both = (jax.jit(f).lower(*inputs, plan).compile() for f in (layer, step))
    first, all_bytes = received(forward.as_text()), received(both.as_text())
    return {
        "strategy": strategy,
        "forward": first,
        "backward": {kind: count - first.get(kind, 0) for kind, count in all_bytes.items()},
        "temporaries": both.memory_analysis().temp_size_in_bytes,
    }


def devices() -> list[jax.Device]:
    """Eight compile-only chips."""
    targets.devices(TARGET)  # raises MissingCompiler
    return list(topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY).devices[:CONTEXT])


def received(hlo: str) -> dict[str, float]:
    """Bytes that a device receives from others, by collective.

    Raises:
      ValueError: an asynchronous collective, whose result also holds its operand, or a collective of another kind.
    """
    total = Counter()
    for shape, kind in re.findall(r"= (.*?) ((?:all-|reduce-scatter|collective-|ragged-)[\w-]*)\(", hlo):
        if kind not in RECEIVED:
            raise ValueError(f"{kind} in the compiled program; this script counts {', '.join(RECEIVED)}")
        total[kind] += RECEIVED[kind](CONTEXT) * sum(map(size, re.findall(r"([a-z]\w*)\[([\d,]*)\]", shape)))
    return dict(total)


def size(shape: tuple[str, str]) -> int:
    dtype, sides = shape
    return BYTES[dtype] * math.prod(map(int, filter(None, sides.split(","))))


if __name__ == "__main__":
    main()
