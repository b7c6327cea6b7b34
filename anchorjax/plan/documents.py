"""What the documents of a run's rows cost, counted in rows of the run's own packer before there is any text.

    lengths = documents.lengths_of("stores/slimpajama", config)
    found = documents.count(config, mesh.shape, lengths)

Packing, masks and balance depend on the lengths of documents alone. Rows are those of the configuration's seed,
packing, mask, `interleave` and `upsample_long`; `tags` are left out, as their tokens need a tokenizer. Rows are whole,
as they are at the end of a window schedule; only `scheduled_live_ratio` counts the steps before as well.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from anchorjax import data
from anchorjax.attention.plan import classify_tiles
from anchorjax.config import Config
from anchorjax.data.rows import segments, window_schedule
from anchorjax.data.rows.balance import ALL_KEYS, Layout, Windows, live_tiles
from anchorjax.data.rows.packing import RowPacker
from anchorjax.data.rows.row import Row
from anchorjax.data.store.tokens import TokenStore
from anchorjax.data.text.tokenizer import ByteTokenizer
from anchorjax.errors import DataError, UsageError, first_line
from anchorjax.masks import Mask, anchors_of, count_live_pairs
from anchorjax.models.flops import causal_pairs
from anchorjax.training import setup
from anchorjax.types import PAD_SEGMENT

# SlimPajama has 627e9 tokens in 590e6 documents. How far its lengths spread is an assumption.
DEFAULT = "log_normal:mean=1060,sigma=1.3"
FORMS = f"a token store, a JSON file of lengths, or a distribution such as {DEFAULT}"
MOST_SIGMA, LONGEST = 4, 2**31 - 1
FEWEST_DRAWN = 1000  # documents of a distribution
MOST_DOCUMENTS = 500_000  # that are packed: first_fit takes 4 us for each
MOST_ROWS = 2**20  # of an epoch that is packed
FEWEST, MOST, MOST_TOKENS = 32, 4096, 2**27  # rows that are counted, and their tokens: seconds
ENOUGH = 0.01  # standard error of the live tiles, as a share of their mean: no more rows are counted
BALANCED_TOKENS, FEWEST_BALANCED = 2**23, 8  # of the rows whose order is made, which takes longest
SCHEDULED_STEPS = 128  # of a window schedule, a row each
MOST_BATCHES, FEWEST_BATCHES, MOST_DEALT = 128, 4, 2**14  # batches that are dealt out, and their rows


@dataclasses.dataclass(frozen=True)
class Documents:
    """Documents, live tiles and balance of rows; means over the rows that were counted.

    Attributes:
      source: where the lengths are from, in words.
      rows: that were counted.
      documents_per_row: pieces of documents in a row, before `interleave` cuts them further.
      fill: tokens over places for them.
      mean_length, median_length, longest: of a document of the source, in tokens, EOS included.
      q_tile, kv_tile: tokens along the sides of a tile.
      live_tiles: of a row, the mean over the layers.
      causal_tiles: of a row that is one document, in a layer without a window.
      live_ratio: live_tiles / causal_tiles; live_ratio_error: its standard error over the rows.
      pairs: visible (query, key) pairs of a row, anchors included, the mean over the layers.
      causal_pairs: those of a row that is one document, in a layer without a window.
      imbalance_contiguous: live tiles of the device along `context` that has most in a row, over the mean of the
        devices, if they hold the row in its own order; summed over the rows first, as time is.
      imbalance: the same in the configuration's layout.
      batch_wait: time of a batch's attention over that of a batch of even rows. The groups of devices along data and
        fsdp wait for one another in each micro-batch; rows are in the order that the layout gives them.
      short_windows: of LongCE in a row; 0 without it.
      scheduled_live_ratio: live_ratio on average over the steps of a run whose windows grow; None: they do not.
    """

    source: str
    rows: int
    documents_per_row: float
    fill: float
    mean_length: float
    median_length: float
    longest: int
    q_tile: int
    kv_tile: int
    live_tiles: float
    causal_tiles: int
    live_ratio: float
    live_ratio_error: float
    pairs: float
    causal_pairs: float
    imbalance_contiguous: float
    imbalance: float
    batch_wait: float
    short_windows: float = 0.0
    scheduled_live_ratio: float | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Lengths:
    """Lengths of documents in tokens, int64 [N] of 1 or more, and where they are from.

    Attributes:
      sources: of each document, int16 [N]; None: all are of one.
    """

    lengths: np.ndarray
    source: str
    sources: np.ndarray | None = None


def lengths_of(text: str, config: Config) -> Lengths:
    """The lengths that `text` names.

    Args:
      text: FORMS; "" is `data.store`, or DEFAULT without one. Of a store the training documents count.

    Raises:
      UsageError: no such form, file or parameter.
      DataError: the store or file is damaged, or holds something else.
    """
    text = text or config.data.store or DEFAULT
    name, _, parameters = text.partition(":")
    if name == "log_normal":
        return _log_normal(text, parameters, config)
    path = Path(text).expanduser()
    if path.is_file():
        return Lengths(_read_json(path), text)
    if path.exists() or text == config.data.store:
        store = TokenStore.open(path / "train")
        return Lengths(np.diff(store.offsets), text, store.sources)
    raise UsageError(f"--lengths={text} is not allowed: there is no such file; allowed: {FORMS}")


def of_equal(seq_len: int, parts: int) -> Lengths:
    """Documents that fill a row: `parts` of one length, to within a token."""
    ends = np.arange(parts + 1) * (seq_len - 1) // parts
    return Lengths(np.diff(ends), f"rows of {parts} equal documents")


def count(config: Config, shape: Mapping[str, int], lengths: Lengths) -> Documents:
    """Counts the first rows of a run, until the mean of their live tiles is known to ENOUGH.

    Args:
      config: with attention's tiles, as `step.prepare` returns it.
      shape: devices along each axis of the mesh.
    """
    packer, source = _packer(config, lengths)
    layout, plan = setup.layout(config, shape), packer.plan(0)
    layers = sum(number for _, number in layout.windows)
    T, B, tiles = config.data.seq_len, config.data.batch_size, (config.attention.q_tile, config.attention.kv_tile)
    layouts = dataclasses.replace(layout, name="contiguous"), layout
    work, pairs, short, loads_RlC, error = [], [], [], [], math.inf
    while len(work) < min(MOST, max(FEWEST_BALANCED, MOST_TOKENS // T)) and error > ENOUGH:
        row = packer.row(len(work))
        work.append(int(_live_tiles(row.segment_ids_T, tiles, layout.windows).sum()))
        pairs.append(visible_pairs(row, config, layout.windows) / layers)
        short.append(short_windows_of(row, config) if config.train.objective == "longce" else 0)
        if len(loads_RlC) < max(FEWEST_BALANCED, BALANCED_TOKENS // T):
            segments_T = row.segment_ids_T
            loads_RlC.append([loads(segments_T, each.order(segments_T), tiles, each) for each in layouts])
        if len(work) % max(FEWEST, B) == 0:
            error = float(np.std(work, ddof=1) / np.mean(work)) / math.sqrt(len(work))
    live, causal = float(np.mean(work)) / layers, int(_live_tiles(np.zeros(T, np.int32), tiles, ALL_KEYS).sum())
    error = float(np.std(work)) / layers / math.sqrt(len(work))
    contiguous, own = (imbalance(load_RC) for load_RC in np.swapaxes(loads_RlC, 0, 1))
    return Documents(
        source=source,
        rows=len(work),
        documents_per_row=len(plan.pieces.document) / plan.num_rows,
        fill=packer.report().fill,
        mean_length=float(np.mean(lengths.lengths)),
        median_length=float(np.median(lengths.lengths)),
        longest=int(np.max(lengths.lengths)),
        q_tile=tiles[0],
        kv_tile=tiles[1],
        live_tiles=live,
        causal_tiles=causal,
        live_ratio=live / causal,
        live_ratio_error=error / causal,
        pairs=float(np.mean(pairs)),
        causal_pairs=causal_pairs(T),
        imbalance_contiguous=contiguous,
        imbalance=own,
        batch_wait=batch_wait(np.array(work), layout, B, config.seed),
        short_windows=float(np.mean(short)),
        scheduled_live_ratio=_scheduled_ratio(packer, config, tiles, layout.windows),
    )


def _scheduled_ratio(packer: RowPacker, config: Config, tiles: tuple[int, int], windows: Windows) -> float | None:
    """`Documents.scheduled_live_ratio`, from steps at equal distances."""
    if config.data.window_schedule == "none":
        return None
    live = causal = 0
    for number in range(SCHEDULED_STEPS):
        step = int((number + 0.5) * config.train.steps / SCHEDULED_STEPS)
        segment_ids_T = packer.segment_ids(number % packer.rows_per_epoch)
        cut_T = segments.cut(segment_ids_T, window_schedule.window(step, config.data) or len(segment_ids_T))
        live += int(_live_tiles(cut_T, tiles, windows).sum())
        causal += sum(layers for _, layers in windows) * int(_live_tiles(0 * cut_T, tiles, ALL_KEYS).sum())
    return live / causal


def loads(segment_ids_T: np.ndarray, order_T: np.ndarray, tiles: tuple[int, int], layout: Layout) -> np.ndarray:
    """Live tiles of each device along `context`, summed over the layers: int64 [layout.shards].

    A layout of whole tiles only moves them. Other chunks are cut into tiles anew, as the plan of attention does.

    Args:
      order_T: of the tokens, from `layout.order`.
      tiles: tokens along the sides of a tile, queries first; `layout.tile` is a multiple of both.
    """
    C, tile, first_I = layout.shards, layout.tile, order_T[:: layout.tile]
    moves_tiles = len(order_T) % (C * tile) == 0 and np.all(first_I % tile == 0)
    if moves_tiles and np.array_equal(order_T.reshape(-1, tile), first_I[:, None] + np.arange(tile)):
        live_I = _live_tiles(segment_ids_T, tiles, layout.windows).reshape(-1, tile // tiles[0]).sum(1)
        return live_I[first_I // tile].reshape(C, -1).sum(1)
    segments_CS, index_CS = (np.broadcast_to(x, (C, len(order_T))) for x in (segment_ids_T[order_T], order_T))
    segments_CT, index_CT = segment_ids_T[order_T].reshape(C, -1), order_T.reshape(C, -1)
    live_C = np.zeros(C, np.int64)
    for window, layers in layout.windows:
        mask = Mask(segments_CT, segments_CS, index_CT, index_CS, 0, window)
        live_C += layers * np.asarray(_classify(mask, *tiles)[0]).sum((1, 2))
    return live_C


_classify = jax.jit(classify_tiles, static_argnums=(1, 2))


def imbalance(load_RC: np.ndarray) -> float:
    """The largest load of each row over its mean, both summed over the rows: a row without work has no weight."""
    return float(load_RC.max(1).sum() / load_RC.mean(1).sum())


def visible_pairs(row: Row, config: Config, windows: Windows) -> float:
    """Visible (query, key) pairs of a row, summed over the layers."""
    anchors, total = anchors_of(config.data.mask), 0.0
    own_T = row.visible_T[row.visible_T > 0] - anchors  # keys of the query's own document, without a window
    for window, layers in windows:
        if window is None or not config.data.interleave:
            seen_T = own_T if window is None else np.minimum(own_T, window)
            total += layers * float(seen_T.sum(dtype=np.int64) + anchors * len(own_T))
        else:  # a document's tokens are not next to each other
            total += layers * float(_count_live_pairs(row.segment_ids_T, anchors, window))
    return total


_count_live_pairs = jax.jit(count_live_pairs, static_argnums=(1, 2))


def short_windows_of(row: Row, config: Config) -> int:
    """Windows of a row of texts, in which each token but a document's last has a target."""
    context, stride = config.train.longce_context, config.train.longce_stride
    segment_ids_t, is_target_t = row.segment_ids_T[1:], row.is_target_T[1:]
    segment_ids_t, is_target_t = (x[segment_ids_t != PAD_SEGMENT] for x in (segment_ids_t, is_target_t))
    documents, last = np.unique(segment_ids_t[::-1], return_index=True)
    size_D = np.bincount(segment_ids_t)[documents] + is_target_t[::-1][last]
    return int(np.maximum(-(-(size_D - context) // stride), 0).sum())


def batch_wait(work_R: np.ndarray, layout: Layout, B: int, seed: int) -> float:
    """Time of a batch of B rows over that of B even ones, over batches of neighbouring rows; see `wait`.

    If there are fewer than B rows, batches are drawn from them.
    """
    number = min(MOST_BATCHES, max(FEWEST_BATCHES, MOST_DEALT // B))
    if len(work_R) < B:
        batches = np.random.default_rng(seed).choice(work_R, (number, B))
    else:
        firsts = np.unique(np.linspace(0, len(work_R) - B, number).astype(int))
        batches = work_R[firsts[:, None] + np.arange(B)]
    times = [wait(work_B[layout.order_of_rows(work_B)], layout) * work_B.sum() for work_B in batches]
    return float(np.sum(times) / batches.sum())


def wait(work_B: np.ndarray, layout: Layout) -> float:
    """Time of a batch over that of even rows of the same work in sum.

    The groups of devices take their rows of one micro-batch after the other, and each micro-batch takes as long as its
    heaviest group: groups gather weights together in every layer.

    Args:
      work_B: of the rows, in the order in which `layout.order_of_rows` puts them.
    """
    work_gbp = work_B.reshape(layout.groups, -1, layout.parts)
    return float(work_gbp.sum(1).max(0).sum() / work_B.sum() * layout.groups)


def _live_tiles(segment_ids_T: np.ndarray, tiles: tuple[int, int], windows: Windows) -> np.ndarray:
    return live_tiles(segment_ids_T, tiles[0], windows, tiles[1])


def _packer(config: Config, lengths: Lengths) -> tuple[RowPacker, str]:
    """The packer of documents of these lengths, and where the lengths are from, in words.

    Of many documents some are drawn. A document of more rows than MOST_ROWS is cut, so that its rows can be listed.
    """
    most = MOST_ROWS * (config.data.seq_len - 1)
    values, sources, source = np.minimum(lengths.lengths, most), lengths.sources, lengths.source
    if len(values) > MOST_DOCUMENTS or values.sum() > most:
        rng, number = np.random.default_rng(config.seed), min(len(values), MOST_DOCUMENTS)
        drawn = rng.choice(len(values), number, replace=False)  # in a random order
        drawn = np.sort(drawn[: max(1, np.searchsorted(np.cumsum(values[drawn]), most, "right"))])
        source += f"; {len(drawn):,} of {len(values):,} documents, drawn at random"
        values, sources = values[drawn], None if sources is None else sources[drawn]
    offsets = np.concatenate([[0], np.cumsum(values)]).astype(np.int64)
    tokens = np.broadcast_to(np.zeros((), np.uint16), int(offsets[-1]))
    store = TokenStore(tokens, offsets, fingerprint="", sources=sources)
    untagged = dataclasses.replace(config.data.continued().whole(), tags=False)
    return data.row_packer(store, ByteTokenizer(), untagged, config.seed), source


def _log_normal(text: str, parameters: str, config: Config) -> Lengths:
    values = {"mean": 1060.0, "sigma": 1.3}
    for part in parameters.split(",") if parameters else ():
        name, _, number = part.partition("=")
        values[name] = _number(text, name, number)
    mean, sigma = values["mean"], values["sigma"]
    number = int(np.clip(2 * MOST_TOKENS / mean, FEWEST_DRAWN, MOST_DOCUMENTS))
    drawn = np.random.default_rng(config.seed).normal(math.log(mean) - sigma**2 / 2, sigma, number)
    lengths = np.clip(np.rint(np.exp(drawn)), 1, LONGEST).astype(np.int64)
    source = f"log-normal lengths of mean {mean:g} and sigma {sigma:g}"
    if text == DEFAULT:
        source += ": SlimPajama's mean (627e9 tokens in 590e6 documents) and an assumed spread"
    return Lengths(lengths, source)


def _number(text: str, name: str, number: str) -> float:
    """A parameter of a distribution. Raises UsageError."""
    ranges = {"mean": (1, LONGEST), "sigma": (0, MOST_SIGMA)}
    allowed = "mean=1 to 2147483647, sigma=0 to 4"
    low, high = ranges.get(name, (0, 0))
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if name not in ranges or not low <= value <= high:
        raise UsageError(f"--lengths={text} is not allowed: {name}={number}; allowed: {allowed}")
    return value


def _read_json(path: Path) -> np.ndarray:
    """Raises DataError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {first_line(error)}") from error
    values = content.get("lengths") if isinstance(content, dict) else content
    if not isinstance(values, list) or not values:
        raise DataError(f'{path} holds no lengths; allowed: a list of numbers of tokens, or {{"lengths": [...]}}')
    for number, value in enumerate(values):
        if type(value) is not int or not 1 <= value <= LONGEST:
            raise DataError(f"{path}: length {number} is {value!r}; allowed: 1 to {LONGEST} tokens")
    return np.array(values, np.int64)
