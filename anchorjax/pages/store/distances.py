"""Which RoPE distances rows train: those of the run's own rows, and of other choices on the same documents."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from anchorjax import data
from anchorjax.config import DataConfig
from anchorjax.data import Tokenizer, TokenStore
from anchorjax.data.rows import distances
from anchorjax.data.rows.distances import Curve, Distances
from anchorjax.pages import figures
from anchorjax.pages.figures import Series, name_length
from anchorjax.pages.page import Figure, Paragraph, Section, Table
from anchorjax.pages.store.rows import draw_rows
from anchorjax.types import SKIPPING

MOST_ROWS, MOST_TOKENS, FEWEST_ROWS = 256, 2**23, 8  # that are counted, under each choice
STRETCH = 8  # positions for each token of a row, where positions skip and the run's own do not
_POINTS = 160  # distances on the logarithmic axis


@dataclasses.dataclass(frozen=True)
class Choice:
    """Distances of one way to make rows.

    Attributes:
      name: of its positions and mask.
      max_position: all distances are below it.
      rows: rows that were counted; None: exact, over all rows of an epoch.
    """

    name: str
    max_position: int
    rows: int | None
    found: Distances


@dataclasses.dataclass(frozen=True)
class Compared:
    """Choices at the same distances, int64 [D]; the first choice is the run's own. `listed` is for tables."""

    seq_len: int
    packing: str
    distances_D: np.ndarray
    listed: tuple[int, ...]
    choices: tuple[Choice, ...]

    def places(self) -> list[int]:
        """Places in the arrays of the listed distances."""
        return np.searchsorted(self.distances_D, self.listed).tolist()

    def last(self, curve: Curve) -> int:
        """The largest of the distances that rows hold at all."""
        return int(self.distances_D[np.flatnonzero(curve.probability_D)].max(initial=0))


def compare(store: TokenStore, tokenizer: Tokenizer, config: DataConfig, seed: int) -> Compared:
    """Finds the distances of the run's rows, of plain and of anchored ones, and of transforms that skip positions."""
    configs = choose(config, store.trained is not None)
    most = max(_max_position(one) for one in configs.values())
    T = config.seq_len
    listed = tuple(sorted({T // 4, T // 2, T - 1, most - 1}))
    spaced = np.round(np.geomspace(1, most - 1, _POINTS)).astype(np.int64) if most > 1 else ()
    distances_D = np.unique(np.concatenate([spaced, np.array([*listed, T], np.int64)]))
    found = [_find(store, tokenizer, name, one, seed, distances_D) for name, one in configs.items()]
    return Compared(T, config.packing, distances_D, listed, tuple(found))


def choose(config: DataConfig, has_conversations: bool) -> dict[str, DataConfig]:
    """The configurations that are compared, by name: the run's own first, and none twice."""
    continued = config.continued()
    most = _max_position(config) if config.positions in SKIPPING else STRETCH * config.seq_len
    whole = dataclasses.replace(continued, interleave=0)
    others = [config, dataclasses.replace(whole, mask="full"), dataclasses.replace(whole, mask="anchor")]
    others.append(dataclasses.replace(continued, positions="pose", max_position=most))
    if has_conversations:
        needs = {"messages_key": config.messages_key or "messages"}  # of a store, any name will do
        others.append(dataclasses.replace(continued, positions="skipalign", max_position=most, **needs))
    if config.positions in SKIPPING:  # with its own keys
        others = [one for one in others if one.positions != config.positions or one is config]
    result: dict[str, DataConfig] = {}
    for one in others:
        interleaved = f", interleave {one.interleave}" if one.interleave else ""
        result.setdefault(f"{one.positions}, {one.mask}{interleaved}", one)
    return result


def _max_position(config: DataConfig) -> int:
    return config.max_position or config.seq_len


def _find(
    store: TokenStore, tokenizer: Tokenizer, name: str, config: DataConfig, seed: int, distances_D: np.ndarray
) -> Choice:
    packer = data.row_packer(store, tokenizer, config, seed)
    most = _max_position(config)
    if distances.is_planned(config.mask, config.positions, config.interleave):
        return Choice(name, most, None, distances.planned(packer.plan(0), config.mask, config.positions, distances_D))
    number = min(MOST_ROWS, max(FEWEST_ROWS, MOST_TOKENS // config.seq_len))
    # Rows of later epochs have the same documents in another order and other draws.
    rows = draw_rows(max(number, packer.rows_per_epoch), number, seed)
    return Choice(name, most, len(rows), distances.measure(packer, rows, distances_D))


def section(compared: Compared, which: str) -> Section:
    """Returns the section of the page. `which` says from which documents rows are made, to follow a noun."""
    text = (
        "A query sees a key at the RoPE distance d = position of the query - position of the key. The rotation by a "
        "distance that no row holds is never trained. The first figures are the probability that a row holds at least "
        "one visible pair at distance d. The expected number of such pairs in a row is the share of training that d "
        "gets. Keys of documents are counted apart from the anchor, which is at position 0, so that its distances are "
        f"the positions of all tokens. Rows have {compared.seq_len:,} tokens, packing {compared.packing}{which}. "
        "Layers with a sliding window train no distance beyond it. The run's own choice comes first in the tables. "
        "Distances beyond the row exist where positions skip, up to data.max_position (docs/methods.md)."
    )
    documents = [(one, "documents", one.found.documents) for one in compared.choices]
    anchors = [(one, "anchor", one.found.anchor) for one in compared.choices if one.found.anchor]
    blocks: list = [Paragraph(text)]
    for name, kinds, what, caption in (
        ("distances", documents, "a distance", "a visible pair at a distance, among the tokens of its documents"),
        ("distances_to_the_anchor", anchors, "a distance to the anchor", "a token at a distance to its anchor"),
    ):
        ends = "; ".join(f"{one.name} ends at {compared.last(curve):,}" for one, _, curve in kinds)
        alt = f"Lines of the probability of {what} by distance, on a logarithmic axis: {ends}."
        drawn = _draw(compared, [(one, curve) for one, _, curve in kinds])
        blocks.append(Figure(name, figures.png(drawn), alt, f"Probability that a row holds {caption}."))
    heads = ("positions, mask", "keys", "rows", *(f"d = {d:,}" for d in compared.listed))
    for caption, field in (
        ("Probability that a row holds a visible pair at distance d", "probability_D"),
        ("Expected number of visible pairs at distance d in a row", "pairs_D"),
    ):
        lines = []
        for one, keys, curve in documents + anchors:
            rows = "all, exact" if one.rows is None else f"{one.rows:,} counted"
            lines.append(
                (one.name, keys, rows, *(f"{value:,.4g}" for value in getattr(curve, field)[compared.places()]))
            )
        blocks.append(Table(caption, heads, lines))
    return Section("Distances", blocks)


def _draw(compared: Compared, curves: Sequence[tuple[Choice, Curve]]) -> "figures.Figure":
    """Draws the probability of each distance from 1 on, one line for each choice, styled alike in all figures."""
    shown_D = compared.distances_D > 0
    x = compared.distances_D[shown_D].tolist()
    series = [
        Series(one.name, x, curve.probability_D[shown_D].tolist(), style=compared.choices.index(one), marked=False)
        for one, curve in curves
    ]
    return figures.lines(
        series,
        x_label="distance (positions)",
        y_label="probability that a row holds it",
        x_ticks=[4**n for n in range(x[-1].bit_length() // 2 + 1)],
        name_tick=name_length,
        y_range=(0, 1.05),
    )
