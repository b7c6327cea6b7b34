"""The records of a run as Markdown tables: what docs/gpu.md holds."""

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.gpu_parts.part import NAMES

Record = dict[str, Any]
Column = tuple[str, Callable[[Record], str]]  # its head, and a record's cell


def markdown(records: dict[str, list[Record]]) -> str:
    """One section for each part that ran, in the order of NAMES."""
    return "\n\n".join(_section(name, records[name]) for name in NAMES if name in records) + "\n"


def _section(name: str, records: list[Record]) -> str:
    measured = [one for one in records if "failed" not in one and "skipped" not in one]
    lines = [f"## {name.capitalize()}", "", _outcome(records), *_TABLES[name](measured)]
    missing = [one for one in records if ("failed" in one or "skipped" in one) and one["what"] != "ended"]
    if missing:
        lines += ["", "Without a number:", ""]
        lines += [_missing(one) for one in missing]
    return "\n".join(lines)


def _outcome(records: list[Record]) -> str:
    began = next((one for one in records if one["what"] == "began"), {})
    ended = next((one for one in records if one["what"] == "ended"), None)
    told = f"{ended['outcome']} after {ended['seconds']:.0f} s" if ended else "killed from outside, or still running"
    return f"`{began.get('command', '')}`: {told} (limit {began.get('limit_s', 0):.0f} s)."


def _missing(one: Record) -> str:
    names = ("name", "which", "length", "layout", "model", "mask", "kind", "dtype", "heads", "variant", "on", "batch")
    place = ", ".join(f"{name} {one[name]}" for name in names if name in one)
    state = "failed" if "failed" in one else "skipped"
    return f"- {one['what']} ({place}): {state}: {one[state]}"


def _ceilings(records: list[Record]) -> list[str]:
    by_what = {one["what"]: one for one in records}
    lines = []
    if machine := by_what.get("machine"):
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        lines += ["", f"{machine['device']} x {machine['count']}; Python {machine['python']}; {versions}"]
        lines += ["", "```", machine["nvidia_smi"], "```"]
    if product := by_what.get("matmul"):
        sheet = machine and machine["data_sheet_tflops"]
        said = f", {product['tflops'] / sheet:.0%} of the data sheet's {sheet:.0f}" if sheet else ""
        lines += ["", f"bf16 product of {product['side']} x {product['side']}: {product['tflops']:.1f} TFLOP/s{said}."]
    if copy := by_what.get("copy"):
        lines += ["", f"Copy of {copy['bytes'] / 2**30:.3g} GiB on the device: {copy['gb_per_s']:.0f} GB/s."]
    return lines


def _contract(records: list[Record]) -> list[str]:
    columns = [
        ("case", lambda r: r["kind"]),
        ("dtype", lambda r: r["dtype"]),
        ("heads", lambda r: " x ".join(map(str, r["heads"]))),
        ("row", _of("T", "{:,}")),
        ("anchors", _of("anchors")),
        ("window", _of("window")),
        ("soft cap", _of("soft_cap")),
        ("worst error", lambda r: f"{r['error']:.2g} ({r['of']})" if "error" in r else f"{r['leaks']} leaks"),
        ("allowed", lambda r: f"{r['tolerance']:.0e}" if "tolerance" in r else f"0 in {r['probes']}"),
        ("beside", _of("beside", "{:.2g}")),
        ("log-sum-exp", _of("lse_error", "{:.2g}")),
        ("", lambda r: "passed" if r["passed"] else "**FAILED**"),
    ]
    return table(columns, [one for one in records if one["what"] == "case"])


def _attention(records: list[Record]) -> list[str]:
    lines = []
    calls = [one for one in records if one["what"] == "call"]
    for row in (one for one in records if one["what"] == "row"):
        place = row["length"], row["layout"]
        some = [one for one in calls if (one["length"], one["layout"]) == place]
        by_name: dict[str, Record] = {}
        for one in some:
            by_name.setdefault(one["name"], {"name": one["name"]})[one["which"]] = one
        live = row["live"] / row["causal"]
        lines += [
            "",
            f"### {row['length']:,} tokens, {row['layout']}: {row['documents']} documents, {live:.1%} live",
            "",
        ]
        columns = [("", lambda r: r["name"])]
        for which, head in (("forward", "forward"), ("forward_backward", "both")):
            columns += [
                (f"{head} ms", _of_pass(which, "ms", "{:.3f}")),
                (f"{head} TFLOP/s", _of_pass(which, "tflops", "{:.1f}")),
                (f"{head} own TFLOP/s", _of_pass(which, "own_tflops", "{:.1f}")),
            ]
        columns += [
            ("plan ms", _of_pass("plan", "ms", "{:.3f}")),
            ("difference", _of_pass("forward_backward", "difference", "{:.1e}")),
        ]
        lines += table(columns, list(by_name.values()))[1:]
    return lines


def _training(records: list[Record]) -> list[str]:
    columns = [
        ("model", lambda r: r["model"]),
        ("row", _of("length", "{:,}")),
        ("mask", lambda r: r["mask"]),
        ("tokens/s", _of("tokens_per_s", "{:,.0f}")),
        ("step s", _of("step_s", "{:.4f}")),
        ("TFLOP/s", _of("tflops", "{:.1f}")),
        ("MFU, measured peak", _of("mfu_measured", "{:.1%}")),
        ("MFU, data sheet", _of("mfu_data_sheet", "{:.1%}")),
        ("peak GB", _of("peak_gb", "{:.1f}")),
        ("planned GB", _of("planned_gb", "{:.1f}")),
        ("compile s", _of("compile_s", "{:.0f}")),
        ("attention", _of("attention")),
    ]
    ratios = [
        ("model", _of("model")),
        ("row", _of("length", "{:,}")),
        ("full / anchor", _of("full_over_anchor", "{:.2f}")),
    ]
    steps, found = ([one for one in records if one["what"] == what] for what in ("step", "ratio"))
    return table(columns, steps) + table(ratios, found)


def _evaluation(records: list[Record]) -> list[str]:
    deviation = [
        ("precision", _of("variant")),
        ("on", _of("on")),
        ("shift", _of("shift", "{:,}")),
        ("row", _of("length", "{:,}")),
        ("attention (Eq. 4)", _of("attention", "{:.4g}")),
        ("first key", _of("first_key", "{:.1%}")),
        ("logit (Eq. 5)", _of("logit", "{:.4g}")),
    ]
    speed = [
        ("", _of("what")),
        ("rows", _of("batch")),
        ("prompt", _of("prompt", "{:,}")),
        ("new", _of("new")),
        ("tokens/s", _of("tokens_per_s", "{:,.0f}")),
    ]
    found = [one for one in records if one["what"] == "deviation"]
    return table(deviation, found) + table(speed, [one for one in records if one["what"] in ("prefill", "decode")])


_TABLES = {
    "ceilings": _ceilings,
    "contract": _contract,
    "attention": _attention,
    "training": _training,
    "evaluation": _evaluation,
}


def table(columns: Sequence[Column], records: Sequence[Record]) -> list[str]:
    """Lines of a table behind an empty one; none of no records."""
    if not records:
        return []
    rows = [[cell(one) for _, cell in columns] for one in records]
    lines = [[head for head, _ in columns], ["---"] * len(columns), *rows]
    return ["", *(f"| {' | '.join(cells)} |" for cells in lines)]


def _of(key: str, form: str = "{}") -> Callable[[Record], str]:
    return lambda record: "-" if record.get(key) is None else form.format(record[key])


def _of_pass(which: str, key: str, form: str) -> Callable[[Record], str]:
    return lambda record: _of(key, form)(record.get(which, {}))
