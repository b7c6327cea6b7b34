"""What the planner does, on stderr, with the seconds: one line that is renewed on a terminal, lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Iterator

from anchorjax import background

TERMINAL_S, ELSEWHERE_S = 1, 15  # seconds from line to line


@contextlib.contextmanager
def shown(what: str) -> Iterator[None]:
    """Says `what` with the seconds that it has taken, until the block ends. Ends with one line, on a terminal too."""
    started, renews = time.perf_counter(), sys.stderr.isatty()

    def line(end: str) -> None:
        start, erase = ("\r", "\x1b[K") if renews else ("", "")
        print(f"{start}{what}: {time.perf_counter() - started:.0f} s{erase}", end=end, file=sys.stderr, flush=True)

    try:
        with background.every(TERMINAL_S if renews else ELSEWHERE_S, lambda: line("" if renews else "\n")):
            yield
    finally:
        line("\n")
