"""Every second position, as far as data.max_position allows."""

import numpy as np

from anchorjax.data.rows.positions import RowPieces, RowSpec


def positions(pieces: RowPieces, spec: RowSpec, rng: np.random.Philox) -> np.ndarray:
    index_T = np.arange(spec.seq_len, dtype=np.int32)
    return index_T + np.minimum(index_T, spec.max_position - spec.seq_len).astype(np.int32)
