"""Generates text: `anchorjax generate --hf DIR --prompt "Once upon a time"`.

The prompt is not repeated. The text of a single prompt is printed as it is made; those of several prompts are printed
at the end with "---" between, --batch-size of them made at once. Decoding is greedy unless --temperature is given. Exit
codes: 0 done, 2 bad input.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import logging

from anchorjax import launch, processes
from anchorjax.data.text import text_file
from anchorjax.data.text.chat import frame
from anchorjax.errors import UsageError
from anchorjax.evaluation import options
from anchorjax.evaluation.texts import digest
from anchorjax.inference import language_model
from anchorjax.inference.generation import Generator, check_context
from anchorjax.inference.sampling import Sampling
from anchorjax.parsing import Parser, on_disk


def main(argv: Sequence[str], program: str = "anchorjax generate") -> int:
    """Returns the exit code; `program` is what was typed before the arguments, for messages."""
    parser = Parser(program.rpartition("/")[2], __doc__)
    options.add_model(parser)
    parser.add_argument("--adapter", type=on_disk, help="projections that anchorjax convert focus wrote, beside --hf")
    parser.add_argument("--prompt", action="append", default=[], help="may be given several times")
    parser.add_argument("--prompt-file", type=on_disk, action="append", default=[], help="a file that holds a prompt")
    options.add_template(parser)
    parser.add_argument("--max-new-tokens", type=options.positive, default=128, help="tokens of the answer at most")
    parser.add_argument("--temperature", type=options.number, default=0.0, help="0 takes the most likely token")
    parser.add_argument(
        "--top-k", type=options.positive_or_0, default=0, help="draw among the k likeliest tokens; 0: all"
    )
    parser.add_argument(
        "--top-p", type=options.number, default=1.0, help="draw among the likeliest tokens with this total probability"
    )
    parser.add_argument(
        "--seed", type=options.positive_or_0, default=0, help="random seed; each prompt draws its own numbers"
    )
    parser.add_argument("--stop", action="append", default=[], help="a text before which to stop; several times")
    logging.set_verbosity(logging.ERROR)  # silences Orbax's warning about read-only use
    return launch.run(program, lambda: parser.parse_args(argv), generate, command=shlex.join(argv))


def generate(arguments: argparse.Namespace) -> None:
    """Raises UserError: the prompts or the model cannot be read, or do not fit."""
    with processes.Watchdog(processes.STUCK_S):
        _generate(arguments)


def _generate(arguments: argparse.Namespace) -> None:
    sampling = Sampling(arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed)
    texts = [*arguments.prompt, *processes.together(lambda: list(map(_read, arguments.prompt_file)))]
    processes.same({"the prompts": digest(json.dumps(texts))})
    if not texts:
        raise UsageError("give a --prompt or a --prompt-file")
    for text in arguments.prompt:
        try:
            text.encode()
        except UnicodeEncodeError as error:  # bytes of a command line that are no text
            raise UsageError(f"--prompt={text!r} is not UTF-8") from error
    if not all(arguments.stop):
        raise UsageError("--stop='' is not allowed: it must be a text")
    model = options.description(arguments)
    if arguments.adapter:
        model = processes.together(lambda: language_model.with_adapter(model, arguments.adapter))
    (step,) = options.steps(arguments, model)
    chat = options.chat_template(arguments, model)
    prompts = [frame(text, "", model.tokenizer, chat)[1].tolist() for text in texts]
    check_context(prompts, arguments.max_new_tokens, model)  # before the weights are read
    generator = Generator(language_model.load(model, step=step), arguments.batch_size)
    streamed = len(prompts) == 1
    show = (lambda _, text: print(text, end="", flush=True)) if streamed else None
    made = generator.generate(prompts, arguments.max_new_tokens, sampling, stop=arguments.stop, show=show)
    print("" if streamed else "\n---\n".join(one.text for one in made))


def _read(file: Path) -> str:
    try:
        text, is_marked = text_file.read(file.expanduser())
    except OSError as error:
        raise UsageError(f"--prompt-file={file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--prompt-file={file} is not UTF-8: byte {error.start:,} begins no character") from error
    if is_marked:
        print(f"--prompt-file={file}: left out its byte order mark", file=sys.stderr)
    return text
