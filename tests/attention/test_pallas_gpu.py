"""The GPU kernels, interpreted: what is their own, beside the contract (test_contract.py).

Interpretation runs a kernel's statements and pads what lies outside of arrays with not-a-number; it knows
nothing of warps and registers. test_gpu_compiles.py and tests/benchmarks/test_gpu_static.py have the compilers' part.
"""

import functools

import jax
import numpy as np
import pytest

from anchorjax.attention import attention
from anchorjax.attention import plan as plan_lib
from anchorjax.attention.plan import make_plan
from tests.attention.contract import SETTINGS, TOLERANCE, documents, make_case, max_error, run

T = SETTINGS["pallas_gpu"].T


@pytest.mark.parametrize(
    ("heads", "anchors", "window", "soft_cap", "tiles"),
    [
        ((4, 2, 64), 1, None, None, (128, 128)),  # a tile is several blocks of every kernel
        ((1, 1, 80), 2, 70, None, (16, 64)),
        ((3, 1, 96), 3, None, 2.0, (64, 16)),
        ((2, 1, 128), 0, 90, 3.0, (32, 128)),
        ((2, 2, 256), 17, None, None, (32, 32)),  # more anchors than fit one matmul's smallest side
    ],
    ids=str,
)
def test_windows_caps_anchors_widths_and_tiles(heads, anchors, window, soft_cap, tiles):
    length = 150
    segments = np.stack([documents(length, [60, 70], anchors), documents(length, [90], anchors, pads=40)])
    case = make_case(segments, anchors, *heads, window=window, soft_cap=soft_cap)
    assert max_error(run(case, "pallas_gpu", tiles), run(case, "reference")) < TOLERANCE


def test_lists_in_chunks(monkeypatch):
    """Starts are places in the flattened list, whose chunks end in entries that mean nothing."""
    monkeypatch.setattr(plan_lib, "_CHUNK", 8)
    jax.clear_caches()
    case = make_case(np.stack([documents(T, [40], 1), documents(T, [], 1)]), 1, 2, 1, 16)
    plan = make_plan(case.mask, *SETTINGS["pallas_gpu"].tiles)
    assert plan.by_query.entries_CP.shape[0] > 2 and plan.by_key.entries_CP.shape[0] > 2
    assert max_error(run(case, "pallas_gpu"), run(case, "reference")) < TOLERANCE
    jax.clear_caches()


def test_nothing_falls_back_silently():
    case = make_case(np.zeros((1, T)), 0, 2, 1, 16)
    for tiles in ((100, 128), (16, 8)):
        plan = make_plan(case.mask, *tiles)
        with pytest.raises(NotImplementedError, match=f"tiles of {tiles[0]} x {tiles[1]}; allowed: powers of two"):
            attention(case.q, case.k, case.v, plan, implementation="pallas_gpu")
    wide = make_case(np.zeros((1, T)), 0, 2, 1, 272)
    with pytest.raises(NotImplementedError, match=r"q has shape \(1, 83, 2, 272\); allowed: heads of 1 to 256"):
        attention(wide.q, wide.k, wide.v, make_plan(wide.mask, 16, 16), implementation="pallas_gpu")
    run(case, "pallas_gpu")  # what is compiled inside `interpreted` is not what runs outside of it
    apply = functools.partial(attention, mask_or_plan=case.mask, implementation="pallas_gpu")
    with pytest.raises(ValueError, match="Only interpret mode is supported on CPU"):
        jax.jit(apply)(case.q, case.k, case.v)
