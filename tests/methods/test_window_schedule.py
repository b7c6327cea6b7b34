"""A window schedule (SkyLadder, arXiv 2503.15450): its formula, the mask that it makes, and training with it."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorjax import data, types
from anchorjax.config import recipe, resolve
from anchorjax.data.rows import segments, window_schedule
from anchorjax.data.rows.balance import live_tiles
from anchorjax.data.rows.packing import PackedRows, RowPacker
from anchorjax.errors import ConfigError
from anchorjax.masks import allowed, anchors_of, count_live_pairs
from anchorjax.plan import documents
from anchorjax.sharding import shard_batch
from anchorjax.training import loop
from tests import tiny
from tests.data.test_loader import STORE, TOKENIZER, assert_equal, config_of, train
from tests.data.test_packing import ANCHOR, PAD, store_of
from tests.data.test_variants import TAGS
from tests.training.making import make_mesh, make_state, make_steps

GROWING = types.WINDOW_SCHEDULES[1:]


def scheduled(**changes):
    """16 tokens a row, 4 rows a step; windows of 3 to 16 tokens in the first 13 steps."""
    growing = {"window_schedule": "linear", "window_start": 3, "window_steps": 13, "window_multiple": 1}
    return config_of(**growing | changes)


# The schedule.


def test_every_schedule_of_the_configuration_has_a_formula():
    assert ("none", *window_schedule.SCHEDULES) == types.WINDOW_SCHEDULES


def test_the_papers_schedule():
    """w = min(T, 32 + floor(step / 8)): alpha = 1/8, T = 8192."""
    config = config_of(
        seq_len=8192, window_schedule="linear", window_start=32, window_steps=8 * (8192 - 32), window_multiple=1
    )
    for step in [*range(100), *range(65_200, 65_280)]:
        assert window_schedule.window(step, config) == 32 + step // 8
    assert config.window_steps == 65_280
    assert window_schedule.window(65_280, config) is None and window_schedule.window(10**7, config) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("linear", [32, 152, 272, 392]),
        # 32 + 480 sin(pi / 8 n): the sine is 0.38268, 0.70711 and 0.92388.
        ("sine", [32, 215, 371, 475]),
        ("exponential", [32, 64, 128, 256]),
    ],
)
def test_formulas_by_hand(name, expected):
    """From 32 to 512 in 4 steps."""
    config = config_of(seq_len=512, window_schedule=name, window_start=32, window_steps=4, window_multiple=1)
    assert [window_schedule.window(step, config) for step in range(4)] == expected


def test_rounding_is_down_but_not_below_the_start():
    config = config_of(seq_len=512, window_schedule="linear", window_start=48, window_steps=464, window_multiple=100)
    assert [window_schedule.window(step, config) for step in (0, 51, 52, 151, 152, 463)] == [48, 48, 100, 100, 200, 500]


def test_whole_numbers_do_not_depend_on_the_last_bit_of_a_power():
    """32 * 8^(n / 3) is 32, 64, 128; 8 ** (1 / 3) may be 1.9999999999999998."""
    config = config_of(seq_len=256, window_schedule="exponential", window_start=32, window_steps=3, window_multiple=1)
    assert [window_schedule.window(step, config) for step in range(3)] == [32, 64, 128]


@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(GROWING),
    seq_len=st.integers(2, 9000),
    start=st.integers(1, 9000),
    steps=st.integers(1, 5000),
    multiple=st.integers(1, 9000),
)
def test_windows_never_shrink_and_end_as_whole_rows(name, seq_len, start, steps, multiple):
    start, multiple = min(start, seq_len), min(multiple, seq_len)
    config = config_of(
        seq_len=seq_len, window_schedule=name, window_start=start, window_steps=steps, window_multiple=multiple
    )
    windows = [window_schedule.window(step, config) for step in sorted({*range(0, steps, 1 + steps // 50), steps - 1})]
    assert windows[0] == max(start, start // multiple * multiple) == start
    assert all(a <= b for a, b in itertools.pairwise(windows)) and windows[-1] <= seq_len
    assert all(window == start or window % multiple == 0 for window in windows)
    assert window_schedule.window(steps, config) is None


# The mask.


def test_segments_by_hand():
    """The example in segments.py: A a b c d e f g and padding, windows of 4."""
    lengths, numbers = np.array([5, 2]), np.array([0, 1])
    assert segments.segment_ids(numbers, lengths, 9, "anchor", None).tolist() == [0, 1, 1, 1, 1, 1, 2, 2, -1]
    assert segments.segment_ids(numbers, lengths, 9, "anchor", 4).tolist() == [0, 1, 1, 1, 2, 2, 3, 3, -1]
    assert segments.segment_ids(numbers, lengths, 9, "full", 4).tolist() == [0, 0, 0, 0, 1, 1, 1, 1, -1]
    seen = segments.visible(segments.segment_ids(numbers, lengths, 9, "anchor", 4), num_anchors=1)
    assert seen.tolist() == [1, 2, 3, 4, 2, 3, 2, 3, 0]


rows_of_any_kind = given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    mask=st.sampled_from(types.MASKS),
    packing=st.sampled_from(types.PACKINGS),
    interleave=st.sampled_from([0, 2, 3]),
    tagged=st.booleans(),
    schedule=st.sampled_from(GROWING),
    start=st.integers(1, 16),
    steps=st.integers(1, 12),
    multiple=st.integers(1, 16),
    seed=st.integers(0, 2**63 - 1),
    row=st.integers(0, 60),
)


@settings(max_examples=300, deadline=None)
@rows_of_any_kind
def test_the_mask_is_that_of_documents_and_of_windows(
    lengths, mask, packing, interleave, tagged, schedule, start, steps, multiple, seed, row
):
    """Against the dense definition: floor(i / w) w <= j <= i within documents, or the anchor. All else is unchanged."""
    config = scheduled(window_schedule=schedule, window_start=start, window_steps=steps, window_multiple=multiple)

    def packer_of(config):
        tags, sources = (TAGS, np.arange(len(lengths)) % 3) if tagged else (None, None)
        options = {"packing": packing, "interleave": interleave, "tags": tags, "sources": sources, "config": config}
        return RowPacker(store_of(lengths), 16, seed, mask, "continue", False, ANCHOR, PAD, **options)

    found, plain = packer_of(config).row(row), packer_of(config.whole()).row(row)
    window, index, anchors = window_schedule.window(row // 4, config), np.arange(16), anchors_of(mask)
    i, j = index[:, None], index[None]

    def dense(ids):
        return allowed(i, j, ids[:, None], ids[None], anchors)

    w = window or 16
    same_window = (i // w * w <= j) | (j < anchors)
    np.testing.assert_array_equal(dense(found.segment_ids_T), dense(plain.segment_ids_T) & same_window)
    np.testing.assert_array_equal(found.visible_T, dense(found.segment_ids_T).sum(1))
    assert found.segment_ids_T.dtype == np.int32 and found.visible_T.dtype == np.int32
    if window is None:
        np.testing.assert_array_equal(found.segment_ids_T, plain.segment_ids_T)
    for field in dataclasses.fields(found):
        if field.name not in ("segment_ids_T", "visible_T"):
            np.testing.assert_array_equal(getattr(found, field.name), getattr(plain, field.name))
    np.testing.assert_array_equal(packer_of(config).segment_ids(row), found.segment_ids_T)


# Rows of a run.


def test_windows_go_by_the_step_and_the_last_rows_are_whole():
    batches, plain = train(16, **vars(scheduled())), train(16)
    for step, (batch, whole) in enumerate(zip(batches, plain, strict=True)):
        longest = max(np.unique(ids, return_counts=True)[1].max() for ids in batch.segment_ids_BT)
        assert longest <= min(3 + step, 16), "the window of the step, of all of its rows"
        np.testing.assert_array_equal(batch.tokens_BT, whole.tokens_BT)
        np.testing.assert_array_equal(batch.targets_BT, whole.targets_BT)
    assert not np.array_equal(batches[0].segment_ids_BT, plain[0].segment_ids_BT)
    assert_equal(batches[13:], plain[13:])


@pytest.mark.parametrize("start_step", [1, 7, 12])
def test_resumed_rows_are_those_of_an_unbroken_run(start_step):
    keys = vars(scheduled())
    assert_equal(train(15 - start_step, start_step=start_step, **keys), train(15, **keys)[start_step:])


def test_processes_read_the_same_windows():
    whole = train(5, **vars(scheduled()))
    part = train(5, rows=(1, 3), **vars(scheduled()))
    for one, other in zip(whole, part, strict=True):
        np.testing.assert_array_equal(one.segment_ids_BT[[1, 3]], other.segment_ids_BT)


def test_held_out_rows_are_whole():
    assert_equal(*(list(data.eval_rows(STORE, TOKENIZER, config, max_rows=8)) for config in (scheduled(), config_of())))


def test_live_pairs_and_tiles_grow_with_the_window():
    config = tiny.config(data__seq_len=256, **KEYS).data
    store = data.TokenStore(np.zeros(2**14, np.uint16), np.array([0, 2**14]), fingerprint="")
    packer = data.row_packer(store, TOKENIZER, config, seed=0)
    ids = [packer.segment_ids(2 * step) for step in range(7)]
    pairs = [float(count_live_pairs(row, 1)) for row in ids]
    tiles = [int(live_tiles(row, 32).sum()) for row in ids]
    assert pairs == sorted(set(pairs)), "each window has more pairs than the one before"
    assert tiles[0] == 8 and tiles[-1] == 8 * 9 // 2
    assert all(a <= b for a, b in itertools.pairwise(tiles))


# Training.

KEYS = {
    "data__window_schedule": "linear",
    "data__window_start": 8,
    "data__window_steps": 6,
    "data__window_multiple": 8,
}


def test_a_step_is_compiled_once():
    """A step's windows are data: five of them run through one program, whose live pairs grow."""
    config = tiny.config(**KEYS)
    steps = make_steps(config)
    store = data.TokenStore(np.arange(4096, dtype=np.uint16) % 256, np.array([0, 4096]), fingerprint="")
    batches = data.train_batches(store, TOKENIZER, config.data, seed=0, start_step=0)
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        state, step = make_state(steps), jax.jit(steps.train)
        pairs = []
        for batch in itertools.islice(batches, 7):
            state, metrics = step(state, shard_batch(batch, mesh, 2))
            pairs.append(float(metrics["live_pairs"]))
    batches.close()
    assert step._cache_size() == 1
    assert pairs[:5] == sorted(set(pairs[:5])) and pairs[0] < pairs[-1] / 4
    # A row of one document behind its anchor.
    assert pairs[-1] == 2 * 64 * 65 / 2


def test_a_run_logs_its_windows_and_resumes_in_the_middle_of_them(tmp_path):
    """Stopped after 7 of 12 steps, of which the first 6 have windows."""

    def run(place, steps, **changes):
        keys = {"data__batch_size": 8, "optimizer__schedule": "constant", "train__steps": steps} | changes
        assert loop.run(tiny.config(**keys), tmp_path / place) == 0
        text = (tmp_path / place / "metrics.jsonl").read_text()
        return [line for line in map(json.loads, text.splitlines()) if line["kind"] == "train"]

    whole = run("whole", 12, **KEYS)
    assert [line["window"] for line in whole] == [8, 16, 24, 32, 40, 48, *[64] * 6]
    run("part", 7, **KEYS)
    resumed = run("part", 12, **KEYS)
    assert [line["window"] for line in resumed] == [line["window"] for line in whole]
    assert [line["loss"] for line in resumed] == [line["loss"] for line in whole]
    assert not any("window" in line for line in run("plain", 1))


# What is refused, and what others make of it.


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"data__window_start": 65}, "data.window_start", "at most data.seq_len=64"),
        ({"data__window_multiple": 65}, "data.window_multiple", "at most data.seq_len=64"),
        ({"data__window_steps": 0}, "data.window_steps", "at least 1"),
        ({"data__window_steps": 8}, "data.window_steps", "below train.steps=8"),
        (
            {"data__window_schedule": "none"},
            "data.window_start",
            "only data.window_schedule=linear or sine",
        ),
        ({"data__window_schedule": "cosine"}, "data.window_schedule", "one of none, linear, sine, exponential"),
        ({"train__objective": "exact"}, "data.window_schedule", "none with train.objective=exact"),
    ],
)
def test_what_does_not_fit_is_refused_by_key(changes, key, words):
    with pytest.raises(ConfigError) as refused:
        tiny.config(**KEYS | changes)
    assert refused.value.key == key and words in refused.value.allowed


def test_rows_of_another_batch_size_or_without_a_seed_are_refused():
    packer = data.row_packer(STORE, TOKENIZER, scheduled(), seed=0)
    with pytest.raises(ValueError, match="batch_size is 2; allowed: 4"):
        PackedRows(packer, 2)
    with pytest.raises(ValueError, match="training rows"):
        data.row_packer(STORE, TOKENIZER, scheduled(), seed=None)


def test_a_plan_is_of_whole_rows_and_tells_the_mean_of_the_schedule():
    keys = {"data__seq_len": 256, "attention__implementation": "reference", "train__steps": 100}
    keys |= KEYS | {"data__window_steps": 50}
    config, plain = tiny.config(**keys), tiny.config(**{k: v for k, v in keys.items() if "window" not in k})
    lengths, shape = documents.of_equal(256, 1), {"data": 1, "fsdp": 1, "context": 1, "tensor": 1}
    found, whole = (documents.count(each, shape, lengths) for each in (config, plain))
    assert dataclasses.replace(found, scheduled_live_ratio=None) == whole
    store = data.TokenStore(np.zeros(255, np.uint16), np.array([0, 255]), "")
    packer = data.row_packer(store, TOKENIZER, config.data, 0)
    every = [live_tiles(packer.segment_ids(2 * step), 32).sum() for step in range(100)]
    assert found.scheduled_live_ratio == pytest.approx(np.mean(every) / whole.causal_tiles, rel=0.02)
    assert found.scheduled_live_ratio < 0.8


@pytest.mark.parametrize("seq_len", [16, 256, 4096])
def test_the_recipes_method_fits_any_length(seq_len):
    mapping = recipe("quickstart")
    mapping.data.seq_len = seq_len
    config = resolve(recipe_method()(mapping).to_dict())
    assert config.data.window_schedule == "linear" and config.data.window_steps == int(0.65 * config.train.steps)


def recipe_method():
    from configs.methods.window_schedule import method

    return method
