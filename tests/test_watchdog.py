"""A process of several that gets no further ends itself: which limit counts, and from when on."""

import faulthandler

import jax.numpy as jnp
import pytest

from anchorjax import processes
from anchorjax.processes import STUCK_S, Watchdog


@pytest.fixture
def armed(monkeypatch):
    """The limits in the order in which they began, None for an end, in process 1 of 2."""
    found = []
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "is_main", lambda: False)
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda seconds, exit: found.append(seconds))
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", lambda: found.append(None))
    return found


def test_inside_another_its_own_limit_counts_and_after_it_the_other_s_anew(armed):
    with Watchdog(10), Watchdog(20), Watchdog(0):
        pass
    assert armed == [10, 20, None, 20, 10, None]


def test_an_error_leaves_the_limit_outside(armed):
    with Watchdog(10):
        with pytest.raises(KeyError), Watchdog(20):
            raise KeyError
        assert armed == [10, 20, 10]


def test_each_item_and_the_wait_for_it_have_the_whole_time(armed):
    seen = []
    with Watchdog(10) as watchdog:
        for item in watchdog.each(iter("ab")):
            seen.append((item, len(armed)))
    # entry; before a, with a, before b, with b, after b; end
    assert seen == [("a", 3), ("b", 5)] and armed == [10] * 6 + [None]


def test_weights_have_time_by_their_size(armed):
    with Watchdog.of_weights({"a": jnp.zeros((1000, 1000), jnp.bfloat16)}):
        assert armed == [STUCK_S + 2e6 / processes.SLOWEST]


def test_a_process_alone_has_no_limit(armed, monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 1)
    with Watchdog(10) as watchdog, Watchdog(20):
        assert list(watchdog.each("ab")) == ["a", "b"]
    assert armed == []
