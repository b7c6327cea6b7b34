"""Rows of FocusLLM (arXiv 2408.11745): one document each, [anchor, memory, local part].

A row is a window of seq_len - 1 tokens of one document, as a memory of other documents is of no use. What documents
have beyond whole windows is left out. The local part is what follows the memory, or in a share of the training rows a
copy of a span of the memory (reconstruction): which rows and spans is a pure function of (seed, row index).
"""

import dataclasses

import numpy as np

from anchorjax.config import FocusConfig
from anchorjax.data.rows.draws import Stream, generator, permutation
from anchorjax.data.rows.packing import RowPacker
from anchorjax.data.rows.row import Row
from anchorjax.data.rows.row_plan import Pieces, RowPlan, ranges
from anchorjax.errors import ConfigError


@dataclasses.dataclass(frozen=True, eq=False)
class FocusPacker(RowPacker):
    """Rows of windows, whose last `focus.num_targets` tokens have targets. Without a seed none is a reconstruction."""

    focus: FocusConfig = dataclasses.field(default_factory=FocusConfig)

    def row(self, index: int) -> Row:
        """As of RowPacker."""
        row = super().row(index)
        if self.seed is not None and self.focus.reconstruction:
            draw, place = generator(Stream.RECONSTRUCTION, self.seed, index).random_raw(2).tolist()
            if draw < self.focus.reconstruction * 2**64:
                row = self._repeating(row, place)
        return dataclasses.replace(row, is_target_T=row.is_target_T & self._may_be_target_T)

    def targets_by_context(self, epoch: int = 0) -> np.ndarray:
        """As of RowPacker; a token sees what is before it in the row, of the memory what candidates make of it."""
        visible = np.flatnonzero(self._may_be_target_T) + 1
        return self.plan(epoch).num_rows * np.bincount(np.log2(visible).astype(np.int64))

    def _repeating(self, row: Row, place: int) -> Row:
        """The row with a span of its memory as local part, and with the tokens that follow there as targets."""
        n, memory = self.focus.local, self.seq_len - 1 - self.focus.local
        first = 1 + place % (memory - n)
        tokens_T, targets_T, is_target_T = row.tokens_T.copy(), row.targets_T.copy(), row.is_target_T.copy()
        tokens_T[-n:], targets_T[-n:] = row.tokens_T[first : first + n], row.tokens_T[first + 1 : first + n + 1]
        is_target_T[-n:] = True
        return dataclasses.replace(row, tokens_T=tokens_T, targets_T=targets_T, is_target_T=is_target_T)

    @property
    def _may_be_target_T(self) -> np.ndarray:
        return np.arange(self.seq_len) >= self.seq_len - self.focus.num_targets

    def _lay_out(self, documents: np.ndarray, lengths: np.ndarray, epoch: int) -> RowPlan:
        """Raises ConfigError if no document is as long as a row."""
        size = self.seq_len - 1
        count = lengths // size
        if not count.any():
            longest = "the longest" if self.seed is not None else "the longest held-out one"
            allowed = f"a row is {size:,} tokens of one document (focus.chunk), and {longest} has {lengths.max():,}"
            raise ConfigError("data.seq_len", self.seq_len, allowed)
        document, offset = np.repeat(documents, count), ranges(np.zeros_like(count), count) * size
        rows = len(document)
        order = np.arange(rows) if self.seed is None else permutation(Stream.ROWS, self.seed, epoch, rows)
        return RowPlan(np.arange(rows + 1), Pieces(document[order], offset[order], np.full(rows, size)))
