"""Collectives of a recipe's compiled training step, by place and kind, beside a formula from its configuration.

    python -m benchmarks.compiled.collectives [--recipe=llama3_8b_128k_anchor] [--hardware=v5p:4x4x4] [--layers=2]
        [--step="mesh.context_strategy=ulysses mesh.shard_weights_over=fsdp_context"] [--json]

Compiled, not measured: no accelerator is needed, and bytes say nothing about time. `received` is what a device receives
from the others in a whole step, by the usual algorithms: an all-reduce is a reduce-scatter and an all-gather.
anchorjax/plan/program.py finds how often each collective runs, and the axes of the mesh are those along which it
exchanges. Those whose result is below 1 MB are left out. The bytes of a ring depend on the documents
(context_parallel.py): its loop counts once, and the formula has the most that it can send.
"""

import argparse
import json

from anchorjax import targets
from anchorjax.plan import exchanges, program, step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="llama3_8b_128k_anchor")
    parser.add_argument("--hardware", default="v5p:4x4x4", help='a TPU slice, or GPUs as "h100:64"')
    parser.add_argument("--layers", type=int, default=0, help="0: the recipe's")
    parser.add_argument("--step", default="", help="keys that differ, as in 'mesh.fsdp=8 mesh.context=8'")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args()
    targets.prepare()
    changes = step.changes_of(arguments.step)
    if arguments.layers:
        changes["model.num_layers"] = arguments.layers
    config, mesh = step.prepare(step.recipe(arguments.recipe, changes), arguments.hardware)
    compiled = step.compile(config, mesh)
    hlo = compiled.as_text()
    rows, wanted = exchanges.table(program.collectives(hlo), mesh), exchanges.formula(config, mesh.shape)
    peak = compiled.memory_analysis().peak_memory_in_bytes
    print(f"{arguments.recipe} on {arguments.hardware}, {dict(mesh.shape)}: peak {peak / 1e9:.1f} GB")
    for row in rows:
        print(
            "{place:>18} {kind:>18} {axes:>12} {dtype:>5}, {devices:>3} devices, {mb:>7.1f} MB, {times:>4} times: "
            "{gb:>6.3f} GB received".format(**row, mb=row["result_bytes"] / 1e6, gb=row["received"] / 1e9)
        )
    for (place, kind), expected in exchanges.sums(wanted).items():
        got = sum(row["received"] for row in rows if (row["place"], row["kind"]) == (place, kind))
        print(f"{place:>18} {kind:>18}: {got / 1e9:6.3f} GB received, by formula {expected / 1e9:6.3f}")
    by_axis, by_formula = (exchanges.by_axis(found) for found in (exchanges.of(hlo, mesh), wanted))
    for axes in sorted(by_axis | by_formula):
        got, expected = (found.get(axes, 0) / 1e9 for found in (by_axis, by_formula))
        print(f"along {axes:>12}: {got:6.3f} GB received, by formula {expected:6.3f}")
    total = sum(row["received"] for row in rows)
    print(f"{total / 1e9:.1f} GB received in all, by formula {sum(one.received for one in wanted) / 1e9:.1f}")
    if arguments.json:
        print(json.dumps({"peak": peak, "counted": rows, "by_axis": by_axis, "formula": by_formula}))


if __name__ == "__main__":
    main()
