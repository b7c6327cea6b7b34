"""A call that is repeated in a thread of its own while its caller works."""

import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def every(seconds: float, call: Callable[[], object]) -> Iterator[None]:
    """Calls `call` whenever so many seconds have passed, until the block ends; the last call ends before it does."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(seconds):
            call()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
