"""A call in the background is repeated while the block runs, and not after it; its errors are raised."""

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


@pytest.mark.parametrize("block_fails", [False, True])
def test_an_exception_in_the_call_is_raised_when_the_block_ends(block_fails):
    calls, went_on = [], []

    def call():
        calls.append(None)
        raise OSError("the disk is full")

    # The block's own exception is not replaced.
    with pytest.raises(KeyError if block_fails else OSError), background.every(0.01, call):
        deadline = time.monotonic() + 30
        while not calls and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        went_on.append(None)
        if block_fails:
            raise KeyError
    assert len(calls) == 1, "it is not repeated after it failed"
    assert went_on, "the block is not interrupted"
