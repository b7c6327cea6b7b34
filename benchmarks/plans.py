"""The runs of docs/scaling.md, planned: what each needs of a device, and how long its step is.

    python -m benchmarks.plans [--rows=llama3_8b_v5p,...] [--out=docs/figures/scaling/plans.jsonl]
    python -m benchmarks.plans --markdown

Memory and exchanges are compiled for the hardware, seconds are modelled, and nothing runs (anchorjax/plan/planner.py
explains the figures). A row takes minutes on two cores, mostly to compile. Each is one line of the file, written when
it is done; rows that the file has are not planned again. `--markdown` prints the file as the table of docs/scaling.md.
"""

import argparse
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from anchorjax import targets
from anchorjax.models import families
from anchorjax.plan import command, planner, step
from anchorjax.sharding import AXES
from benchmarks import published

OUT = Path(__file__).parents[1] / "docs" / "figures" / "scaling" / "plans.jsonl"
SLIM = "model.remat=full model.ffn_chunk=8192"
OFFLOAD = "model.remat=offload model.ffn_chunk=8192"
ULYSSES = "mesh.context_strategy=ulysses mesh.shard_weights_over=fsdp_context"


@dataclasses.dataclass(frozen=True)
class Row:
    """A run to plan.

    Attributes:
      title: what it trains.
      keys: that differ from the recipe, as "section.key=value section.key=value".
      model: a published model in place of the recipe's.
      published: another trainer's run of the same model, length and devices, of published.py.
    """

    title: str
    recipe: str
    target: str
    keys: str = ""
    model: str = ""
    published: str = ""

    @property
    def changes(self) -> dict[str, Any]:
        model = families.published(self.model)[0] if self.model else {}
        return {f"model.{name}": value for name, value in model.items()} | step.changes_of(self.keys)


ROWS: Mapping[str, Row] = {
    "llama2_7b_64k_a100": Row("Llama-2-7B 64K", "llama2_7b_64k_anchor", "a100:8"),
    "llama2_7b_64k_v5p": Row("Llama-2-7B 64K", "llama2_7b_64k_anchor", "v5p:2x4x4"),
    "llama2_7b_128k_a100": Row(
        "Llama-2-7B 128K", "llama2_7b_64k_anchor", "a100:8", f"data.seq_len=131072 rope.theta=1e7 {SLIM}"
    ),
    "llama3_8b_h100": Row("Llama-3-8B 128K", "llama3_8b_128k_anchor", "h100:8", SLIM),
    "llama3_8b_h100_offload": Row("Llama-3-8B 128K", "llama3_8b_128k_anchor", "h100:8", OFFLOAD),
    "llama3_8b_v5p": Row("Llama-3-8B 128K", "llama3_8b_128k_anchor", "v5p:4x4x4", published="all_gather_128k"),
    "llama3_8b_v5p_32": Row("Llama-3-8B 128K", "llama3_8b_128k_anchor", "v5p:2x4x4"),
    "llama3_8b_v5e": Row("Llama-3-8B 128K", "llama3_8b_128k_anchor", "v5e:16x16", ULYSSES),
    "mistral_7b_h100": Row("Mistral-7B 128K", "mistral_7b_128k_anchor", "h100:8", SLIM),
    "mistral_7b_v5p": Row("Mistral-7B 128K", "mistral_7b_128k_anchor", "v5p:4x4x4"),
    "qwen15_18b_h100": Row("Qwen1.5-1.8B 128K", "qwen15_18b_128k_anchor", "h100:8"),
    "qwen15_18b_v5p": Row("Qwen1.5-1.8B 128K", "qwen15_18b_128k_anchor", "v5p:4x4x4"),
    "llama3_70b_v5p": Row(
        "Llama-3-70B 128K", "llama3_8b_128k_anchor", "v5p:8x8x8", f"{ULYSSES} model.remat=none", model="llama3_70b"
    ),
    "llama3_70b_tpu7x": Row(
        "Llama-3-70B 128K",
        "llama3_8b_128k_anchor",
        "tpu7x:4x8x8",
        f"mesh.data=8 mesh.fsdp=1 {ULYSSES} model.remat=none",
        model="llama3_70b",
        published="llama3_70b_128k",
    ),
    "llama3_8b_1m_v5p": Row(
        "Llama-3-8B 1M",
        "llama3_8b_128k_anchor",
        "v5p:4x4x4",
        "data.seq_len=1048576 data.batch_size=1 mesh.fsdp=1 mesh.context=8 mesh.tensor=8",
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default=",".join(ROWS), help="names of ROWS, in the order in which to plan them")
    parser.add_argument("--out", type=Path, default=OUT, help="one JSON line for each row")
    parser.add_argument("--markdown", action="store_true", help="print the tables of the rows that the file has")
    arguments = parser.parse_args(argv)
    done = read(arguments.out)
    if arguments.markdown:
        print(markdown(done))
        return
    targets.prepare()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for name in arguments.rows.split(","):
        if name in done:
            print(f"{name}: done already")
            continue
        record = {"name": name, **dataclasses.asdict(ROWS[name]), "plan": planned(ROWS[name])}
        with arguments.out.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(f"{name}: {verdict(record)}", flush=True)


def read(file: Path) -> dict[str, dict[str, Any]]:
    """The rows of the file that are still planned as ROWS says, by name and in the order of ROWS."""
    lines = file.read_text().splitlines() if file.exists() else []
    found = {record["name"]: record for record in map(json.loads, lines)}
    is_row = lambda name: name in found and found[name] == found[name] | dataclasses.asdict(ROWS[name])  # noqa: E731
    return {name: found[name] for name in ROWS if is_row(name)}


def planned(row: Row) -> dict[str, Any]:
    config = step.recipe(row.recipe, row.changes)
    given = [f"--config={row.recipe}", *command.flags(row.changes)]
    return planner.plan(config, row.target, given=given).to_dict()


def verdict(record: Mapping[str, Any]) -> str:
    """ "fits", or what it would take."""
    plan = record["plan"]
    if plan["fits_as_given"]:
        return "fits"
    if plan["fits"]:
        return f"no; with {' '.join(command.flags(plan['changes']))}"
    return "no, and no remedy is enough"


def markdown(records: Mapping[str, Mapping[str, Any]]) -> str:
    rows = list(records.values())
    return "\n\n".join("\n".join(table(rows)) for table in (memory_table, time_table))


KINDS = ("parameters", "moments", "gradients", "saved_activations", "collectives", "temporaries")


def memory_table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "| run | hardware | mesh | keys | weights | moments | gradients | saved | exchanged | rest | all, GB | fits |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        plan = row["plan"]
        parts = [f"{plan['hbm_by_kind'][kind] / 1e9:.1f}" if plan["hbm_by_kind"] else "-" for kind in KINDS]
        all_of = f"**{plan['hbm_bytes'] / 1e9:.1f}** of {plan['capacity'] / 1e9:.1f}"
        if plan["host_bytes"]:
            all_of += f", host {plan['host_bytes'] / 1e9:.1f}"
        yield "| " + " | ".join([*head(row), keys(row), *parts, all_of, verdict(row)]) + " |"


def time_table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "| run | hardware | step, s | MFU | tokens/s/chip | published | live tiles | balance | received, GB |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        plan = row["plan"]
        if not plan["step_seconds"]:
            continue
        documents = plan["documents"]
        received = ", ".join(f"{axes} {count / 1e9:.1f}" for axes, count in plan["exchanged"].items() if count > 5e7)
        cells = [
            f"{plan['step_seconds']:.1f}",
            f"{plan['mfu']:.0%}",
            f"{plan['tokens_per_step'] / plan['step_seconds'] / plan['chips']:,.0f}",
            f"{rate(row):,.0f}" if row["published"] else "",
            f"{documents['live_ratio']:.1%}",
            f"{documents['imbalance_contiguous']:.2f} to {documents['imbalance']:.2f}",
            received,
        ]
        yield "| " + " | ".join([*head(row)[:2], *cells]) + " |"


def rate(row: Mapping[str, Any]) -> float:
    """Tokens a second and chip of the published run."""
    other = published.ROWS[row["published"]]
    return other.tokens / other.seconds / row["plan"]["chips"]


def head(row: Mapping[str, Any]) -> list[str]:
    mesh = " x ".join(f"{axis} {size}" for axis, size in row["plan"]["mesh"].items() if size > 1)
    return [row["title"], row["target"], mesh]


def keys(row: Mapping[str, Any]) -> str:
    """Those that differ from the recipe, but the mesh's sizes and the model's, which have columns of their own."""
    named = [key for key in row["keys"].split() if not key.startswith(tuple(f"mesh.{axis}=" for axis in AXES))]
    return " ".join(f"`{key}`" for key in named)


if __name__ == "__main__":
    main()
