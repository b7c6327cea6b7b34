"""What every script in eval/ asks on its command line, and how it ends."""

import argparse
import hashlib
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

from absl import logging

from anchorjax.data.text.chat import ChatTemplate
from anchorjax.errors import UsageError, UserError
from anchorjax.inference.language_model import DTYPES, Description, describe

_SMALL = 2**26  # bytes: configuration, templates and tokenizers, not weights


class Parser(argparse.ArgumentParser):
    """With faults in one line, as all others are."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Options of which model to evaluate; `description` reads them."""
    parser.add_argument("--workdir", type=Path, help="a training run")
    parser.add_argument("--hf", type=Path, help="a Hugging Face directory")
    parser.add_argument("--dtype", default="auto", choices=DTYPES, help="of weights and activations; auto: the run's")
    parser.add_argument(
        "--context", type=tokens_or_0, default=0, help="tokens to allow; 0: what the model was trained on"
    )
    parser.add_argument("--rope-theta", type=float, default=0.0, help="another RoPE base; 0: the model's own")
    parser.add_argument("--batch-size", type=int, default=1, help="prompts at once")


def add_samples(parser: argparse.ArgumentParser, samples: int) -> None:
    """Options of which samples to make, how prompts are put, and where the answers go."""
    parser.add_argument("--lengths", type=lengths, default=[4096], help="of prompt and answer: 4K,8192,1M")
    parser.add_argument("--samples", type=positive, default=samples, help="of each task and length")
    add_texts(parser)
    _add_template(parser)


def add_texts(parser: argparse.ArgumentParser) -> None:
    """Options of which text samples are made of, and where what is found goes."""
    parser.add_argument("--essays", type=Path, help="text that samples are made of; default: Jane Austen")
    _add_seed_and_out(parser)


def add_documents(parser: argparse.ArgumentParser, length: int, samples: int) -> None:
    """Options of which documents to score, and where the answers go; `length` and `samples` are what help names."""
    shipped = "public_domain (default): what ships, chapters of some 4K tokens at most"
    parser.add_argument("--text", help=f"JSONL, Parquet or text file, folder of them, or {shipped}")
    parser.add_argument("--text-key", default="text", help="of JSONL and Parquet: where the text is")
    most = f"{length // 1024}K if the model can"
    parser.add_argument("--lengths", type=lengths, help=f"tokens of a row: 4K,8192,1M; default: {most}")
    of_each = f"documents of each length at most; default: {samples}"
    parser.add_argument("--samples", type=positive, default=samples, help=of_each)
    _add_seed_and_out(parser)


def add_output(parser: argparse.ArgumentParser) -> None:
    """Options of how prompts are put, and where the answers go."""
    _add_template(parser)
    _add_out(parser)


def _add_template(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--template", default="base", choices=("base", "chat"), help="chat: the model's own template")


def _add_seed_and_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=seed, default=42)
    _add_out(parser)


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, help="directory; default: eval/ in the run's, else eval-results/MODEL/")


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
    return 0 if text == "0" else positive(text)


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
    """Of the model that the arguments name. Raises UserError; see `describe`."""
    for name in ("rope_theta", "batch_size"):
        if getattr(arguments, name) < (name == "batch_size"):
            raise UsageError(f"--{name.replace('_', '-')}={getattr(arguments, name)} is not allowed")
    return describe(
        workdir=arguments.workdir,
        hf=arguments.hf,
        dtype=arguments.dtype,
        context=arguments.context,
        rope_theta=arguments.rope_theta,
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


def out_directory(arguments: argparse.Namespace, model: Description, name: str) -> Path:
    if arguments.out:
        return arguments.out.expanduser()
    if model.is_run:
        return model.directory / "eval" / name
    return Path("eval-results") / (model.directory.resolve().name or "model") / name


def request(model: Description, **more) -> dict:
    """What all answers depend on, for `Results`; which weights of ours gave an answer, its key says (`model.mark`)."""
    return {
        "files": _fingerprint(model),
        "model": str(model.directory.resolve()),
        "dtype": model.model.compute_dtype,
        "rope_theta": model.rope.theta,
        "tokenizer": model.tokenizer.name,
        **more,
    }


def _fingerprint(model: Description) -> str:
    """Changes with the small files of model and tokenizer, and with the size or time of large ones: weights.

    Of a run's own directory no file counts: training goes on there.
    """
    directories = [directory for directory in (model.files, None if model.is_run else model.directory) if directory]
    digest = hashlib.sha256()
    for file in sorted({path for directory in directories for path in directory.iterdir() if path.is_file()}):
        stat = file.stat()
        small = stat.st_size < _SMALL
        digest.update(f"{file.name} {stat.st_size} {'' if small else stat.st_mtime_ns}\n".encode())
        if small:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def material(**paths: Path | None) -> dict:
    """What samples are made of, for `request`: the path of each file or folder, and a digest of what is in it.

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


def run(name: str, main: Callable[[], None], goes_on: bool = True) -> int:
    """Calls `main` and turns a user's faults into one line and an exit code; `goes_on`: where it was stopped."""
    logging.set_verbosity(logging.ERROR)  # Orbax warns that a reader only reads
    try:
        main()
        return 0
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{name}: stopped{'; run again to go on' if goes_on else ''}", file=sys.stderr)
        return 1
