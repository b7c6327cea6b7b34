"""What LongCE's short windows add to a training step, against the mean cross-entropy.

    python -m benchmarks.training.longce [--json]       # counted: tokens and FLOPs of Llama-2-7B, no step runs
    python -m benchmarks.training.longce --length=4096  # and timed: a small model, alternating in one run

The sizes (K, w) are those of the table in the paper (arXiv 2410.23771), which reports seconds of Llama-2-7B on rows of
32768 tokens; timed rows take them in proportion. A row is one document, so that every window exists. FLOPs are counted
by formula (anchorjax/models/flops.py), since XLA's cost analysis counts a loop once whose length depends on the data.
The timed model is the quickstart's, whose vocabulary of bytes costs almost nothing. After two steps of each objective,
all alternate `--repeats` times; reported are the medians, and the median of the ratios of neighbouring steps.
"""

import argparse
import json

import numpy as np

from anchorjax import data
from anchorjax.config import ModelConfig, resolve
from anchorjax.data.store.tokens import TokenStore
from anchorjax.data.text.tokenizer import ByteTokenizer
from anchorjax.evaluation.windows import short_contexts
from anchorjax.models import flops
from anchorjax.training.setup import Setup
from benchmarks.training.steps import Run, in_turns
from configs import quickstart

ROW = 32768
REPORTED = {(4096, 1024): 0.79, (1024, 1024): 0.43, (4096, 4096): 0.36, (4096, 512): 1.50}  # seconds added, the paper's
LLAMA_2_7B = ModelConfig(
    num_layers=32, d_model=4096, d_ff=11008, num_heads=32, num_kv_heads=32, head_dim=128, vocab_size=32000
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=0, help="tokens of a timed row; 0: nothing is timed")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each objective")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args()
    print(f"{'K':>5} {'w':>5}  {'windows':>7}  {'tokens':>7}  {'of the row':>10}  {'FLOPs':>7}  {'reported s':>10}")
    result = {"counted": {}}
    for (context, stride), reported in REPORTED.items():
        found = result["counted"][f"{context},{stride}"] = count(context, stride) | {"reported": reported}
        print(
            f"{context:>5} {stride:>5}  {found['windows']:>7}  {found['tokens']:>7}  {found['tokens'] / ROW:>9.2f}x  "
            f"{found['flops']:>+7.0%}  {reported:>+10.0%}"
        )
    if arguments.length:
        result["timed"] = measure(arguments.length, arguments.repeats)
        print(f"\n{'K':>5} {'w':>5}  {'step s':>8}  {'added':>7}")
        for name, found in result["timed"].items():
            context, _, stride = name.partition(",")
            print(f"{context:>5} {stride or '':>5}  {found['step_s']:>8.3f}  {found['added']:>+7.0%}")
    if arguments.json:
        print(json.dumps(result))


def count(context: int, stride: int) -> dict[str, float]:
    """Windows and their tokens for a row of one document, and the FLOPs that they add to a step of Llama-2-7B."""
    windows, length = len(short_contexts(ROW, context, stride)), context + stride
    tokens, scored = windows * length, windows * stride
    added = flops.forward_flops(LLAMA_2_7B, tokens, windows * flops.causal_pairs(length), scored)
    return {
        "windows": windows,
        "tokens": tokens,
        "flops": added / flops.train_flops(LLAMA_2_7B, ROW, flops.causal_pairs(ROW)),
    }


def measure(length: int, repeats: int) -> dict[str, dict[str, float]]:
    """Seconds of a step with the mean and with each (K, w) in proportion, by "mean" or "K,w", and what they add."""
    sizes = [tuple(size * length // ROW for size in pair) for pair in REPORTED]
    runs = {"mean": make(length)} | {f"{context},{stride}": make(length, context, stride) for context, stride in sizes}
    times = in_turns(runs, repeats)
    added = {name: times[name] / times["mean"] - 1 for name in runs}
    return {name: {"step_s": float(np.median(times[name])), "added": float(np.median(added[name]))} for name in runs}


def make(length: int, context: int = 0, stride: int = 0) -> Run:
    """The model and one row of one document, under the mean or under LongCE."""
    config = quickstart.get_config()
    config.data.seq_len, config.data.batch_size = length, 1
    if context:
        config.train.objective = "longce"
        config.train.longce_context, config.train.longce_stride = context, stride
    setup = Setup.make(resolve(config.to_dict()))
    tokens = np.random.default_rng(0).integers(0, 256, length - 1).astype(np.uint16)
    document = TokenStore(tokens, np.array([0, length - 1]), "one document")
    return Run(setup, next(data.eval_rows(document, ByteTokenizer(), setup.config.data, 1)))


if __name__ == "__main__":
    main()
