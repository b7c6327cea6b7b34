"""Memory of a device in a recipe's training step, compiled for hardware that is not here, by what saves memory.

    python -m benchmarks.compiled.memory [--recipe=llama3_8b_128k_anchor] [--hardware=h100:8] [--layers=2,4] [--json]
        [--step="model.remat=offload model.ffn_chunk=8192"] ...

Compiled, not measured. Each `--step` is one row: keys that differ from the recipe; without any, the rows of
docs/scaling.md. With `--layers` the step is compiled with so few layers, which takes seconds and not minutes, and
the line through both gives the recipe's own depth ("extrapolated"). GB are 10^9 bytes of one device:

    device      all that the program allocates in its memory: arguments and temporaries
    arguments   weights, moments and batch; the next state takes their place
    host        moments, and what the step keeps, in the host's memory

Transfers are instructions that start a copy to or from the host's memory and do not wait for it. XLA's own peak is not
given: it counts the host's memory as well.
"""

import argparse
import json
import re
from typing import Any

from anchorjax import targets
from anchorjax.plan import memory, step

STEPS = (
    "",
    "model.ffn_chunk=8192",
    "model.remat=full",
    "model.remat=full model.ffn_chunk=8192",
    "model.remat=full model.ffn_chunk=8192 optimizer.moments_dtype=bfloat16",
    "model.remat=offload",
    "model.remat=offload model.ffn_chunk=8192",
    "model.remat=offload model.ffn_chunk=8192 optimizer.moments_on=host",
    "model.ffn_chunk=8192 mesh.fsdp=1 mesh.context=8 mesh.shard_weights_over=fsdp_context train.grad_accum_steps=8",
)
HOST_SPACE = "S(5)"  # in the layout of arrays in the host's memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="llama3_8b_128k_anchor")
    parser.add_argument("--hardware", default="h100:8", help='"h100:8", or a TPU slice as "v5p:4x4x4"')
    parser.add_argument("--layers", default="", help="two small numbers of layers; empty: the recipe's own")
    parser.add_argument("--step", action="append", help="keys that differ, as in 'model.remat=full mesh.context=8'")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args()
    targets.prepare()
    rows = []
    for keys in arguments.step or STEPS:
        row = {
            "step": keys,
            **figures(arguments.recipe, arguments.hardware, step.changes_of(keys), arguments.layers),
        }
        print(show(row), flush=True)
        rows.append(row)
    if arguments.json:
        print(json.dumps(rows))


def figures(recipe: str, hardware: str, changes: dict[str, Any], layers: str = "") -> dict[str, Any]:
    """GB of a device by name, and the number of transfers that run beside other work."""
    if not layers:
        return measure(recipe, hardware, changes)
    few, more = map(int, layers.split(","))
    depth = step.recipe(recipe, changes).model.num_layers
    low, high = (measure(recipe, hardware, changes | {"model.num_layers": n}) for n in (few, more))
    line = {name: low[name] + (high[name] - low[name]) * (depth - few) / (more - few) for name in low}
    return line | {"transfers": high["transfers"], "extrapolated": f"from {few} and {more} layers to {depth}"}


def measure(recipe: str, hardware: str, changes: dict[str, Any]) -> dict[str, Any]:
    compiled = step.compile(*step.prepare(step.recipe(recipe, changes), hardware))
    found, lines = memory.of(compiled), compiled.as_text().splitlines()
    arguments = found.parameters + found.moments + found.other_arguments
    in_bytes = {
        "device": found.total,
        "arguments": arguments,
        "temporaries": found.total - arguments,
        "host": found.host,
    }
    transfers = sum(HOST_SPACE in line and re.search(r"-start\(", line) is not None for line in lines)
    return {**{name: count / 1e9 for name, count in in_bytes.items()}, "transfers": transfers}


def show(row: dict[str, Any]) -> str:
    numbers = ", ".join(f"{name} {row[name]:.1f} GB" for name in ("device", "arguments", "temporaries", "host"))
    extrapolated = f"; extrapolated {row['extrapolated']}" if "extrapolated" in row else ""
    return f"{row['step'] or 'the recipe as it is'}: {numbers}, {row['transfers']} transfers{extrapolated}"


if __name__ == "__main__":
    main()
