"""Counts and lengths of documents, and reports of packings: numbers that follow from lengths and sources alone.

No token is read, so the cost depends on the number of documents and not of tokens.
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
    """Documents of one source; `number` is its index in the store, and lengths are in tokens."""

    number: int
    name: str
    documents: int
    tokens: int
    median: float
    mean: float
    longest: int


@dataclasses.dataclass(frozen=True)
class Packed:
    """An epoch under one packing and row length, with the 10th, 50th and 90th percentile of documents in a row.

    `targets_K` counts its targets by their visible context, int64 [K] (contexts.py), and is None where not asked for.
    """

    packing: str
    seq_len: int
    report: PackingReport
    documents_low: float
    documents_median: float
    documents_high: float
    targets_K: np.ndarray | None = None


def count_sources(store: TokenStore, only: str) -> list[SourceCounts]:
    """Counts the sources of a store that have documents, most tokens first. `only` names a source without a name."""
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
    """Returns names and int64 lengths of at most `most` sources of `counts`; the last may be all others together."""
    lengths = np.diff(store.offsets)
    shown = counts if len(counts) <= most else counts[: most - 1]
    result = [(one.name, lengths[store.sources == one.number]) for one in shown]
    if len(shown) < len(counts):
        others = ~np.isin(store.sources, [one.number for one in shown])
        result.append((f"{len(counts) - len(shown):,} others", lengths[others]))
    return result


def without_text(store: TokenStore, seed: int, most: int = MOST_DOCUMENTS) -> TokenStore:
    """Returns a store of documents of the same lengths and sources whose tokens are all 0 and take no memory.

    In a store of conversations the flags stay those of the documents.

    If there are more than `most` documents, `most` of them are drawn with `seed`. Packing depends on lengths alone, so
    the rows of a store with at most `most` documents hold the same documents as the rows of training.
    """
    lengths, sources, trained = np.diff(store.offsets), store.sources, store.trained
    if store.num_documents > most:
        drawn = np.sort(np.random.default_rng(seed).choice(store.num_documents, most, replace=False))
        lengths, sources = lengths[drawn], sources[drawn]
        if trained is not None:
            trained = np.concatenate([trained[store.offsets[i] : store.offsets[i + 1]] for i in drawn])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = np.broadcast_to(np.zeros((), store.tokens.dtype), int(offsets[-1]))
    return dataclasses.replace(store, tokens=tokens, offsets=offsets, sources=sources, trained=trained, path=None)


def seq_lens(num_tokens: int, chosen: int) -> list[int]:
    """Returns `chosen` and the powers of two from SHORTEST to LONGEST that an anchor and `num_tokens` tokens fill."""
    powers = {1 << n for n in range(SHORTEST.bit_length() - 1, LONGEST.bit_length())}
    return sorted({length for length in powers if length <= num_tokens + 1} | {chosen})


def pack(store: TokenStore, tokenizer: Tokenizer, config: DataConfig, seed: int, lengths: list[int]) -> list[Packed]:
    """Packs `store` with every packing at every row length; all other keys are those of `config`.

    Targets are counted by their visible context at the row length `config.seq_len` alone.
    """
    result = []
    for seq_len in lengths:
        for packing in PACKINGS:
            changed = dataclasses.replace(config, packing=packing, seq_len=seq_len)
            packer = data.row_packer(store, tokenizer, changed, seed)
            spread = np.percentile(np.diff(packer.plan(0).first_piece), (10, 50, 90))
            targets_K = packer.targets_by_context() if seq_len == config.seq_len else None
            result.append(Packed(packing, seq_len, packer.report(), *map(float, spread), targets_K))
    return result
