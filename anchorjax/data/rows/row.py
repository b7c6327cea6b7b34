"""One packed row, and several as a batch."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from anchorjax.data.rows.balance import Layout
from anchorjax.types import Batch


@dataclasses.dataclass(frozen=True)
class Row:
    """One packed row; the fields of `Batch` without the batch axis."""

    tokens_T: np.ndarray
    targets_T: np.ndarray
    is_target_T: np.ndarray
    positions_T: np.ndarray
    segment_ids_T: np.ndarray
    visible_T: np.ndarray
    index_T: np.ndarray

    def laid_out(self, layout: Layout) -> "Row":
        """The same tokens in the order of the layout."""
        if layout.shards == 1:
            return self
        order_T = layout.order(self.segment_ids_T)
        return Row(*(getattr(self, field.name)[order_T] for field in dataclasses.fields(self)))


def stack(rows: Sequence[Row]) -> Batch:
    """Rows as one numpy `Batch`, in the order given."""
    return Batch(
        tokens_BT=np.stack([row.tokens_T for row in rows]),
        targets_BT=np.stack([row.targets_T for row in rows]),
        is_target_BT=np.stack([row.is_target_T for row in rows]),
        positions_BT=np.stack([row.positions_T for row in rows]),
        segment_ids_BT=np.stack([row.segment_ids_T for row in rows]),
        visible_BT=np.stack([row.visible_T for row in rows]),
        index_BT=np.stack([row.index_T for row in rows]),
    )
