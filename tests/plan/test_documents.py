"""Documents of a run's rows: every count against the dense mask, the run's own batches, and the published figures."""

import dataclasses
import json
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorjax import data
from anchorjax.attention.plan import classify_tiles
from anchorjax.data.rows.balance import ALL_KEYS, Layout
from anchorjax.data.rows.packing import PackedRows
from anchorjax.data.store.tokens import TokenStore
from anchorjax.data.text.tokenizer import ByteTokenizer
from anchorjax.errors import DataError, UsageError
from anchorjax.masks import allowed, anchors_of
from anchorjax.plan import documents as lib
from anchorjax.plan.documents import Lengths
from anchorjax.training import setup
from anchorjax.types import CONTEXT_LAYOUTS, MASKS, PACKINGS, PAD_SEGMENT
from benchmarks import context_balance
from tests import tiny
from tests.data import preparing

ONE = {"data": 1, "fsdp": 1, "context": 1, "tensor": 1}
LINUX = str(context_balance.POOL)
LENGTHS = st.lists(st.integers(1, 150), min_size=1, max_size=40)


def config_of(q_tile=16, kv_tile=16, **changes):
    return tiny.config(attention__q_tile=q_tile, attention__kv_tile=kv_tile, **changes)


def lengths_of(values) -> Lengths:
    return Lengths(np.array(values, np.int64), "a test")


def count_few(config, shape, lengths):
    """Counts six rows, for references that are slow."""
    with mock.patch.multiple(lib, FEWEST=2, MOST=6):
        return lib.count(config, shape, lengths)


def packer_of(config, values):
    """The run's packer of documents of these lengths, made without the code under test."""
    offsets = np.concatenate([[0], np.cumsum(values)]).astype(np.int64)
    store = TokenStore(np.zeros(offsets[-1], np.uint16), offsets, "")
    return data.row_packer(store, ByteTokenizer(), config.data, config.seed)


def dense(segment_ids_T, num_anchors: int, window=None, order_T=None) -> np.ndarray:
    """Which query sees which key, bool [T, T], both in the order given."""
    index_T = np.arange(len(segment_ids_T)) if order_T is None else order_T
    segment_ids_T = segment_ids_T[index_T]
    axes = index_T[:, None], index_T, segment_ids_T[:, None], segment_ids_T
    return np.asarray(allowed(*axes, num_anchors, window))


def tiles_with_a_pair(seen_TS, q_tile: int, kv_tile: int) -> int:
    T, S = seen_TS.shape
    seen_TS = np.pad(seen_TS, ((0, -T % q_tile), (0, -S % kv_tile)))
    return int(seen_TS.reshape(-1, q_tile, seen_TS.shape[1] // kv_tile, kv_tile).any((1, 3)).sum())


@settings(max_examples=40, deadline=None)
@given(
    LENGTHS,
    st.sampled_from(MASKS),
    st.sampled_from(PACKINGS),
    st.sampled_from([0, 3]),
    st.sampled_from([(16, 16), (8, 24), (32, 8)]),
    st.integers(0, 3),
)
def test_tiles_and_pairs_are_those_of_the_dense_mask(values, mask, packing, interleave, tiles, seed):
    keys = {"data__mask": mask, "data__packing": packing, "data__interleave": interleave, "seed": seed}
    config = config_of(*tiles, **keys)
    found, packer, anchors = count_few(config, ONE, lengths_of(values)), packer_of(config, values), anchors_of(mask)
    rows = [packer.row(index).segment_ids_T for index in range(found.rows)]
    seen = [dense(row, anchors) for row in rows]
    behind_anchors_T = np.arange(64) >= anchors
    live = np.mean([tiles_with_a_pair(seen_TT & behind_anchors_T, *tiles) for seen_TT in seen])
    assert found.live_tiles == pytest.approx(live)
    assert found.pairs == pytest.approx(np.mean([seen_TT.sum() for seen_TT in seen]))
    triangle = np.tril(np.ones((64, 64), bool))
    assert found.causal_tiles == tiles_with_a_pair(triangle, *tiles) and found.causal_pairs == triangle.sum()
    assert found.live_ratio == pytest.approx(live / found.causal_tiles)
    assert (found.mean_length, found.longest) == (pytest.approx(np.mean(values)), max(values))
    assert found.fill == packer.report().fill


@settings(max_examples=20, deadline=None)
@given(LENGTHS, st.sampled_from(["anchor", "full"]), st.sampled_from([0, 3]), st.integers(1, 70))
def test_layers_with_a_window_see_and_visit_less(values, mask, interleave, window):
    """One layer of two has the window."""
    keys = {"data__mask": mask, "data__interleave": interleave}
    config = config_of(model__sliding_window=window, model__global_every=2, **keys)
    found, packer = count_few(config, ONE, lengths_of(values)), packer_of(config, values)
    tiles, pairs = [], []
    for index in range(found.rows):
        row = packer.row(index).segment_ids_T
        seen = [dense(row, anchors_of(mask), each) for each in (None, window)]
        pairs.append(np.mean([seen_TT.sum() for seen_TT in seen]))
        masks = [lib.Mask.from_segments(jnp.asarray(row[None]), anchors_of(mask), each) for each in (None, window)]
        tiles.append(np.mean([np.asarray(classify_tiles(each, 16, 16)[0]).sum() for each in masks]))
    assert found.pairs == pytest.approx(np.mean(pairs)) and found.live_tiles == pytest.approx(np.mean(tiles))


@st.composite
def laid_out_rows(draw):
    """Segment ids [T] of an anchor, documents in one piece and padding; a layout of four devices and sides of tiles."""
    lengths = draw(st.lists(st.integers(1, 50), min_size=1, max_size=20))
    ids = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    row = np.concatenate([[0], ids, np.full(96, PAD_SEGMENT)])[:96].astype(np.int32)
    tiles = draw(st.sampled_from([(4, 4), (2, 4), (6, 3), (8, 8), (12, 12), (24, 8), (10, 10), (32, 32), (16, 48)]))
    name, windows = draw(st.sampled_from(CONTEXT_LAYOUTS)), draw(st.sampled_from([ALL_KEYS, ((None, 2), (9, 1))]))
    return row, tiles, Layout(name, 4, int(np.lcm(*tiles)), windows)


@settings(max_examples=60, deadline=None)
@given(laid_out_rows())
def test_loads_are_the_live_tiles_of_each_device(drawn):
    """Whether chunks are whole tiles, parts of tiles or neither, as each device cuts its own queries into tiles."""
    row, tiles, layout = drawn
    order_T = layout.order(row)
    load_C = lib.loads(row, order_T, tiles, layout)
    least_C = np.zeros(4, int)
    for window, layers in layout.windows:
        seen_CTS = dense(row, 0, window, order_T).reshape(4, -1, len(row))
        least_C += layers * np.array([tiles_with_a_pair(seen_TS, *tiles) for seen_TS in seen_CTS])
    assert (load_C >= least_C).all()
    whole_tiles = layout.name == "contiguous" and 24 % layout.tile == 0
    if layout.windows == ALL_KEYS and whole_tiles:
        assert load_C.tolist() == least_C.tolist()
    assert lib.imbalance(load_C[None]) == load_C.max() / load_C.mean()


def test_a_row_without_work_has_no_weight():
    assert lib.imbalance(np.array([[30, 10], [2, 0]])) == (30 + 2) / (20 + 1)


@pytest.mark.parametrize(("rows", "parts", "groups"), [(8, 1, 4), (8, 2, 2), (12, 3, 4), (4, 1, 4), (4, 4, 1)])
def test_the_wait_is_that_of_the_batches_that_a_run_packs(rows, parts, groups):
    """Place b is part b % parts of group b // (B / groups), and a part takes as long as its heaviest group."""
    keys = {"data__batch_size": rows, "train__grad_accum_steps": parts}
    config = config_of(data__packing="best_fit", **keys)
    values = np.random.default_rng(0).integers(1, 100, 200)
    shape = ONE | {"fsdp": groups}
    layout, packer = setup.layout(config, shape), packer_of(config, values)
    batches = PackedRows(packer, rows, layout=layout)
    for step in range(3):
        places = range(step * rows, (step + 1) * rows)
        drawn_B = np.array([layout.work(packer.segment_ids(place)).sum() for place in places])
        work_B = [layout.work(batches[place].segment_ids_T).sum() for place in places]
        took = 0
        for part in range(parts):
            groups_b = [b // (rows // groups) for b in range(part, rows, parts)]
            took += np.bincount(groups_b, work_B[part::parts]).max()
        found = lib.wait(drawn_B[layout.order_of_rows(drawn_B)], layout)
        assert found == pytest.approx(took / (sum(work_B) / groups)) and found >= 1
    assert (lib.count(config, shape, lengths_of(values)).batch_wait == 1) == (groups == 1)


def test_batches_of_more_rows_than_are_counted_are_drawn_from_them():
    work_R, layout = np.array([1, 1, 1, 5]), Layout(groups=2)
    found = lib.batch_wait(work_R, layout, 8, seed=0)
    assert 1 < found < 2 and found == lib.batch_wait(work_R, layout, 8, seed=0)
    assert lib.batch_wait(work_R, layout, 2, seed=0) == (1 + 1 + 5) / (1 + 1 + 3)  # its three neighbouring pairs


def test_balance_has_the_published_figures():
    """docs/scaling.md, 128K tokens on 8 devices: 2.23 and 1.03. Rows that a run packs of them are alike."""
    config = config_of(512, 512, data__seq_len=2**17, data__batch_size=8, mesh__fsdp=8, mesh__context=8)
    shape = ONE | {"fsdp": 8, "context": 8}
    rng, layout = np.random.default_rng(0), setup.layout(config, shape)
    rows = [context_balance.draw_row(rng, 2**17) for _ in range(200)]
    loads = {}
    for name in ("contiguous", "documents"):
        each = dataclasses.replace(layout, name=name)
        loads[name] = np.array([lib.loads(row, each.order(row), (512, 512), each) for row in rows])
    means = {name: float(np.mean(load_RC.max(1) / load_RC.mean(1))) for name, load_RC in loads.items()}
    assert {name: round(mean, 2) for name, mean in means.items()} == {"contiguous": 2.23, "documents": 1.03}
    found = lib.count(config, shape, lib.lengths_of(LINUX, config))
    assert found.imbalance_contiguous == pytest.approx(lib.imbalance(loads["contiguous"]), rel=0.06)
    assert found.imbalance == pytest.approx(lib.imbalance(loads["documents"]), rel=0.01)
    live = np.mean([lib.live_tiles(row, 512).sum() for row in rows])
    assert found.live_tiles == pytest.approx(live, rel=0.15) and found.live_ratio_error < 0.05 * found.live_ratio
    assert found.mean_length == pytest.approx(2619, abs=1)


def test_devices_that_attend_from_whole_rows_have_equal_work():
    config = config_of(mesh__context=2, mesh__context_strategy="ulysses")
    found = lib.count(config, ONE | {"context": 2}, lengths_of([40, 9, 14]))
    assert (found.imbalance_contiguous, found.imbalance) == (1, 1)


@pytest.mark.parametrize("parts", [1, 2, 4, 63])
@pytest.mark.parametrize("packing", PACKINGS)
def test_equal_documents_fill_a_row(parts, packing):
    config = config_of(data__packing=packing)
    lengths = lib.of_equal(64, parts)
    assert lengths.lengths.sum() == 63 and np.ptp(lengths.lengths) <= 1
    found = count_few(config, ONE, lengths)
    assert (found.fill, found.documents_per_row) == (1, parts)
    assert found.live_tiles <= found.causal_tiles == 10 and (parts > 1 or found.live_tiles == 10)


# Where lengths come from


def test_the_default_is_the_mean_of_slimpajama_and_says_that_it_is_assumed():
    config = config_of()
    found = lib.lengths_of("", config)
    assert "assumed" in found.source and "590e6" in found.source
    assert found.lengths.mean() == pytest.approx(627e9 / 590e6, rel=0.02) and found.lengths.dtype == np.int64
    assert np.std(np.log(found.lengths)) == pytest.approx(1.3, rel=0.02)
    again, other = lib.lengths_of(lib.DEFAULT, config), lib.lengths_of("", config_of(seed=1))
    assert np.array_equal(found.lengths, again.lengths) and not np.array_equal(found.lengths[:9], other.lengths[:9])
    assert count_few(config, ONE, found) == count_few(config, ONE, again)


def test_a_distribution_has_the_parameters_that_are_given():
    found = lib.lengths_of("log_normal:mean=500,sigma=0", config_of())
    assert set(found.lengths) == {500} and "mean 500" in found.source and "assumed" not in found.source


@pytest.mark.parametrize("wrap", [lambda values: values, lambda values: {"lengths": values, "made_by": "a script"}])
def test_a_file_of_lengths(wrap, tmp_path):
    file = tmp_path / "lengths.json"
    file.write_text(json.dumps(wrap([3, 1, 2**31 - 1])))
    found = lib.lengths_of(str(file), config_of())
    assert found.lengths.tolist() == [3, 1, 2**31 - 1] and found.source == str(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "cannot be read: Expecting value"),
        ("[]", "holds no lengths; allowed: a list of numbers of tokens"),
        ('{"length": [1]}', "holds no lengths"),
        ("[3, 0]", "length 1 is 0; allowed: 1 to 2147483647 tokens"),
        ("[3.5]", "length 0 is 3.5"),
        ("[true]", "length 0 is True"),
        ("[2147483648]", "length 0 is 2147483648"),
    ],
)
def test_a_file_that_holds_something_else(text, message, tmp_path):
    file = tmp_path / "lengths.json"
    file.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        lib.lengths_of(str(file), config_of())
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_a_store_gives_the_lengths_of_its_training_documents(tmp_path):
    """Rows are those of a run on the store: of its documents, and of what `upsample_long` keeps of each source."""
    rng = np.random.default_rng(0)
    lengths = [int(n) for n in rng.choice([5, 31, 40, 5000], 60)]
    rows = [{"text": "".join(rng.choice([*"abc"], n)), "source": "ab"[n % 2]} for n in lengths]
    preparing.write_jsonl(tmp_path / "rows.jsonl", rows)
    store, _ = preparing.prepare(tmp_path, f"jsonl:{tmp_path / 'rows.jsonl'}")
    path = str(tmp_path / "store")
    config = config_of(data__store=path, data__upsample_long=True, data__seq_len=4096)
    found = lib.lengths_of("", config)
    assert found.lengths.tolist() == np.diff(store.offsets).tolist() and found.source == path
    assert np.array_equal(found.lengths, lib.lengths_of(path, config_of()).lengths)
    packer = data.row_packer(store, ByteTokenizer(), config.data, config.seed)
    assert packer.report().kept < 1 and set(store.sources) == {0, 1}
    counted = count_few(config, ONE, found)
    live = [lib.live_tiles(packer.segment_ids(row), 16).sum() for row in range(counted.rows)]
    assert counted.live_tiles == np.mean(live) and counted.fill == packer.report().fill
    (tmp_path / "store/train/offsets.npy").unlink()
    with pytest.raises(DataError, match=r"offsets\.npy cannot be read"):
        lib.lengths_of(path, config)


def test_a_store_that_is_not_there_is_an_error_and_not_the_default():
    with pytest.raises(DataError, match="nowhere/train is not a token store"):
        lib.lengths_of("", config_of(data__store="nowhere"))


def test_of_many_documents_some_are_drawn_and_long_ones_cut():
    config, lengths = config_of(), lengths_of(np.random.default_rng(0).integers(1, 90, 3000))
    every = lib.count(config, ONE, lengths)
    with mock.patch.multiple(lib, MOST_DOCUMENTS=1000):
        some = lib.count(config, ONE, lengths)
    assert every.source == "a test" and some.source == "a test; 1,000 of 3,000 documents, drawn at random"
    assert some.live_tiles == pytest.approx(every.live_tiles, rel=0.05) and some.mean_length == every.mean_length
    with mock.patch.multiple(lib, MOST_ROWS=20):
        packer, source = lib._packer(config, lengths)
        assert packer.rows_per_epoch in (19, 20) and " of 3,000 documents" in source
        of_sources = dataclasses.replace(lengths, sources=(lengths.lengths % 2).astype(np.int16))
        drawn = lib._packer(config, of_sources)[0]
        assert np.array_equal(drawn.sources, np.diff(drawn.store.offsets) % 2)
        assert lib._packer(config, lengths_of([10**9]))[0].rows_per_epoch == 20
    assert lib.count(config, ONE, lengths_of([10**9])).live_ratio == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere.json", "there is no such file; allowed: a token store, a JSON file"),
        ("log_normal:mean=0", "mean=0; allowed: mean=1 to 2147483647, sigma=0 to 4"),
        ("log_normal:mean=nan", "mean=nan"),
        ("log_normal:sigma=5", "sigma=5"),
        ("log_normal:median=5", "median=5"),
        ("log_normal:1060", "1060"),
        ("log_normal:sigma=wide", "sigma=wide"),
    ],
)
def test_a_source_that_is_not_understood(text, message):
    with pytest.raises(UsageError, match=message) as error:
        lib.lengths_of(text, config_of())
    assert f"--lengths={text}" in str(error.value) and "\n" not in str(error.value)
