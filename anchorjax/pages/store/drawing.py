"""Turns the numbers of a report into figures."""

from collections.abc import Sequence

import numpy as np

from anchorjax.data.rows import contexts
from anchorjax.masks import anchors_of
from anchorjax.pages import figures
from anchorjax.pages.figures import Series, name_length
from anchorjax.pages.store import rows
from anchorjax.pages.store.lengths import Packed, SourceCounts
from anchorjax.pages.store.rows import LiveTiles
from anchorjax.types import PACKINGS, PAD_SEGMENT

MOST_BARS = 16
_BINS = 48
# Colours of a mask's picture, by value. They can be told apart in grey, too.
_KINDS = {"masked": "#F2F2F2", "attended: same document": "#0072B2", "attended: anchor": "#E69F00"}


def source_shares(counts: Sequence[SourceCounts]) -> "figures.Figure":
    total = sum(one.tokens for one in counts)
    shown = counts if len(counts) <= MOST_BARS else counts[: MOST_BARS - 1]
    names, tokens = [one.name for one in shown], [one.tokens for one in shown]
    if len(shown) < len(counts):
        names.append(f"{len(counts) - len(shown):,} others")
        tokens.append(total - sum(tokens))
    shares = [100 * one / total for one in tokens]
    return figures.bars(names, shares, x_label="share of the tokens (%)", name_value=lambda share: f"{share:.1f} %")


def document_lengths(lengths: Sequence[tuple[str, np.ndarray]]) -> "figures.Figure":
    shortest, longest = min(int(x.min()) for _, x in lengths), max(int(x.max()) for _, x in lengths)
    # Edges are whole numbers: a narrower bin of short lengths could lie between two of them and stay empty.
    edges = np.unique(np.round(np.geomspace(shortest, longest + 1, _BINS if len(lengths) <= 3 else _BINS // 2)))
    return figures.histogram(
        lengths,
        edges=edges,
        x_label="length of a document (tokens)",
        y_label="documents of the source (%)",
        log_x=longest > 4 * shortest,  # a shorter logarithmic axis may have no tick at all
    )


def packing_map(packed: Sequence[Packed], field: str, title: str) -> "figures.Figure":
    """Draws `field` of the packing reports in percent, packings by row lengths."""
    lengths = sorted({one.seq_len for one in packed})
    values_RC = np.full((len(PACKINGS), len(lengths)), np.nan)
    for one in packed:
        values_RC[PACKINGS.index(one.packing), lengths.index(one.seq_len)] = 100 * getattr(one.report, field)
    return figures.heat_map(
        values_RC,
        rows=PACKINGS,
        columns=[name_length(length) for length in lengths],
        x_label="row length (tokens)",
        title=title,
        name_value=lambda value: f"{value:.1f}",
    )


def documents_per_row(packed: Sequence[Packed], packing: str) -> "figures.Figure":
    own = [one for one in packed if one.packing == packing]
    x = [one.seq_len for one in own]
    series = Series(
        packing,
        x,
        [one.documents_median for one in own],
        [one.documents_low for one in own],
        [one.documents_high for one in own],
    )
    return figures.lines(
        [series],
        x_label="row length (tokens)",
        y_label="documents in a row",
        x_ticks=x,
        name_tick=name_length,
        log_y=True,
    )


def context_series(packed: Sequence[Packed]) -> list[Series]:
    """Returns one line for each packing whose targets are counted: their share in percent by the bucket's least keys.

    Buckets beyond the last one that has targets under any packing are left out.
    """
    result = []
    counted = [one for one in packed if one.targets_K is not None]
    x = [2**k for k in range(num_buckets(counted))]
    for one in counted:
        percent_K = 100 * contexts.shares(one.targets_K)[: len(x)]
        result.append(Series(one.packing, x, percent_K.tolist(), style=PACKINGS.index(one.packing)))
    return result


def num_buckets(counted: Sequence[Packed]) -> int:
    """Returns how many buckets there are up to the last one that has targets under any packing; 0 without targets."""
    return max((1 + int(k) for one in counted for k in np.flatnonzero(one.targets_K)), default=0)


def visible_contexts(packed: Sequence[Packed]) -> "figures.Figure":
    series = context_series(packed)
    return figures.lines(
        series,
        x_label="visible context (keys: from this number to less than twice as many)",
        y_label="targets (%)",
        x_ticks=series[0].x,
        name_tick=name_length,
        y_range=(0, None),
    )


def live_share(live: Sequence[LiveTiles]) -> "figures.Figure":
    x = [one.seq_len for one in live]
    return figures.lines(
        [Series("share", x, [100 * one.share for one in live])],
        x_label="row length (tokens)",
        y_label="live tiles (% of full attention's)",
        x_ticks=x,
        name_tick=name_length,
        y_range=(0, 108),
        name_value=lambda share: f"{share:.3g}",
    )


def speed_up(live: Sequence[LiveTiles]) -> "figures.Figure":
    x = [one.seq_len for one in live]
    return figures.lines(
        [Series("speed-up", x, [one.speed_up for one in live])],
        x_label="row length (tokens)",
        y_label="modelled speed-up (times)",
        x_ticks=x,
        name_tick=name_length,
        log_y=True,
        name_value=lambda times: f"{times:.3g}",
    )


def masks(shown: Sequence[tuple[int, np.ndarray]], mask: str) -> "figures.Figure":
    num_anchors = anchors_of(mask)
    images, titles = [], []
    for row, segment_ids_T in shown:
        images.append(_with_wide_anchor(rows.picture(segment_ids_T, num_anchors), num_anchors))
        documents = len(np.unique(segment_ids_T[1:][segment_ids_T[1:] != PAD_SEGMENT]))
        # Segment ids of a full mask do not tell documents apart.
        titles.append(f"row {row:,}" if mask == "full" else f"row {row:,}, documents: {documents:,}")
    return figures.pictures(images, titles=titles, kinds=_KINDS, x_label="keys", y_label="queries")


def _with_wide_anchor(image_PP: np.ndarray, num_anchors: int) -> np.ndarray:
    """Widens the anchor's column to 2% of the image: one pixel in 512 would be thinner than a hair."""
    wide = len(image_PP) // 50 if num_anchors else 0
    return np.concatenate([np.repeat(image_PP[:, :1], wide, axis=1), image_PP], axis=1)
