"""The masks of the paper on one small model: the same documents, tokens and seeds, only who sees whom differs.

    python benchmarks/anchor_vs_full.py [--out=runs/anchor_vs_full] [--seeds=0,1,2] [--json]

Passages of the shipped books and made-up retrieval documents are packed into rows of 2048 bytes and a small Llama is
trained on them from random weights, in bfloat16, with each of

    full               every token sees all before it
    intra_doc          its own document only
    intra_doc_reset    the same, positions restart at each document
    anchor             its own document and the row's first token

A retrieval document gives each of 15 signs a letter ("#q$b..."), goes on with a passage, and tells them again, 16
times, each time in another order. What is measured: the held-out loss, packed as trained; the share of letters that
greedy decoding gets right just behind the passage, by the document's length (chance: 4%); tokens a second and seconds
of training. A document that is asked about stands behind the anchor if the model was trained with one in sight, and
alone if it was not. Variants take turns within a seed. Runs are ordinary ones (`train.py`): stopped, the same command
goes on.
"""

import argparse
import collections
import functools
import gzip
import itertools
import json
import math
import random
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from anywhere, without installing

from anchorjax.data.sources.public_domain import CORPUS
from anchorjax.evaluation import language_model
from anchorjax.evaluation.generation import Generator

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = {
    "full": ("full", "continue"),
    "intra_doc": ("intra_doc", "continue"),
    "intra_doc_reset": ("intra_doc", "reset"),
    "anchor": ("anchor", "continue"),
}
ROW, STEPS = 2048, 600
MODEL = {"num_layers": 4, "model_width": 128, "ffn_width": 256, "num_heads": 4, "num_kv_heads": 2, "head_width": 32}
SIGNS, LETTERS = "#$%+<>@^|~{}=/\\", "abcdefghijklmnopqrstuvwxyz"  # signs that the books do not use
PASSAGE = 16, 1536  # bytes; short ones are as many as long ones, to learn from
TELLINGS = 16  # of the signs behind a passage: with four, no model learns to look them up in so few steps
DOCUMENTS = 5000
LENGTHS = (256, 512, 1024, 1920)  # bytes of a retrieval document that is asked
QUESTIONS = 100  # at each length


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/anchor_vs_full"))
    parser.add_argument("--seeds", default="0,1,2", help="comma separated")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="comma separated")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    make_store(arguments.out)
    results: dict[str, list[dict]] = collections.defaultdict(list)
    for seed in map(int, arguments.seeds.split(",")):
        for variant in arguments.variants.split(","):
            workdir = arguments.out / f"{variant}-{arguments.steps}-{seed}"
            train(arguments.out / "store", workdir, variant, seed, arguments.steps)
            found = evaluated(workdir, variant)
            results[variant].append(found)
            print(f"seed {seed} {variant:<16} {json.dumps(found)}", flush=True)
    print(table(results))
    if arguments.json:
        print(json.dumps(results))


# --- Documents ---


@functools.cache
def passages() -> list[str]:
    """The shipped books cut end to end, in random order."""
    rng = random.Random(0)
    found = []
    with gzip.open(CORPUS, "rt", encoding="utf-8") as lines:
        for line in lines:
            text = json.loads(line)["text"].encode("ascii", "ignore").decode()  # a byte a character
            while len(text) > PASSAGE[1]:
                size = round(math.exp(rng.uniform(*map(math.log, PASSAGE))))
                found.append(text[:size])
                text = text[size:]
    rng.shuffle(found)
    return found


def retrieval(rng: random.Random, passage: str) -> tuple[str, list[tuple[str, str]]]:
    """(what signs stand for and a passage, signs with their letters)."""
    letters = {sign: rng.choice(LETTERS) for sign in SIGNS}
    told = "".join(sign + letters[sign] for sign in rng.sample(SIGNS, len(SIGNS)))
    asked = (sign for _ in range(TELLINGS) for sign in rng.sample(SIGNS, len(SIGNS)))
    return f"{told}\n{passage}\n", [(sign, letters[sign]) for sign in asked]


def make_store(out: Path) -> None:
    """Every second document asks; one in a hundred is held out."""
    if (out / "store").exists():
        return
    rng, rows = random.Random(1), []
    for number, passage in enumerate(passages()[:DOCUMENTS]):
        told, questions = retrieval(rng, passage)
        asks = number % 2
        text = told + "".join(itertools.chain(*questions)) if asks else passage
        rows.append({"text": text, "source": "retrieval" if asks else "books"})
    file = out / "documents.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"data.source": f"jsonl:{file.resolve()}", "data.store": (out / "store").resolve()}
    run(["-m", "anchorjax.prepare"], settings)


# --- Runs ---


def run(program: list[str], settings: dict) -> None:
    overrides = (f"--config.{name}={value}" for name, value in settings.items())
    command = [sys.executable, *program, "--config=configs/quickstart.py", *overrides]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def train(store: Path, workdir: Path, variant: str, seed: int, steps: int) -> None:
    if (workdir / "summary.json").exists():
        return
    mask, positions = VARIANTS[variant]
    settings = {
        **{f"model.{name}": value for name, value in MODEL.items()},
        "seed": seed,
        "data.store": store.resolve(),
        "data.row_length": ROW,
        "data.mask": mask,
        "data.positions": positions,
        "optimizer.warmup_steps": steps // 20,
        "train.steps": steps,
        "eval.every": 0,
        "checkpoint.every": steps,
    }
    run(["train.py", f"--workdir={workdir.resolve()}"], settings)


def evaluated(workdir: Path, variant: str) -> dict:
    """What one run came to."""
    file = workdir / "retrieval.json"
    if not file.exists():
        part = file.with_suffix(".part")
        part.write_text(json.dumps({length: accuracy(workdir, variant, length) for length in LENGTHS}))
        part.replace(file)
    summary = json.loads((workdir / "summary.json").read_text())
    return summary | {"retrieval": json.loads(file.read_text())}


def accuracy(workdir: Path, variant: str, length: int) -> float:
    """Share of letters that are right; the question is the first behind the passage."""
    generator = loaded(workdir)
    tokenizer = generator.description.tokenizer
    begin = [] if VARIANTS[variant][0] == "intra_doc" else [tokenizer.bos_id]
    rng, prompts, answers = random.Random(2), [], []
    texts = "".join(passages()[DOCUMENTS:])  # of which no model has seen one
    for _ in range(QUESTIONS):
        told, ((question, answer), *_) = retrieval(rng, "")
        at = rng.randrange(len(texts) - length)
        filler = texts[at : at + length - len(told) - len(question) - len(answer)]
        text = f"{told[:-1]}{filler}\n{question}"
        prompts.append([*begin, *tokenizer.encode(text).tolist()])
        answers.append(answer)
    made = generator.generate(prompts, 1)
    return sum(one.text == answer for one, answer in zip(made, answers, strict=True)) / QUESTIONS


@functools.lru_cache(maxsize=1)
def loaded(workdir: Path) -> Generator:
    return Generator(language_model.load(language_model.describe(workdir=workdir)), batch_rows=QUESTIONS // 4)


def table(results: dict[str, list[dict]]) -> str:
    """Mean and standard deviation over the seeds."""
    lines = [f"{'':<16}{'loss':>16}{'seconds':>16}{'tokens/s':>16}" + "".join(f"{n:>14}" for n in LENGTHS)]
    for variant, runs in results.items():
        columns = [[run[name] for run in runs] for name in ("validation_loss", "seconds", "tokens_per_s")]
        columns += [[run["retrieval"][str(length)] for run in runs] for length in LENGTHS]
        cells = (f"{statistics.mean(values):.3f} +- {statistics.pstdev(values):.3f}" for values in columns)
        lines.append(f"{variant:<16}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
