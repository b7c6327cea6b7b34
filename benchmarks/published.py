"""The planner's modelled step beside step times that others publish, for the same model, lengths and devices.

    python -m benchmarks.published [--rows=NAME,...] [--compile] [--json]

Nothing here was measured by us. Every row is another trainer's run on rows of one document, whose mask is the full
causal one. What is modelled is *this* project's step on these devices: its kernels, exchanges and recomputation. A
ratio below 1 says that the model takes less time than the published run, because of other code or of what the model
leaves out; the model's constants were not fitted to these rows. Without `--compile` everything is by formula. With it
each step is compiled, which takes minutes a row, and its exchanges and XLA's estimate of cycles are used.

What a source does not say is assumed, and printed with the row. For context 64 on 64 v5p chips a step has one row: USP
publishes 711 tokens a second and chip at 2.88 s, which makes 131,072 tokens.
"""

import argparse
import dataclasses
import json
import math
from typing import Any

from anchorjax import targets
from anchorjax.models import families
from anchorjax.plan import documents, hardware, step, time

CP64 = "MaxText pull requests 4266 and 4836: Llama-3.1-8B, 64 v5p chips, synthetic rows"
ONE_ROW = "one row a step; weights cut over all 64 chips; remat=attention"


@dataclasses.dataclass(frozen=True)
class Published:
    """One published run.

    Attributes:
      model: a size of `families.published`.
      seconds: of a step.
      changes: keys beside the model's.
      source, assumed: where it is from, and what that does not say.
    """

    model: str
    hardware: str
    seconds: float
    changes: dict[str, Any]
    source: str
    assumed: str

    @property
    def tokens(self) -> int:
        return self.changes["data.batch_size"] * self.changes["data.seq_len"]


def _mesh(fsdp: int, context: int, rows: int, seq_len: int, **others: Any) -> dict[str, Any]:
    found = {"mesh.fsdp": fsdp, "mesh.context": context, "data.batch_size": rows, "data.seq_len": seq_len}
    return found | {name.replace("__", "."): value for name, value in others.items()}


def _cp64(length: int, seconds: float, strategy: str) -> Published:
    over = {"mesh__shard_weights_over": "fsdp_context", "mesh__context_strategy": strategy}
    return Published("llama3_8b", "v5p:4x4x4", seconds, _mesh(1, 64, 1, length, **over), CP64, ONE_ROW)


def _titan(length: int, rows: int, tokens_a_second: float, products: str, **others: Any) -> Published:
    source = "torchtitan, benchmarks/llama3_h100_202412_torchtitan.md: Llama-3.1-8B, 8 H100 of 500 W, torch.compile, "
    changes = _mesh(8, 1, rows, length, **others)
    return Published(
        "llama31_8b", "h100:8", rows * length / (8 * tokens_a_second), changes, source + products, "fsdp 8"
    )


ROWS = {
    "all_gather_64k": _cp64(2**16, 1.09, "all_gather"),
    "all_gather_128k": _cp64(2**17, 2.98, "all_gather"),
    "all_gather_256k": _cp64(2**18, 9.71, "all_gather"),
    "ring_64k": _cp64(2**16, 1.42, "ring"),
    "ring_128k": _cp64(2**17, 3.71, "ring"),
    "ring_256k": _cp64(2**18, 10.78, "ring"),
    "llama2_32k": Published(
        "llama2_7b",
        "v5p:4x4x4",
        8.83,
        _mesh(4, 16, 64, 2**15),
        "MaxText pull request 4687: Llama-2-7B, 64 v5p chips, context 16, all-gather, 2M tokens a step, 52.9% MFU",
        "fsdp 4; remat=attention",
    ),
    "llama3_70b_128k": Published(
        "llama3_70b",
        "tpu7x:4x8x8",
        34.02,
        _mesh(64, 8, 64, 2**17),
        "tpu-recipes, training/ironwood: Llama-3.1-70B, 256 tpu7x chips, context 8, bf16, 963 tokens/s/chip, 38.9% MFU",
        "64 rows a step, as 963 x 256 x 34.02 s = 64 x 131,072; remat=attention",
    ),
    "titan_8k": _titan(8192, 16, 6667, "bf16, selective checkpoints"),
    "titan_32k": _titan(32768, 8, 3890, "float8 products where ours are bf16, full checkpoints", model__remat="full"),
}


def model(name: str, compiled: bool = False) -> dict[str, Any]:
    """One row's figures: `published` and `modelled` seconds, their `ratio`, both MFUs, and the parts.

    Call `targets.prepare` first.
    """
    row = ROWS[name]
    sizes, _ = families.published(row.model)
    changes = {f"model.{key}": value for key, value in sizes.items()} | row.changes
    config, mesh = step.prepare(step.recipe("llama3_8b_128k_full", changes), row.hardware)
    facts = hardware.of(row.hardware)
    found = documents.count(config, mesh.shape, documents.of_equal(config.data.seq_len, 1))
    hlo = step.compile(config, mesh).as_text() if compiled else ""
    made = time.model(config, mesh, facts, found, hlo)
    return {
        "name": name,
        "source": row.source,
        "assumed": row.assumed,
        "published": row.seconds,
        "modelled": made.seconds,
        "low": made.low,
        "high": made.high,
        "ratio": made.seconds / row.seconds,
        "mfu_published": made.mfu_causal * made.seconds / row.seconds,
        "mfu_modelled": made.mfu_causal,
        "tokens_per_device": row.tokens / math.prod(mesh.shape.values()),
        "parts": [dataclasses.asdict(part) for part in made.parts],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default=",".join(ROWS), help="comma separated")
    parser.add_argument("--compile", action="store_true", help="compile each step: minutes a row")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args()
    targets.prepare()
    rows = []
    for name in arguments.rows.split(","):
        row = model(name, arguments.compile)
        rows.append(row)
        print("{name}: published {published:.2f} s, modelled {modelled:.2f} s, ratio {ratio:.2f}".format(**row))
        print(
            "    at least {low:.2f} s, at most {high:.2f} s; MFU {mfu_published:.1%}, {mfu_modelled:.1%}".format(**row)
        )
        for part in row["parts"]:
            print(f"    {part['seconds']:8.3f} s  {part['hidden']:7.3f} hidden  {part['name']}: {part['how']}")
        print(f"    {row['source']}; assumed: {row['assumed']}")
    if arguments.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
