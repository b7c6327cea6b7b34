"""The training methods on one small model: the same weights, documents and rows; only a method's own keys differ.

    python -m benchmarks.training.methods [--out=runs/methods] [--seeds=0,1,2] [--methods=anchor,pose,...] [--json]

For each seed a small Llama is trained from random weights on rows of 256 bytes, every token seeing all before it, and
from it each method goes on, on rows of 512 bytes under the anchor. `anchor` is AnchorAttention alone; any other method
adds what `method(config)` of configs/methods sets. The documents are those of benchmarks/training/anchor_vs_full.py:
pieces of the shipped books and, three in four, made-up ones for retrieval, in which four signs have letters that are
told and told again behind pieces of the books.

What is measured, on rows of one, two and four times the trained length, with the anchor in front: nats of pieces of the
last tenth of the books, which no model has seen, by position; and the share of letters that greedy decoding gets when
they were told at the beginning of so long a document. Chance is 4%; any letter that was told is right in 28%. What a
step costs is measured by methods_time.py, in which the methods take turns.

Runs are ordinary ones (`train.py`): stopped, the same command goes on; other constants need another `--out`.
"""

import argparse
import collections
import functools
import importlib
import itertools
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from anchorjax.config import recipe
from anchorjax.inference import language_model
from anchorjax.inference.generation import Generator
from anchorjax.inference.scoring import Scorer
from benchmarks.training import anchor_vs_full as documents
from benchmarks.training import runs

if TYPE_CHECKING:
    from ml_collections import ConfigDict

# Those of configs/methods that need neither conversations nor the weights of a published model.
METHODS = ("anchor", "pose", "exact", "longce", "entropy_abf", "scalable_softmax", "window_schedule")
TRAINED = 512
LENGTHS = (TRAINED, 2 * TRAINED, 4 * TRAINED)
SHORT = documents.SHORT
LONG = documents.Stage(TRAINED, 4, 300, 2e-3, plain=(16, 512), piece=(8, 320), tellings=4, size=(128, TRAINED - 32))
QUESTIONS = 100  # at each length
TEXTS = 24  # of 4 * TRAINED bytes, for the loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--seeds", default="0,1,2", help="comma separated")
    parser.add_argument("--methods", default=",".join(METHODS), help="comma separated")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args()
    methods = arguments.methods.split(",")
    if unknown := set(methods) - set(METHODS):
        parser.error(f"--methods={','.join(unknown)} is not allowed: of {', '.join(METHODS)}")
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for name, stage in {"short": SHORT, "long": LONG}.items():
        documents.make_store(out / name, stage)
    results: dict[str, list[dict]] = collections.defaultdict(list)
    for seed in map(int, arguments.seeds.split(",")):
        base = out / f"base-{seed}"
        documents.train(out / "short", base, SHORT, {"seed": seed, "data.mask": "full"})
        for method in methods:
            workdir = out / f"{method}-{seed}"
            documents.train(out / "long", workdir, LONG, {"seed": seed, "init_from": base} | keys_of(method))
            results[method].append(runs.kept(workdir / "measured.json", functools.partial(measured, workdir)))
            print(f"seed {seed} {method:<16} {json.dumps(results[method][-1])}", flush=True)
    print(table(results))
    if arguments.json:
        print(json.dumps(results))


def keys_of(method: str) -> dict[str, Any]:
    """The keys that a method sets on rows of TRAINED tokens under the anchor, by name."""
    config = recipe("quickstart")
    config.data.seq_len, config.train.steps = LONG.row, LONG.steps
    before = flat(config.to_dict())
    return {name: value for name, value in flat(applied(method, config).to_dict()).items() if value != before[name]}


def applied(method: str, config: "ConfigDict") -> "ConfigDict":
    """The configuration with the keys of a method."""
    if method == "anchor":
        return config
    return importlib.import_module(f"configs.methods.{method}").method(config)


def flat(sections: Mapping[str, Any]) -> dict[str, Any]:
    """{"data": {"seq_len": 2}} -> {"data.seq_len": 2}."""
    parts = {name: value if isinstance(value, Mapping) else {"": value} for name, value in sections.items()}
    return {f"{name}.{key}".removesuffix("."): x for name, keys in parts.items() for key, x in keys.items()}


def measured(workdir: Path) -> dict[str, Any]:
    """Nats by position and the share of letters by length, of a trained model."""
    described = language_model.describe(workdir=workdir, context=LENGTHS[-1] + 1)
    nats_DT = losses(Scorer(language_model.load(described), batch_size=TEXTS // 4))
    edges = (0, *LENGTHS)
    nats = {f"{low}-{high}": float(nats_DT[:, low:high].mean()) for low, high in itertools.pairwise(edges)}
    generator = Generator(language_model.load(described), batch_size=QUESTIONS // 4)
    return {"nats": nats, "retrieval": {str(length): retrieved(generator, length) for length in LENGTHS}}


def losses(scorer: Scorer) -> np.ndarray:
    """Nats [TEXTS, 4 * TRAINED] of pieces that no model has seen, each alone behind BOS."""
    tokenizer, rng = scorer.description.tokenizer, random.Random(3)
    texts = [documents.piece(rng, documents.books()[1], LENGTHS[-1]) for _ in range(TEXTS)]
    rows = [[tokenizer.bos_id, *tokenizer.encode(text).tolist()] for text in texts]
    return np.stack([score.nats_t for score in scorer.score(rows)])


def retrieved(generator: Generator, length: int) -> float:
    """Share of letters that are right behind a document of `length` bytes."""
    tokenizer, rng = generator.description.tokenizer, random.Random(2)
    asked = [documents.question(rng, length) for _ in range(QUESTIONS)]
    prompts = [[tokenizer.bos_id, *tokenizer.encode(text).tolist()] for text, _ in asked]
    made = generator.generate(prompts, 1)
    return sum(one.text == answer for one, (_, answer) in zip(made, asked, strict=True)) / QUESTIONS


def table(results: Mapping[str, list[dict]]) -> str:
    """Mean and standard deviation over the seeds; texts and questions are the same ones for all."""
    columns = [(kind, name) for kind in ("nats", "retrieval") for name in next(iter(results.values()))[0][kind]]
    lines = [f"{'':<18}" + "".join(f"{f'{kind} {name}':>20}" for kind, name in columns)]
    for method, seeds in results.items():
        cells = (documents.spread([seed[kind][name] for seed in seeds]) for kind, name in columns)
        lines.append(f"{method:<18}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
