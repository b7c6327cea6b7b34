"""What a Ctrl-C says at once; that runs then save and go on is tested in test_run.py."""

import os
import signal

import pytest

from anchorjax.training.loop import StopSignal


def test_the_first_ctrl_c_says_what_happens_and_the_second_interrupts(capfd):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        stop = StopSignal()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.received == "SIGINT"
        assert "saving after this step; Ctrl-C again to stop at once" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            signal.pause()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
