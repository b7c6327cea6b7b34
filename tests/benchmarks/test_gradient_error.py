"""Errors of gradients: float32 differs by the order of sums alone, bfloat16 by its roundings."""

import json

from benchmarks.training.gradient_error import COMPARED, measure


def test_only_bfloat16_rounds(tiny_config, data_dir, tmp_path):
    config = tiny_config(data__data_dir=data_dir, model__compute_dtype="bfloat16", data__batch_size=8)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    errors = measure(tmp_path, first=True)
    assert set(errors) == {f"{dtype}/{remat}" for dtype, remat in COMPARED}
    for name, by_weight in errors.items():
        low, high = (0, 1e-5) if name.startswith("float32") else (1e-4, 0.1)
        assert all(low <= value <= high for value in by_weight.values()), (name, by_weight)
