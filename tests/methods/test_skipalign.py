"""SkipAlign (arXiv 2405.03939): oracles, where conversations skip, what they draw, and what is refused."""

import collections
import dataclasses
import fractions
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorjax import data, types
from anchorjax.config import recipe, resolve
from anchorjax.data.rows import distances
from anchorjax.data.rows.packing import RowPacker
from anchorjax.data.rows.positions import RowPieces, RowSpec
from anchorjax.data.rows.positions.skipping import skipalign
from anchorjax.data.rows.positions.skipping._jumps import jump
from anchorjax.data.store import preparing as preparing_lib
from anchorjax.errors import ConfigError
from tests import tiny
from tests.data import preparing
from tests.data.test_distances import assert_close, brute
from tests.data.test_loader import TOKENIZER, config_of
from tests.data.test_packing import store_of
from tests.data.test_positions import rows_of, tokens_of_documents

BLOCKS = (3, 2, 2, 1)  # a question, an answer, a question, an answer
WHERE = ("all", "inner", "outer")


def skip_config(where="all", share=1.0, **changes):
    fixed = {"positions": "skipalign", "messages_key": "messages", "max_position": 100}
    return config_of(**fixed, skipalign_where=where, skipalign_share=share, **changes)


def flags_of(blocks):
    return np.repeat(np.arange(len(blocks)) % 2 == 1, blocks)


def pieces_of(*conversations):
    """Conversations, each a tuple of the lengths of its blocks, in a row behind the anchor."""
    length = np.array([sum(blocks) for blocks in conversations])
    trained_T = np.concatenate([[False], *map(flags_of, conversations)])
    start = 1 + np.cumsum(length) - length
    return RowPieces(np.arange(len(length)), start, np.zeros_like(length), length, trained_T)


def packer_of(lengths, flags, seq_len, more, where="all", share=1.0, **options):
    config = skip_config(where, share)
    store = dataclasses.replace(store_of(lengths), trained=flags)
    fixed = {"boundary_targets": False, "anchor_id": 1_000_000, "pad_id": 1_000_001, "config": config}
    fixed |= {"positions": "skipalign", "max_position": seq_len + more}
    return RowPacker(store, seq_len, **(fixed | options))


@pytest.mark.parametrize(
    ("where", "starts", "skips", "expected"),
    [
        ("inner", [3, 7], [10, 5], [0, 1, 2, 13, 14, 15, 16, 22]),
        ("outer", [5], [7], [0, 1, 2, 3, 4, 12, 13, 14]),
        ("all", [3, 5, 7], [0, 0, 0], [0, 1, 2, 3, 4, 5, 6, 7]),
        ("all", [3, 5, 7], [1, 2, 3], [0, 1, 2, 4, 5, 8, 9, 13]),
    ],
)
def test_oracles(where, starts, skips, expected):
    """Blocks of 3, 2, 2 and 1 tokens; the anchor comes on top and shifts all by one."""
    found, _ = skipalign.borders(pieces_of(BLOCKS), where)
    assert (found - 1).tolist() == starts
    assert [0] + [1 + p for p in expected] == jump(9, found, skips).tolist()


def test_skips_of_one_conversation_carry_on_into_the_next():
    """(a b | c) and (d | e) behind the anchor and before two pads, as in the docstring of positions/."""
    found, conversation = skipalign.borders(pieces_of((2, 1), (1, 1)), "inner")
    assert found.tolist() == [3, 5] and conversation.tolist() == [0, 1]
    assert jump(8, found, [4, 2]).tolist() == [0, 1, 2, 7, 8, 11, 12, 13]


layouts = {
    "lengths": st.lists(st.integers(1, 12), min_size=1, max_size=10),
    "seq_len": st.integers(2, 24),
    "more": st.integers(0, 40),
    "where": st.sampled_from(WHERE),
    "share": st.sampled_from([0.3, 1.0]),
    "packing": st.sampled_from(types.PACKINGS),
    "interleave": st.sampled_from([0, 2, 3]),
    "mask": st.sampled_from(types.MASKS),
    "seed": st.integers(0, 2**63 - 1),
}


@settings(max_examples=150, deadline=None)
@given(**layouts, epoch=st.integers(0, 2))
def test_conversations_skip_where_blocks_begin_and_nowhere_else(lengths, seq_len, more, where, epoch, seed, **options):
    flags = np.random.default_rng(seed % 2**32).random(sum(lengths)) < 0.4
    packer = packer_of(lengths, flags, seq_len, more, where, seed=seed, **options)
    for row in rows_of(packer, epoch):
        steps = np.diff(row.positions_T)
        assert row.positions_T[0] == 0 and np.all(steps >= 1) and row.positions_T.max() < seq_len + more
        jumps = set((np.flatnonzero(steps > 1) + 1).tolist())
        for own in tokens_of_documents(row, lengths):
            trained = flags[row.tokens_T[own]]
            begins = trained[1:] != trained[:-1]
            if where != "all":
                begins &= trained[1:] == (where == "inner")
            jumps -= set(own[1:][begins].tolist())
        assert not jumps
        if not more:
            assert row.positions_T.tolist() == list(range(seq_len))


@settings(max_examples=150, deadline=None)
@given(**layouts)
def test_borders_are_where_a_conversation_changes_from_token_to_token(lengths, seq_len, where, seed, more, **options):
    """By conversation and in its own order, whatever interleaving made of it."""
    flags = np.random.default_rng(seed % 2**32).random(sum(lengths)) < 0.4
    packer = packer_of(lengths, flags, seq_len, more, where, seed=seed, **options)
    seen = []
    spied = dataclasses.replace(packer, _memory={})
    object.__setattr__(spied, "_positions_of", lambda pieces, index: seen.append(pieces) or np.arange(seq_len))
    for row in rows_of(spied, 0):
        pieces = seen.pop(0)
        found_B, conversation_B = skipalign.borders(pieces, where)
        expected = []
        for own in tokens_of_documents(row, lengths):
            trained = flags[row.tokens_T[own]]
            begins = trained[1:] != trained[:-1]
            if where != "all":
                begins &= trained[1:] == (where == "inner")
            expected.append(own[1:][begins].tolist())
        groups = [found_B[conversation_B == one].tolist() for one in range(len(expected))]
        assert sorted(groups) == sorted(expected) and np.all(np.diff(conversation_B) >= 0)


@settings(max_examples=60, deadline=None)
@given(**layouts, window=st.none() | st.integers(1, 24))
def test_distances_are_those_of_every_pair(lengths, seq_len, more, where, seed, window, **options):
    flags = np.random.default_rng(seed % 2**32).random(sum(lengths)) < 0.4
    packer = packer_of(lengths, flags, seq_len, more, where, seed=seed, **options)
    num_anchors, size = int(packer.mask == "anchor"), seq_len + more
    for row in rows_of(packer, 0):
        found = distances.count(row.segment_ids_T, row.positions_T, num_anchors, np.arange(size), window)
        for got_D, expected_D in zip(found, brute(row, num_anchors, size, window), strict=True):
            np.testing.assert_array_equal(got_D, expected_D)


def enumerate_rule(count, budget, share):
    """The probability of each (borders, skips) of one conversation, from the three steps of the docstring."""
    found = collections.defaultdict(fractions.Fraction)
    found[(), ()] += 1 - share
    for number, total in itertools.product(range(1, count + 1), range(budget + 1)):
        chance = share / count / (budget + 1)
        number = min(number, total)
        subsets = list(itertools.combinations(range(count), number))
        spare = total - number
        splits = list(itertools.product(range(spare + 1), repeat=max(number - 1, 0)))
        for subset, split in itertools.product(subsets, splits):
            at = [0, *sorted(split), spare]
            skips = tuple(1 + b - a for a, b in itertools.pairwise(at)) if number else ()
            found[subset, skips] += chance / len(subsets) / len(splits)
    assert sum(found.values()) == 1
    return found


@pytest.mark.parametrize(("count", "budget"), [(1, 3), (3, 4)])
def test_draws_follow_the_rule(count, budget):
    """Every outcome within four standard deviations, and no other one."""
    expected, draws = enumerate_rule(count, budget, fractions.Fraction(3, 4)), 20000
    found = collections.Counter()
    for i in range(draws):
        chosen, skips = skipalign.draw_skips(count, budget, 0.75, np.random.Philox(key=[count, i]))
        assert np.all(np.diff(chosen) > 0) and np.all(skips > 0) and skips.sum() <= budget
        found[tuple(chosen.tolist()), tuple(skips.tolist())] += 1
    assert set(found) <= set(expected)
    for outcome, chance in expected.items():
        share = float(chance)
        assert abs(found[outcome] / draws - share) < 4 * np.sqrt(share * (1 - share) / draws), outcome


def test_conversations_of_a_row_share_its_budget():
    """Three conversations, a budget of 1000: the first to skip gets a half on average, whichever it is."""
    spec, count = RowSpec(31, 1031, skip_config()), 4000
    three = pieces_of((4, 6), (5, 5), (7, 3))
    rows = [skipalign.positions(three, spec, np.random.Philox(key=[3, i])) for i in range(count)]
    spans_D = np.array([[at[10] - at[1], at[20] - at[11], at[30] - at[21]] for at in rows]) - 9
    np.testing.assert_allclose(spans_D.mean(0), 1000 * (1 / 2 + 1 / 4 + 1 / 8) / 3, rtol=0.06)
    assert np.all(spans_D.max(0) > 990) and np.all(spans_D.sum(1) <= 1000)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_share_of_conversations_skips(share):
    spec, one = RowSpec(9, 10_000, skip_config(share=share)), pieces_of(BLOCKS)
    rows = [skipalign.positions(one, spec, np.random.Philox(key=[4, i])) for i in range(2000)]
    skipping = np.mean([at[-1] > 8 for at in rows])
    assert abs(skipping - share) < 4 * np.sqrt(share * (1 - share) / 2000) + 1e-3


def test_a_conversation_with_one_border_has_the_exact_distances():
    """A question of 12 tokens and an answer of 8, behind the anchor."""
    packer = packer_of([20], flags_of((12, 8)), 21, 60, share=0.5, mask="anchor", seed=6)
    distances_D, rows = np.arange(81), range(3000)
    found = distances.measure(packer, rows, distances_D)
    exact = distances.skipalign(12, 8, 60, 0.5, distances_D)
    assert exact.pairs_D.sum() == pytest.approx(20 * 21 / 2)
    assert_close(found.documents.probability_D, exact.probability_D, len(rows))
    np.testing.assert_allclose(found.documents.pairs_D, exact.pairs_D, atol=0.35)


def test_texts_are_refused():
    row = RowPieces(np.zeros(1, int), np.ones(1, int), np.zeros(1, int), np.full(1, 8))
    with pytest.raises(ValueError, match="needs rows of conversations"):
        skipalign.positions(row, RowSpec(9, 20, skip_config()), np.random.Philox(key=[0, 0]))


@pytest.mark.parametrize(
    ("changes", "key", "allowed"),
    [
        ({"messages_key": ""}, "data.messages_key", "data.positions=skipalign needs it"),
        ({"max_position": 64}, "data.max_position", "must be more than data.seq_len"),
        ({"skipalign_share": 0.0}, "data.skipalign_share", "above 0 and at most 1"),
        ({"skipalign_where": "between"}, "data.skipalign_where", "all, inner, outer"),
        ({"positions": "pose", "skipalign_where": "inner"}, "data.skipalign_where", "only data.positions=skipalign"),
        ({"positions": "pose", "skipalign_share": 0.4}, "data.skipalign_share", "only data.positions=skipalign"),
    ],
)
def test_combinations_that_cannot_work_are_refused_by_key(changes, key, allowed):
    fixed = {"positions": "skipalign", "messages_key": "messages", "max_position": 512}
    with pytest.raises(ConfigError, match=allowed) as caught:
        tiny.config(**{f"data__{name}": value for name, value in (fixed | changes).items()})
    assert caught.value.key == key


def test_a_store_of_texts_is_refused_at_set_up(tmp_path):
    inputs = preparing.write_jsonl(tmp_path / "in.jsonl", [{"text": "word " * i} for i in range(1, 30)])
    store = str(tmp_path / "store")
    preparing_lib.prepare(preparing.data_config(store=store, source=f"jsonl:{inputs}", held_out_share=0.2))
    with pytest.raises(ConfigError, match=r"it holds texts, and data.messages_key='messages'") as caught:
        data.load_store(skip_config(store=store), "train", TOKENIZER)
    assert caught.value.key == "data.store"


def test_held_out_rows_do_not_skip():
    config = skip_config(seq_len=16)
    store = dataclasses.replace(store_of([8, 30, 9]), trained=np.arange(47) % 3 > 0)
    assert data.row_packer(store, TOKENIZER, config, seed=0).row(0).positions_T.max() > 15
    batch = next(data.eval_rows(store, TOKENIZER, config, 4))
    np.testing.assert_array_equal(batch.positions_BT, np.broadcast_to(np.arange(16), batch.positions_BT.shape))


def test_the_recipe():
    """Conversations of the SFT recipe, with positions of eight rows."""
    config = resolve(recipe("methods/skipalign").to_dict())
    assert (config.data.positions, config.data.skipalign_where, config.data.skipalign_share) == (
        "skipalign",
        "all",
        0.5,
    )
    assert config.data.mask == "anchor" and config.data.messages_key == "messages"
    assert config.max_position == 8 * config.data.seq_len == 16384
