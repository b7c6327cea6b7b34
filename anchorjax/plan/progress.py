"""What the planner does, on stderr, with the seconds: one line that is renewed on a terminal, lines elsewhere."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

TERMINAL_S, ELSEWHERE_S = 1, 15  # seconds from line to line


@contextlib.contextmanager
def shown(what: str) -> Iterator[None]:
    """Says `what` with the seconds that it has taken, until the block ends. Ends with one line, on a terminal too."""
    started, ended, renews = time.perf_counter(), threading.Event(), sys.stderr.isatty()

    def line(end: str) -> None:
        start, erase = ("\r", "\x1b[K") if renews else ("", "")
        print(f"{start}{what}: {time.perf_counter() - started:.0f} s{erase}", end=end, file=sys.stderr, flush=True)

    def keep_saying() -> None:
        while not ended.wait(TERMINAL_S if renews else ELSEWHERE_S):
            line("" if renews else "\n")

    saying = threading.Thread(target=keep_saying, daemon=True)
    saying.start()
    try:
        yield
    finally:
        ended.set()
        saying.join()
        line("\n")
