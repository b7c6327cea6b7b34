"""Key tokens by the definition of LongPPL, their way between tokenizers, and the authors' package where it is right."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anchorjax.data.text import tokenizer as tokenizer_lib
from anchorjax.errors import EvaluationError, UsageError
from anchorjax.evaluation import runner, texts, windows
from anchorjax.evaluation.record import Record
from anchorjax.evaluation.tasks import key_tokens, longppl
from anchorjax.evaluation.tasks.key_tokens import Piece, Rule
from anchorjax.evaluation.texts import Chosen
from anchorjax.inference import language_model
from anchorjax.inference.scoring import Scorer
from tests.checkpoints.huggingface import tiny
from tests.evaluation.making import write_tokenizer

BYTES = tokenizer_lib.load("bytes")
LONG, SHORT = np.array([2, 1, 1.5, 1]), np.array([2, 3, 0.5, 4])
RULE = Rule(context=16, stride=7, alpha=0.05, beta=-5.0)  # what random weights keep
TEXT = " ".join(np.random.default_rng(0).choice(["dear", "Emma", "was", "walking", "to", "Highbury", "again."], 26))


def test_key_tokens_are_strictly_above_both_bounds():
    """The second token's gain is exactly alpha; the third's is negative; the first's log-probability exactly beta."""
    assert Rule().key_tokens(LONG, SHORT).tolist() == [False, False, False, True]
    assert Rule(alpha=1.99).key_tokens(LONG, SHORT).tolist() == [False, True, False, True]
    assert Rule(beta=-1.0).key_tokens(LONG, SHORT).tolist() == [False] * 4
    assert Rule(alpha=-0.5, beta=-2.01).key_tokens(LONG, SHORT).tolist() == [True, True, False, True]
    assert Rule().key_tokens(LONG, np.full(4, np.nan)).tolist() == [False] * 4


def test_longppl_is_exp_of_the_mean_over_key_tokens():
    one = key_tokens.sums_of(LONG, Rule().key_tokens(LONG, SHORT))
    found = key_tokens.summary([one])
    assert math.isclose(found["longppl"], math.e)
    assert math.isclose(found["perplexity"], math.exp(1.375))
    assert (found["key_tokens"], found["key_share"]) == (1, 0.25)
    other = key_tokens.sums_of(np.array([3.0, 3.0, 9.0]), np.array([True, True, False]))
    assert math.isclose(key_tokens.summary([one, other])["longppl"], math.exp((1 + 3 + 3) / 3)), "by key tokens"


def test_without_key_tokens_there_is_no_longppl():
    found = key_tokens.summary([key_tokens.sums_of(LONG, np.zeros(4, bool))])
    assert found["longppl"] is None and found["key_share"] == 0
    assert "no key tokens at length 4: LongPPL is not defined there" in longppl.table({4: {"too_short": 0} | found})


OFFSETS = st.lists(st.integers(0, 3), max_size=12).map(
    lambda widths: [(sum(widths[:i]), sum(widths[: i + 1])) for i in range(len(widths))]
)


@given(theirs=OFFSETS, ours=OFFSETS, data=st.data())
def test_spans_are_the_characters_of_key_tokens(theirs, ours, data):
    keys = data.draw(st.lists(st.booleans(), min_size=len(theirs), max_size=len(theirs)))
    spans = key_tokens.merge(np.array(theirs).reshape(-1, 2), np.array(keys, bool))
    characters = {c for span, key in zip(theirs, keys, strict=True) if key for c in range(*span)}
    assert {c for span in spans for c in range(*span)} == characters
    assert all(end < begin for (_, end), (begin, _) in itertools.pairwise(spans)), "touching spans are one"
    counted = key_tokens.inside(np.array(ours).reshape(-1, 2), spans)
    assert counted.tolist() == [begin < end and set(range(begin, end)) <= characters for begin, end in ours]


def test_tokens_that_share_a_character_do_not_make_two_spans():
    ids, offsets_T2 = BYTES.encode_with_offsets("né!")
    assert len(ids) == 4
    assert key_tokens.merge(offsets_T2, np.array([False, True, True, False])) == [(1, 2)]
    assert key_tokens.merge(offsets_T2, np.array([True, False, True, False])) == [(0, 2)]
    assert key_tokens.inside(offsets_T2, [(1, 2)]).tolist() == [False, True, True, False]


@pytest.mark.parametrize("taken", [1, 2, 3, 6])
def test_a_piece_ends_with_a_whole_character(taken):
    """The cut may lie inside of é, whose first byte then belongs to no piece."""
    text = "née!"
    piece = Piece.cut(Chosen(text, BYTES.encode(text)[:taken]), BYTES, taken + 1)
    ids, offsets_T2 = piece.tokens(BYTES)
    assert text[: piece.end] == BYTES.decode(ids) == {1: "n", 2: "n", 3: "né", 6: "née!"}[taken]
    assert len(ids) == len(offsets_T2) <= taken


class Engine:
    """A model that is loaded already, as `runner.answer` takes one."""

    step, weights_id = None, "-"

    def __init__(self, model, scorer):
        self.model, self.scorer = model, lambda: scorer


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(transformers' model, a reader of its directory, the directory)."""
    directory = tmp_path_factory.mktemp("model")
    theirs = tiny.make("llama untied", directory)
    write_tokenizer(directory)
    description = language_model.describe(hf=directory)
    model = language_model.load(description, language_model.make_mesh(description.model, 1))
    return theirs, Engine(description, Scorer(model, 2)), directory


def their_nats(theirs, rows: list[list[int]]) -> np.ndarray:
    """-log p [rows, longest - 1] of all tokens but the first; behind a row's end it means nothing."""
    longest = max(map(len, rows))
    tokens_RT = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    with torch.no_grad():
        nats_RTV = -torch.log_softmax(theirs(tokens_RT).logits[:, :-1].double(), -1)
    return nats_RTV.gather(2, tokens_RT[:, 1:, None])[..., 0].numpy()


def test_judging_and_measuring_follow_the_definition(pair, tmp_path):
    theirs, reader, _ = pair
    bos, ids = reader.model.tokenizer.bos_id, reader.model.tokenizer.encode(TEXT).tolist()
    long_T = their_nats(theirs, [[bos, *ids]])[0]
    begins = {t: (t - RULE.context) // RULE.stride * RULE.stride for t in range(RULE.context, len(ids))}
    short = their_nats(theirs, [[bos, *ids[begin : t + 1]] for t, begin in begins.items()])
    keys = []
    for nats, (t, begin) in zip(short, begins.items(), strict=True):
        if nats[t - begin] - long_T[t] > RULE.alpha and -long_T[t] > RULE.beta:
            keys.append(t)
    assert 3 < len(keys) < len(ids) / 2
    piece = Piece(TEXT, len(TEXT), len(ids) + 1)
    judge = longppl.KeyTokens([piece], RULE, reader.model.tokenizer)
    with Record(tmp_path, {}) as record:
        runner.answer(record, judge, reader)
        (judged,) = record.answers.values()
        assert judged["keys"] == len(keys)
        assert [t for begin, end in judged["spans"] for t in range(begin, end)] == keys, "a token is a character here"
        runner.answer(record, longppl.LongPPL({piece: judged["spans"]}, reader.model.tokenizer), reader)
        measured = record.answers["-", "longppl", piece.length, 0]
    for line in (judged, measured):
        found = key_tokens.summary([line["sums"]])
        assert math.isclose(found["longppl"], math.exp(long_T[keys].mean()), rel_tol=1e-4)
        assert math.isclose(found["perplexity"], math.exp(long_T.mean()), rel_tol=1e-4)
    assert math.isclose(measured["score"], long_T[keys].mean(), rel_tol=1e-4)


def test_agrees_with_the_authors_package(pair):
    """Without BOS, on which its evaluator and its model do not agree."""
    from longppl.longppl import compute_longppl
    from transformers import PreTrainedTokenizerFast

    theirs, reader, directory = pair
    rules = PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"))
    bounds = {"trunc_len": RULE.context, "sliding_window": RULE.stride, "alpha": RULE.alpha, "beta": RULE.beta}
    wanted = compute_longppl(TEXT, theirs, theirs, rules, rules, **bounds)

    ids_T, offsets_T2 = reader.model.tokenizer.encode_with_offsets(TEXT)
    scorer, size = reader.scorer(), len(ids_T)
    (long_T,) = windows.score(scorer, [ids_T], [windows.whole(size)], [])
    (short_T,) = windows.score(scorer, [ids_T], [RULE.windows(size)], [])
    spans = key_tokens.merge(offsets_T2, RULE.key_tokens(long_T, short_T))
    keys_T = key_tokens.inside(offsets_T2, spans)
    assert (keys_T.sum(), size) == (wanted["n_key_token"], wanted["n_token"])
    assert math.isclose(np.exp(long_T[keys_T].mean()), wanted["longppl"], rel_tol=1e-4)
    assert math.isclose(np.exp(long_T[1:].mean()), wanted["ppl"], rel_tol=1e-4)


def write(path, **changes):
    entry = {"document": texts.digest("abcdef"), "end": 5, "length": 9, "spans": [[0, 2], [3, 5]]} | changes
    path.write_text(json.dumps({"evaluator": {}, "rule": {}, "documents": [entry]}))
    return path


def test_a_file_of_key_tokens_is_checked(tmp_path):
    file = tmp_path / "key_tokens.json"
    spans, _ = key_tokens.from_json(write(file), ["xyz", "abcdef"])
    assert spans == {Piece("abcdef", 5, 9): [(0, 2), (3, 5)]}
    unknown = {"document": "0"}, "the document 0 is not in the text"
    beyond = {"spans": [[3, 6]]}, "do not ascend within it"
    broken = {"end": []}, "cannot be used: TypeError"
    for change, message in (unknown, beyond, broken):
        with pytest.raises(EvaluationError, match=message):
            key_tokens.from_json(write(file, **change), ["abcdef"])


def test_a_rule_without_bounds_is_refused():
    with pytest.raises(UsageError, match="must be finite"):
        Rule(alpha=math.nan)
