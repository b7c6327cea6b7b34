"""Says whether a run fits hardware that is not here, by compiling its training step for it.

    anchorjax plan --config=llama3_8b_128k_anchor --target=v5p:4x4x4

A target is a TPU slice (v5p:4x4x4), several slices (2xv5e:8x8), or GPUs (h100:64). If the step does not fit into the
memory of a device, changes that save memory are compiled too, until one is enough. Progress goes to stderr. The
compilers are packages of their own (requirements-compilers.txt). Exit codes: 0 it fits, perhaps with the changes that
are printed; 3 it does not fit; 1 failed, or the compiler is missing; 2 bad input.
"""

import json
import math
import signal
from collections.abc import Sequence

from anchorjax.config import overrides
from anchorjax.config.options import Option
from anchorjax.errors import DONE, run_program

DOES_NOT_FIT = 3
MOST = 12  # candidates of a search: `search.CONTENDERS`, which needs JAX to be imported
PROGRAM = "anchorjax plan"
USAGE = "anchorjax plan --config=llama3_8b_128k_anchor --target=v5p:4x4x4 [--config.KEY=VALUE ...]"


def read_price(text: str) -> float:
    """Raises ValueError unless the text is a price."""
    try:
        price = float(text)
    except ValueError:
        price = math.nan
    if not 0 < price < math.inf:
        raise ValueError("it must be a number above 0")
    return price


def read_count(text: str) -> int:
    """Raises ValueError unless the text is a number of candidates."""
    if not text.isdecimal() or not 1 <= int(text) <= MOST:
        raise ValueError(f"it must be from 1 to {MOST}")
    return int(text)


OPTIONS = {
    "target": Option("", "a TPU slice (v5p:4x4x4), several (2xv5e:8x8), or GPUs (h100:64)", what="NAME", required=True),
    "lengths": Option(
        "",
        "lengths of documents: a store, a JSON file, or log_normal:mean=1060,sigma=1.3; empty: data.store, or without "
        "one SlimPajama's mean and an assumed spread",
        what="LENGTHS",
    ),
    "price": Option("", "what a chip costs for an hour, for the price of the run", what="PRICE", read=read_price),
    "picture": Option("", "also draw memory by kind, and the step's time by documents of a row", what="PATH.png"),
    "search": Option(
        0,
        "ranks meshes, strategies, remat policies and micro-batches by estimate, and compiles the best N; --search: 3",
        what="N",
        read=read_count,
        bare=3,
    ),
    "json": Option(False, "print one JSON object (anchorjax/plan/planner.py explains it), and no text"),
}


def main(argv: Sequence[str]) -> int:
    # A compiler returns to Python after minutes, and Python would not see Ctrl-C before that: it ends the process here.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        return run_program(PROGRAM, lambda: plan(argv))
    finally:
        signal.signal(signal.SIGINT, before)


def plan(argv: Sequence[str]) -> int:
    """Raises UserError; see `planner.plan`."""
    config, options = overrides.parse(argv, OPTIONS, USAGE)
    from anchorjax import targets

    targets.prepare()
    from anchorjax.plan import picture, planner, progress, show

    path = picture.place(options["picture"]) if options["picture"] else None
    given = [argument for argument in argv if is_of_training(argument)]
    made = planner.plan(
        config, options["target"], given, options["lengths"], options["price"] or None, options["search"]
    )
    if path:
        with progress.shown(f"drawing {path}"):
            picture.write(made, path)
    print(json.dumps(made.to_dict()) if options["json"] else show.text(made), flush=True)
    return DONE if made.fits else DOES_NOT_FIT


def is_of_training(argument: str) -> bool:
    """Whether `anchorjax train` takes it too: the recipe, or a key."""
    return argument.removeprefix("--").removeprefix("no").startswith(("config=", "config."))
