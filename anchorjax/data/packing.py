"""Rows from documents, as a pure function of (seed, row index).

An epoch is the documents in an order drawn from (seed, epoch), laid end to end and cut every T - 1 tokens.
Each piece becomes a row behind one anchor token; a document cut by a row's end goes on in the next row. No
token is dropped or repeated, only an epoch's last row is padded. For documents (a, b, c), (d, e) and T = 8
the three masks give:

    tokens       A  a  b  c  d  e  .  .       . = pad
    targets      a  b  c  .  e  .  .  .       weight 0 where a dot stands
    positions    0  1  2  3  4  5  6  7       continue
                 0  0  1  2  0  1  6  7       reset
    segment ids  0  1  1  1  2  2 -1 -1       anchor, intra_doc (they differ in `num_anchors`)
                 0  0  0  0  0  0 -1 -1       full
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from anchorjax.data.store import TokenStore
from anchorjax.types import MASKS, PAD_SEGMENT, POSITIONS, Batch


def num_anchors(mask: str) -> int:
    """How many leading tokens of a row every later token may see. Raises ValueError for an unknown mask."""
    if mask not in MASKS:
        raise ValueError(f"unknown mask {mask!r}; allowed: {', '.join(MASKS)}")
    return 1 if mask == "anchor" else 0


@dataclasses.dataclass(frozen=True)
class Row:
    """One packed row; the fields of `Batch` without the batch axis."""

    tokens_T: np.ndarray
    targets_T: np.ndarray
    weights_T: np.ndarray
    positions_T: np.ndarray
    segment_ids_T: np.ndarray


def stack(rows: Sequence[Row]) -> Batch:
    """Rows as one numpy `Batch`, in the order given."""
    return Batch(
        tokens_BT=np.stack([row.tokens_T for row in rows]),
        targets_BT=np.stack([row.targets_T for row in rows]),
        weights_BT=np.stack([row.weights_T for row in rows]),
        positions_BT=np.stack([row.positions_T for row in rows]),
        segment_ids_BT=np.stack([row.segment_ids_T for row in rows]),
    )


@dataclasses.dataclass(frozen=True)
class _Epoch:
    """Documents in the order of one epoch; starts[r] is where the r-th begins in the epoch's stream."""

    order: np.ndarray  # int64 [num_documents]
    starts: np.ndarray  # int64 [num_documents + 1]


@dataclasses.dataclass(frozen=True)
class RowPacker:
    """Packs a store into rows of `row_length` tokens, any of them at any time.

    Targets are the next token of the same document, the last token of a row included: its target is the first
    token of the next row. The anchor's target is the row's first token if a document begins there, otherwise
    that token was a target one row earlier already. So in an epoch every token but a document's first is a
    target exactly once. Where there is no target, the weight is 0 and the target holds `pad_id`.

    Attributes:
      seed: orders the documents of each epoch; None keeps the store's order (for evaluation).
      mask: one of MASKS; decides the segment ids only.
      positions: one of POSITIONS. Pads count on from 0 to T - 1 either way.
      boundary_targets: if True, a document's last token has the first token of the next document in its row
        as target.
    """

    store: TokenStore
    row_length: int
    seed: int | None
    mask: str
    positions: str
    boundary_targets: bool
    anchor_id: int
    pad_id: int
    _epochs: dict[int, _Epoch] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self):
        num_anchors(self.mask)
        if self.positions not in POSITIONS:
            raise ValueError(f"unknown positions {self.positions!r}; allowed: {', '.join(POSITIONS)}")
        if self.row_length < 2:
            raise ValueError(f"row_length is {self.row_length}; a row needs the anchor and at least one token")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; allowed: 0 to 2**63 - 1, or None")

    @property
    def rows_per_epoch(self) -> int:
        return -(-self.store.num_tokens // (self.row_length - 1))

    def row(self, index: int) -> Row:
        """Row `index` of the endless sequence of epochs, int32 [T] arrays and float32 weights."""
        if index < 0:
            raise IndexError(f"row {index}")
        epoch_index, row = divmod(index, self.rows_per_epoch)
        begin = row * (self.row_length - 1)
        end = min(begin + self.row_length - 1, self.store.num_tokens)
        return self._pack(self._epoch(epoch_index), begin, end)

    def empty_row(self) -> Row:
        """An anchor followed by pads, all of weight 0: fills up the last batch of an evaluation."""
        return self._pack(self._epoch(0), 0, 0)

    def _pack(self, epoch: _Epoch, begin: int, end: int) -> Row:
        """The row that holds stream[begin:end]. The suffix n counts its tokens, the anchor left out."""
        stream_n = np.arange(begin, end)
        rank_n = np.searchsorted(epoch.starts, stream_n, side="right") - 1
        offset_n = stream_n - epoch.starts[rank_n]
        source_n = self.store.offsets[epoch.order[rank_n]] + offset_n
        is_last_n = stream_n + 1 == epoch.starts[rank_n + 1]

        token_n = self.store.tokens[source_n].astype(np.int32)
        target_n = np.full_like(token_n, self.pad_id)
        target_n[~is_last_n] = self.store.tokens[source_n[~is_last_n] + 1]
        weight_n = np.where(is_last_n, 0.0, 1.0)
        if self.boundary_targets:
            crossing = np.flatnonzero(is_last_n[:-1])
            target_n[crossing] = token_n[crossing + 1]
            weight_n[crossing] = 1.0

        document_starts_row = end > begin and offset_n[0] == 0
        return Row(
            tokens_T=self._fill(self.anchor_id, token_n, self.pad_id),
            targets_T=self._fill(token_n[0] if document_starts_row else self.pad_id, target_n, self.pad_id),
            weights_T=self._fill(1.0 if document_starts_row else 0.0, weight_n, 0.0).astype(np.float32),
            positions_T=self._positions(stream_n - np.maximum(epoch.starts[rank_n], begin)),
            segment_ids_T=self._segment_ids(rank_n),
        )

    def _positions(self, in_piece_n: np.ndarray) -> np.ndarray:
        """`in_piece_n` counts from 0 in each document's piece of this row."""
        positions_T = np.arange(self.row_length, dtype=np.int32)
        if self.positions == "reset":
            positions_T[1 : 1 + len(in_piece_n)] = in_piece_n
        return positions_T

    def _segment_ids(self, rank_n: np.ndarray) -> np.ndarray:
        documents_n = rank_n - rank_n[:1] + 1
        if self.mask == "full":
            documents_n = np.zeros_like(documents_n)
        return self._fill(0, documents_n, PAD_SEGMENT)

    def _fill(self, first, values_n: np.ndarray, rest) -> np.ndarray:
        """[T] int32: the anchor's value, the tokens' values, the pads' value."""
        filled_T = np.full(self.row_length, rest, np.int32)
        filled_T[0] = first
        filled_T[1 : 1 + len(values_n)] = values_n
        return filled_T

    def _epoch(self, epoch_index: int) -> _Epoch:
        # Two epochs are kept because prefetching crosses their border. Threads may both compute one: same
        # result.
        epoch = self._epochs.get(epoch_index)
        if epoch is None:
            epoch = self._make_epoch(epoch_index)
            if len(self._epochs) >= 2:
                self._epochs.clear()
            self._epochs[epoch_index] = epoch
        return epoch

    def _make_epoch(self, epoch_index: int) -> _Epoch:
        order = np.arange(self.store.num_documents)
        if self.seed is not None:
            # Sorting raw draws, not Generator.permutation: numpy promises that Philox's raw stream never
            # changes, but not what a Generator makes of it, and a resumed run must see the same order after
            # an upgrade.
            draws = np.random.Philox(key=np.array([self.seed, epoch_index], np.uint64)).random_raw(len(order))
            order = np.argsort(draws, kind="stable")
        lengths = np.diff(self.store.offsets)[order]
        return _Epoch(order, np.concatenate([[0], np.cumsum(lengths)]))


class PackedRows:
    """One process's rows, in the order it trains on them, as a random-access source for grain.

    The global batch of step s is rows s * batch_rows .. (s + 1) * batch_rows - 1; each process holds a
    contiguous share of every batch, so the shares of any number of processes joined in order are the same
    batch.
    """

    def __init__(self, packer: RowPacker, batch_rows: int, process_index: int = 0, process_count: int = 1):
        if batch_rows < 1 or batch_rows % process_count:
            raise ValueError(f"batch_rows is {batch_rows}; it must be a positive multiple of {process_count} processes")
        if not 0 <= process_index < process_count:
            raise ValueError(f"process_index is {process_index} of {process_count} processes")
        self.packer = packer
        self.share_rows = batch_rows // process_count
        self._batch_rows = batch_rows
        self._first = process_index * self.share_rows

    def __len__(self) -> int:
        return 2**62  # endless: grain wraps an index at the length, which would repeat the first epoch

    def __getitem__(self, index: int) -> Row:
        step, row = divmod(index, self.share_rows)
        return self.packer.row(step * self._batch_rows + self._first + row)

    def __repr__(self) -> str:
        return f"PackedRows({self.packer.rows_per_epoch} rows an epoch, {self.share_rows} a step)"
