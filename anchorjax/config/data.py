"""The section that describes the text and how rows are made of it."""

import dataclasses

from anchorjax.config.keys import Section, key
from anchorjax.types import MASKS, PACKINGS, POSITIONS, SKIPPING, WINDOW_SCHEDULES

_GROWING = WINDOW_SCHEDULES[1:]


@dataclasses.dataclass(frozen=True)
class DataConfig(Section):
    NAME = "data"
    source: str = key(
        "public_domain",
        "public_domain, tfds:NAME, or files for anchorjax prepare: jsonl:PATH, parquet:PATH, array_record:PATH, "
        "text_folder:PATH, anchor_context:PATH, joined by ';'. 'jsonl:/books,2;parquet:/web,0.25' takes every book "
        "twice and one in four web pages",
    )
    # Free on resume: a store's fingerprint tells the text and the tokenizer, wherever they are.
    store: str = key("", "where anchorjax prepare puts the tokens, for runs to open; empty: in memory", resume="free")
    tokenizer: str = key(
        "auto", "a directory with tokenizer.json, or bytes; auto: the checkpoint's, or bytes", resume="free"
    )
    data_dir: str = key("~/.cache/anchorjax", "where prepared data sets are kept", resume="free")
    # How anchorjax prepare reads files. A dot leads into an object, unless a key has that whole name.
    text_key: str = key("text", "field of a row that holds its text; a dot leads into an object", resume="free")
    messages_key: str = key(
        "",
        "field of a row that holds a conversation, for the checkpoint's chat template: the assistant's turns are "
        "trained on (docs/data.md); empty: rows hold texts",
        resume="free",
    )
    source_key: str = key(
        "source", "field of a row that names its source (SlimPajama: meta.redpajama_set_name)", resume="free"
    )
    held_out_share: float = key(
        0.01,
        "share of the documents that are held out for validation, by a hash of each",
        low=0,
        high=0.5,
        resume="free",
    )
    bad_rows: str = key(
        "raise",
        "rows of a file without a document; skip counts them by reason",
        choices=("raise", "skip"),
        resume="free",
    )
    max_bad_share: float = key(
        0.01, "largest share of bad rows; with more, nothing is written", low=0, high=1, resume="free"
    )
    max_row_bytes: int = key(
        2**24,
        "a longer row is a bad one, as tokenizing takes up to 130 times a text's size in memory",
        low=1,
        high=2**30,
        resume="free",
    )
    seq_len: int = key(4096, "T: tokens of a row, BOS included", low=2, high=2**24)
    batch_size: int = key(1, "B: rows of one optimizer step, over all devices", low=1)
    mask: str = key("anchor", "which tokens may attend to which (anchorjax/masks.py)", choices=MASKS)
    positions: str = key(
        "continue",
        "RoPE positions run through the row, restart at each document, or skip inside documents (pose) or between the "
        "turns of conversations (skipalign) up to max_position (anchorjax/data/rows/positions)",
        choices=POSITIONS,
    )
    max_position: int = key(0, "positions to train for, more than seq_len if positions skip; 0: seq_len", low=0)
    pose_chunks: int = key(
        2,
        "chunks of a document, between which pose skips (2, as in the paper)",
        low=2,
        high=1024,
        used_with=("positions", "pose"),
    )
    skipalign_where: str = key(
        "all",
        "where skipalign skips: before an answer (inner), behind one (outer), or both",
        choices=("all", "inner", "outer"),
        used_with=("positions", "skipalign"),
    )
    skipalign_share: float = key(
        0.5,
        "share of the conversations that skip at all; 0.5 is ours, as the paper gives no rule for drawing skips",
        low=0,
        high=1,
        open_low=True,
        used_with=("positions", "skipalign"),
    )
    boundary_targets: bool = key(False, "train a document's last token on the next document's first")
    packing: str = key(
        "concat_split",
        "concat_split fills every row and splits documents at its end; first_fit and best_fit keep documents whole "
        "that are not longer than a row (anchorjax/data/rows/row_plan.py)",
        choices=PACKINGS,
    )
    tags: bool = key(False, "put a document's source before it, as text that is not trained on")
    interleave: int = key(
        0,
        "split documents into so many pieces and mix the pieces in a row; 0: off, as the paper measured it to harm "
        "(its published code mixed copies of one document)",
        low=0,
        high=1024,
    )
    upsample_long: bool = key(
        False, "keep a tenth of the documents below 4096 tokens, and each source's share of tokens"
    )
    window_schedule: str = key(
        "none",
        "how attention's window grows to the whole row in training (SkyLadder, arXiv 2503.15450, whose default is "
        "linear); none: every step sees whole rows",
        choices=WINDOW_SCHEDULES,
    )
    window_start: int = key(
        32, "tokens of the first window (32, as in the paper)", low=1, used_with=("window_schedule", _GROWING)
    )
    window_steps: int = key(
        0,
        "steps until the window is the whole row. The paper's alpha tokens a step are (seq_len - window_start) / alpha "
        "steps: 65280 of its 100000 for alpha = 1/8 and 8192 tokens",
        low=0,
        used_with=("window_schedule", _GROWING),
    )
    window_multiple: int = key(
        128,
        "windows are rounded down to a multiple of it, but not below window_start: windows that end inside of tiles "
        "make more tiles live (3% to 4% more over a run with 1). 1: the published code's default",
        low=1,
        used_with=("window_schedule", _GROWING),
    )
    prefetch: int = key(4, "batches prepared ahead", low=0, high=1024, resume="free")
    workers: int = key(
        0,
        "processes of training and of anchorjax prepare; the data is the same for any number",
        low=0,
        high=256,
        resume="free",
    )

    def __post_init__(self):
        super().__post_init__()
        self.require(self.interleave != 1, "interleave", "it must be 0, or 2 or more pieces of a document")
        self.require("://" not in self.store, "store", "it must be a path, and is an address")
        clash = self.interleave and self.boundary_targets  # a document's end is followed by the middle of another
        self.require(not clash, "boundary_targets", f"it must be False with data.interleave={self.interleave}")
        given = f"with data.positions={self.positions} and data.seq_len={self.seq_len} it must be"
        if self.positions in SKIPPING:
            self.require(self.max_position > self.seq_len, "max_position", f"{given} more than data.seq_len")
        else:
            self.require(self.max_position in (0, self.seq_len), "max_position", f"{given} 0: no position is skipped")
        needs = "data.positions=skipalign needs it: skips lie between the turns of conversations"
        self.require(self.positions != "skipalign" or self.messages_key, "messages_key", needs)
        if self.window_schedule in _GROWING:
            given = f"with data.window_schedule={self.window_schedule} it must be"
            self.require(self.window_steps > 0, "window_steps", f"{given} at least 1")
            for name in ("window_start", "window_multiple"):
                allowed = f"{given} at most data.seq_len={self.seq_len}"
                self.require(getattr(self, name) <= self.seq_len, name, allowed)

    def continued(self) -> "DataConfig":
        """The same with the positions `continue`."""
        return self._with_defaults(positions="continue", max_position=0)

    def whole(self) -> "DataConfig":
        """The same without a window schedule: rows of every step as they are from `window_steps` on."""
        return self._with_defaults(window_schedule="none")

    def _with_defaults(self, **changes) -> "DataConfig":
        """The same with changes, and defaults for keys that nothing then uses."""
        unused = (each for each in self.declared() if not each.is_used(vars(self) | changes))
        defaults = {each.field: each.default for each in unused}
        return dataclasses.replace(self, **defaults, **changes)
