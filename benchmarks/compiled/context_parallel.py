"""Bytes that each strategy of context parallelism exchanges in one layer's attention, in programs compiled for v5p.

    python -m benchmarks.compiled.context_parallel [--strategies=all_gather,ulysses:4,ring] [--seq_len=131072] [--json]

Compiled, not measured: no TPU is needed, and bytes say nothing about time. The attention is Llama-3-8B's (32 query
heads over 8 key heads of 128, bf16) for one row on eight chips along `context`. Bytes are those that one device
receives from the seven others, by the shapes of the collectives in the optimized HLO, and by formula. The layer is
recomputed in the backward pass as `model.remat=attention` recomputes it: its collectives run again, and its kernel does
not. `ulysses:4` takes the heads in four chunks. Gradients of all_gather's keys and values are an all-to-all.

What a ring sends depends on the documents: its program has one collective for each distance, in a loop. Their size is
counted in the HLO, and how often one runs by the plans of rows with the lengths of linux_doc_lengths.json, for each
order of the tokens (`mesh.context_layout`) and for batches of one and of eight rows on `data` and `fsdp`.
"""

import argparse
import json
import math
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import NamedSharding

from anchorjax import sharding, targets
from anchorjax.attention import gradient, pallas_tpu, parallel
from anchorjax.attention.parallel import ring
from anchorjax.config import AttentionConfig, MeshConfig
from anchorjax.data.rows.balance import Layout
from anchorjax.masks import Mask
from anchorjax.plan import program
from anchorjax.plan.program import RECEIVED
from benchmarks.compiled import tpu_modelled

TARGET, TOPOLOGY, CONTEXT = "v5p", "v5p:2x2x2", 8
N, K, H = 32, 8, 128
MIB = 2**20
LAYOUTS = ("contiguous", "zigzag", "documents")
BATCHES = (1, 8)
PIECES = (1, 4, 8, 16)  # of a shard, to compare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strategies", default=",".join(parallel.STRATEGIES))
    parser.add_argument("--seq_len", type=int, default=2**17)
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args()
    targets.prepare()
    T, names = arguments.seq_len, arguments.strategies.split(",")
    layouts = LAYOUTS if "ring" in names else ()
    sends = {layout: {batch: mean_sends(T, layout, batch) for batch in BATCHES} for layout in layouts}
    rows = [row for name in names for row in figures(name, T, sends)]
    for row in rows:
        for which in ("forward", "backward"):
            parts = ", ".join(f"{kind} {count / MIB:.1f}" for kind, count in row[which].items())
            total, formula = (x / MIB for x in (sum(row[which].values()), row["formula"][which]))
            print(f"{row['strategy']} {which}: {parts}; {total:.1f} MiB received, {formula:.1f} by formula")
        print(f"{row['strategy']} both: {row['temporaries'] / MIB:.0f} MiB of temporaries")
    for layout in layouts:
        for batch in BATCHES:
            shards = ", ".join(f"{mean_sends(T, layout, batch, pieces) / pieces:.2f}" for pieces in PIECES)
            print(f"ring, {layout}, batch of {batch}: {shards} shards received of 7, with {PIECES} pieces")
    if arguments.json:
        print(json.dumps(rows))


def figures(name: str, T: int, sends: dict) -> list[dict]:
    """Bytes that a device receives, by collective, in each pass, and its bytes of temporaries in both together.

    Args:
      name: a strategy; for ulysses maybe with a number of chunks.
      sends: of a ring, by layout and batch; each gets a result of its own.
    """
    strategy, _, chunks = name.partition(":")
    chunks = int(chunks or 1)
    first, all_bytes, temporaries = compiled(strategy, T, chunks)
    if strategy != "ring":
        return [result(name, first, all_bytes, temporaries, formulas(strategy, T, chunks=chunks))]
    results = []
    for layout, by_batch in sends.items():
        for batch, count in by_batch.items():
            times = {"collective-permute": count / (CONTEXT - 1)}
            found = [{kind: times.get(kind, 1) * x for kind, x in part.items()} for part in (first, all_bytes)]
            title = f"ring, {layout}, batch of {batch}, {count:.1f} sends"
            results.append(result(title, *found, temporaries, formulas("ring", T, count)))
    return results


def result(title: str, first: dict, all_bytes: dict, temporaries: int, formula: dict) -> dict:
    backward = {kind: count - first.get(kind, 0) for kind, count in all_bytes.items()}
    return {"strategy": title, "forward": first, "backward": backward, "formula": formula, "temporaries": temporaries}


def formulas(strategy: str, T: int, sends: float = 0.0, chunks: int = 1) -> dict[str, float]:
    """Bytes that a device receives in each pass, without masks, anchors and the log-sum-exp.

    The backward pass repeats the forward pass's exchange and sends as many bytes of gradients.
    """
    queries, keys, others = T * N * H * 2, 2 * T * K * H * 2, (CONTEXT - 1) / CONTEXT
    copies = chunks * math.lcm(math.lcm(K, chunks) // chunks, CONTEXT) / K
    forward = {
        "all_gather": keys * others,
        "ulysses": (2 * queries + keys * copies) / CONTEXT * others,
        "ring": sends * keys / CONTEXT / ring.PIECES,
    }[strategy]
    return {"forward": forward, "backward": 2 * forward}


def mean_sends(T: int, layout: str, batch: int, pieces: int = ring.PIECES) -> float:
    """Pieces that each device of a ring sends: the mean over batches of rows of linux's documents."""
    order = Layout(layout, CONTEXT, tile=512).order
    config = AttentionConfig("pallas_tpu", *pallas_tpu.default_tiles(TARGET, T))
    rows = tpu_modelled.rows("linux", T)[:16]
    index = np.stack([order(row) for row in rows])
    segments = np.take_along_axis(rows, index, axis=1)

    def count(segments_BU, index_BU):
        return ring.schedule(config, Mask(segments_BU, segments_BU, index_BU, index_BU, 1), pieces)[1].count

    for axis in ("context", *sharding.ROWS):
        count = jax.vmap(count, axis_name=axis)
    cut = lambda x: jnp.asarray(x.reshape(1, 1, batch, CONTEXT, -1).swapaxes(2, 3))  # noqa: E731
    groups = zip(*(x.reshape(-1, batch, T) for x in (segments, index)), strict=True)
    return float(np.mean([np.max(jax.jit(count)(cut(a), cut(b))) for a, b in groups]))


def compiled(strategy: str, T: int, chunks: int) -> tuple[dict, dict, int]:
    """Bytes of the forward pass and of both passes, by collective, and of temporaries."""
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "context": CONTEXT, "tensor": 1}, devices())
    tiles = pallas_tpu.default_tiles(mesh.devices.flat[0].device_kind, T)
    config = AttentionConfig("pallas_tpu", *tiles)
    strategies = MeshConfig(context_strategy=strategy, ulysses_head_chunks=chunks)

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
    return received(forward.as_text()), received(both.as_text()), both.memory_analysis().temp_size_in_bytes


def devices() -> list[jax.Device]:
    """Eight compile-only chips."""
    targets.devices(TARGET)  # raises MissingCompiler
    return list(topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY).devices[:CONTEXT])


def received(hlo: str) -> dict[str, float]:
    """Bytes that a device receives from others, by collective; each counts once, whatever loop it is in.

    Raises:
      ValueError: a collective of another kind, an asynchronous one but collective-permute, or an unknown dtype.
    """
    total = Counter()
    for shapes, kind in re.findall(r"= (.*?) ((?:all-|reduce-scatter|collective-|ragged-)[\w-]*)\(", hlo):
        if kind == "collective-permute-done":
            continue
        is_start = kind == "collective-permute-start"
        kind = "collective-permute" if is_start else kind
        if kind not in RECEIVED:
            raise ValueError(f"{kind} in the compiled program; this script counts {', '.join(RECEIVED)}")
        total[kind] += RECEIVED[kind](CONTEXT) * sum(size for _, size in program.results(shapes, kind, is_start))
    return dict(total)


if __name__ == "__main__":
    main()
