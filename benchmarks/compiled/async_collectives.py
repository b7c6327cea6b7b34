"""Collectives that run beside computation in a training step, with and without `anchorjax/compiler_flags.py`.

    python -m benchmarks.compiled.async_collectives [--hardware=v5p:2x2x2,...] [--recipe=NAME] [--json]

Compiled, not measured: it needs the compilers alone. The step is that of a model of two layers (width 1024, 8 heads of
128 over 2, vocabulary 32,000, 4 rows of 2048 tokens in bf16) on 8 devices, fsdp 4 x context 2. A pair is a start and a
done in the scheduled HLO; it counts as overlapped if a fusion, kernel or loop stands between the two. A collective
in a scan counts once. More pairs are not less time. `--recipe` takes a whole recipe in place of the small model.
"""

import argparse
import json
import re
from collections import Counter

from anchorjax import compiler_flags, targets
from anchorjax.plan import program, step

HARDWARE = ("v4:2x2x2", "v5p:2x2x2", "v5e:2x4", "v6e:2x4", "tpu7x:2x2x1", "h100:8")
COLLECTIVE = r"(?:all-gather|all-reduce|all-to-all|ragged-all-to-all|reduce-scatter|collective-permute)"
MODEL = {"num_layers": 2, "d_model": 1024, "d_ff": 2048, "num_heads": 8, "num_kv_heads": 2, "head_dim": 128}
CHANGES = {
    "init_from": "",
    **{f"model.{name}": size for name, size in (MODEL | {"vocab_size": 32000}).items()},
    "data.seq_len": 2048,
    "data.batch_size": 4,
    "mesh.fsdp": 4,
    "mesh.context": 2,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hardware", default=",".join(HARDWARE), help="names of targets.Topology with 8 devices")
    parser.add_argument("--recipe", default="", help="a shipped recipe as it is, instead of the small model")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args()
    targets.prepare()
    rows = []
    print(f"{'hardware':<12} {'flags':<8} {'synchronous':>11} {'pairs':>5} {'overlapped':>10} {'temporaries MB':>14}")
    for hardware in arguments.hardware.split(","):
        for row in figures(hardware, arguments.recipe):
            rows.append(row)
            print(
                f"{row['hardware']:<12} {row['flags']:<8} {row['synchronous']:>11} {row['pairs']:>5} "
                f"{row['overlapped']:>10} {row['temporaries'] / 1e6:>14.0f}",
                flush=True,
            )
    if arguments.json:
        print(json.dumps(rows))


def figures(hardware: str, recipe: str = "") -> list[dict]:
    """Counts of the step with the compiler's defaults, and with the hardware's flags if it has any."""
    config, mesh = step.prepare(step.recipe(recipe or "llama3_8b_128k_anchor", {} if recipe else CHANGES), hardware)
    lowered, rows = step.lower(config, mesh), []
    auto = compiler_flags.options("auto", mesh.devices.flat[0])
    for name, flags in {"default": {}, **({"auto": auto} if auto else {})}.items():
        compiled = lowered.compile(compiler_options=flags)
        temporaries = compiled.memory_analysis().temp_size_in_bytes
        rows.append({"hardware": hardware, "flags": name, **counts(compiled.as_text()), "temporaries": temporaries})
    return rows


def counts(hlo: str) -> Counter:
    """Collectives of a scheduled program: `synchronous` ones, asynchronous `pairs`, and `overlapped` ones of these.

    A TPU's compiler writes a pair as two fusions, async-collective-start and -done, or for a SparseCore as a call-start
    and a call-done. Both have the collective again in computations of their own.
    """
    found = Counter(synchronous=0, pairs=0, overlapped=0)
    calls = set(re.findall(r" call-start\(.*to_apply=%([\w.\-]+)", hlo))
    for name, lines in program.computations(hlo).items():
        if name in calls or re.match("fused_computation|async_collective_fusion", name):
            continue
        starts = {program.name_of(line) for line in lines}
        overlapped = [is_overlapped for start, is_overlapped in program.pairs(lines).items() if start in starts]
        found["pairs"] += len(overlapped)
        found["overlapped"] += sum(overlapped)
        found["synchronous"] += sum(bool(re.search(rf"[}})\]] {COLLECTIVE}\(", line)) for line in lines)
    return found


if __name__ == "__main__":
    main()
