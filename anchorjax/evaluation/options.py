"""The options that the evaluations share, and how their commands end."""

import argparse
import hashlib
import math
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from anchorjax import launch, processes
from anchorjax.data.text.chat import ChatTemplate
from anchorjax.errors import UsageError
from anchorjax.inference.language_model import DTYPES, Description, describe
from anchorjax.parsing import on_disk

_SMALL = 2**26  # bytes: configuration, templates and tokenizers, not weights
# Of a larger file so many bytes are read at every stride: all matrices of an 8B model take 8 MiB or more.
_SAMPLE, _STRIDE = 2**12, 2**23


def as_typed(name: str, argv: Sequence[str] | None) -> str:
    """The command, for the record."""
    words = sys.argv[1:] if argv is None else argv
    called = program(name).split() if _by_package() else ["python", f"eval/{name}.py"]
    return shlex.join([*called, *words])


def program(name: str) -> str:
    """What messages begin with: "anchorjax evaluate needle", or "needle.py" where the script was typed."""
    return f"anchorjax evaluate {name}" if _by_package() else f"{name}.py"


def _by_package() -> bool:
    called = Path(sys.argv[0])
    return called.name == "anchorjax" or called.parts[-2:] == ("anchorjax", "__main__.py")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds the options that name a model; `description` reads them."""
    parser.add_argument("--workdir", type=on_disk, help="a training run")
    parser.add_argument("--hf", type=on_disk, help="a Hugging Face directory")
    parser.add_argument("--step", type=positive_or_0, help="checkpoint of the run; default: the newest")
    parser.add_argument(
        "--dtype", default="auto", choices=DTYPES, help="dtype of weights and activations; auto: the run's"
    )
    parser.add_argument(
        "--context", type=tokens_or_0, default=0, help="tokens to allow; 0: what the model was trained on"
    )
    parser.add_argument("--rope-theta", type=rope_theta, default=0.0, help="another RoPE base; 0: the model's own")
    parser.add_argument("--batch-size", type=positive, default=1, help="prompts or rows at once")


def add_samples(parser: argparse.ArgumentParser, samples: int) -> None:
    """Adds the options of made samples: their lengths and number, their text, and the template."""
    parser.add_argument(
        "--lengths", type=lengths, default=[4096], help="total tokens of prompt and answer, e.g. 4K,8192,1M"
    )
    parser.add_argument("--samples", type=positive, default=samples, help="samples of each task and length")
    add_texts(parser)
    add_template(parser)


def add_texts(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the text that samples are made of, the seed, and the directory of results."""
    parser.add_argument("--essays", type=on_disk, help="text that samples are made of; default: Jane Austen")
    parser.add_argument("--seed", type=seed, default=42, help="random seed")
    add_out(parser)


def add_documents(parser: argparse.ArgumentParser, length: int, samples: int) -> None:
    """Adds the options of documents to score; `length` is the default that help names."""
    shipped = "public_domain (default): what ships, chapters of some 4K tokens at most"
    parser.add_argument("--text", help=f"JSONL, Parquet or text file, folder of them, or {shipped}")
    parser.add_argument("--text-key", default="text", help="field that holds the text in JSONL and Parquet")
    most = f"{length // 1024}K if the model can"
    parser.add_argument("--lengths", type=lengths, help=f"tokens of a row: 4K,8192,1M; default: {most}")
    parser.add_argument("--samples", type=positive, default=samples, help="documents of each length at most")
    parser.add_argument("--seed", type=seed, default=42, help="random seed of the choice of documents")
    add_out(parser)


def add_template(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--template", default="base", choices=("base", "chat"), help="chat: the model's own template")


def add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=on_disk, help="directory; default: eval/ in the run's, else eval-results/MODEL/")


def lengths(text: str, least: int = 1) -> list[int]:
    """ "4K,8192,1M" -> [4096, 8192, 1048576]."""
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)([kKmM]?)", part.strip())
        if not match or int(match[1]) < least:
            raise argparse.ArgumentTypeError(f"{part!r} is no length; write 4096, 4K or 1M")
        found.append(int(match[1]) * {"": 1, "k": 2**10, "m": 2**20}[match[2].lower()])
    return sorted(set(found))


def tokens(text: str) -> int:
    """ "8K" -> 8192."""
    if "," in text:
        raise argparse.ArgumentTypeError(f"{text!r} must be one number of tokens; write 4096, 4K or 1M")
    return lengths(text)[0]


def tokens_or_0(text: str) -> int:
    return 0 if text == "0" else tokens(text)


def positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def positive_or_0(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def number(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return found


def rope_theta(text: str) -> float:
    found = number(text)
    if found < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0, or 0 for the model's own")
    return found


def seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {2**32 - 1}")
    return int(text)


def refuse(parser: argparse.ArgumentParser, arguments: argparse.Namespace, names: Iterable[str], why: str) -> None:
    """Raises UsageError if one of the options has another value than its default."""
    for name in names:
        if getattr(arguments, name) != parser.get_default(name):
            raise UsageError(f"--{name.replace('_', '-')} {why}")


def description(arguments: argparse.Namespace) -> Description:
    """The model that the arguments name, on every process. Raises UserError; see `describe`."""
    return processes.together(
        lambda: describe(
            workdir=arguments.workdir,
            hf=arguments.hf,
            dtype=arguments.dtype,
            context=arguments.context,
            rope_theta=arguments.rope_theta,
        )
    )


def chat_template(arguments: argparse.Namespace, model: Description) -> ChatTemplate | None:
    """Raises UserError if it is asked for and the model has none."""
    if arguments.template == "base":
        return None
    if model.files is None:
        raise UsageError(f"--template=chat: {model.directory} has no tokenizer files, and so no template")
    try:
        return ChatTemplate.open(model.files)
    except ValueError as error:
        raise UsageError(f"--template=chat: {error}") from error


def check_lengths(lengths: list[int], model: Description) -> None:
    """Raises UsageError if the longest is more than the model's context."""
    if lengths[-1] > model.context:
        raise UsageError(
            f"--lengths: {lengths[-1]} is more than the model's context of {model.context}; --context=N allows more"
        )


def absolute(path: Path | None) -> str:
    """For records, which outlive the directory that a command was given in; "" for None."""
    return str(path.expanduser().resolve()) if path else ""


def steps(arguments: argparse.Namespace, model: Description) -> list[int | None]:
    """The checkpoints to evaluate: --step, the last of --last where a task has that option, or the newest."""
    last = getattr(arguments, "last_checkpoints", None)
    found = model.steps()
    if model.is_hugging_face and (last or arguments.step is not None):
        raise UsageError(
            f"--{'last' if last else 'step'} is for --workdir: a Hugging Face directory has one checkpoint"
        )
    if last and last > len(found):
        raise UsageError(f"--last={last} is more than the {len(found)} checkpoints in {model.directory}")
    if arguments.step is None:
        return found[-(last or 1) :]
    if last:
        raise UsageError(f"--step={arguments.step} does not go with --last")
    check_step(arguments.step, found)
    return [arguments.step]


def check_step(step: int, found: Sequence[int]) -> None:
    """Raises UsageError if no checkpoint is of `step`."""
    if step not in found:
        raise UsageError(f"--step={step} is not one of {', '.join(map(str, found))}")


def out_directory(arguments: argparse.Namespace, model: Description, name: str) -> Path:
    if arguments.out:
        return arguments.out.expanduser()
    if model.is_run:
        return model.directory / "eval" / name
    return Path("eval-results") / (model.directory.resolve().name or "model") / name


def request(model: Description, **more) -> dict:
    """All that the answers depend on, for `Record`; the weights are named by each answer (`model.weights_id`).

    Raises:
      UsageError: a file of the model cannot be read.
    """
    return {
        "files": processes.together(lambda: _fingerprint(model, _samples)),
        "model": str(model.directory.resolve()),
        "dtype": model.model.compute_dtype,
        "rope_theta": model.rope.theta,
        "tokenizer": model.tokenizer.name,
        **more,
    }


def earlier_request(request: Mapping[str, Any], model: Description) -> dict:
    """The request as versions wrote it that told large files by their times."""
    return {**request, "files": _fingerprint(model, lambda file: f"{file.stat().st_mtime_ns}\n".encode())}


def _fingerprint(model: Description, of_large: Callable[[Path], bytes]) -> str:
    """Changes with the small files of model and tokenizer, and with the size and `of_large` of large ones: weights.

    Of a run's own directory no file counts, as training goes on there.
    """
    directories = [directory for directory in (model.files, None if model.is_run else model.directory) if directory]
    digest = hashlib.sha256()
    try:
        for file in sorted({path for directory in directories for path in directory.iterdir() if path.is_file()}):
            size = file.stat().st_size
            digest.update(f"{file.name} {size} ".encode())
            digest.update(b"\n" + file.read_bytes() if size < _SMALL else of_large(file))
    except OSError as error:
        raise UsageError(f"{error.filename} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _samples(file: Path) -> bytes:
    """Bytes from all over the file. No time, as each machine of a job may have a copy of its own."""
    with open(file, "rb", buffering=0) as opened:

        def at(place: int) -> bytes:
            opened.seek(place)
            return opened.read(_SAMPLE)

        return b"\n" + b"".join(map(at, range(0, file.stat().st_size, _STRIDE)))


def material(**paths: Path | None) -> dict:
    """The text that samples are made of, for `request`: the path of each file or folder, and a digest of its content.

    Raises:
      UsageError: it cannot be read.
    """
    contents = {name: _contents(path.expanduser()) for name, path in paths.items() if path}
    return {name: absolute(path) for name, path in paths.items()} | ({"contents": contents} if contents else {})


def _contents(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        for file in sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    return digest.hexdigest()[:16]


def run(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, evaluate: Callable[[argparse.Namespace], None]
) -> int:
    """Calls `evaluate` with the parsed arguments, in all processes of a job; after Ctrl-C the same command resumes."""
    logging.set_verbosity(logging.ERROR)  # silences Orbax's warning about read-only use
    stopped = "stopped; run the same command to resume"
    command = shlex.join(sys.argv[1:] if argv is None else argv)
    return launch.run(parser.prog, lambda: parser.parse_args(argv), evaluate, command=command, stopped=stopped)
