"""Equal work for devices: how a row's tokens lie on those that share it, and which devices get which rows of a batch.

Under a causal mask late queries see more keys, and in packed rows what a query sees depends on its document. If the
devices along `context` hold equal stretches of a row in its own order, most of them wait for one. A layout therefore
cuts a row into chunks and orders them anew; device c of C gets the c-th part of the result:

    contiguous   the row's own order
    zigzag       2 C chunks, of which device c gets numbers c and 2 C - 1 - c: even work if all is one document
                 (Llama 3, arXiv 2407.21783, Section 3.3.2)
    documents    up to CHUNKS C chunks, which are dealt out by their live tiles

`documents` deals the largest chunk first to the device with least work (LPT: Graham, "Bounds on multiprocessing timing
anomalies", 1969); MagiAttention's dispatch solver deals chunks by their area, too. Among devices with nearly the least
work it takes the one that holds most of the chunk's documents, as keys need not travel to a device that sees none of
them; FlashCP (arXiv 2606.08476) weighs the same two costs. All devices get equal numbers of chunks, as arrays must have
equal shapes.

A row's order is a function of the row alone, so all processes make the same batches. The order is undone nowhere:
`Batch.index_BT` says which token is where.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from anchorjax.types import PAD_SEGMENT

Windows = tuple[tuple[int | None, int], ...]  # of each kind of layer its window, None for all keys, and their number
ALL_KEYS: Windows = ((None, 1),)
# Chunks of a device. On rows of 128K the most loaded of 8 devices has 1.19 times the mean work with 4 chunks and 1.03
# with 8; 16 give 1.02, and spread each document over more devices.
CHUNKS = 8
# A device whose work is this part of the mean above the least may still get a chunk, for the documents that it holds.
# On rows of 128K over 8 devices 0 gives 1.025 and lets 89% of the pairs of devices need each other's keys; 0.1 gives
# 1.033 and 72%, 0.2 gives 1.046 and 68%.
SLACK = 0.1


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the tokens of all rows lie on the devices that share them, and rows on the devices that hold them.

    Attributes:
      name: one of CONTEXT_LAYOUTS.
      shards: C, devices that share a row; with 1 all tokens keep their places.
      tile: tokens along each side of the tiles by which work is counted.
      windows: of the model's layers.
      groups: devices, or groups of them along `context` and `tensor`, that hold different rows of a batch.
      parts: micro-batches of a batch.
    """

    name: str = "contiguous"
    shards: int = 1
    tile: int = 512
    windows: Windows = ALL_KEYS
    groups: int = 1
    parts: int = 1

    def order(self, segment_ids_T: np.ndarray) -> np.ndarray:
        """The place in its row of each token, in the order in which the devices hold them: int32 [T].

        The first token, a row's anchor, stays the first. T must be a multiple of `shards`, and for `zigzag` of twice as
        many.
        """
        index_T, T = np.arange(len(segment_ids_T), dtype=np.int32), len(segment_ids_T)
        if self.shards == 1 or self.name == "contiguous":
            return index_T
        if self.name == "zigzag":
            chunks = np.arange(2 * self.shards)
            order_K = np.stack([chunks, chunks[::-1]], 1)[: self.shards].ravel()
        else:
            documents_K = documents_of_tiles(segment_ids_T, self._chunk(T))
            dealt = deal(self._work_of_chunks(segment_ids_T), self.shards, documents_K)
            order_K = dealt[np.argsort(dealt[:, 0])].ravel()  # chunk 0 first of all
        return index_T.reshape(len(order_K), T // len(order_K))[order_K].ravel()

    def work(self, segment_ids_T: np.ndarray) -> np.ndarray:
        """Live tiles by query tile, summed over the layers: int64 [T / tile]."""
        return live_tiles(segment_ids_T, self.tile, self.windows)

    def orders_rows(self, rows: int) -> bool:
        """Whether the order of a batch's rows makes a difference."""
        return 1 < self.groups < rows

    def order_of_rows(self, work_B: np.ndarray) -> np.ndarray:
        """The rows of a batch in the order that makes devices wait for each other least: int64 [B].

        All devices work on a micro-batch at the same time, and on each layer, whose weights they gather. So rows of
        like work share a micro-batch, and there the groups get rows of like work in sum. `training.step` takes place b
        of a batch as part b % parts of group b // (B / groups).

        Args:
          work_B: of each row; B must be a multiple of groups * parts.
        """
        B = len(work_B)
        if not self.orders_rows(B):
            return np.arange(B)
        by_work_pb = np.argsort(-work_B, kind="stable").reshape(self.parts, B // self.parts)
        dealt = [rows_b[deal(work_B[rows_b], self.groups)] for rows_b in by_work_pb]
        return np.stack(dealt, -1).ravel()  # [groups, rows of a group and part, parts]

    def _work_of_chunks(self, segment_ids_T: np.ndarray) -> np.ndarray:
        T = len(segment_ids_T)
        chunk = self._chunk(T)
        tile = self.tile if chunk % self.tile == 0 else chunk
        work_I = dataclasses.replace(self, tile=tile).work(segment_ids_T)
        return work_I.reshape(T // chunk, chunk // tile).sum(1)

    def _chunk(self, T: int) -> int:
        return T // (self.shards * chunks_of_shard(T // self.shards, self.tile))


def chunks_of_shard(tokens: int, tile: int) -> int:
    """Chunks of a device's tokens: up to CHUNKS, whole tiles each if they can be, else no shorter than a tile."""
    numbers = [n for n in range(CHUNKS, 0, -1) if tokens % n == 0]
    whole_tiles = [n for n in numbers if tokens // n % tile == 0]
    return next(iter([*whole_tiles, *(n for n in numbers if tokens // n >= tile), 1]))


def deal(work_K: np.ndarray, shards: int, documents_K: Sequence[set[int]] | None = None) -> np.ndarray:
    """Deals chunks or rows to shards by their work: int64 [shards, K / shards], each shard's numbers ascending.

    The largest goes first, to the shard with the least work among those with room. If documents are given, it goes to
    the shard that has most of its documents already, among those with room whose work is within SLACK of the least.

    Args:
      work_K: of each chunk or row; K must be a multiple of `shards`.
      documents_K: of each chunk; None: they play no part.
    """
    room, load, dealt = len(work_K) // shards, [0] * shards, [[] for _ in range(shards)]
    held = [set() for _ in range(shards)]
    slack = SLACK * float(work_K.sum()) / shards if documents_K else 0.0
    for k in np.argsort(-work_K, kind="stable").tolist():
        documents = documents_K[k] if documents_K else set()
        free = [c for c in range(shards) if len(dealt[c]) < room]
        most = min(load[c] for c in free) + slack
        near = [c for c in free if load[c] <= most]
        shard = max(near, key=lambda c: (len(held[c] & documents), -load[c]))
        dealt[shard].append(k)
        load[shard] += int(work_K[k])
        held[shard] |= documents
    return np.sort(np.array(dealt, np.int64), axis=1)


def live_tiles(
    segment_ids_T: np.ndarray, tile: int, windows: Windows = ALL_KEYS, kv_tile: int | None = None
) -> np.ndarray:
    """Tiles that hold two tokens of one document, the key not behind the query, by query tile: int64 [ceil(T / tile)].

    They are summed over the layers of `windows`; a window hides a tile whose nearest tokens are too far apart, as in
    `masks.may_hold`. Anchors make no tile live (attention/plan.py). Padding lies at the row's end.

    Args:
      tile: tokens along the side of the queries.
      kv_tile: tokens along the side of the keys; None: as many.
    """
    kv_tile, tiles = kv_tile or tile, -(-len(segment_ids_T) // tile)
    pieces_D = _pieces_of_documents(segment_ids_T, tile)
    keys_D = pieces_D if kv_tile == tile else _pieces_of_documents(segment_ids_T, kv_tile)
    live = _live_of_whole_documents if all(len(pieces) == 1 for pieces in pieces_D) else _live_of_documents
    first_token_I = np.arange(tiles) * tile
    last_I = (np.minimum(first_token_I + tile, np.count_nonzero(segment_ids_T != PAD_SEGMENT)) - 1) // kv_tile
    live_I = np.zeros(tiles, np.int64)
    for window, layers in windows:
        hidden_I = np.zeros(tiles, np.int64) if window is None else (first_token_I + 1 - window) // kv_tile
        live_I += layers * live(pieces_D, keys_D, hidden_I, last_I)
    return live_I


def _live_of_documents(
    pieces_D: Iterable[list[range]], keys_D: Iterable[list[range]], hidden_I: np.ndarray, last_I: np.ndarray
) -> np.ndarray:
    """Live tiles by query tile of documents in any pieces, of key tiles from hidden_I to last_I: int64 [I].

    Args:
      pieces_D: query tiles of each document; keys_D: its key tiles.
    """
    live_IJ = np.zeros((len(last_I), last_I[-1] + 1), bool)
    for pieces, keys in zip(pieces_D, keys_D, strict=True):
        live_IJ[np.unique(np.concatenate(pieces))[:, None], np.unique(np.concatenate(keys))] = True
    number_J = np.arange(last_I[-1] + 1)
    return np.count_nonzero(live_IJ & (number_J >= hidden_I[:, None]) & (number_J <= last_I[:, None]), axis=1)


def _live_of_whole_documents(
    pieces_D: Iterable[list[range]], keys_D: Iterable[list[range]], hidden_I: np.ndarray, last_I: np.ndarray
) -> np.ndarray:
    """`_live_of_documents` of documents in one piece each: all tiles from the first of any document in the query's on.

    It takes 1 ms for a row of 1024 tiles, where the matrix takes 8.
    """
    none = last_I[-1] + 1
    first_I = np.full(len(last_I), none)
    for (piece,), (keys,) in zip(pieces_D, keys_D, strict=True):
        own = slice(piece.start, piece.stop)
        first_I[own] = np.minimum(first_I[own], keys.start)
    return np.where(first_I < none, last_I - np.maximum(first_I, hidden_I) + 1, 0)


def documents_of_tiles(segment_ids_T: np.ndarray, tile: int) -> list[set[int]]:
    """The documents in each tile, numbered as they first appear in the row."""
    documents_I: list[set[int]] = [set() for _ in range(-(-len(segment_ids_T) // tile))]
    for document, pieces in enumerate(_pieces_of_documents(segment_ids_T, tile)):
        for i in itertools.chain(*pieces):
            documents_I[i].add(document)
    return documents_I


def _pieces_of_documents(segment_ids_T: np.ndarray, tile: int) -> list[list[range]]:
    """The tiles of each piece of each document, in the order in which the documents first appear."""
    starts = np.flatnonzero(np.diff(segment_ids_T, prepend=segment_ids_T[0] - 1))
    segments = segment_ids_T[starts]
    first, last = starts // tile, (np.append(starts[1:], len(segment_ids_T)) - 1) // tile
    pieces: dict[int, list[range]] = {}
    for segment, low, high in zip(segments.tolist(), first.tolist(), last.tolist(), strict=True):
        if segment != PAD_SEGMENT:
            pieces.setdefault(segment, []).append(range(low, high + 1))
    return list(pieces.values())
