"""Generation with SmolLM2-135M: ours beside transformers', fp32 on the CPU, alternating on the same threads.

    python -m benchmarks.inference.generate --weights=checkpoints/SmolLM2-135M-Instruct [--json]

    prefill   a prompt of 4096 tokens of text, one new token
    decode    a prompt of 16 tokens, 128 new tokens

at batches of 1 and 8 (the prompts differ), greedy. A first round compiles and is not counted; it also tells which share
of tokens is the same on both sides, so that both do the same work. transformers runs its own `generate` with
scaled_dot_product_attention and its default cache. Ratios are of medians: above 1, ours is faster. Needs torch and
transformers.
"""

import argparse
import dataclasses
import gzip
import itertools
import json
import os
import statistics
import time
from pathlib import Path

import torch
import transformers

from anchorjax.data.sources.public_domain import CORPUS
from anchorjax.inference import language_model
from anchorjax.inference.generation import Generator

TASKS = {"prefill": (4096, 1), "decode": (16, 128)}  # tokens of the prompt, new tokens
CHAPTERS = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, type=Path, help="a Hugging Face directory")
    parser.add_argument("--tasks", default=",".join(TASKS), help="comma separated")
    parser.add_argument("--batches", default="1,8", help="comma separated")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args()
    theirs = Theirs(arguments.weights)
    results: dict[str, dict] = {}
    print(f"{'task':<8} {'batch':>5}  {'ours s':>8}  {'transformers s':>14}  {'ratio':>6}  same tokens")
    for task in arguments.tasks.split(","):
        for batch in map(int, arguments.batches.split(",")):
            row = measure(arguments.weights, theirs, task, batch, arguments.repeats)
            results.setdefault(task, {})[str(batch)] = row
            print(
                f"{task:<8} {batch:>5}  {row['ours_s']:>8.2f}  {row['transformers_s']:>14.2f}  {row['ratio']:>5.2f}x  "
                f"{row['same']:.1%}",
                flush=True,
            )
    if arguments.json:
        print(json.dumps(results))


def measure(weights: Path, theirs: "Theirs", task: str, batch: int, repeats: int) -> dict[str, float]:
    length, new = TASKS[task]
    ours = Ours(weights, batch)
    prompts = make_prompts(ours.description.tokenizer, length, batch)
    sides = {"ours": ours, "transformers": theirs}
    tokens = {name: side.generate(prompts, new) for name, side in sides.items()}
    pairs = [pair for rows in zip(*tokens.values(), strict=True) for pair in zip(*rows, strict=True)]
    seconds = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            started = time.perf_counter()
            side.generate(prompts, new)
            seconds[name].append(time.perf_counter() - started)
    medians = {f"{name}_s": statistics.median(times) for name, times in seconds.items()}
    same = sum(one == other for one, other in pairs) / len(pairs)
    return medians | {"ratio": medians["transformers_s"] / medians["ours_s"], "same": same}


def make_prompts(tokenizer, length: int, batch: int) -> list[list[int]]:
    """Text from different places of the shipped books, each with BOS in front."""
    with gzip.open(CORPUS, "rt", encoding="utf-8") as lines:
        text = "\n".join(json.loads(line)["text"] for line in itertools.islice(lines, CHAPTERS))
    ids = tokenizer.encode(text).tolist()
    stride = (len(ids) - length) // batch
    return [[tokenizer.bos_id, *ids[place * stride : place * stride + length - 1]] for place in range(batch)]


class Ours:
    def __init__(self, weights: Path, batch: int):
        described = language_model.describe(hf=weights, dtype="float32")
        self.description = dataclasses.replace(described, eos_ids=())  # all are to make as many tokens
        self.generator = Generator(language_model.load(self.description), batch_size=batch)

    def generate(self, prompts: list[list[int]], new: int) -> list[list[int]]:
        return [list(one.tokens) for one in self.generator.generate(prompts, new)]


class Theirs:
    def __init__(self, weights: Path):
        torch.set_num_threads(os.cpu_count())
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            weights, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()

    def generate(self, prompts: list[list[int]], new: int) -> list[list[int]]:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            out = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
            )
        return out[:, ids.shape[1] :].tolist()


if __name__ == "__main__":
    main()
