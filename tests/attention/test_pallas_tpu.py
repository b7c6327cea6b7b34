"""The TPU kernels, interpreted with their memories and copies: what is their own, beside the contract.

`pltpu.force_tpu_interpret_mode` models aliased outputs, semaphores and uninitialised memory (not-a-number);
plain `interpret=True` does not.
"""

import jax
import numpy as np
import pytest

from anchorjax.attention import attention
from anchorjax.attention import plan as plan_lib
from anchorjax.attention.plan import make_plan
from tests.attention.contract import SETTINGS, TOLERANCE, documents, make_case, max_error, run

T = SETTINGS["pallas_tpu"].T


@pytest.mark.parametrize(
    ("heads", "anchors", "window", "soft_cap", "tiles"),
    [
        ((1, 1, 64), 0, None, None, (128, 256)),  # one query head: its dq tile comes back at once
        ((1, 1, 80), 2, 70, None, (256, 128)),
        ((3, 1, 96), 1, None, 2.0, (128, 128)),
        ((2, 2, 256), 3, 140, 3.0, (128, 128)),
    ],
    ids=str,
)
def test_windows_caps_anchors_widths_and_tiles(heads, anchors, window, soft_cap, tiles):
    segments = np.stack([documents(T, [140, 150], anchors), documents(T, [200], anchors, pads=60)])
    case = make_case(segments, anchors, *heads, window=window, soft_cap=soft_cap)
    assert max_error(run(case, "pallas_tpu", tiles), run(case, "reference")) < 2 * TOLERANCE


def test_list_in_chunks(monkeypatch):
    """A chunk of three entries is one query tile: as many kernel calls as tiles."""
    monkeypatch.setattr(plan_lib, "_CHUNK", 3)
    jax.clear_caches()
    case = make_case(np.stack([documents(T, [140], 1), documents(T, [], 1)]), 1, 2, 1, 16)
    assert make_plan(case.mask, 128, 128).by_query.entries_CP.shape[0] == 6
    assert max_error(run(case, "pallas_tpu"), run(case, "reference")) < TOLERANCE
    jax.clear_caches()


def test_tiles_that_no_tpu_takes_are_refused():
    case = make_case(np.zeros((1, T)), 0, 2, 1, 16)
    with pytest.raises(NotImplementedError, match="tiles of 100 x 128; allowed: multiples of 128"):
        attention(case.q, case.k, case.v, make_plan(case.mask, 100, 128), implementation="pallas_tpu")
