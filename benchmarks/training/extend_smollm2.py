"""SmolLM2-135M from 8K to 16K tokens: a real checkpoint and the same tokens; only the attention mask differs.

    python -m benchmarks.training.extend_smollm2 --weights=checkpoints/SmolLM2-135M-Instruct --corpus=corpus.jsonl.gz
        [--out=runs/extend_smollm2] [--steps=20] [--json]

SmolLM2 was trained on rows of 8192 tokens. Here training continues for `--steps` rows of 16384 with RoPE base 5e5, in
fp32, once with each of the masks full, intra_doc and anchor, with continued positions. The corpus is JSON lines of
`text`, `source` and `title`, and is not published; documents of the titles in HELD_OUT are not trained on. Before
(with the checkpoint's RoPE base and with 5e5) and after training it measures the perplexity of the held-out documents
by position, each alone in one row of 16384 tokens, and the share of needles found at two lengths
(`evaluation.tasks.needle`); and the median seconds of a step, without the steps that compile. BOS precedes a document,
as it precedes each training row, except for intra_doc, whose documents were trained without it; the tokens scored are
the same.

Runs save each step, and results are kept one by one. Stopped, the same command goes on; other `--steps` need another
`--out`.
"""

import argparse
import dataclasses
import gc
import gzip
import itertools
import json
import math
import sys
from functools import partial
from pathlib import Path

import numpy as np

from anchorjax.evaluation.tasks.needle import Grid
from anchorjax.inference import language_model
from anchorjax.inference.generation import Generator
from anchorjax.inference.scoring import Scorer
from benchmarks.training import runs

ROW, THETA = 16384, 5e5
MASKS = ("full", "intra_doc", "anchor")
HELD_OUT = ("append31", "library/os", "persuasion", "Psa")  # long ones, each of another source
EDGES = (0, 2048, 4096, 8192, 10240, 12288, 16384)
BUCKETS = {f"{low}-{high}": (low, high) for low, high in itertools.pairwise(EDGES)}  # of positions
NEEDLE_LENGTHS, DEPTHS = (8192, 16384), (10.0, 50.0, 90.0)


@dataclasses.dataclass(frozen=True)
class Model:
    """What is evaluated: a run with a mask, or the checkpoint before it."""

    name: str
    directory: Path
    mask: str | None = None  # None: no run
    theta: float = 0.0  # of RoPE; 0: its own

    def describe(self) -> language_model.Description:
        where = {"workdir" if self.mask else "hf": self.directory}
        return language_model.describe(**where, context=ROW, rope_theta=self.theta, dtype="float32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, type=Path, help="a Hugging Face directory")
    parser.add_argument("--corpus", required=True, type=Path, help="JSON lines, gzipped")
    parser.add_argument("--out", type=Path, default=Path("runs/extend_smollm2"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--masks", default=",".join(MASKS), help="comma separated")
    parser.add_argument("--documents", type=int, default=len(HELD_OUT), help="of those held out, to score")
    parser.add_argument("--needles", type=int, default=1, help="at each length and depth; 0: none")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args()
    if arguments.steps < 2:
        parser.error(f"--steps={arguments.steps} is not allowed: the first compiles, so that at least 2 are needed")
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    held_out = split(arguments.corpus, arguments.weights, out)[: arguments.documents]
    models = [
        Model("before", arguments.weights),
        Model(f"before, theta {THETA:g}", arguments.weights, theta=THETA),
        *(Model(mask, out / mask, mask) for mask in arguments.masks.split(",")),
    ]
    for model in models:
        if model.mask:
            train(out / "store", model, arguments.weights, arguments.steps)
    found: dict[str, dict] = {model.name: trained(model) for model in models}
    measures = {f"perplexity-{arguments.documents}": lambda model: perplexity(model, held_out)}
    if arguments.needles:
        measures[f"needles-{arguments.needles}"] = lambda model: needles_found(model, arguments.needles)
    for name, measure in measures.items():
        for model in models:
            found[model.name] |= runs.kept(out / f"{model.name.replace(' ', '_')}-{name}.json", partial(measure, model))
            gc.collect()  # weights of one model at a time
            print(f"{model.name}: {json.dumps(found[model.name])}", flush=True)
    print(table(found))
    if arguments.json:
        print(json.dumps(found))


def split(corpus: Path, weights: Path, out: Path) -> list[str]:
    """The texts held out. The others become a store, shuffled as all rows are."""
    with gzip.open(corpus, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    if not (out / "store").exists():
        file = out / "documents.jsonl"
        runs.write_documents(file, (row for row in rows if row["title"] not in HELD_OUT))
        settings = {"init_from": weights.resolve(), "data.source": f"jsonl:{file}", "data.store": out / "store"}
        run(["-m", "anchorjax", "prepare"], settings)
    found = [[row["text"] for row in rows if row["title"] == title] for title in HELD_OUT]
    if any(len(texts) != 1 for texts in found):
        sys.exit(f"{corpus} must have one document of each of the titles {', '.join(HELD_OUT)}")
    return [text for [text] in found]


def run(program: list[str], settings: dict) -> None:
    runs.run("configs/smollm2_135m_anchor.py", program, settings)


def train(store: Path, model: Model, weights: Path, steps: int) -> None:
    if (model.directory / "summary.json").exists():
        return
    settings = {
        "init_from": weights.resolve(),
        "rope.theta": THETA,
        "data.store": store,
        "data.seq_len": ROW,
        "data.mask": model.mask,
        "optimizer.warmup_steps": max(1, steps // 10),
        "train.steps": steps,
        "train.log_every": 1,
        "eval.every": 0,
        "eval.final_rows": 1,
        "checkpoint.every": 1,
        "checkpoint.keep": 1,
    }
    run(["train.py", f"--workdir={model.directory}"], settings)


def trained(model: Model) -> dict[str, float]:
    """Seconds a step of a run, the median of its steps: {} of what was not trained here."""
    if not model.mask:
        return {}
    return {"s/step": runs.step_seconds(model.directory)}


def begin(model: Model, bos_id: int) -> list[int]:
    """What stands before a document that is alone in its row."""
    return [] if model.mask == "intra_doc" else [bos_id]


def perplexity(model: Model, held_out: list[str]) -> dict[str, float]:
    """Perplexity of all documents together, by position; the first token has nothing before it and is not scored."""
    scorer = Scorer(language_model.load(model.describe()))
    tokenizer, rows = scorer.description.tokenizer, []
    for text in held_out:
        front = begin(model, tokenizer.bos_id)
        tokens = tokenizer.encode(text)[: ROW - 1].tolist()
        rows.append(scorer.score([[*front, *tokens]])[0].nats_t[len(front) :])
    nats_DT = np.stack(rows)  # [documents, position of the token in front]
    return {name: math.exp(nats_DT[:, low:high].mean()) for name, (low, high) in BUCKETS.items()}


def needles_found(model: Model, repeats: int) -> dict[str, float]:
    """Percent, by length."""
    generator = Generator(language_model.load(model.describe()))
    tokenizer = generator.description.tokenizer
    grid = Grid(tokenizer, NEEDLE_LENGTHS, DEPTHS, repeats)
    answers = []
    for sample in grid:
        prompt = [*begin(model, tokenizer.bos_id), *sample.ids_T[1:].tolist()]
        answers.append(generator.generate([prompt], sample.max_new_tokens)[0].text)
    percents = grid.heat_map(answers).mean(1).tolist()
    return {f"needle {length}": percent for length, percent in zip(NEEDLE_LENGTHS, percents, strict=True)}


def table(found: dict[str, dict[str, float]]) -> str:
    columns = [*BUCKETS, *(f"needle {length}" for length in NEEDLE_LENGTHS), "s/step"]
    lines = [f"{'':<20}" + "".join(f"{name:>13}" for name in columns)]
    for model, row in found.items():
        cells = (f"{row[name]:.2f}" if name in row else "-" for name in columns)
        lines.append(f"{model:<20}" + "".join(f"{cell:>13}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
