"""Errors of gradients: float32 differs by the order of sums alone, bfloat16 by its roundings."""

import json

from benchmarks.training import gradient_error


def test_only_bfloat16_rounds(tiny_config, data_dir, tmp_path, monkeypatch):
    config = tiny_config(data__data_dir=data_dir, model__compute_dtype="bfloat16", data__batch_size=8)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    monkeypatch.setattr(gradient_error, "COMPARED", (("float32", "none"), ("bfloat16", "none")))  # the others take long
    errors = gradient_error.measure(tmp_path, first=True)
    assert max(errors["float32/none"].values()) < 1e-5
    assert all(1e-4 < error < 0.1 for error in errors["bfloat16/none"].values()), errors
