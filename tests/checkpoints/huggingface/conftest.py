import json

import numpy as np
import pytest

from anchorjax.checkpoints.huggingface.weights import INDEX
from tests.checkpoints.huggingface.making import save


@pytest.fixture
def sharded(tmp_path):
    """Three shards with one tensor each: a, b and c."""
    return save(tmp_path / "sharded", {name: np.full(4, ord(name), np.float32) for name in "abc"}, shard_bytes=16)


@pytest.fixture
def edit_index(sharded):
    """`edit_index(change)`: calls change(weight_map) and writes it back; gives the directory."""

    def edit(change):
        index = json.loads((sharded / INDEX).read_text())
        change(index["weight_map"])
        (sharded / INDEX).write_text(json.dumps(index))
        return sharded

    return edit
