"""A call that is repeated in a thread of its own while its caller works."""

import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def every(seconds: float, call: Callable[[], object]) -> Iterator[None]:
    """Calls `call` every `seconds` seconds while the block runs. No call is still running when the block has ended.

    An exception in `call` stops the calls, and is raised when the block ends, unless the block itself raises one.
    """
    ended = threading.Event()
    failures: list[BaseException] = []

    def repeat() -> None:
        try:
            while not ended.wait(seconds):
                call()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if failures:
        raise failures[0]
