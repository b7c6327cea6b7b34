"""Ways of packing, tags, interleaving, upsampling: rows drawn by hand, and what an epoch of any of them keeps."""

import collections
import dataclasses
import hashlib
import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorjax import data
from anchorjax.data.rows import packing as packing_lib
from anchorjax.data.rows.packing import RowPacker, sources_of
from anchorjax.data.rows.row_plan import Pieces
from anchorjax.data.text import tokenizer as tokenizer_lib
from anchorjax.masks import allowed, anchors_of
from anchorjax.types import MASKS, PACKINGS, POSITIONS
from tests.data.test_loader import assert_equal, config_of
from tests.data.test_packing import ANCHOR, PAD, rows_equal, store_of

TAGS = (np.array([900, 901]), np.array([910]), np.array([], np.int64))


def packer_of(lengths, seq_len, **changes):
    options = {"seed": None, "mask": "anchor", "positions": "continue", "boundary_targets": False}
    return RowPacker(store_of(lengths), seq_len, anchor_id=ANCHOR, pad_id=PAD, **(options | changes))


def mask_rows(row, mask):
    """The attention rule over a row, as one string of 0 and 1 a query."""
    index = np.arange(len(row.tokens_T))
    ids = row.segment_ids_T
    seen = allowed(index[:, None], index[None], ids[:, None], ids[None], anchors_of(mask))
    return ["".join(map(str, query)) for query in seen.astype(int)]


# Documents (a, b, c), (d, e), here 0 1 2 and 3 4.


@pytest.mark.parametrize(
    ("mask", "rows"),
    [
        ("anchor", ["100000", "110000", "111000", "111100", "100010", "100011"]),
        ("intra_doc", ["100000", "010000", "011000", "011100", "000010", "000011"]),
        ("full", ["100000", "110000", "111000", "111100", "111110", "111111"]),
    ],
)
@pytest.mark.parametrize("packing", PACKINGS)
def test_mask_rows_as_drawn(packing, mask, rows):
    assert mask_rows(packer_of([3, 2], 6, mask=mask, packing=packing).row(0), mask) == rows


def test_positions_of_the_layout_with_copied_anchors():
    """[A a b c A d e] with a plain document mask is the same attention, at positions [0 1 2 3 0 4 5]: each copy of the
    anchor at 0, every other token where the shared layout has it."""
    row = packer_of([3, 2], 6).row(0)
    copied, positions, shown = [], [], []
    for segment in (1, 2):
        own = np.flatnonzero(row.segment_ids_T == segment)
        copied += [ANCHOR, *row.tokens_T[own].tolist()]
        positions += [0, *row.positions_T[own].tolist()]
        shown += [0, *own.tolist()]
    assert copied == [ANCHOR, 0, 1, 2, ANCHOR, 3, 4]
    assert positions == [0, 1, 2, 3, 0, 4, 5]
    document = np.cumsum(np.array(copied) == ANCHOR)
    index = np.arange(7)
    plain = (document[:, None] == document[None]) & (index[None] <= index[:, None])
    shared = np.array([[int(x) for x in query] for query in mask_rows(row, "anchor")], bool)
    for query in index:
        seen = sorted(shown[key] for key in np.flatnonzero(plain[query]))
        assert seen == np.flatnonzero(shared[shown[query]]).tolist()


def test_tags_as_drawn():
    row = packer_of([3, 2], 10, tags=TAGS, sources=np.array([0, 1]), positions="reset").row(0)
    assert row.tokens_T.tolist() == [ANCHOR, 900, 901, 0, 1, 2, 910, 3, 4, PAD]
    assert row.targets_T.tolist() == [PAD, PAD, 0, 1, 2, PAD, 3, 4, PAD, PAD]
    assert row.is_target_T.tolist() == [0, 0, 1, 1, 1, 0, 1, 1, 0, 0]
    assert row.segment_ids_T.tolist() == [0, 1, 1, 1, 1, 1, 2, 2, 2, -1]
    assert row.positions_T.tolist() == [0, 0, 1, 2, 3, 4, 0, 1, 2, 9]


def test_no_boundary_target_is_a_tag():
    row = packer_of([3, 2, 1], 10, tags=TAGS, sources=np.array([0, 1, 2]), boundary_targets=True).row(0)
    assert row.tokens_T.tolist() == [ANCHOR, 900, 901, 0, 1, 2, 910, 3, 4, 5]
    assert row.targets_T.tolist() == [PAD, PAD, 0, 1, 2, PAD, 3, 4, 5, PAD], "document 2 has an empty tag"


def test_a_tag_cut_by_the_end_of_a_row_goes_on_in_the_next():
    first, second = (packer_of([3, 2], 7, tags=(TAGS[0],), sources=np.array([0, 0])).row(i) for i in range(2))
    assert first.tokens_T.tolist() == [ANCHOR, 900, 901, 0, 1, 2, 900]
    assert first.targets_T.tolist() == [PAD, PAD, 0, 1, 2, PAD, PAD]
    assert second.tokens_T.tolist() == [ANCHOR, 901, 3, 4, PAD, PAD, PAD]
    assert second.targets_T.tolist() == [PAD, 3, 4, PAD, PAD, PAD, PAD]
    assert second.is_target_T.tolist() == [0, 1, 1, 0, 0, 0, 0]


def test_interleaving_as_drawn(monkeypatch):
    """a | d | b c | e: the pieces' last tokens have their documents' next tokens as targets."""
    pieces = Pieces(np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1]), np.array([1, 1, 2, 1]))
    monkeypatch.setattr(packing_lib, "interleave", lambda *_: pieces)
    rows = {m: packer_of([3, 2], 8, seed=0, interleave=2, mask=m, positions="reset").row(0) for m in MASKS}
    row = rows["anchor"]
    assert row.tokens_T.tolist() == [ANCHOR, 0, 3, 1, 2, 4, PAD, PAD]
    assert row.targets_T.tolist() == [0, 1, 4, 2, PAD, PAD, PAD, PAD]
    assert row.is_target_T.tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert row.positions_T.tolist() == [0, 0, 0, 1, 2, 1, 6, 7]
    assert row.segment_ids_T.tolist() == [0, 1, 2, 1, 1, 2, -1, -1]
    anchor = ["10000000", "11000000", "10100000", "11010000", "11011000", "10100100", "00000000", "00000000"]
    assert mask_rows(row, "anchor") == anchor
    assert mask_rows(rows["intra_doc"], "intra_doc")[3] == "01010000"
    assert mask_rows(rows["full"], "full")[3] == "11110000"
    assert packer_of([3, 2], 8, seed=0, interleave=2).row(0).positions_T.tolist() == list(range(8))


def test_a_tag_cut_by_interleaving_leaves_other_documents_targets_alone(monkeypatch):
    """<0 | d | 1> a b | e with tags of two and no tokens."""
    pieces = Pieces(np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1]), np.array([1, 1, 3, 1]))
    monkeypatch.setattr(packing_lib, "interleave", lambda *_: pieces)
    sources = np.array([0, 2])
    row = packer_of([2, 2], 8, seed=0, interleave=2, tags=TAGS, sources=sources).row(0)
    assert row.tokens_T.tolist() == [ANCHOR, 900, 2, 901, 0, 1, 3, PAD]
    assert row.targets_T.tolist() == [PAD, PAD, 3, 0, 1, PAD, PAD, PAD]


def test_a_boundary_target_is_never_the_middle_of_a_document():
    """Best fit puts the rest of a long document behind a short one."""
    packer = packer_of([2, 7], 6, packing="best_fit", boundary_targets=True)
    (mixed,) = (row for row in map(packer.row, range(2)) if 0 in row.tokens_T)
    assert mixed.tokens_T.tolist() == [ANCHOR, 0, 1, 7, 8, PAD]
    assert mixed.targets_T.tolist() == [0, 1, PAD, 8, PAD, PAD]


variants = st.fixed_dictionaries(
    {
        "packing": st.sampled_from(PACKINGS),
        "interleave": st.sampled_from([0, 2, 3, 5]),
        "mask": st.sampled_from(MASKS),
        # Positions of conversations have tests of their own (tests/methods/test_skipalign.py).
        "positions": st.sampled_from([name for name in POSITIONS if name != "skipalign"]),
        "max_position": st.integers(20, 40),
        "tagged": st.booleans(),
        "upsample_long": st.booleans(),
        "boundary_targets": st.booleans(),
        "seed": st.integers(0, 2**63 - 1),
    }
)


@settings(max_examples=400, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=14),
    seq_len=st.integers(2, 20),
    epoch=st.integers(0, 2),
    variant=variants,
)
def test_what_every_epoch_of_every_variant_keeps(lengths, seq_len, epoch, variant):
    """Rows are read token by token, with no knowledge of plans and pieces."""
    variant = dict(variant)
    variant["boundary_targets"] &= not variant["interleave"]
    sources = np.arange(len(lengths)) % 3
    tags = TAGS if variant.pop("tagged") else None
    packer = packer_of(lengths, seq_len, sources=sources, tags=tags, **variant)
    document_of = np.repeat(np.arange(len(lengths)), lengths)
    firsts, lasts = packer.store.offsets[:-1], packer.store.offsets[1:] - 1
    tokens, targets, in_tags = collections.Counter(), collections.Counter(), 0
    first = sum(packer._num_rows(e) for e in range(epoch))
    for index in range(packer._num_rows(epoch)):
        row = packer.row(first + index)
        real = row.segment_ids_T != -1
        assert row.tokens_T[0] == ANCHOR and row.segment_ids_T[0] == 0
        assert np.all(np.diff(real.astype(int)) <= 0), "pads are at the end"
        assert np.all(row.tokens_T[~real] == PAD) and not np.any(row.is_target_T[~real])
        assert set(row.is_target_T) <= {0, 1}
        assert np.array_equal(row.targets_T == PAD, row.is_target_T == 0)
        assert not np.any((row.targets_T >= 900) & (row.targets_T < ANCHOR)), "no tag is a target"
        targets.update(row.targets_T[row.is_target_T > 0].tolist())
        text = row.tokens_T < 900
        tokens.update(row.tokens_T[text].tolist())
        in_tags += int(((row.tokens_T >= 900) & (row.tokens_T < ANCHOR)).sum())
        # Every token of text has the next of its document as target, or none at its end.
        for place in np.flatnonzero(text):
            token, target = row.tokens_T[place], row.targets_T[place]
            if token not in lasts:
                assert target == token + 1
            else:
                assert target == PAD or (variant["boundary_targets"] and target == row.tokens_T[place + 1])
        # Documents keep their order, and have one segment id and, reset, positions of their own.
        segments = {}
        for document in np.unique(document_of[row.tokens_T[text]]):
            own = np.flatnonzero(text)[document_of[row.tokens_T[text]] == document]
            assert np.all(np.diff(row.tokens_T[own]) == 1)
            segments[document] = set(row.segment_ids_T[own].tolist())
            if variant["positions"] == "reset":
                assert np.all(np.diff(row.positions_T[own]) == 1)
        if variant["positions"] == "continue":
            assert row.positions_T.tolist() == list(range(seq_len))
        if variant["mask"] == "full":
            assert set(row.segment_ids_T[real]) == {0}
        else:
            assert all(len(ids) == 1 for ids in segments.values())
            assert len(set.union(set(), *segments.values())) == len(segments)
            by_place = row.segment_ids_T[1:][real[1:]]
            appear = list(dict.fromkeys(by_place.tolist()))
            assert appear == list(range(1, len(appear) + 1)), "numbered as they appear"
    held = np.unique(document_of[list(tokens)])
    everything = {t for d in held for t in range(packer.store.offsets[d], packer.store.offsets[d + 1])}
    assert tokens == collections.Counter(everything)
    if not variant["upsample_long"]:
        assert held.tolist() == list(range(len(lengths)))
    if tags:
        assert in_tags == sum(len(tags[sources[d]]) for d in held)
    must = {t for t in everything if t not in firsts or (tags and len(tags[sources[document_of[t]]]))}
    assert all(targets[token] == 1 for token in must)
    assert max(targets.values(), default=1) == 1


VARIANTS = {
    "first_fit": {"packing": "first_fit"},
    "best_fit": {"packing": "best_fit", "tags": True},
    "all": {"packing": "first_fit", "tags": True, "interleave": 3, "upsample_long": True, "positions": "reset"},
}
GOLDEN = {"first_fit": "a8a94caec6ad05bf", "best_fit": "6ec4d6388c70105c", "all": "bef53b1e314efee0"}


@dataclasses.dataclass(frozen=True)
class NamedStore(data.TokenStore):
    sources: np.ndarray = None
    source_names: tuple[str, ...] = ()


TOKENIZER = tokenizer_lib.load("bytes")
LENGTHS = np.arange(2, 80)
NAMED = NamedStore(
    np.arange(LENGTHS.sum(), dtype=np.int32) % 250,
    np.concatenate([[0], np.cumsum(LENGTHS)]),
    "test",
    (np.arange(len(LENGTHS)) % 2).astype(np.int16),
    ("web", "a book"),
)


def train(steps, *, start_step=0, rows=None, **changes):
    config = config_of(seq_len=32, **changes)
    batches = data.train_batches(NAMED, TOKENIZER, config, seed=11, start_step=start_step, rows=rows)
    try:
        return list(itertools.islice(batches, steps))
    finally:
        batches.close()


def joined(parts):
    fields = [field.name for field in dataclasses.fields(parts[0])]
    return type(parts[0])(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in fields})


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("hosts", [2, 4])
def test_a_run_resumed_on_other_hosts_sees_the_next_batch(variant, hosts):
    """From the middle of the second epoch on, whose beginning depends on the length of the first."""
    whole = train(60, **VARIANTS[variant])
    shares = np.split(np.arange(config_of().batch_size), hosts)
    parts = [train(23, start_step=37, rows=share.tolist(), **VARIANTS[variant]) for share in shares]
    assert_equal([joined(part) for part in zip(*parts, strict=True)], whole[37:])


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_the_order(workers):
    variant = VARIANTS["all"]
    assert_equal(train(7, start_step=24, workers=workers, **variant), train(7, start_step=24, **variant))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_row_does_not_depend_on_the_rows_read_before(variant):
    options = dict(VARIANTS[variant])
    options["tags"] = TAGS if options.get("tags") else None
    make = lambda: packer_of([3, 1, 7, 2, 9], 6, **({"seed": 3} | options))  # noqa: E731
    shared = make()
    for index in [40, 3, 17, 0, 41, 99, 18]:
        assert rows_equal(shared.row(index), make().row(index))
        assert rows_equal(pickle.loads(pickle.dumps(shared)).row(index), make().row(index))


@pytest.mark.parametrize("packing", PACKINGS)
def test_an_epoch_is_planned_once(packing, monkeypatch):
    planned = []
    make = RowPacker._make_plan
    monkeypatch.setattr(RowPacker, "_make_plan", lambda self, epoch: planned.append(epoch) or make(self, epoch))
    packer = packer_of([3, 1, 7, 2, 9], 6, seed=3, packing=packing)
    for index in range(5 * packer.rows_per_epoch):
        packer.row(index + 1)  # as a prefetching thread, one ahead
        packer.row(index)
    assert planned == sorted(set(planned)), "an epoch was planned again"


def test_tags_are_the_names_of_the_sources():
    batch = joined(train(20, tags=True, packing="best_fit"))
    text = TOKENIZER.decode(batch.tokens_BT.ravel())
    assert "web" in text and "a book" in text
    assert "public_domain" in TOKENIZER.decode(joined(list(_untold(tags=True))).tokens_BT.ravel())


def _untold(**changes):
    """A store that names no sources is of one: that of the configuration."""
    store = data.TokenStore(NAMED.tokens, NAMED.offsets, "test")
    sources, names = sources_of(store, only="x")
    assert names == ("x",) and sources.tolist() == [0] * len(LENGTHS)
    return data.eval_rows(store, TOKENIZER, config_of(seq_len=32, **changes), max_rows=0)


def test_evaluation_is_the_same_for_all_packings_and_has_tags():
    options = {"packing": "best_fit", "interleave": 2, "upsample_long": True}
    assert_equal(list(_untold(**options)), list(_untold()))
    assert not np.array_equal(next(_untold(tags=True)).tokens_BT, next(_untold()).tokens_BT)


def test_the_report_of_a_run():
    report = data.row_packer(NAMED, TOKENIZER, config_of(seq_len=32, packing="best_fit"), seed=1).report()
    assert report.cut == pytest.approx((LENGTHS > 31).mean()) and 0.95 < report.fill <= 1
    upsampled = data.row_packer(NAMED, TOKENIZER, config_of(seq_len=32, upsample_long=True), seed=1).report()
    assert upsampled.kept == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"packing": "worst_fit"}, "'worst_fit'; allowed: concat_split, first_fit, best_fit"),
        ({"interleave": 1, "seed": 1}, "interleave is 1"),
        ({"interleave": 2}, "need a seed"),
        ({"upsample_long": True}, "need a seed"),
        ({"interleave": 2, "seed": 1, "boundary_targets": True}, "no boundary_targets"),
    ],
)
def test_impossible_variants_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        packer_of([3], 4, **changes)


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_never_change(variant):
    """Golden. If this fails, a resumed run would see other data than before: keep the rows, or say so."""
    digest = hashlib.sha256()
    for batch in train(40, **VARIANTS[variant]):
        is_target_BT = batch.is_target_BT.astype(np.float32)
        fields = batch.tokens_BT, batch.targets_BT, is_target_BT, batch.positions_BT, batch.segment_ids_BT
        for values in fields:  # the others follow from these
            digest.update(values.tobytes())
    assert digest.hexdigest()[:16] == GOLDEN[variant]
