"""Directories as training and the evaluations leave them, with made numbers."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from anchorjax.pages import figures
from tests import tiny

LENGTHS, DEPTHS = [1024, 2048, 4096], [0.0, 25.0, 50.0, 75.0, 100.0]
REQUEST = {"model": "/models/Tiny", "dtype": "float32", "rope_theta": 10_000.0, "tokenizer": "bytes"}
NEEDLE = "python eval/needle.py --hf=/models/Tiny --samples=10"
BUCKETS = ["0-64", "64-128", "128-256", "256-512", "512-1024"]


def write_run(directory: Path, evaluations: bool = True, shift: float = 0.0, **overrides: Any) -> Path:
    """A finished run of 300 steps; `shift` makes its losses higher, and its scores lower."""
    directory.mkdir(parents=True)
    put(directory / "config.json", tiny.config(**overrides).to_dict())
    put(directory / "commands.json", {"train": [f"python train.py --config=configs/tiny.py --workdir={directory}"]})
    lines = []
    for step in range(10, 301, 10):
        loss = 1.8 + shift + 4 * math.exp(-step / 60) + 0.05 * math.sin(step)
        rates = {"tokens_per_s": 5800 + 200 * math.cos(step), "learning_rate": 4e-3 * (1 - step / 320)}
        lines.append({"step": step, "kind": "train", "loss": loss, "grad_norm": 1 / step, **rates})
        if step % 100 == 0:
            lines.append({"step": step, "kind": "eval", "loss": loss + 0.02})
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    put(
        directory / "summary.json",
        {"step": 300, "validation_loss": 1.7863 + shift, "bits_per_byte": 2.5775 + shift, "tokens": 1_224_704}
        | {"tokens_per_s": 5823.4},
    )
    if evaluations:
        write_results(directory / "eval", shift, step=300)
        losses = {bucket: 2.5 + shift - 0.2 * place for place, bucket in enumerate(BUCKETS)}
        packed = {"step": 300, "loss": 1.7863 + shift, "perplexity": math.exp(1.7863 + shift)}
        places = {"by_position": losses, "by_context": {bucket: loss + 0.1 for bucket, loss in losses.items()}}
        put(directory / "eval/perplexity/perplexity.json", packed | places)
    return directory


def write_results(directory: Path, shift: float = 0.0, step: int | None = None) -> Path:
    """What evaluations that take any model leave behind; `step`: None for a Hugging Face directory, which has none."""
    model = REQUEST | {"context": 8192}
    request = model | {"template": "base", "step": step}
    drawn = {"seed": 0, "essays": "", "commands": [NEEDLE]}
    percent = [[max(0.0, 100 - 10 * i - 20 * j * (1 + shift)) for j in range(len(DEPTHS))] for i in range(len(LENGTHS))]
    needle = {"lengths": LENGTHS, "depths": DEPTHS, "samples": 10, "haystack": "essays", "percent": percent}
    put(
        directory / "needle/needle.json",
        request | drawn | needle | {"material": "Jane Austen in place of RULER's essays"},
    )
    tasks = ("niah_single_1", "niah_multikey_2", "vt", "cwe", "fwe")
    scores = {
        task: {str(length): 90.5 - 7 * place - 10 * shift - length / 256 for length in LENGTHS}
        for place, task in enumerate(tasks)
    }
    ruler = {"squad": "", "hotpot": "", "samples": 100, "scores": scores, "averages": {}}
    material = {"material": {"niah_multikey_2": "Jane Austen in place of RULER's essays"}}
    steps = {"steps": [step] if step is None else [step - 50, step]}
    put(directory / "ruler/ruler.json", model | drawn | ruler | material | steps)
    means = {"averages": {"English": {"overall": 21.875}}}
    scores = {"scores": {"qasper": 31.25, "hotpotqa": 12.5 - shift}, "samples": 0, "max_length": 900}
    scores["data"] = "/data/LongBench"
    put(directory / "longbench/longbench.json", request | scores | means)
    metrics = {"alias": "hellaswag", "acc,none": 0.3125, "acc_stderr,none": 0.0125, "acc_norm,none": 0.34}
    tasks = {"tasks": "hellaswag", "num_fewshot": 0, "limit": None, "lengths": None, "bos": False}
    found = {"results": {"hellaswag": metrics}, "notes": ["2 requests lost their beginning"]}
    put(directory / "harness/harness.json", request | tasks | found)
    # The result's lengths are an experiment; the request, which begins the answers, has those that were asked for.
    asked = {"experiments": ["lengths"], "lengths": [64, 128], "shifts": [0, 16], "reference": 16, "seed": 1}
    put(directory / "rope_precision/rope_precision.json", request | asked | {"lengths": {"fp32": {}}})
    (directory / "rope_precision/answers.jsonl").write_text(json.dumps(request | asked) + '\n{"key": "0"}\n')
    (directory / "rope_precision/shifts.png").write_bytes(PICTURE)
    by_length = {"1024": {"longppl": 9.5 + shift, "perplexity": 6.25, "key_share": 0.125, "documents": 50}}
    rule = {"context": 256, "stride": 64, "alpha": 2.0, "beta": -2.0}
    evaluator = {"evaluator": {"model": "/models/Judge"}, "rule": rule, "evaluator_context": 8192}
    chosen = {"text": "public_domain", "text_key": "text", "samples": 50, "seed": 0, "shortest": None}
    put(directory / "longppl/longppl.json", REQUEST | chosen | evaluator | {"lengths": by_length})
    return directory


def put(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


PICTURE = figures.png(figures.bars(["float32", "bfloat16"], np.arange(2), x_label="deviation", name_value=str))
