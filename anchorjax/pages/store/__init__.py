"""A page about a token store: its documents, how they are packed into rows, and the modelled cost of attention.

lengths.py    counts and lengths of documents, and reports of packings
rows.py       live tiles and masks of rows
distances.py  RoPE distances that rows train, with their figures and section
drawing.py    turns the other numbers into figures
writing.py    turns them into sections with tables
"""

import dataclasses
from pathlib import Path

import numpy as np

from anchorjax import attention, data
from anchorjax.config import Config
from anchorjax.data.rows.packing import RowPacker
from anchorjax.data.store.index import Index
from anchorjax.errors import ConfigError, UsageError
from anchorjax.pages import page
from anchorjax.pages.store import distances, lengths, rows, writing
from anchorjax.pages.store.writing import Findings, Split

ROWS_SHOWN = 3
SPLITS = ("train", "validation")


def make(config: Config, command: str, out: str = "") -> Path:
    """Writes the page about `config.data.store`, or about `config.data.source` tokenized in memory; returns its path.

    The same configuration and store give the same page byte for byte, so the page has no date.

    Args:
      config: a configuration whose `data.tokenizer` is filled in.
      command: the command that makes the page; it is printed on the page.
      out: the page's path; by default report.html in the store. The figures are also written to a folder beside it.

    Raises:
      ConfigError, DataError: the store, source or tokenizer does not exist, the store is damaged, or a tile size is
        not allowed. Nothing is written.
      UsageError: there is neither a store nor `out`, `out` is not the path of an .html file, or it cannot be written.
    """
    if config.focus.chunk:
        allowed = "it must be 0: the report shows rows that are packed, and FocusLLM's are windows of one document"
        raise ConfigError("focus.chunk", config.focus.chunk, allowed)
    path = _place(config.data.store, out)
    attention.choose(config.attention, config.data.seq_len)
    tokenizer = data.load_tokenizer(config.data)
    stores = {split: data.load_store(config.data, split, tokenizer) for split in SPLITS}
    page.check_place(path)
    page.write(writing.compose(_find(config, stores, tokenizer), config, command), path)
    return path


def _place(store: str, out: str) -> Path:
    if not store and not out:
        raise UsageError("--out=PATH is missing: without config.data.store there is no folder for the report")
    return page.place(out) if out else Path(store).expanduser() / "report.html"


def _find(config: Config, stores: dict[str, data.TokenStore], tokenizer: data.Tokenizer) -> Findings:
    """Computes all numbers and rows of the page. Row lengths may be beyond `data.max_position`.

    Rows are whole, without the windows of `data.window_schedule`.
    """
    own = config.data.whole()
    config = dataclasses.replace(config, data=own.continued())
    store = stores["train"]
    counts = lengths.count_sources(store, config.data.source)
    thin = lengths.without_text(store, config.seed)
    all_lengths = lengths.seq_lens(thin.num_tokens, config.data.seq_len)
    modelled = dataclasses.replace(config.data, mask="anchor" if config.data.mask == "full" else config.data.mask)
    live = []
    for length in all_lengths:
        chosen = attention.choose(config.attention, length)
        if rows.countable(length, chosen.q_tile, chosen.kv_tile):
            changed = dataclasses.replace(modelled, seq_len=length)
            packer = data.row_packer(thin, tokenizer, changed, config.seed)
            live.append(rows.count_live_tiles(packer, chosen.q_tile, chosen.kv_tile, config.seed))
    packer = data.row_packer(thin, tokenizer, config.data, config.seed)
    shown = rows.draw_rows(packer.rows_per_epoch, ROWS_SHOWN, config.seed)
    return Findings(
        splits=[_split(config, split, stores[split]) for split in SPLITS],
        tokenizer=tokenizer.name,
        vocab_size=tokenizer.vocab_size,
        lengths=lengths.lengths_by_source(store, counts, writing.MOST_SERIES),
        num_documents=store.num_documents,
        packed_documents=thin.num_documents,
        packed=lengths.pack(thin, tokenizer, config.data, config.seed, all_lengths),
        modelled_mask=modelled.mask,
        live=live,
        not_modelled=[length for length in all_lengths if length not in {one.seq_len for one in live}],
        shown=[(row, _segments(packer, row)) for row in shown],
        num_rows=packer.rows_per_epoch,
        distances=distances.compare(thin, tokenizer, own, config.seed),
    )


def _split(config: Config, name: str, store: data.TokenStore) -> Split:
    index = Index.read(Path(config.data.store).expanduser() / name) if config.data.store else None
    counts = lengths.count_sources(store, config.data.source)
    return Split(name, store.num_documents, store.num_tokens, store.tokens.dtype.name, counts, index)


def _segments(packer: RowPacker, row: int) -> np.ndarray:
    return packer.row(row).segment_ids_T
