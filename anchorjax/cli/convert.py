"""Imports and exports Hugging Face checkpoints.

    anchorjax convert from-hf Llama-3.1-8B llama31_8b         # read once, for many runs
    anchorjax convert to-hf runs/llama31_128k Llama-3.1-8B-128K
    anchorjax convert focus runs/focusllm focusllm            # for anchorjax generate --hf MODEL --adapter focusllm

`init_from` takes a Hugging Face directory as it is; converting first saves reading it again in every run. `to-hf`
takes a run's directory, or one made by `from-hf`, and writes what transformers, vLLM and the others load:
config.json, safetensors and the tokenizer. The tokenizer is changed so that a text begins as the run's rows began;
each change is printed. LoRA adapters are merged. Exit codes: 0 done, 1 failed, 2 bad input.
"""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from absl import logging

from anchorjax import launch, processes
from anchorjax.checkpoints import conversion, focus_adapter
from anchorjax.checkpoints.huggingface.checkpoint import DTYPES
from anchorjax.parsing import Parser, on_disk

PROGRAM = "anchorjax convert"


def main(argv: Sequence[str]) -> int:
    parser = Parser(PROGRAM, __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="from-hf|to-hf|focus")
    reading = commands.add_parser("from-hf", help="import a Hugging Face directory")
    reading.add_argument("directory", type=on_disk)
    reading.add_argument("out", type=on_disk)
    writing = commands.add_parser("to-hf", help="export a run, or what from-hf made, as a Hugging Face directory")
    writing.add_argument("checkpoint", type=on_disk)
    writing.add_argument("directory", type=on_disk)
    writing.add_argument("--dtype", choices=DTYPES, help="dtype of the weights; default: that of the source")
    apart = commands.add_parser("focus", help="export the projections that a run with focus.chunk has trained")
    apart.add_argument("checkpoint", type=on_disk)
    apart.add_argument("directory", type=on_disk)
    logging.set_verbosity(logging.ERROR)  # silences Orbax's warning about read-only use

    def convert(arguments: argparse.Namespace) -> None:
        with processes.Watchdog(processes.STUCK_S):
            if arguments.command == "from-hf":
                return from_hf(arguments.directory, arguments.out)
            if arguments.command == "focus":
                made = focus_adapter.export(arguments.checkpoint.expanduser(), arguments.directory)
                return print(f"chunks of {made.chunk} tokens, written to {arguments.directory}")
            return to_hf(arguments.checkpoint, arguments.directory, arguments.dtype)

    return launch.run(PROGRAM, lambda: parser.parse_args(argv), convert, command=shlex.join(argv))


def from_hf(directory: Path, out: Path) -> None:
    """Raises WeightsError; see `conversion.from_hf`."""
    made = conversion.from_hf(directory, out)
    print(f"{made.parameters:,} parameters written to {out}, {made.dtype}")


def to_hf(checkpoint: Path, directory: Path, dtype: str | None) -> None:
    """Raises WorkdirError, CheckpointError or WeightsError; see `conversion.to_hf`."""
    made = conversion.to_hf(checkpoint.expanduser(), directory, dtype)
    print(f"{made.family}, {made.max_position:,} positions, written to {directory}, {made.dtype}")
    for change in made.changes:
        print(f"tokenizer: {change}")
    for note in made.notes:
        print(f"note: {note}")
