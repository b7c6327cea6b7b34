"""benchmarks/data/positions.py measures every choice; its times are not a test's business."""

import numpy as np

from benchmarks.data import positions


def test_every_choice_is_timed_and_counted():
    store = positions.conversations(np.random.default_rng(0))
    assert 0.4 < store.trained.mean() < 0.6 and not store.trained[store.offsets[:-1]].any()
    found = {name: positions.measure(store, 512, name, changes, 20) for name, changes in positions.CHOICES.items()}
    for figures in found.values():
        assert 0 < figures["transform_us"] < figures["row_us"]
        assert list(figures["probability"]) == ["256", "511", "2048", "4095"]
    assert found["continue"]["probability"]["2048"] == 0 < found["pose"]["probability"]["2048"]
