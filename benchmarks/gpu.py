"""All that one GPU can tell of this project, in one command of at most eight minutes: docs/gpu.md says how to read it.

    python -m benchmarks.gpu [--parts=contract,attention] [--limit=480] [--out=gpu-results] [--dry-run]
    python -m benchmarks.gpu --markdown=gpu-results/results.jsonl

    ceilings     the machine; what it multiplies and copies at most
    contract     do the kernels compute what they should, on the device?
    attention    forward and backward rates beside other people's kernels
    training     tokens a second and memory of real steps
    evaluation   rounding of RoPE on bf16 units; generation

Each part is a process of its own with a time limit of its own, in this order; what one leaves of its time goes to the
others. Records lie in OUT/results.jsonl line by line, as they come, and tables in OUT/tables.md after each part: one
that is cut or crashes takes nothing with it. `--markdown` prints the tables of a file of records. `--dry-run` takes
tiny sizes on a CPU, with interpreted kernels. Exit codes: 0 done; 1 a part failed or was cut; 2 no GPU, or bad input.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from anchorjax.files import write_atomically
from benchmarks.gpu_parts import part as part_lib
from benchmarks.gpu_parts import tables
from benchmarks.gpu_parts.workers import ROOT

SHARES = {"ceilings": 30, "contract": 105, "attention": 150, "training": 135, "evaluation": 60}  # of 480 s
assert tuple(SHARES) == part_lib.NAMES
LAST_WORDS = 15  # lines of a failed part's log


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(SHARES), help=f"comma separated, of {', '.join(SHARES)}")
    parser.add_argument("--limit", type=float, default=float(sum(SHARES.values())), help="seconds, of all parts")
    parser.add_argument(
        "--out", type=Path, default=Path("gpu-results"), help="directory; a new run adds to its records"
    )
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on a CPU")
    parser.add_argument("--markdown", type=Path, help="print the tables of this file of records, and run nothing")
    arguments = parser.parse_args(argv)
    if arguments.markdown:
        return print_tables(arguments.markdown)
    parts = arguments.parts.split(",")
    if unknown := [name for name in parts if name not in SHARES]:
        return fault(f"--parts={unknown[0]} is unknown; there are {', '.join(SHARES)}")
    if not arguments.limit > 0:
        return fault(f"--limit={arguments.limit:g} is not allowed: it must be above 0")
    if not arguments.dry_run and (found := backend()) != "gpu":
        return fault(f"no GPU: JAX finds {found}; --dry-run runs tiny sizes on a CPU")
    arguments.out.mkdir(parents=True, exist_ok=True)
    outcomes = run_all([name for name in SHARES if name in parts], arguments)
    print(
        f"\n{(arguments.out / 'tables.md').read_text()}\nwritten to {arguments.out}: results.jsonl, tables.md, log.txt"
    )
    print("  ".join(f"{name}: {outcome}" for name, outcome in outcomes.items()))
    return int(any(outcome != "done" for outcome in outcomes.values()))


def run_all(parts: list[str], arguments: argparse.Namespace) -> dict[str, str]:
    """The outcome of each part. One gets its share of the time that is left when it begins."""
    outcomes, ends = {}, time.monotonic() + arguments.limit
    for place, name in enumerate(parts):
        share = SHARES[name] / sum(SHARES[other] for other in parts[place:])
        outcomes[name] = run_part(name, share * (ends - time.monotonic()), arguments)
        records = part_lib.read(arguments.out / "results.jsonl")
        write_atomically(arguments.out / "tables.md", tables.markdown(records))
    return outcomes


def run_part(name: str, limit_s: float, arguments: argparse.Namespace) -> str:
    """ "done", or what went wrong; the same is the part's last record."""
    file, log = (arguments.out.resolve() / leaf for leaf in ("results.jsonl", "log.txt"))
    command = [sys.executable, "-m", f"benchmarks.gpu_parts.{name}", f"--file={file}"]
    command += ["--dry-run"] if arguments.dry_run else []
    told = f"python -m benchmarks.gpu --parts={name}{' --dry-run' if arguments.dry_run else ''}"
    part_lib.write(file, {"part": name, "what": "began", "command": told, "limit_s": limit_s})
    started = time.monotonic()
    with log.open("a") as errors:
        at = errors.tell()
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(arguments.dry_run), stderr=errors, start_new_session=True
        )
        try:
            process.wait(max(1.0, limit_s))
            outcome = "done" if process.returncode == 0 else f"failed with exit code {process.returncode}"
        except subprocess.TimeoutExpired:
            outcome = "cut at its limit"
        finally:
            end(process)
    if outcome.startswith("failed"):
        words = log.read_bytes()[at:].decode(errors="replace").splitlines()
        print(*words[-LAST_WORDS:], sep="\n", file=sys.stderr)
    bad = [one for one in part_lib.read(file)[name] if "failed" in one or one.get("passed") is False]
    if outcome == "done" and bad:
        outcome = f"{len(bad)} failed"
    part_lib.write(file, {"part": name, "what": "ended", "outcome": outcome, "seconds": time.monotonic() - started})
    return outcome


def end(process: subprocess.Popen) -> None:
    """The part and its workers, which are in its process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def environment(dry_run: bool) -> dict[str, str]:
    # Several processes share the GPU's memory, and peaks of memory are measured: none may take most of it at once.
    own = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_CLIENT_MEM_FRACTION": "0.95"}
    own |= {"TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONUNBUFFERED": "1"}
    # The older name of the fraction: jaxlib refuses both at once.
    theirs = {name: value for name, value in os.environ.items() if name != "XLA_PYTHON_CLIENT_MEM_FRACTION"}
    return theirs | own | ({"JAX_PLATFORMS": "cpu"} if dry_run else {})


def backend() -> str:
    """What JAX finds, asked in a process of its own: this one is to hold no memory of a GPU."""
    program = "import jax; print(jax.default_backend())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return done.stdout.strip() or "no backend at all"


def print_tables(file: Path) -> int:
    try:
        print(tables.markdown(part_lib.read(file)), end="")
    except OSError as error:
        return fault(f"--markdown={file} cannot be read: {error.strerror}")
    except (KeyError, TypeError, ValueError) as error:
        return fault(f"--markdown={file} holds other records: {part_lib.told(error)}")
    return 0


def fault(message: str) -> int:
    print(f"gpu.py: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
