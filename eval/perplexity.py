"""Held-out loss of a run's checkpoint: `python eval/perplexity.py --workdir=runs/quickstart`.

Scores the validation split packed exactly as in training (anchor, mask, positions). Prints a table, and as its
last line one JSON object: `loss` (nats per target), `bits_per_byte`, `perplexity`, `targets`, `step`,
`by_position` (loss by place in the row) and `by_context` (loss by tokens of its own document before it).
"""

import argparse
import json
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from anywhere, without installing

import jax
import tqdm
from absl import logging

from anchorjax import data
from anchorjax.config import resolve
from anchorjax.errors import CheckpointError, UserError
from anchorjax.training.checkpoint import Checkpoints
from anchorjax.training.evaluate import Evaluator
from anchorjax.training.setup import Setup
from anchorjax.training.workdir import load_config


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, type=Path, help="directory of a training run")
    parser.add_argument("--rows", type=int, default=0, help="rows to score; 0 is the whole validation split")
    arguments = parser.parse_args(argv)
    if arguments.rows < 0:
        parser.error(f"--rows={arguments.rows} is not allowed: it must be 0 or more")
    logging.set_verbosity(logging.ERROR)  # Orbax warns that a reader only reads
    try:
        result = evaluate(arguments.workdir, arguments.rows)
    except UserError as error:
        print(f"perplexity.py: {error}", file=sys.stderr)
        return error.exit_code
    print(table(result))
    print(json.dumps(result))
    return 0


def evaluate(workdir: Path, max_rows: int) -> dict:
    """Loads the newest checkpoint and scores it. Raises UserError if there is none that can be read."""
    setup = Setup.make(resolve(load_config(workdir)))
    checkpoints = Checkpoints(workdir, keep=1, read_only=True)
    restored = checkpoints.restore_latest(setup.abstract_state())
    if restored is None:
        raise CheckpointError(f"there is no checkpoint in {workdir} yet")
    state, meta = restored
    store, tokenizer = data.load_store(setup.config.data, "validation")
    rows = list(data.eval_rows(store, tokenizer, setup.config.data, max_rows))
    with jax.set_mesh(setup.mesh):
        scored = Evaluator(setup.steps, tokenizer.token_bytes_V, setup.mesh)(
            state.params, tqdm.tqdm(rows, unit="batch", disable=not sys.stderr.isatty())
        )
    return {"step": meta["step"], "perplexity": math.exp(scored["loss"]), **scored}


def table(result: dict) -> str:
    lines = [
        f"step {result['step']}: loss {result['loss']:.4f} nats per target, perplexity {result['perplexity']:.3f}, "
        f"{result['bits_per_byte']:.4f} bits per byte, {result['targets']:,} targets",
        "",
        "tokens before     loss by place in row   loss by place in document",
    ]
    buckets = dict.fromkeys([*result["by_position"], *result["by_context"]])
    for bucket in buckets:
        cells = (result[kind].get(bucket) for kind in ("by_position", "by_context"))
        lines.append(f"{bucket:<18}" + "".join(f"{'-' if cell is None else f'{cell:.4f}':<23}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
