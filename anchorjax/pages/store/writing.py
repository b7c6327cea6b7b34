"""Turns the numbers of a report into the sections of its page."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from anchorjax.config import Config
from anchorjax.data.rows import contexts
from anchorjax.data.store import remarks
from anchorjax.data.store.index import Index
from anchorjax.pages import figures
from anchorjax.pages.figures import name_length
from anchorjax.pages.page import Code, Figure, Page, Paragraph, Section, Table
from anchorjax.pages.store import distances, drawing
from anchorjax.pages.store.distances import Compared
from anchorjax.pages.store.lengths import Packed, SourceCounts
from anchorjax.pages.store.rows import PICTURE, LiveTiles

MOST_SERIES = 6  # sources in the figure of lengths
MOST_LINES = 200  # sources in a table
_ANCHOR = (
    "Every row begins with one anchor, a beginning-of-sequence token (BOS) that all later tokens of the row can attend "
    "to. Apart from the anchor, a token attends only to itself and to earlier tokens of its own document "
    "(AnchorAttention, arXiv 2411.13476)."
)
_INTERLEAVED = {
    False: "Interleaving does not change these numbers, apart from the anchor's target: it is counted as in rows that "
    "are not interleaved.",
    True: "Rows are counted as if they were not interleaved. Under a full mask, interleaving changes these numbers.",
}


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of a store; `index` is None for a store in memory."""

    name: str
    documents: int
    tokens: int
    dtype: str
    counts: Sequence[SourceCounts]
    index: Index | None


@dataclasses.dataclass(frozen=True)
class Findings:
    """All numbers of a page. `shown` holds the rows whose masks are drawn: (row number, segment ids [T])."""

    splits: Sequence[Split]
    tokenizer: str
    vocab_size: int
    lengths: Sequence[tuple[str, np.ndarray]]
    num_documents: int
    packed_documents: int
    packed: Sequence[Packed]
    modelled_mask: str
    live: Sequence[LiveTiles]
    not_modelled: Sequence[int]
    shown: Sequence[tuple[int, np.ndarray]]
    num_rows: int
    distances: Compared


def compose(findings: Findings, config: Config, command: str) -> Page:
    sections = [_contents(findings, config), _documents(findings), _packing(findings, config)]
    sections += [_contexts(findings, config), _attention(findings, config)]
    sections += [distances.section(findings.distances, _which(findings, config)), _masks(findings, config)]
    sections.append(Section("How this page was made", [Code(command)]))
    name = config.data.store or config.data.source
    train = findings.splits[0]
    subtitle = f"{train.tokens:,} tokens for training in {train.documents:,} documents"
    return Page(f"Tokens of {name}", sections, subtitle)


def _contents(findings: Findings, config: Config) -> Section:
    train = findings.splits[0]
    facts = [
        ("store", config.data.store or "none: tokenized in memory"),
        ("made from", train.index.made_from if train.index else config.data.source),
        ("tokenizer", _tokenizer(findings, config)),
        ("dtype", train.index.dtype if train.index else train.dtype),
    ]
    facts += [(split.name, f"{split.tokens:,} tokens in {split.documents:,} documents") for split in findings.splits]
    blocks: list = [Table("The store", ("what", "value"), facts)]
    if config.data.mask == "anchor":
        blocks.append(Paragraph(_ANCHOR))
    if train.index is None:
        return Section("Contents", blocks)
    bad, rows = train.index.bad_rows, train.index.rows
    reasons = sorted(bad, key=lambda reason: (-bad[reason], reason))
    if reasons:
        lines = [
            (reason, bad[reason], ", ".join(map(str, train.index.bad_places.get(reason, [])))) for reason in reasons
        ]
        caption = f"Rows of the inputs that were left out: {sum(bad.values()):,} of {rows:,}"
        blocks.append(Table(caption, ("reason", "rows", "first places"), lines))
    else:
        blocks.append(Paragraph(f"No row of the inputs was left out, of {rows:,}."))
    blocks += [Paragraph(f"{what.capitalize()}: {text}.") for what, text in remarks.of(train.index)]
    return Section("Contents", blocks)


def _tokenizer(findings: Findings, config: Config) -> str:
    """The tokenizer as the configuration names it; a store records a digest of its files, "hf:2d33...", alone."""
    size = f"{findings.vocab_size:,} ids"
    if findings.tokenizer == config.data.tokenizer:
        return f"{findings.tokenizer}, {size}"
    return f"{config.data.tokenizer}, {size} (digest {findings.tokenizer.removeprefix('hf:')})"


def _documents(findings: Findings) -> Section:
    blocks: list = [_source_table(split) for split in findings.splits]
    train = findings.splits[0]
    largest = train.counts[0]
    share = largest.tokens / train.tokens
    blocks.append(
        Figure(
            "source_shares",
            figures.png(drawing.source_shares(train.counts)),
            f"Bars of {len(train.counts):,} sources; the largest one, {largest.name}, has {share:.1%} of the tokens.",
            "Tokens of the training split by source.",
        )
    )
    longest = max(one.longest for one in train.counts)
    ends_itself = train.index is not None and train.index.trained_tokens is not None  # a conversation
    with_end = "" if ends_itself else ", including their end-of-sequence token (EOS)"
    others = " The sources with the fewest tokens are drawn as one line." if len(train.counts) > MOST_SERIES else ""
    blocks.append(
        Figure(
            "document_lengths",
            figures.png(drawing.document_lengths(findings.lengths)),
            f"Histogram of document lengths by source, on a logarithmic axis up to {longest:,} tokens.",
            f"Lengths of the training split's documents{with_end}.{others}",
        )
    )
    return Section("Documents", blocks)


def _source_table(split: Split) -> Table:
    lines = [
        (
            one.name,
            one.documents,
            one.tokens,
            f"{one.tokens / split.tokens:.1%}",
            _tokens(one.median),
            _tokens(one.mean),
            one.longest,
        )
        for one in split.counts[:MOST_LINES]
    ]
    left_out = len(split.counts) - len(lines)
    more = f"; {left_out:,} smaller sources are not listed" if left_out else ""
    heads = ("source", "documents", "tokens", "share", "median length", "mean length", "longest")
    return Table(f"Sources of the {split.name} split; lengths are in tokens{more}", heads, lines)


def _tokens(length: float) -> str:
    """47349.0 -> "47,349", 12.5 -> "12.5": a median may lie between two lengths, and a mean anywhere."""
    return f"{length:,.0f}" if length >= 100 or length.is_integer() else f"{length:,.1f}"


def _packing(findings: Findings, config: Config) -> Section:
    data = config.data
    also = [f"{key}={getattr(data, key)}" for key in ("tags", "upsample_long") if getattr(data, key)]
    keys = f" with {', '.join(also)}" if also else ""
    text = (
        f"Rows of one epoch under each packing{keys}{_which(findings, config)}. The fill rate is the share of a row's "
        "positions after its first token that hold a token and not padding. A document is cut if its parts lie in more "
        "than one row."
    )
    lines = [
        (
            name_length(one.seq_len),
            one.packing,
            one.report.rows,
            f"{one.report.fill:.2%}",
            f"{one.report.cut:.2%}",
            f"{one.report.kept:.1%}",
            f"{one.documents_low:,.0f} / {one.documents_median:,.0f} / {one.documents_high:,.0f}",
        )
        for one in findings.packed
    ]
    heads = ("row length", "packing", "rows", "fill", "cut documents", "kept documents", "documents in a row")
    maps = [
        Figure(
            name,
            figures.png(drawing.packing_map(findings.packed, field, title)),
            f"{title}, for each packing and row length; the numbers are in the table.",
            caption,
        )
        for name, field, title, caption in (
            ("fill", "fill", "fill rate (%)", "How full the rows are. The rest is padding, which is wasted work."),
            (
                "cut",
                "cut",
                "documents cut (%)",
                "Documents that continue in another row, where their beginning cannot be attended to.",
            ),
        )
    ]
    per_row = Figure(
        "documents_per_row",
        figures.png(drawing.documents_per_row(findings.packed, data.packing)),
        f"Line of the median number of documents in a row by row length, packing {data.packing}.",
        f"Documents in a row under {data.packing}: the median, and the band from the 10th to the 90th percentile.",
    )
    caption = "Packings; documents in a row: 10th, 50th and 90th percentile"
    return Section("Packing", [Paragraph(text), *maps, per_row, Table(caption, heads, lines)])


def _which(findings: Findings, config: Config) -> str:
    """Returns which documents rows are made from, to follow a noun."""
    if findings.packed_documents < findings.num_documents:
        drawn = f"{findings.packed_documents:,} of {findings.num_documents:,} documents, drawn at random"
        return f", from {drawn} (seed {config.seed})"
    since = f" from step {config.data.window_steps:,} on" if config.data.window_schedule != "none" else ""
    return f", exactly as training with the same seed makes them{since}"


def _contexts(findings: Findings, config: Config) -> Section:
    mask, T = config.data.mask, config.data.seq_len
    seen = {
        "anchor": "itself, the earlier tokens of its document in the same row, and the anchor",
        "intra_doc": "itself and the earlier tokens of its document in the same row",
        "full": "itself and all earlier tokens of the row",
    }[mask]
    text = (
        "A target is a token that the model is trained to predict. Its visible context is the number of keys that are "
        f"attended to where it is predicted, at the token before it. Under the mask {mask}, that token attends to "
        f"{seen}. Targets are counted in rows of one epoch{_which(findings, config)}. Padding and tags are no targets; "
        "in a store of conversations only the assistant's tokens are. "
        "The first token of a document is a target only at the beginning of a row, behind a tag, and with "
        "data.boundary_targets=True behind another document. The counts are those of layers without a "
        "sliding window: in a layer with one, a token attends to no more keys than the window holds. "
        "train.objective=exact weights targets by how rare their visible context is."
    )
    if config.data.interleave:
        text += f" {_INTERLEAVED[mask == 'full']}"
    counted = [one for one in findings.packed if one.targets_K is not None]
    buckets = range(drawing.num_buckets(counted))
    if not buckets:
        return Section("Visible contexts", [Paragraph(text), Paragraph("There are no targets.")])
    shares = [contexts.shares(one.targets_K) for one in counted]
    lines = [
        (
            contexts.name_bucket(k),
            *(
                cell
                for one, share_K in zip(counted, shares, strict=True)
                for cell in (int(one.targets_K[k]), contexts.name_share(share_K[k]))
            ),
        )
        for k in buckets
    ]
    heads = ("keys", *(head for one in counted for head in (f"{one.packing}: targets", "share")))
    largest = [f"{contexts.name_bucket(int(one.targets_K.argmax()))} keys under {one.packing}" for one in counted]
    figure = Figure(
        "visible_contexts",
        figures.png(drawing.visible_contexts(counted)),
        f"Lines of the share of targets by visible context; the largest: {', '.join(largest)}.",
        f"Targets by visible context for each packing, mask {mask}. No target sees more keys than a row has, {T:,}.",
    )
    caption = f"Targets of one epoch by visible context, mask {mask}, rows of {T:,} tokens"
    return Section("Visible contexts", [Paragraph(text), figure, Table(caption, heads, lines)])


def _attention(findings: Findings, config: Config) -> Section:
    mask = findings.modelled_mask
    text = (
        "Modelled from tiles, not measured: nothing on this page was timed. Attention visits only live tiles: those in "
        "which at least one query can attend to at least one key. The modelled speed-up is the number of live tiles of "
        f"the full causal mask divided by that of the {mask} mask, as if every tile took the same time. It applies to "
        "attention alone; the rest of a training step does not depend on the mask. Anchor keys are handled apart from "
        f"tiles and make no tile live. Rows: packing {config.data.packing}, interleave {config.data.interleave}; "
        "layers without a sliding window."
    )
    blocks: list = [Paragraph(text)]
    if findings.not_modelled:
        left_out = ", ".join(name_length(length) for length in findings.not_modelled)
        blocks.append(Paragraph(f"Left out, because rows have more tiles than attention's lists can hold: {left_out}."))
    if not findings.live:
        return Section("Attention", blocks)
    first, last = findings.live[0], findings.live[-1]
    at = f"{name_length(first.seq_len)} and {{}} at {name_length(last.seq_len)}"
    shares = f"{first.share:.1%} at {at.format(f'{last.share:.1%}')}"
    times = f"{first.speed_up:.1f} times at {at.format(f'{last.speed_up:.1f}')}"
    blocks += [
        Figure(
            "live_tiles",
            figures.png(drawing.live_share(findings.live)),
            f"Line of the share of live tiles by row length: {shares}.",
            f"Live tiles of the {mask} mask, in percent of the full causal mask's.",
        ),
        Figure(
            "speed_up",
            figures.png(drawing.speed_up(findings.live)),
            f"Line of the modelled speed-up by row length: {times}.",
            "Modelled speed-up of attention over full causal attention on the same rows, from tiles.",
        ),
    ]
    lines = [
        (
            name_length(one.seq_len),
            f"{one.q_tile} x {one.kv_tile}",
            f"{one.rows:,} of {one.of_rows:,}",
            one.live,
            one.full,
            f"{one.share:.2%}",
            f"{one.speed_up:.2f} ×",
        )
        for one in findings.live
    ]
    heads = ("row length", "tile", "rows counted", "live tiles", "live under a full mask", "share", "speed-up")
    caption = f"Tiles, counted in rows that were drawn at random (seed {config.seed})"
    return Section("Attention", [*blocks, Table(caption, heads, lines)])


def _masks(findings: Findings, config: Config) -> Section:
    T, mask = config.data.seq_len, config.data.mask
    numbers = ", ".join(f"{row:,}" for row, _ in findings.shown)
    drawn = f"all {T:,} tokens" if T <= PICTURE else f"{PICTURE} of {T:,} tokens at equal distances"
    wide = f" {_ANCHOR} Its column is drawn wider than it is." if mask == "anchor" else ""
    figure = Figure(
        "masks",
        figures.png(drawing.masks(findings.shown, mask)),
        f"Attention masks of rows {numbers}: documents are triangles along the diagonal, unless they are interleaved"
        f"{'; the anchor is a column at the left edge' if mask == 'anchor' else ''}.",
        f"Which keys each query attends to, in {len(findings.shown)} of {findings.num_rows:,} rows that were drawn at "
        f"random (seed {config.seed}): {drawn}; mask {mask}, packing {config.data.packing}, interleave "
        f"{config.data.interleave}.{wide}",
    )
    return Section("Masks of rows", [figure])
