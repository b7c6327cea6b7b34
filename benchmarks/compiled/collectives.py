"""Collectives of a recipe's compiled training step, beside a formula from its configuration.

    python -m benchmarks.compiled.collectives --target=v5p:4x4x4 [--config=llama3_8b_128k_anchor] [--layers=2]
        [--set=mesh.fsdp=8 --set=mesh.context=8] [--json]

Compiled, not measured: no accelerator is needed, and bytes say nothing about time. A row is what one execution of a
collective delivers to a device, how many of them the program has there, and how often the place runs. `received` is
what a device receives from the others in a whole step, by the usual algorithms: an all-reduce is a reduce-scatter and
an all-gather. Attention's collectives have no formula, and those below 1 MB are left out.

Counts are of the program's text. They are too high where a compiler prints a collective more than once: libtpu does so
with asynchronous all-gathers, and XLA for GPUs unrolls the loops over layers and chunks.
"""

import argparse
import ast
import dataclasses
import json
import math
import re
from collections import Counter

from jax.sharding import Mesh

from anchorjax import sharding, targets
from anchorjax.config import Config
from benchmarks.compiled import recipe_step

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
RECEIVED = {  # in results of the collective on one device, among n devices
    "all-gather": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "collective-permute": lambda n: 1,
}
KINDS = "|".join(RECEIVED)
SMALL = 1e6
PLACES = {  # by the path of JAX's operations; the rest runs once a step
    "backward layer": r"transpose\(jvp\(\)\)/while/body",
    "loss chunk": r"jvp\(\)/shard_map/while/body",
    "forward layer": r"jvp\(\)/while/body",
}


@dataclasses.dataclass(frozen=True)
class Collective:
    """One operation of the compiled program."""

    place: str
    kind: str
    dtype: str
    result_bytes: int
    devices: int

    @property
    def received(self) -> float:
        return RECEIVED[self.kind](self.devices) * self.result_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="v5p:4x4x4", help='hardware, as "v5p:4x4x4" or "h100:64"')
    parser.add_argument("--config", default="llama3_8b_128k_anchor")
    parser.add_argument("--layers", type=int, default=0, help="0: the recipe's")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="changes a key of the recipe")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args()
    targets.prepare()
    changes = dict(each.split("=", 1) for each in arguments.set)
    changes = {name: _value(text) for name, text in changes.items()}
    if arguments.layers:
        changes["model.num_layers"] = arguments.layers
    config, mesh = recipe_step.prepare(arguments.config, arguments.target, changes)
    compiled = recipe_step.compile_step(config, mesh)
    found, wanted = counted(compiled.as_text(), runs(config, mesh)), formula(config, mesh)
    peak = compiled.memory_analysis().peak_memory_in_bytes
    print(f"{arguments.config} on {arguments.target}, {dict(mesh.shape)}: peak {peak / 1e9:.1f} GB")
    for row in found:
        print("{place:>14} {kind:>18} {dtype:>5} {devices:>3} devices {mb:>9.1f} MB {times:>3} x {runs}".format(**row))
    for place, kinds in wanted.items():
        for kind, expected in kinds.items():
            got = sum(row["received"] for row in found if (row["place"], row["kind"]) == (place, kind))
            print(f"{place:>14} {kind:>18}: received {got / 1e9:6.2f} GB a step, formula {expected / 1e9:6.2f}")
    print(f"received in all: {sum(row['received'] for row in found) / 1e9:.1f} GB a step and device")
    if arguments.json:
        print(json.dumps({"peak": peak, "counted": found, "formula": wanted}))


def _value(text: str):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def runs(config: Config, mesh: Mesh) -> dict[str, int]:
    """How often a step runs each place."""
    parts, layers = config.train.grad_accum_steps, config.model.num_layers
    chunks = -(-tokens(config, mesh) // config.train.loss_chunk)
    return {"forward layer": layers * parts, "backward layer": layers * parts, "loss chunk": chunks * parts, "once": 1}


def tokens(config: Config, mesh: Mesh) -> int:
    """Of a device and micro-batch."""
    shards = math.prod(mesh.shape[axis] for axis in sharding.TOKENS) * config.train.grad_accum_steps
    return config.data.batch_size * config.data.seq_len // shards


def counted(hlo: str, runs: dict[str, int]) -> list[dict]:
    """Rows of equal collectives of at least 1 MB, and one for each place of all that are smaller."""
    rows = Counter(collectives(hlo))
    found = []
    for one, times in sorted(rows.items(), key=lambda item: (item[0].place, -item[0].result_bytes)):
        total = one.received * times * runs[one.place]
        row = dataclasses.asdict(one) | {"mb": one.result_bytes / 1e6, "times": times, "runs": runs[one.place]}
        if one.result_bytes >= SMALL:
            found.append(row | {"received": total})
    return found


def collectives(hlo: str) -> list[Collective]:
    """All collectives of an optimized program. A fusion that libtpu names all-reduce-scatter is a reduce-scatter."""
    found, computation = [], ""
    for line in hlo.splitlines():
        if line.startswith(("%", "ENTRY")) and line.rstrip().endswith("{"):
            computation = line.split()[0]
        match = re.search(rf"= (.*?) ({KINDS})(-start)?\(", line)
        if not match or (not match[3] and f" {match[2]}-start(" in hlo):  # what a start wraps is printed again
            continue
        shapes, kind = re.findall(r"(\w+)\[([\d,]*)\]", match[1]), match[2]
        if match[3] and kind != "all-reduce":
            shapes = shapes[len(shapes) // 2 :]  # behind the operands
        devices, place = group_size(line), place_of(line)
        scatters = computation.startswith("%all-reduce-scatter") and kind == "all-reduce"
        for dtype, sides in shapes:
            if dtype in BYTES:
                size = BYTES[dtype] * math.prod(int(side) for side in sides.split(",") if side)
                if scatters:
                    found.append(Collective(place, "reduce-scatter", dtype, size // devices, devices))
                else:
                    found.append(Collective(place, kind, dtype, size, devices))
    return found


def group_size(line: str) -> int:
    """Devices that one collective joins, from any of the ways in which XLA prints groups."""
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(match[1].split(","))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(match[1])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", match[2]))
    return 1


def place_of(line: str) -> str:
    path = re.search(r'op_name="([^"]*)"', line)
    return next((place for place, pattern in PLACES.items() if path and re.search(pattern, path[1])), "once")


def formula(config: Config, mesh: Mesh) -> dict[str, dict[str, float]]:
    """Bytes that a device receives in a step for weights, embedding and loss, by place and collective.

    Letters: F, C, X devices along fsdp, context and tensor; W weights of a layer; t tokens of a device.
    """
    model, (F, C, X, R) = config.model, (mesh.shape[name] for name in ("fsdp", "context", "tensor", "data"))
    D, V, L, parts = model.d_model, model.vocab_size, model.num_layers, config.train.grad_accum_steps
    heads = model.head_dim * (2 * model.num_heads + 2 * model.num_kv_heads)
    W, t = D * (heads + 3 * model.d_ff) / X, tokens(config, mesh)
    wide = BYTES[{"bfloat16": "bf16", "float32": "f32"}[model.compute_dtype]]
    exchanged = config.mesh.gradient_dtype if config.mesh.gradient_dtype != "auto" else model.compute_dtype
    sums = BYTES[{"bfloat16": "bf16", "float32": "f32"}[exchanged]]
    also = C if config.mesh.shard_weights_over == "fsdp_context" else 1
    others = R * C // also
    layers = L * parts
    gathered = wide * W * (1 - 1 / (F * also)) * layers
    padded = -(-V // (F * X)) * F * X
    to_words = padded / (F * X) * (1 - 1 / (F * X))
    # The loss takes the output matrix whole along `context`, and its fp32 gradient goes back by parts.
    along_context = parts * padded * D / (F * X) * (1 - 1 / also)
    return {
        "forward layer": {"all-gather": gathered},
        "backward layer": {
            "all-gather": gathered,
            "reduce-scatter": sums * W * (1 - 1 / (F * also)) * layers,
            "all-reduce": 2 * sums * W / (F * also) * (1 - 1 / others) * layers,
        },
        "loss chunk": {
            "all-gather": wide * t * D * (F - 1) * parts,
            "reduce-scatter": 4 * t * D * (F - 1) * parts,
        },
        "once": {
            # Embedded tokens and their gradients; columns for words of the output matrix, and back.
            "all-to-all": parts * wide * D * (2 * t / X * (1 - 1 / (F * also)) + 2 * to_words),
            # In fp32: gradients of the embedding and of the output matrix.
            "all-reduce": parts * 2 * 4 * D * (V / also + (padded if also == 1 else 0)) / (F * X) * (1 - 1 / others),
            "all-gather": wide * along_context,
            "reduce-scatter": 4 * along_context,
        },
    }


if __name__ == "__main__":
    main()
