"""Conversations become a store: their tokens, flags and ends, and the rows that hold none."""

import dataclasses
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from anchorjax import data
from anchorjax.cli.prepare import summary
from anchorjax.data.bad_rows import BadRow
from anchorjax.data.conversations import Conversation
from anchorjax.data.store import preparing as preparing_lib
from anchorjax.data.store import remarks
from anchorjax.data.store import tokens as store_lib
from anchorjax.data.store.index import CONVERSATIONS, Index
from anchorjax.data.store.tokens import TokenStore
from anchorjax.data.text import tokenizer as tokenizer_lib
from anchorjax.errors import ConfigError, DataError
from tests.data import preparing
from tests.data.chat_templates import PLAIN, SPECIALS
from tests.data.preparing import data_config
from tests.evaluation import bpe

SAID = {"user": "Question", "assistant": "Answer"}


def messages(number, turns=1):
    said = [(role, f"{text} {number}.{i}.") for i in range(turns) for role, text in SAID.items()]
    return [{"role": role, "content": content} for role, content in said]


ROWS = [{"messages": messages(i, 1 + i % 3), "source": f"s{i % 2}"} for i in range(40)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return str(bpe.write(tmp_path_factory.mktemp("bpe"), PLAIN["llama_3"], SPECIALS))


def prepare(tmp_path, directory, source, **changes):
    return preparing.prepare(tmp_path, source, tokenizer=directory, **({"messages_key": "messages"} | changes))


def texts_of(store, tokenizer, only_trained=False):
    for i in range(store.num_documents):
        ids, trained = store.document(i), store.trained[store.offsets[i] : store.offsets[i + 1]]
        yield tokenizer.rules.decode(ids[trained] if only_trained else ids, skip_special_tokens=False)


def turns_of(row):
    return "".join(f"{one['content']}<|eot_id|>" for one in row["messages"] if one["role"] == "assistant")


def test_a_store_of_conversations(tmp_path, directory):
    stores = prepare(tmp_path, directory, f"jsonl:{preparing.write_jsonl(tmp_path / 'x.jsonl', ROWS)}")
    tokenizer = tokenizer_lib.load(directory)
    trained = [text for store in stores for text in texts_of(store, tokenizer, only_trained=True)]
    assert sorted(trained) == sorted(map(turns_of, ROWS))
    for store in stores:
        assert store.trained.dtype == bool and type(store.trained) is np.ndarray
        index = Index.read(store.path)
        assert index.format == CONVERSATIONS and index.trained_tokens == store.trained.sum() > 0
        assert store_lib.verify(store.path).fingerprint == store.fingerprint
        assert set(store.source_names) == {"s0", "s1"}
        for text in texts_of(store, tokenizer):
            assert text.startswith("<|start_header_id|>system"), "the row's anchor is BOS"
            assert text.endswith("<|eot_id|>"), "no EOS behind the template's own end"
    assert remarks.of(Index.read(stores[0].path))[0][0] == "trained"
    assert f"trained     {stores[0].trained.sum()} of " in summary("x", {"train": Index.read(stores[0].path)})


def as_lists(rows):
    """As `datasets` stores a Sequence of dicts: an object of lists."""
    columns = [{key: [one[key] for one in row["messages"]] for key in ("role", "content")} for row in rows]
    return pyarrow.table({"messages": columns, "source": [row["source"] for row in rows]})


@pytest.mark.parametrize("kind", ["parquet", "arrow", "lists", "zst", "array_record"])
def test_every_source_of_objects_gives_the_same_store(kind, tmp_path, directory):
    expected, _ = prepare(tmp_path, directory, f"jsonl:{preparing.write_jsonl(tmp_path / 'x.jsonl', ROWS)}")
    (tmp_path / "other").mkdir()
    file = tmp_path / "other" / f"x.{kind}"
    if kind == "parquet":
        rows = [row | {"messages": [one | {"tool_calls": None} for one in row["messages"]]} for row in ROWS]
        source = f"parquet:{preparing.write_parquet(file, rows)}"
    elif kind == "arrow":
        source = f"parquet:{preparing.write_arrow(file, ROWS)}"
    elif kind == "lists":
        pyarrow.parquet.write_table(as_lists(ROWS), file.with_suffix(".parquet"))
        source = f"parquet:{file.with_suffix('.parquet')}"
    elif kind == "zst":
        source = f"jsonl:{preparing.write_jsonl(file.with_suffix('.jsonl.zst'), ROWS)}"
    else:
        source = f"array_record:{preparing.write_array_record(file, [json.dumps(row).encode() for row in ROWS])}"
    found, _ = prepare(tmp_path / "other", directory, source)
    assert found.fingerprint == expected.fingerprint
    np.testing.assert_array_equal(found.trained, expected.trained)


def test_a_store_is_the_same_for_any_number_of_workers(tmp_path, directory, monkeypatch):
    monkeypatch.setattr("anchorjax.data.sources.jsonl.PART_BYTES", 1000)
    source = f"jsonl:{preparing.write_jsonl(tmp_path / 'x.jsonl', ROWS)}"
    prints = []
    for workers in (0, 2):
        (tmp_path / str(workers)).mkdir()
        prints.append(prepare(tmp_path / str(workers), directory, source, workers=workers)[0].fingerprint)
    assert prints[0] == prints[1]


def test_a_key_may_lead_into_an_object(tmp_path, directory):
    rows = [{"chat": {"turns": row["messages"]}} for row in ROWS]
    source = f"jsonl:{preparing.write_jsonl(tmp_path / 'x.jsonl', rows)}"
    train, _ = prepare(tmp_path, directory, source, messages_key="chat.turns")
    assert train.num_documents > 20


def of(value, **changes):
    return Conversation.of(value, "messages", **({"max_bytes": 1000} | changes))


USER, ANSWER = messages(0)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([], "messages has no message"),
        ("hello", "messages is not a list of messages"),
        ({"role": ["user"], "content": []}, "messages is not a list of messages"),
        ({"role": "user", "content": "x"}, "messages is not a list of messages"),
        (["hello"], "a message in messages is not an object"),
        ([{"from": "human", "value": "x"}], "a message in messages has no role"),
        ([USER | {"role": "human"}], "a role in messages is not one of system, user, assistant, tool"),
        ([{"role": "user"}], "a message in messages has no content"),
        ([USER | {"content": None}], "a message in messages has no content"),
        ([USER | {"content": 3}], "a content in messages is not a text"),
        ([USER | {"content": [{"type": "image"}]}], "a content in messages has parts that are not texts"),
        ([USER], "messages has no message of the assistant"),
        ([USER, ANSWER | {"content": "\0"}], "messages holds a NUL character"),
        ([USER, ANSWER | {"name": ["\0"]}], "messages holds a NUL character"),
        ([USER, ANSWER | {"content": "\ud800"}], "messages holds a lone surrogate"),
        ([USER, ANSWER | {"content": "x" * 1000}], "longer than data.max_row_bytes=1000"),
    ],
)
def test_bad_conversations(value, reason):
    with pytest.raises(BadRow) as error:
        of(value)
    assert str(error.value) == reason


def test_what_a_template_gets():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert of([USER | {"content": parts, "name": None}, ANSWER]).messages == (USER | {"content": "ab"}, ANSWER)
    arrays = np.array([USER, ANSWER], object)
    assert (
        of(arrays)
        == of([USER, ANSWER])
        == of({"role": ["user", "assistant"], "content": np.array([USER["content"], ANSWER["content"]], object)})
    )
    called = of([USER, {"role": "assistant", "content": None, "tool_calls": [1], "reasoning": "why"}]).messages[1]
    assert called == {"role": "assistant", "tool_calls": [1]} | dict.fromkeys(
        ("reasoning", "reasoning_content", "thinking"), "why"
    )
    assert of([USER, ANSWER]).encode() != of([USER, ANSWER | {"content": "x"}]).encode()


BAD = [
    {"messages": [USER]},
    {"messages": [USER, {"role": "system", "content": "late"}, ANSWER, {"role": "tool", "content": "x"}]},
    {"text": "hello"},
]


def test_bad_rows_are_counted(tmp_path, directory):
    template = PLAIN["llama_3"].replace(
        "{{- bos_token -}}",
        ("{{- bos_token -}}{%- if messages[-1].role == 'tool' -%}{{- raise_exception('no tools') -}}{%- endif -%}"),
    )
    directory = str(bpe.write(tmp_path, template, SPECIALS))
    source = f"jsonl:{preparing.write_jsonl(tmp_path / 'x.jsonl', ROWS + BAD)}"
    with pytest.raises(DataError, match=r"x.jsonl:41: messages has no message of the assistant; data.bad_rows='skip'"):
        prepare(tmp_path, directory, source)
    train, _ = prepare(tmp_path, directory, source, bad_rows="skip", max_bad_share=0.2)
    assert Index.read(train.path).bad_rows == {
        "messages has no message of the assistant": 1,
        "the chat template does not take the messages": 1,
        "messages is missing or null": 1,
    }


def test_a_bad_row_says_where_and_why(tmp_path, directory):
    source = f"jsonl:{preparing.write_jsonl(tmp_path / 'x.jsonl', [{'messages': [{'value': 'x'}]}])}"
    with pytest.raises(DataError, match=r"x.jsonl:1: a message in messages has no role \(it has value\)"):
        prepare(tmp_path, directory, source)
    source = f"jsonl:{preparing.write_jsonl(tmp_path / 'y.jsonl', [{'conversation': []}])}"
    with pytest.raises(DataError, match=r"data.messages_key='messages' names nothing in the row"):
        prepare(tmp_path, directory, source)
    table = preparing.write_parquet(tmp_path / "z.parquet", [{"conversation": []}])
    with pytest.raises(DataError, match=r"has no column 'messages'.*\(data.messages_key='messages'\)"):
        prepare(tmp_path, directory, f"parquet:{table}")


def test_what_cannot_hold_conversations(tmp_path, directory):
    (tmp_path / "x.txt").write_text("hello")
    for source in ("public_domain", f"text_folder:{tmp_path}"):
        with pytest.raises(ConfigError, match=r"data.source=.*holds texts, and data.messages_key='messages' needs"):
            prepare(tmp_path, directory, source)
    with pytest.raises(ConfigError, match="conversations need a directory with a chat template"):
        prepare(tmp_path, "bytes", "jsonl:never_read")
    (tmp_path / "none").mkdir()
    with pytest.raises(ConfigError, match=r"data.tokenizer=.*has no chat template"):
        prepare(tmp_path, str(bpe.write(tmp_path / "none", None)), "jsonl:never_read")
    with pytest.raises(ConfigError, match=r"data.messages_key='messages'.*it needs data.store"):
        data.load_store(data_config(messages_key="messages"), "train", preparing.BYTES)


def test_texts_are_not_taken_for_conversations(tmp_path, directory):
    rows = [{"text": f"text {i}"} for i in range(30)]
    source = f"jsonl:{preparing.write_jsonl(tmp_path / 'x.jsonl', rows)}"
    preparing.prepare(tmp_path, source, tokenizer=directory)
    config = data_config(store=str(tmp_path / "store"), messages_key="messages")
    with pytest.raises(ConfigError, match=r"data.store=.* it holds texts, and data.messages_key='messages' asks"):
        data.load_store(config, "train", tokenizer_lib.load(directory))


def test_another_template_does_not_go_on_with_the_pieces(tmp_path, directory, monkeypatch):
    source = f"jsonl:{preparing.write_jsonl(tmp_path / 'x.jsonl', ROWS)}"
    with monkeypatch.context() as patch:
        patch.setattr(preparing_lib.joining, "join", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path, directory, source)
    other = json.loads((tmp_path / "store.part/request.json").read_text())
    assert other["messages_key"] == "messages"
    (tmp_path / "other").mkdir()
    changed = str(bpe.write(tmp_path / "other", PLAIN["chatml"], SPECIALS))
    with pytest.raises(DataError, match="is an unfinished preparation of something else \\(chat_template: "):
        prepare(tmp_path, changed, source)


DAMAGE = {
    "flags missing": (lambda store: (store / "trained.bin").unlink(), r"trained.bin cannot be read"),
    "flags cut": (lambda store: (store / "trained.bin").write_bytes(b"\1"), "trained.bin is damaged: it has 1 bytes"),
    "texts": (lambda store: edit(store, format=3), "its keys differ in trained_tokens"),
    "no number": (lambda store: edit(store, trained_tokens=None), "trained_tokens is None, not a int"),
    "no digest": (lambda store: edit(store, sha256={}), "sha256 names "),
}


def edit(store, **changes):
    content = json.loads((store / "index.json").read_text())
    (store / "index.json").write_text(json.dumps(content | changes))


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_at_opening(name, tmp_path, directory):
    train, _ = prepare(tmp_path, directory, f"jsonl:{preparing.write_jsonl(tmp_path / 'x.jsonl', ROWS)}")
    damage, message = DAMAGE[name]
    damage(train.path)
    with pytest.raises(DataError, match=message):
        TokenStore.open(train.path)


def test_damage_inside_is_found_by_verify(tmp_path, directory):
    train, _ = prepare(tmp_path, directory, f"jsonl:{preparing.write_jsonl(tmp_path / 'x.jsonl', ROWS)}")
    flags = train.trained.copy()
    flags[0] = not flags[0]
    (train.path / "trained.bin").write_bytes(flags.tobytes())
    with pytest.raises(DataError, match=r"trained.bin is damaged: its sha256"):
        store_lib.verify(train.path)


def test_ids_beyond_those_of_texts(tmp_path, directory):
    """A special token that no text holds (Llama 3's <|eot_id|> beside a smaller EOS) may be the largest id."""
    path = bpe.write(tmp_path, PLAIN["llama_3"].replace("<|eot_id|>", "<|last|>"), SPECIALS)
    rules = tokenizer_lib.load(str(path)).rules
    rules.add_special_tokens(["<|last|>"])
    rules.save(str(path / "tokenizer.json"))
    tokenizer = tokenizer_lib.load(str(path))
    last = tokenizer.rules.token_to_id("<|last|>")
    assert tokenizer.vocab_size <= last < tokenizer.chat_vocab_size
    train, _ = prepare(tmp_path, str(path), f"jsonl:{preparing.write_jsonl(tmp_path / 'x.jsonl', ROWS)}")
    assert Index.read(train.path).vocab_size == last + 1 == train.tokens.max() + 1
    assert dataclasses.is_dataclass(store_lib.verify(train.path))
