"""What a report says about documents and how they are packed: numbers that follow from lengths and sources alone.

No token is read, so a store of a billion tokens costs what its documents cost.
"""

import dataclasses

import numpy as np

from anchorjax import data
from anchorjax.config import DataConfig
from anchorjax.data import Tokenizer, TokenStore
from anchorjax.data.rows.packing import sources_of
from anchorjax.data.rows.row_plan import PackingReport
from anchorjax.types import PACKINGS

SHORTEST, LONGEST = 2**12, 2**20  # row lengths that are compared
MOST_DOCUMENTS = 500_000  # that are packed: first_fit takes 4 us for each at every row length


@dataclasses.dataclass(frozen=True)
class SourceCounts:
    """Documents of one source, the `number`-th of its store; lengths are in tokens."""

    number: int
    name: str
    documents: int
    tokens: int
    median: float
    mean: float
    longest: int


@dataclasses.dataclass(frozen=True)
class Packed:
    """An epoch under one packing and row length; of documents in a row the 10th, 50th and 90th percentile."""

    packing: str
    seq_len: int
    report: PackingReport
    documents_low: float
    documents_median: float
    documents_high: float


def count_sources(store: TokenStore, only: str) -> list[SourceCounts]:
    """The sources of a store that have documents, by their tokens. `only` is the name of one without."""
    sources, names = sources_of(store, only)
    lengths = np.diff(store.offsets)
    ordered = lengths[np.lexsort((lengths, sources))]
    documents_S = np.bincount(sources, minlength=len(names))
    ends_S = np.cumsum(documents_S)
    result = []
    for number, (name, documents, end) in enumerate(zip(names, documents_S.tolist(), ends_S.tolist(), strict=True)):
        if documents:
            own = ordered[end - documents : end]
            middle = own[(documents - 1) // 2 : documents // 2 + 1]
            tokens = int(own.sum())
            spread = float(middle.mean()), tokens / documents, int(own[-1])
            result.append(SourceCounts(number, name, documents, tokens, *spread))
    return sorted(result, key=lambda counts: (-counts.tokens, counts.name))


def lengths_by_source(store: TokenStore, counts: list[SourceCounts], most: int) -> list[tuple[str, np.ndarray]]:
    """Names and int64 lengths of the first sources of `counts`; the `most`-th may be all others."""
    lengths = np.diff(store.offsets)
    shown = counts if len(counts) <= most else counts[: most - 1]
    result = [(one.name, lengths[store.sources == one.number]) for one in shown]
    if len(shown) < len(counts):
        others = ~np.isin(store.sources, [one.number for one in shown])
        result.append((f"{len(counts) - len(shown):,} others", lengths[others]))
    return result


def without_text(store: TokenStore, seed: int, most: int = MOST_DOCUMENTS) -> TokenStore:
    """Documents of the same lengths and sources, all of whose tokens are 0, and which take no memory.

    Of more than `most` documents as many are drawn with `seed`. Packing is the same for documents of the same lengths,
    so of a store that is not drawn from, rows have the documents of training's rows.
    """
    lengths, sources = np.diff(store.offsets), store.sources
    if store.num_documents > most:
        drawn = np.sort(np.random.default_rng(seed).choice(store.num_documents, most, replace=False))
        lengths, sources = lengths[drawn], sources[drawn]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = np.broadcast_to(np.zeros((), store.tokens.dtype), int(offsets[-1]))
    return dataclasses.replace(store, tokens=tokens, offsets=offsets, sources=sources, path=None)


def seq_lens(num_tokens: int, chosen: int) -> list[int]:
    """Powers of two, from SHORTEST to LONGEST, that an anchor and `num_tokens` fill; and the one that was chosen."""
    powers = {1 << n for n in range(SHORTEST.bit_length() - 1, LONGEST.bit_length())}
    return sorted({length for length in powers if length <= num_tokens + 1} | {chosen})


def pack(store: TokenStore, tokenizer: Tokenizer, config: DataConfig, seed: int, lengths: list[int]) -> list[Packed]:
    """Every packing at every row length; all else as `config` says."""
    result = []
    for seq_len in lengths:
        for packing in PACKINGS:
            changed = dataclasses.replace(config, packing=packing, seq_len=seq_len)
            packer = data.row_packer(store, tokenizer, changed, seed)
            spread = np.percentile(np.diff(packer.plan(0).first_piece), (10, 50, 90))
            result.append(Packed(packing, seq_len, packer.report(), *map(float, spread)))
    return result
