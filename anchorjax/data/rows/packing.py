"""Rows from documents, as a pure function of (seed, row index).

An epoch is the documents in an order drawn from (seed, epoch), laid into rows of T - 1 tokens behind one anchor
token each (row_plan.py says how). No token is dropped or repeated, unless `upsample_long` leaves documents out.
For documents (a, b, c), (d, e) and T = 8 the three masks give:

    tokens       A  a  b  c  d  e  .  .       . = padding
    targets      a  b  c  .  e  .  .  .       no target where there is a dot
    positions    0  1  2  3  4  5  6  7       continue; positions/ has the others
                 0  0  1  2  0  1  6  7       reset
    segment ids  0  1  1  1  2  2 -1 -1       anchor, intra_doc (they differ in `num_anchors`)
                 0  0  0  0  0  0 -1 -1       full

A store of conversations says of each token whether it is trained on, and only such a token is a target. With d and e
alone trained on, the first row above has:

    trained      0  0  0  0  1  1  0  0
    targets      .  .  .  .  e  .  .  .

With tags, <x> being the tag of source x, and with `interleave` the same documents may give:

    tokens       A <x> a  b  c <y> d  e       A  a  d  b  c  e  .  .
    targets      . a  b  c  .  d  e  .        a  b  e  c  .  .  .  .
    positions    0  1  2  3  4  5  6  7       0  0  0  1  2  1  6  7       reset
    segment ids  0  1  1  1  1  2  2  2       0  1  2  1  1  2 -1 -1
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from anchorjax.config import DataConfig
from anchorjax.data.rows import contexts, segments, window_schedule
from anchorjax.data.rows.balance import Layout
from anchorjax.data.rows.draws import Stream, generator, long_documents, permutation
from anchorjax.data.rows.positions import POSITIONS, RowPieces, RowSpec
from anchorjax.data.rows.row import Row
from anchorjax.data.rows.row_plan import PackingReport, Pieces, RowPlan, interleave, make_plan, ranges, report
from anchorjax.data.store.tokens import TokenStore
from anchorjax.masks import anchors_of
from anchorjax.types import PACKINGS, SKIPPING


def sources_of(store: TokenStore, only: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """The source of each document, and the names of sources. One without a name is called `only`."""
    sources = getattr(store, "sources", None)
    if sources is None:
        sources = np.zeros(store.num_documents, np.int16)
    return sources, tuple(name or only for name in getattr(store, "source_names", ("",)))


@dataclasses.dataclass(frozen=True, eq=False)
class _Tags:
    """Tokens in front of each document, by its source."""

    sources: np.ndarray  # int [num_documents]
    tokens: np.ndarray  # of all tags end to end
    starts: np.ndarray  # int64 [num_sources]; where each begins in `tokens`
    lengths: np.ndarray  # int64 [num_sources]

    @classmethod
    def of(cls, sources: np.ndarray, tags: Sequence[np.ndarray]) -> "_Tags":
        lengths = np.array([len(tag) for tag in tags], np.int64)
        return cls(sources, np.concatenate(tags), np.cumsum(lengths) - lengths, lengths)


@dataclasses.dataclass(frozen=True, eq=False)
class RowPacker:
    """Packs a store into rows of `seq_len` tokens, any of them at any time.

    Targets are the next token of the same document, wherever it lies: the target of a row's last token, and of a
    piece that `interleave` cut off, is the document's true next token, not the next input. That token is the
    first of a later row or piece, and what the model is asked is the same as without a cut: to go on with what it
    has seen. The anchor's target is the row's first token if a document begins there, otherwise that token is the
    target of another one already. So in an epoch every token but a document's first is a target exactly once; of
    tags none is, and the last token of a tag has the document's first as target. Where there is no
    target, `targets_T` holds `pad_id`. In a store of conversations all this is true of the tokens that are trained on,
    and others are no targets.

    Attributes:
      seed: orders the documents of each epoch; None keeps the store's order (for evaluation).
      mask: one of MASKS; decides the segment ids only.
      positions: one of POSITIONS (positions/). Those in SKIPPING draw skips from (seed, row index).
      boundary_targets: if True, a document's last token has the first token of the next document in its row
        as target, if that begins right behind it.
      packing: one of PACKINGS.
      interleave: 0, or how many pieces the documents of a row are cut into, at points drawn uniformly (equal ones
        are one). The pieces of all documents are merged: each order that keeps every document's own is equally
        likely. They stay in their row, and a document's pieces have one segment id.
      upsample_long: if True, epochs leave out short documents, see `draws.long_documents`.
      tags: None, or the tokens to put in front of each document of a source. They count as its first tokens. A
        document that goes on in another row has no tag there.
      sources: the source of each document; None: all are of source 0.
      max_position: positions must be smaller; 0 is seq_len.
      config: the section `data`, from which a position transform reads keys of its own. Row i is of step
        i // config.batch_size, which tells its window (window_schedule.py).
    """

    store: TokenStore
    seq_len: int
    seed: int | None
    mask: str
    positions: str
    boundary_targets: bool
    anchor_id: int
    pad_id: int
    packing: str = "concat_split"
    interleave: int = 0
    upsample_long: bool = False
    tags: Sequence[np.ndarray] | None = None
    sources: np.ndarray | None = dataclasses.field(default=None, repr=False)
    max_position: int = 0
    config: DataConfig = dataclasses.field(default_factory=DataConfig, repr=False)
    _memory: dict = dataclasses.field(default_factory=dict, repr=False)

    def __post_init__(self):
        anchors_of(self.mask)
        for name, value, allowed in (("positions", self.positions, POSITIONS), ("packing", self.packing, PACKINGS)):
            if value not in allowed:
                raise ValueError(f"unknown {name} {value!r}; allowed: {', '.join(allowed)}")
        if self.seq_len < 2:
            raise ValueError(f"seq_len is {self.seq_len}; a row needs the anchor and at least one token")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; allowed: 0 to 2**63 - 1, or None")
        if self.seed is None and (self.interleave or self.upsample_long or self.positions in SKIPPING):
            raise ValueError("interleave, upsample_long and positions that skip draw at random; they need a seed")
        if self.max_position and self.max_position < self.seq_len:
            raise ValueError(f"max_position is {self.max_position}; allowed: 0, or seq_len={self.seq_len} and more")
        if self.interleave < 0 or self.interleave == 1:
            raise ValueError(f"interleave is {self.interleave}; allowed: 0, or 2 and more pieces")
        if self.config.window_schedule != "none" and (self.seed is None or self.config.seq_len != self.seq_len):
            raise ValueError("a window schedule is of training rows, which have a seed, of config.seq_len tokens")
        if self.interleave and self.boundary_targets:
            raise ValueError("interleave puts pieces of documents behind a document's end: no boundary_targets")

    @property
    def rows_per_epoch(self) -> int:
        """Rows of epoch 0. With first_fit or upsample_long other epochs may have more or fewer."""
        return self._num_rows(0)

    def row(self, index: int) -> Row:
        """Row `index` of the endless sequence of epochs: arrays [T], int32 but for the bool `is_target_T`.

        Raises:
          ValueError: a position transform gave a position outside of [0, max_position).
        """
        return self._pack(self._pieces(index), index)

    def segment_ids(self, index: int) -> np.ndarray:
        """`segment_ids_T` of row `index`, for which no token is read."""
        return self._segment_ids(self._pieces(index), index)

    def empty_row(self) -> Row:
        """An anchor followed by padding, without a target: fills up the last batch of an evaluation."""
        nothing = np.zeros(0, np.int64)
        return self._pack(Pieces(nothing, nothing, nothing), 0)

    def report(self, epoch: int = 0) -> PackingReport:
        return report(self.plan(epoch), self.seq_len, self.store.num_documents)

    def targets_by_context(self, epoch: int = 0) -> np.ndarray:
        """Targets of an epoch by their visible context in whole rows, int64 [K]; see contexts.py for the buckets."""
        lengths = np.diff(self.store.offsets)
        tags = self._tags.lengths[self._sources] if self._tags else np.zeros_like(lengths)
        plan = self.plan(epoch)
        flags = None if self.store.trained is None else contexts.Flags(self.store.trained, self.store.offsets)
        return contexts.by_bucket(plan, lengths + tags, tags, self.seq_len, self.mask, self.boundary_targets, flags)

    def _pieces(self, index: int) -> Pieces:
        if index < 0:
            raise IndexError(f"row {index}")
        epoch, row = self._locate(index)
        pieces = self.plan(epoch).row(row)
        return interleave(pieces, self.interleave, self.seed, index) if self.interleave else pieces

    def _locate(self, index: int) -> tuple[int, int]:
        """Epoch, and row in it. Where epochs differ in length, those before are planned: once, for their length."""
        if self.packing != "first_fit" and not self.upsample_long:
            return divmod(index, self.rows_per_epoch)  # best fit depends on lengths alone
        epoch, first = self._memory.get("last", (0, 0))
        if index < first:
            epoch, first = 0, 0
        while index >= first + (rows := self._num_rows(epoch)):
            epoch, first = epoch + 1, first + rows
        self._memory["last"] = epoch, first
        return epoch, index - first

    def _num_rows(self, epoch: int) -> int:
        return self._remember(("num_rows", epoch), lambda: self.plan(epoch).num_rows)

    def _remember(self, key, make):
        # Threads may both make one: same result.
        value = self._memory.get(key)
        if value is None:
            value = self._memory[key] = make()
        return value

    def plan(self, epoch: int) -> RowPlan:
        """Which pieces lie in which row, before `interleave` cuts them further."""
        plans = self._memory.get("plans", {})  # replaced and never changed: another thread may read it
        if epoch not in plans:
            newest = dict(list(plans.items())[-1:])  # two are kept, because prefetching crosses the border of epochs
            plans = self._memory["plans"] = newest | {epoch: self._make_plan(epoch)}
        return plans[epoch]

    def _make_plan(self, epoch: int) -> RowPlan:
        documents = np.arange(self.store.num_documents)
        if self.seed is not None:
            documents = permutation(Stream.DOCUMENTS, self.seed, epoch, len(documents))
        lengths = np.diff(self.store.offsets)
        if self.upsample_long:
            documents = documents[long_documents(lengths, self._sources, self.seed, epoch)[documents]]
        if self._tags:
            lengths += self._tags.lengths[self._sources]
        return self._lay_out(documents, lengths[documents], epoch)

    def _lay_out(self, documents: np.ndarray, lengths: np.ndarray, epoch: int) -> RowPlan:
        return make_plan(self.packing, documents, lengths, self.seq_len - 1, self.seed, epoch)

    @property
    def _sources(self) -> np.ndarray:
        if self.sources is None:
            return self._remember("sources", lambda: np.zeros(self.store.num_documents, np.int16))
        return self.sources

    @property
    def _tags(self) -> _Tags | None:
        if self.tags is None:
            return None
        return self._remember("tags", lambda: _Tags.of(self._sources, self.tags))

    def _pack(self, pieces: Pieces, index: int) -> Row:
        """Row `index`, which holds these pieces. The suffix P counts pieces; the anchor is at index 0 of the row."""
        document_P, offset_P, length_P = pieces
        end_P = 1 + np.cumsum(length_P)
        start_P = end_P - length_P
        size = int(end_P[-1]) if len(end_P) else 1
        tag_P = self._tags.lengths[self._sources[document_P]] if self._tags else np.zeros_like(offset_P)

        tokens_T = np.full(self.seq_len, self.pad_id, np.int32)
        tokens_T[0] = self.anchor_id
        next_P, is_last_P = self._copy_text(self.store.tokens, tokens_T, pieces, start_P, tag_P)
        if self._tags:
            self._copy_tags(tokens_T, pieces, start_P, tag_P)

        # The next token of the row, but where a piece ends that of its document.
        begins_P = (offset_P == 0) & (tag_P == 0)
        targets_T = np.full(self.seq_len, self.pad_id, np.int32)
        targets_T[: size - 1] = tokens_T[1:size]
        crosses_P = is_last_P & np.append(begins_P[1:], False)[: len(begins_P)] & self.boundary_targets
        targets_T[end_P[~crosses_P] - 1] = next_P[~crosses_P]
        to_tag_P = offset_P + length_P < tag_P
        without_target = [end_P[(is_last_P & ~crosses_P) | to_tag_P] - 1]
        if not begins_P[:1].any():
            without_target.append(np.zeros(1, np.int64))
        if self._tags:
            without_target.append(ranges(start_P, np.maximum(np.minimum(tag_P - offset_P, length_P) - 1, 0)))
        nowhere = np.concatenate(without_target)
        is_target_T = np.arange(self.seq_len) < size
        is_target_T[nowhere] = False
        trained_T = None
        if self.store.trained is not None:
            trained_T = np.zeros(self.seq_len, bool)
            follows_P, _ = self._copy_text(self.store.trained, trained_T, pieces, start_P, tag_P)
            next_T = np.append(trained_T[1:], False)
            next_T[end_P[~crosses_P] - 1] = follows_P[~crosses_P]
            is_target_T &= next_T
        targets_T[~is_target_T] = self.pad_id

        number_P, before_P = self._documents_of(pieces)
        positions_T = self._positions_of(RowPieces(number_P, start_P, before_P, length_P, trained_T), index)
        index_T = np.arange(self.seq_len, dtype=np.int32)
        segment_ids_T = self._segment_ids(pieces, index)
        visible_T = segments.visible(segment_ids_T, anchors_of(self.mask))
        return Row(tokens_T, targets_T, is_target_T, positions_T, segment_ids_T, visible_T, index_T)

    def _segment_ids(self, pieces: Pieces, index: int) -> np.ndarray:
        window = window_schedule.window(index // self.config.batch_size, self.config)
        return segments.segment_ids(self._documents_of(pieces)[0], pieces.length, self.seq_len, self.mask, window)

    def _positions_of(self, pieces: RowPieces, index: int) -> np.ndarray:
        """The transform's positions, int32 [T]. RoPE's tables would silently clamp a position beyond their end."""
        spec = RowSpec(self.seq_len, self.max_position or self.seq_len, self.config)
        positions_T = POSITIONS[self.positions](pieces, spec, generator(Stream.POSITIONS, self.seed or 0, index))
        outside_T = (positions_T < 0) | (positions_T >= spec.max_position)
        if outside_T.any():
            token = int(np.argmax(outside_T))
            raise ValueError(
                f"row {index}: data.positions={self.positions} puts token {token} at position {positions_T[token]}; "
                f"allowed: 0 to {spec.max_position - 1}, below data.max_position"
            )
        return positions_T

    def _copy_text(
        self, values: np.ndarray, row_T: np.ndarray, pieces: Pieces, start_P: np.ndarray, tag_P: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Copies the store's values, one for each token, into the row; tags have none.

        Returns the value of each document that follows the piece, and whether there is none.
        """
        document_P, offset_P, length_P = pieces
        values, offsets = np.asarray(values), np.asarray(self.store.offsets)  # plain views of a memory map
        of_tag_P = np.clip(tag_P - offset_P, 0, length_P)
        begin_P = offsets[document_P] + np.maximum(offset_P - tag_P, 0)
        count_P = length_P - of_tag_P
        # A slice costs 0.4 us and then 0.1 ns a token; gathering all at once 9 to 13 ns a token.
        for to, begin, count in zip((start_P + of_tag_P).tolist(), begin_P.tolist(), count_P.tolist(), strict=True):
            row_T[to : to + count] = values[begin : begin + count]
        following_P = begin_P + count_P
        is_last_P = following_P == offsets[document_P + 1]
        return values[np.where(is_last_P, 0, following_P)], is_last_P

    def _copy_tags(self, tokens_T: np.ndarray, pieces: Pieces, start_P: np.ndarray, tag_P: np.ndarray) -> None:
        count_P = np.clip(tag_P - pieces.offset, 0, pieces.length)
        first_P = self._tags.starts[self._sources[pieces.document]] + pieces.offset
        tokens_T[ranges(start_P, count_P)] = self._tags.tokens[ranges(first_P, count_P)]

    def _documents_of(self, pieces: Pieces) -> tuple[np.ndarray, np.ndarray]:
        """Each piece's document, numbered from 0 as they appear, and its tokens in the row before the piece."""
        if not self.interleave:
            return np.arange(len(pieces.document)), np.zeros_like(pieces.offset)
        _, first_D, document_P = np.unique(pieces.document, return_index=True, return_inverse=True)
        number_D = np.empty_like(first_D)
        number_D[np.argsort(first_D)] = np.arange(len(first_D))
        return number_D[document_P], pieces.offset - pieces.offset[first_D][document_P]


class PackedRows:
    """The rows that one process trains on, in their order, as a random-access source for grain.

    The batch of step s is rows s * batch_size .. (s + 1) * batch_size - 1 of the packer, in an order that the layout
    may choose; `rows` says which places of the batch a process reads, as its devices hold them. Processes whose devices
    share rows read the same ones.
    """

    def __init__(
        self, packer: RowPacker, batch_size: int, rows: Sequence[int] | None = None, layout: Layout | None = None
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; allowed: 1 or more")
        if packer.config.window_schedule != "none" and packer.config.batch_size != batch_size:
            raise ValueError(f"batch_size is {batch_size}; allowed: {packer.config.batch_size}, which windows go by")
        self.packer = packer
        self.rows = tuple(range(batch_size) if rows is None else rows)
        if not self.rows or not all(0 <= row < batch_size for row in self.rows):
            raise ValueError(f"rows are {self.rows}; allowed: some of 0 to {batch_size - 1}")
        self._batch_size, self._layout = batch_size, layout or Layout()
        self._last = -1, np.arange(batch_size)  # the step whose rows were ordered last, and their order

    def __len__(self) -> int:
        return 2**62  # endless: grain wraps an index at the length, which would repeat the first epoch

    def __getitem__(self, index: int) -> Row:
        step, place = divmod(index, len(self.rows))
        row = step * self._batch_size + int(self._order(step)[self.rows[place]])
        return self.packer.row(row).laid_out(self._layout)

    def _order(self, step: int) -> np.ndarray:
        """The rows of a step's batch, from 0 on, by their place in it."""
        if not self._layout.orders_rows(self._batch_size):
            return self._last[1]
        last = self._last  # replaced and never changed: another thread may read it
        if last[0] != step:
            rows = range(step * self._batch_size, (step + 1) * self._batch_size)
            work_B = np.array([self._layout.work(self.packer.segment_ids(row)).sum() for row in rows])
            last = self._last = step, self._layout.order_of_rows(work_B)
        return last[1]

    def __repr__(self) -> str:
        return f"PackedRows({self.packer.rows_per_epoch} rows an epoch, {len(self.rows)} a step)"
