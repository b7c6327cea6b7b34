"""Packed batches from documents: source -> token store -> rows -> batches.

The order of training data is a pure function of (seed, step), so its state is one integer and does not depend
on the number of processes or workers.
"""

import dataclasses
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from anchorjax.config import DataConfig, FocusConfig
from anchorjax.data import sources
from anchorjax.data.rows.balance import Layout
from anchorjax.data.rows.focus import FocusPacker
from anchorjax.data.rows.packing import PackedRows, RowPacker, sources_of
from anchorjax.data.rows.row import stack
from anchorjax.data.store import tokens as store_lib
from anchorjax.data.store.index import Index
from anchorjax.data.store.tokens import TokenStore
from anchorjax.data.text import tokenizer as tokenizer_lib
from anchorjax.data.text.round_trip import TokenizerFault
from anchorjax.data.text.tokenizer import Tokenizer
from anchorjax.errors import ConfigError
from anchorjax.types import SKIPPING, Batch

__all__ = [
    "TokenStore",
    "Tokenizer",
    "eval_rows",
    "load_store",
    "load_tokenizer",
    "row_packer",
    "train_batches",
]


def load_tokenizer(config: DataConfig) -> Tokenizer:
    """`config.tokenizer`. Raises ConfigError if there is none, or it cannot be used."""
    try:
        return tokenizer_lib.load(config.tokenizer)
    except ValueError as error:
        raise ConfigError("data.tokenizer", config.tokenizer, str(error)) from error


def load_store(config: DataConfig, split: str, tokenizer: Tokenizer) -> TokenStore:
    """One split of the store in `config.store`; without one, `config.source` tokenized.

    Args:
      tokenizer: that of `load_tokenizer`, and not one `within` a model's vocabulary: the dtype of the tokens, and with
        it the fingerprint, depends on the vocabulary's size.

    Raises:
      ConfigError: no such source or split, a store of another tokenizer, or of texts where conversations are asked for,
        a tokenizer that loses text, or data_dir cannot be used.
      DataError: the store is damaged, or none.
    """
    if config.store:
        return _open_store(config, split, tokenizer)
    if config.messages_key:
        needs = "it needs data.store: anchorjax prepare reads conversations"
        raise ConfigError("data.messages_key", config.messages_key, needs)
    try:
        documents = sources.load(config.source, split, config.data_dir)
        return store_lib.build(documents, tokenizer)
    except TokenizerFault as error:
        raise ConfigError("data.tokenizer", config.tokenizer, str(error)) from error
    except ValueError as error:
        raise ConfigError("data.source", config.source, str(error)) from error
    except OSError as error:
        raise ConfigError("data.data_dir", config.data_dir, f"it cannot be used: {error.strerror or error}") from error


def _open_store(config: DataConfig, split: str, tokenizer: Tokenizer) -> TokenStore:
    path = Path(config.store).expanduser() / split
    made_by = Index.read(path).tokenizer
    if made_by != tokenizer.name:
        raise ConfigError(
            "data.store",
            config.store,
            f"its tokens are of the tokenizer {made_by}, and data.tokenizer={config.tokenizer!r} is {tokenizer.name}",
        )
    store = TokenStore.open(path)
    if config.messages_key and store.trained is None:
        needs = f"it holds texts, and data.messages_key={config.messages_key!r} asks for conversations"
        raise ConfigError("data.store", config.store, needs)
    return store


def train_batches(
    store: TokenStore,
    tokenizer: Tokenizer,
    config: DataConfig,
    *,
    seed: int,
    start_step: int,
    rows: Sequence[int] | None = None,
    layout: Layout | None = None,
    focus: FocusConfig = FocusConfig(),  # noqa: B008 - frozen
) -> Iterator[Batch]:
    """Endless numpy batches for steps start_step, start_step + 1, ...

    The batch of step s is rows s * batch_size .. (s + 1) * batch_size - 1 in any layout, on any number of processes.
    `config.prefetch` batches are packed ahead in a thread, and by `config.workers` processes if not 0. Call the
    iterator's `close()` at the end: it stops them.

    Args:
      rows: which rows of each batch to yield [len(rows), T]: those of this process (`sharding.rows_here`); None: all.
      layout: the order of rows in a batch and of tokens in a row; None: their own.
      focus: with `focus.chunk` rows are of FocusLLM (rows/focus.py).

    Raises:
      ValueError: rows that a batch does not have, or a negative start_step.
    """
    import grain  # slow to import, and only training needs it
    from absl import flags

    if start_step < 0:
        raise ValueError(f"start_step is {start_step}; allowed: 0 or more")
    packer = row_packer(store, tokenizer, config, seed, focus)
    packed = PackedRows(packer, config.batch_size, rows, layout)
    batches = grain.MapDataset.source(packed).batch(len(packed.rows), drop_remainder=True, batch_fn=stack)
    # One thread keeps ahead of the accelerator; more would only take turns at Python's lock.
    threads = 1 if config.prefetch else 0
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=config.prefetch)
    batches = batches[start_step:].to_iter_dataset(options)
    if config.workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain reads an absl flag here and fails outside of absl.app
        workers = grain.MultiprocessingOptions(config.workers, per_worker_buffer_size=max(1, config.prefetch))
        batches = batches.mp_prefetch(workers, worker_init_fn=_live_as_long_as_the_trainer)
    return iter(batches)


def eval_rows(
    store: TokenStore,
    tokenizer: Tokenizer,
    config: DataConfig,
    max_rows: int,
    rows: Sequence[int] | None = None,
    layout: Layout | None = None,
    focus: FocusConfig = FocusConfig(),  # noqa: B008 - frozen
) -> Iterator[Batch]:
    """Batches [batch_size, T] of one pass in document order, of at most `max_rows` rows (0: all).

    Rows are those of concat_split, without interleaving or upsampling, so that runs that differ in these can be
    compared; tags are as in training. Positions that skip, such as `pose`, become `continue`, and rows have no windows:
    both are ways to train, and a held-out loss must depend neither on draws nor on a step. The last batch is filled up
    with rows without a target, an anchor and padding, so that all shapes are equal. `rows` is that of `train_batches`,
    and so are `focus`, except that no row is a reconstruction, and `layout`, except that rows keep their order.
    """
    config = dataclasses.replace(config, packing="concat_split", interleave=0, upsample_long=False).whole()
    if config.positions in SKIPPING:
        config = config.continued()
    packer = row_packer(store, tokenizer, config, None, focus)
    count = min(max_rows, packer.rows_per_epoch) if max_rows else packer.rows_per_epoch
    for first in range(0, count, config.batch_size):
        indices = [first + row for row in (range(config.batch_size) if rows is None else rows)]
        some = [packer.row(i) if i < count else packer.empty_row() for i in indices]
        yield stack([row.laid_out(layout or Layout()) for row in some])


def row_packer(
    store: TokenStore,
    tokenizer: Tokenizer,
    config: DataConfig,
    seed: int | None,
    focus: FocusConfig = FocusConfig(),  # noqa: B008 - frozen
) -> RowPacker:
    """What lays `store` into rows as the configuration says; see `RowPacker` for `seed`, else `train_batches`."""
    sources, names = sources_of(store, only=config.source)
    kind = functools.partial(FocusPacker, focus=focus) if focus.chunk else RowPacker
    return kind(
        store=store,
        seq_len=config.seq_len,
        seed=seed,
        mask=config.mask,
        positions=config.positions,
        boundary_targets=config.boundary_targets,
        anchor_id=tokenizer.bos_id,
        pad_id=tokenizer.pad_id,
        packing=config.packing,
        interleave=config.interleave,
        upsample_long=config.upsample_long,
        tags=tokenizer.encode_batch(names) if config.tags else None,
        sources=sources,
        max_position=config.max_position,
        config=config,
    )


def _live_as_long_as_the_trainer(worker_index: int, worker_count: int) -> None:
    """Runs first in a worker. Neither outlives the other: see the reasons at each half."""
    del worker_index, worker_count
    # Schedulers send SIGTERM, and terminals Ctrl-C, to the whole process group; without workers a trainer
    # cannot finish its step.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A killed trainer cannot end its workers; they would wait for ever.
    trainer = multiprocessing.parent_process()
    threading.Thread(target=lambda: (trainer.join(), os._exit(1)), daemon=True).start()
