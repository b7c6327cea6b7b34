"""A call in the background comes as long as the block runs, and not after it."""

import threading
import time

import pytest

from anchorjax import background


@pytest.mark.parametrize("fails", [False, True])
def test_the_call_is_repeated_until_the_block_ends(fails):
    calls, twice = [], threading.Event()

    def call():
        calls.append(threading.current_thread())
        if len(calls) == 2:
            twice.set()

    try:
        with background.every(0.01, call):
            assert twice.wait(30)
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    made = len(calls)
    time.sleep(0.05)
    assert made == len(calls) >= 2
    assert threading.current_thread() not in calls


def test_a_short_block_calls_nothing():
    with background.every(60, lambda: pytest.fail("it was called")):
        pass
