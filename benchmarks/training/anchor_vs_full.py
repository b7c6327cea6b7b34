"""The masks of the paper on one small model: the same documents, tokens and seeds, only who sees whom differs.

    python -m benchmarks.training.anchor_vs_full [--out=runs/anchor_vs_full] [--seeds=0,1,2] [--json]

As in the paper, a model of short rows goes on with long ones (here with the same RoPE base). For each seed a small
Llama is trained from random weights on rows of 256 bytes, every token seeing all before it, and from it go on, on rows
of 2048 bytes,

    full               every token sees all before it
    intra_doc          its own document only
    intra_doc_reset    the same, positions restart at each document
    anchor             its own document and the row's first token

all computing in bfloat16 (weights and rotation are float32). Documents are pieces of the shipped books and, three in
four, made-up ones for retrieval: each of four signs has a letter there ("#q$b%a+x"), which is told at its beginning
and, in other orders, again behind every piece of the books that follows. What is measured: the loss of documents held
out, packed as trained (their pieces are drawn from the same books); the share of letters that greedy decoding gets
right behind a piece of the last tenth of the books, which no model has seen, by the document's length; and the median
step on long rows. Chance is 4%; any letter that was told is right in 28%. Pieces are of at most 1024 bytes in training,
so that longer ones are more than was learned. A document that is asked about stands behind the anchor if the model was
trained with one in sight, and alone if it was not. Variants take turns within a seed. Runs are ordinary ones
(`train.py`): stopped, the same command goes on; other constants need another `--out`.
"""

import argparse
import collections
import dataclasses
import functools
import gzip
import json
import math
import random
import statistics
import subprocess
from pathlib import Path

from anchorjax.data.sources.public_domain import CORPUS
from anchorjax.inference import language_model
from anchorjax.inference.generation import Generator
from benchmarks.training import runs

VARIANTS = {
    "full": ("full", "continue"),
    "intra_doc": ("intra_doc", "continue"),
    "intra_doc_reset": ("intra_doc", "reset"),
    "anchor": ("anchor", "continue"),
}
MODEL = {"num_layers": 2, "d_model": 128, "d_ff": 256, "num_heads": 4, "num_kv_heads": 2, "head_dim": 32}
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SIGNS = "#$%+"  # which the books do not use. With 15 of them no model of this size and budget learned to look them up
ASKING = 0.75  # share of documents that are for retrieval
DOCUMENTS = 6000
LENGTHS = (128, 256, 512, 1024, 1536, 1920)  # bytes of a retrieval document that is asked
QUESTIONS = 100  # at each length


@dataclasses.dataclass(frozen=True)
class Stage:
    """Rows and the documents in them; what has two numbers is drawn between them, its logarithm evenly.

    Attributes:
      row, rows, steps: tokens of a row, rows of a step, steps.
      plain, piece: bytes of a document of the books, and of a piece of them in one for retrieval.
      tellings: of each sign behind a piece.
      size: bytes that a document for retrieval has at least: it ends with the tellings that pass it.
    """

    row: int
    rows: int
    steps: int
    learning_rate: float
    plain: tuple[int, int]
    piece: tuple[int, int]
    tellings: int
    size: tuple[int, int]


# Looking up is learned from many tellings close together, or not at all, and suddenly: of three seeds one had it after
# 250 steps and two not after 400. What is far away is then learned from few.
SHORT = Stage(256, 8, 900, 3e-3, plain=(16, 256), piece=(16, 64), tellings=16, size=(128, 128))
LONG = Stage(2048, 1, 400, 2e-3, plain=(16, 1536), piece=(8, 1024), tellings=4, size=(128, 1920))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/anchor_vs_full"))
    parser.add_argument("--seeds", default="0,1,2", help="comma separated")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="comma separated")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args()
    variants = arguments.variants.split(",")
    if unknown := set(variants) - set(VARIANTS):
        parser.error(f"--variants={','.join(unknown)} is not allowed: of {', '.join(VARIANTS)}")
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for name, stage in {"short": SHORT, "long": LONG}.items():
        make_store(out / name, stage)
    results: dict[str, list[dict]] = collections.defaultdict(list)
    for seed in map(int, arguments.seeds.split(",")):
        base = out / f"base-{seed}"
        train(out / "short", base, SHORT, {"seed": seed, "data.mask": "full"})
        for variant in variants:
            workdir = out / f"{variant}-{seed}"
            mask, positions = VARIANTS[variant]
            settings = {"seed": seed, "init_from": base}
            settings |= {"data.mask": mask, "data.positions": positions}
            train(out / "long", workdir, LONG, settings)
            found = evaluated(workdir, variant)
            results[variant].append(found)
            print(f"seed {seed} {variant:<16} {json.dumps(found)}", flush=True)
    print(table(results))
    if arguments.json:
        print(json.dumps(results))


# --- Documents ---


@functools.cache
def books() -> tuple[str, str]:
    """The shipped books, a byte a character: nine tenths to train on, the last to ask about."""
    with gzip.open(CORPUS, "rt", encoding="utf-8") as lines:
        text = "".join(json.loads(line)["text"].encode("ascii", "ignore").decode() for line in lines)
    return text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]


def piece(rng: random.Random, text: str, size: float) -> str:
    at = rng.randrange(len(text) - round(size))
    return text[at : at + round(size)]


def drawn(rng: random.Random, between: tuple[int, int]) -> float:
    return math.exp(rng.uniform(*map(math.log, between)))


def letters(rng: random.Random) -> dict[str, str]:
    """What signs stand for, in one document."""
    return {sign: rng.choice(LETTERS) for sign in SIGNS}


def telling(rng: random.Random, letter: dict[str, str]) -> str:
    return "".join(sign + letter[sign] for sign in rng.sample(SIGNS, len(SIGNS)))


def retrieval(rng: random.Random, stage: Stage) -> str:
    letter, size = letters(rng), drawn(rng, stage.size)
    text = telling(rng, letter)
    while len(text) < size:
        text += f"\n{piece(rng, books()[0], drawn(rng, stage.piece))}\n"
        text += "".join(telling(rng, letter) for _ in range(stage.tellings))
    return text


def question(rng: random.Random, length: int) -> tuple[str, str]:
    """(what is told, a piece that no model has seen and a sign; its letter), of `length` bytes together."""
    letter, sign = letters(rng), rng.choice(SIGNS)
    told = telling(rng, letter)
    between = piece(rng, books()[1], length - len(told) - len("\n\n#q"))
    return f"{told}\n{between}\n{sign}", letter[sign]


def make_store(out: Path, stage: Stage) -> None:
    """One document in a hundred is held out."""
    store = out / "store"
    if store.exists():
        return
    out.mkdir(exist_ok=True)
    rng, rows = random.Random(1), []
    for _ in range(DOCUMENTS):
        asks = rng.random() < ASKING
        text = retrieval(rng, stage) if asks else piece(rng, books()[0], drawn(rng, stage.plain))
        rows.append({"text": text, "source": "retrieval" if asks else "books"})
    file = out / "documents.jsonl"
    runs.write_documents(file, rows)
    run(["-m", "anchorjax", "prepare"], {"data.source": f"jsonl:{file}", "data.store": store})


# --- Runs ---


def run(program: list[str], settings: dict) -> None:
    runs.run("configs/quickstart.py", program, settings, stdout=subprocess.DEVNULL)


def train(data: Path, workdir: Path, stage: Stage, settings: dict) -> None:
    if (workdir / "summary.json").exists():
        return
    settings = {
        **{f"model.{name}": value for name, value in MODEL.items()},
        "data.store": data / "store",
        "data.seq_len": stage.row,
        "data.batch_size": stage.rows,
        "optimizer.learning_rate": stage.learning_rate,
        "optimizer.warmup_steps": stage.steps // 20,
        "train.steps": stage.steps,
        "eval.every": 0,
        "checkpoint.every": stage.steps,
        **settings,
    }
    run(["train.py", f"--workdir={workdir}"], settings)


def evaluated(workdir: Path, variant: str) -> dict:
    """What one run came to."""
    retrieved = runs.kept(
        workdir / "retrieval.json", lambda: {length: accuracy(workdir, variant, length) for length in LENGTHS}
    )
    summary = json.loads((workdir / "summary.json").read_text())
    step_s = runs.step_seconds(workdir)
    speed = {"step_s": step_s, "tokens_per_s": LONG.row * LONG.rows / step_s}
    return {"loss": summary["validation_loss"], **speed, "retrieval": retrieved}


def accuracy(workdir: Path, variant: str, length: int) -> float:
    """Share of letters that are right."""
    generator = loaded(workdir)
    tokenizer = generator.description.tokenizer
    begin = [] if VARIANTS[variant][0] == "intra_doc" else [tokenizer.bos_id]
    rng, prompts, answers = random.Random(2), [], []
    for _ in range(QUESTIONS):
        text, answer = question(rng, length)
        prompts.append([*begin, *tokenizer.encode(text).tolist()])
        answers.append(answer)
    made = generator.generate(prompts, 1)
    return sum(one.text == answer for one, answer in zip(made, answers, strict=True)) / QUESTIONS


@functools.lru_cache(maxsize=1)
def loaded(workdir: Path) -> Generator:
    return Generator(language_model.load(language_model.describe(workdir=workdir)), batch_size=QUESTIONS // 4)


def table(results: dict[str, list[dict]]) -> str:
    """Mean and standard deviation over the seeds; questions are the same ones for all."""
    names = ("loss", "step_s", "tokens_per_s")
    lines = [f"{'':<16}" + "".join(f"{name!s:>18}" for name in (*names, *LENGTHS))]
    for variant, seeds in results.items():
        columns = [[seed[name] for seed in seeds] for name in names]
        columns += [[seed["retrieval"][str(length)] for seed in seeds] for length in LENGTHS]
        lines.append(f"{variant:<16}" + "".join(f"{spread(values):>18}" for values in columns))
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    deviation = f" +- {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"


if __name__ == "__main__":
    main()
