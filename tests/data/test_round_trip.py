"""A tokenizer is used only if it is shown to give texts back; what may be lost is counted."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from anchorjax.cli import prepare as prepare_cli
from anchorjax.data.store import tokens as store_lib
from anchorjax.data.store.index import Index
from anchorjax.data.text import round_trip
from anchorjax.data.text import tokenizer as tokenizer_lib
from anchorjax.errors import ConfigError, DataError
from tests import smollm2
from tests.data import preparing
from tests.data.test_tokenizer import BYTE_PIECES, STYLES, byte_level, load, refusal, save

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
SPECIALS = ("<s>", "</s>", "<pad>")


def bytes_only(missing: str = "", **changes) -> Tokenizer:
    """Byte-level without merges, and without the bytes that byte-level writes as the characters of `missing`."""
    alphabet = [character for character in ALPHABET if character not in missing]
    built = Tokenizer(models.BPE(vocab={character: i for i, character in enumerate(alphabet)}, merges=[]))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    built.add_special_tokens(list(SPECIALS))
    for name, value in changes.items():
        setattr(built, name, value)
    return built


def without_alphabet() -> Tokenizer:
    """As the trainer makes it by default: with the bytes of what it has seen."""
    built = Tokenizer(models.BPE())
    built.pre_tokenizer, built.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=list(SPECIALS), show_progress=False)
    built.train_from_iterator(["Hello World, the cat sat on the mat. " * 20] * 20, trainer)
    return built


def fallback(pieces: list[str], space: str | Regex = " ") -> Tokenizer:
    """SentencePiece's BPE with ASCII and some byte pieces."""
    tokens = ["<unk>", *SPECIALS, *pieces, *map(chr, range(0x21, 0x7F)), "▁"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    built = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    built.normalizer = normalizers.Replace(space, "▁")
    built.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    built.add_special_tokens(list(SPECIALS))
    return built


def with_token(token: str, style: str = "byte_level", **how) -> Tokenizer:
    built = STYLES[style]()
    built.add_tokens([AddedToken(token, **how)])
    return built


replace = normalizers.Replace


def removing(pattern, invert: bool = False):
    split = pre_tokenizers.Split(pattern, "removed", invert)
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


LOSSY = {
    "trained without initial_alphabet": (without_alphabet, "'two  spaces,", "comes back as"),
    "one leading byte": (lambda: bytes_only("Ã"), "'café, Zoë", "comes back as"),
    "one byte of three": (lambda: bytes_only("ª"), "'", "comes back as"),
    "no byte piece": (lambda: fallback([]), "'two  spaces,", "<unk>"),
    "all byte pieces but one": (lambda: fallback([one for one in BYTE_PIECES if one != "<0x9F>"]), "'", "<unk>"),
    "no line end": (lambda: fallback([one for one in BYTE_PIECES if one != "<0x0A>"]), "'two  spaces,", "<unk>"),
    "Lowercase": (lambda: bytes_only(normalizer=normalizers.Lowercase()), "'Hello World' comes back as 'hello", ""),
    "Strip": (lambda: bytes_only(normalizer=normalizers.Strip()), "and lines'", "Strip"),
    "NFKC": (lambda: bytes_only(normalizer=normalizers.NFKC()), "€ — “quoted” 1⁄2 fi'", "NFKC"),
    "StripAccents": (
        lambda: bytes_only(normalizer=normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])),
        "'cafe, Zoe",
        "StripAccents",
    ),
    "spaces collapsed": (lambda: bytes_only(normalizer=normalizers.Replace("  ", " ")), "'two  spaces,", "Replace"),
    "quotes put right": (
        lambda: bytes_only(normalizer=normalizers.Sequence([replace("``", '"'), replace("''", '"')])),
        'comes back as \'"quoted" ',
        "Replace",
    ),
    "a dash for two": (lambda: bytes_only(normalizer=replace("--", "—")), '"—" (c)…', "Replace"),
    "a sign that no sample has": (
        lambda: bytes_only(normalizer=replace("(tm)", "™")),
        "'a(tm)b' comes back as 'a™b'",
        "",
    ),
    "no more than three line ends": (
        lambda: bytes_only(normalizer=replace(Regex("\n{4,}"), "\n\n\n")),
        "(c)…\\n\\n\\n  ",
        "Replace",
    ),
    "a tag that splits": (lambda: bytes_only(pre_tokenizer=removing("<br>")), "'a<br>b' comes back as 'ab'", "Split"),
    "a character that splits": (
        lambda: bytes_only(
            pre_tokenizer=pre_tokenizers.Sequence(
                [pre_tokenizers.CharDelimiterSplit("㆔"), pre_tokenizers.ByteLevel(False)]
            )
        ),
        "'a㆔b' comes back as 'ab'",
        "",
    ),
    "lstrip": (lambda: with_token("<tool>", lstrip=True), "'a  <tool>  b' comes back as 'a<tool>  b'", ""),
    "rstrip": (lambda: with_token("<tool>", rstrip=True), "'a  <tool>  b' comes back as 'a  <tool>b'", ""),
    "rstrip after a space": (
        lambda: with_token("<tool>", "llama2", rstrip=True, normalized=False),
        "comes back as 'a  <tool> b'",
        "",
    ),
}


@pytest.mark.parametrize("name", LOSSY)
def test_a_tokenizer_that_loses_text_is_refused_with_the_first_that_it_loses(tmp_path, name):
    build, *words = LOSSY[name]
    message = refusal(save(tmp_path, build()))
    assert message.startswith(f"{tmp_path}/tokenizer.json cannot be used: it loses text: '"), message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"normalizer": replace(Regex("-{99,}"), "-")}, r"its Replace takes out what matches '-{99,}', and that may"),
        ({"pre_tokenizer": removing(Regex("={99,}"))}, r"its Split takes out what matches '={99,}', and that may"),
    ],
)
def test_a_regular_expression_that_takes_text_out_is_refused_by_name(tmp_path, step, message):
    assert message in refusal(save(tmp_path, bytes_only(**step)))


QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def split_by(pattern: str):
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


KEPT = {
    "all bytes": bytes_only,
    "all byte pieces": lambda: fallback(BYTE_PIECES),
    "NFC": lambda: bytes_only(normalizer=normalizers.NFC()),
    "NFD": lambda: bytes_only(normalizer=normalizers.NFD()),
    "a space before a text": lambda: bytes_only(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "a token within words": lambda: with_token("tool", single_word=True),
    "a token of spaces": lambda: with_token("    "),
    "a token of line ends": lambda: with_token("\n\n", "gemma"),
    "a token behind which a space is put": lambda: with_token("<tool>", "llama2", normalized=False),
    "as Qwen": lambda: bytes_only(normalizer=normalizers.NFC(), pre_tokenizer=split_by(QWEN)),
    "as GPT-4, which removes what does not match": lambda: bytes_only(pre_tokenizer=removing(Regex(QWEN), invert=True)),
    "a space spelled as an expression": lambda: fallback(BYTE_PIECES, Regex(" ")),
    "as Llama 3": lambda: bytes_only(pre_tokenizer=split_by(QWEN.replace(r"\p{N}", r"\p{N}{1,3}"))),
    **STYLES,
}


@pytest.mark.parametrize("name", KEPT)
def test_a_tokenizer_that_loses_nothing_is_taken(tmp_path, name):
    tokenizer = load(tmp_path, KEPT[name]())
    ids = tokenizer.encode("Hello  World\n日本 é")
    assert tokenizer.decode(ids).replace("e\u0301", "é").strip(" ") == "Hello  World\n日本 é"


def test_every_byte_of_utf8_is_in_every_place_of_the_texts():
    texts = "".join(round_trip._characters())
    assert {chr(point) for point in range(0x800)} <= set(texts)
    places = {
        (length, place, byte) for c in texts for length in (len(c.encode()),) for place, byte in enumerate(c.encode())
    }
    follow = range(0x80, 0xC0)
    for length, leads in ((2, range(0xC2, 0xE0)), (3, range(0xE0, 0xF0)), (4, range(0xF0, 0xF5))):
        assert {byte for n, place, byte in places if (n, place) == (length, 0)} == set(leads)
        for at in range(1, length):
            assert {byte for n, place, byte in places if (n, place) == (length, at)} == set(follow), (length, at)


ALLOWED = (0x04, 0x1D, 0x7F, 0xC0, 0xF1, 0xF2, 0xF5, 0xFF)
NEEDED = (0x09, 0x0A, 0x0B, 0x0C, 0x20, 0x41, 0x62, 0x80, 0x9F, 0xBF, 0xC2, 0xDF, 0xE0, 0xEF, 0xF0, 0xF3, 0xF4)


@pytest.mark.parametrize("byte", ALLOWED + NEEDED)
def test_no_byte_may_be_missing_that_texts_have(byte):
    """C0 and F5 to FF are in no UTF-8, F1 and F2 in unassigned code points only, the others in control characters."""
    characters = dict(zip(_bytes_of(ALPHABET), ALPHABET, strict=True))
    built = bytes_only(characters[byte])
    trip = lambda texts: [  # noqa: E731
        (np.asarray(e.ids), built.decode(e.ids)) for e in built.encode_batch(texts, add_special_tokens=False)
    ]
    token_bytes = np.zeros(300, np.int32)
    token_bytes[: built.get_vocab_size() - 3] = 1
    if byte in ALLOWED:
        round_trip.check(trip, token_bytes, [], {})
    else:
        with pytest.raises(ValueError, match=r"it loses text: ['\"]"):
            round_trip.check(trip, token_bytes, [], {})


def _bytes_of(alphabet) -> list[int]:
    """Which byte each character of byte-level BPE stands for (GPT-2's table)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in plain}
    table |= {chr(0x100 + i): byte for i, byte in enumerate(sorted(set(range(256)) - set(plain)))}
    return [table[character] for character in alphabet]


def test_smollm2_is_taken_at_once_and_what_it_loses_is_counted():
    tokenizer = tokenizer_lib.load(str(smollm2.require()))
    began = time.process_time()  # of all threads: other work on the machine adds nothing
    tokenizer._check_round_trip("", {})
    assert time.process_time() - began < 1  # 0.2 s
    lost = tokenizer.lost("a\x04b\x04 c\x1d\U00040000 and\tan ordinary text, ▁ too\n")
    assert lost == {"U+0004": 2, "U+001D": 1, "U+40000": 1}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A byte-level tokenizer without U+0004 and U+0006."""
    return load(tmp_path_factory.mktemp("built") / "gap", bytes_only("ĄĆ"))


@settings(deadline=None)  # a busy machine is no fault
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_what_is_counted_is_what_does_not_come_back(built, text):
    back = built.decode(built.encode(text))
    assert sum(built.lost(text).values()) == len(text) - len(back)


def test_spelled_specials_and_spaces_that_a_unigram_model_loses_are_counted(tmp_path):
    tokenizer = load(tmp_path, STYLES["unigram"]())
    text = " a</s>b <0x41>▁"
    assert tokenizer.lost(text) == {"U+2581": 1, "the space before a text": 1, "</s>": 1, "<0x41>": 1}
    assert tokenizer.decode(tokenizer.encode(text)) == "ab A "
    assert load(tmp_path / "gemma", STYLES["gemma"]()).lost("a</s>b <0x41>▁") == {"U+2581": 1}
    assert load(tmp_path / "bytes", byte_level()).lost(text) == {}


def test_a_preparation_counts_what_is_lost(tmp_path):
    directory = save(tmp_path / "tokenizer", bytes_only("ĄĆ"))
    rows = [{"text": f"text {i} \x04{'é' * (i % 3)}\x06\x04"} for i in range(40)]
    path = preparing.write_jsonl(tmp_path / "x.jsonl", rows)
    train, _ = preparing.prepare(tmp_path, f"jsonl:{path}", tokenizer=str(directory))
    index = Index.read(train.path)
    assert index.lost == {"U+0004": 80, "U+0006": 40}
    line = "lost        characters that the tokenizer loses: 120 (U+0004: 80, U+0006: 40)"
    assert line in prepare_cli.summary("x", {"train": index}).splitlines()


def test_a_store_in_memory_says_what_is_lost(tmp_path, caplog):
    tokenizer = load(tmp_path, bytes_only("ĄĆ"))
    store_lib.build([{"text": "a\x04b\x06\x04"}, {"text": "c"}], tokenizer)
    assert "3 characters have no token and are left out, such as U+0004" in caplog.text


def test_a_character_that_the_sample_missed_ends_a_preparation(tmp_path, monkeypatch):
    monkeypatch.setattr(round_trip, "check", lambda *_: None)
    directory = save(tmp_path / "tokenizer", bytes_only("Ã"))
    path = preparing.write_jsonl(tmp_path / "x.jsonl", [{"text": "plain"}, {"text": "caf\u00e9"}])
    with pytest.raises(DataError, match=r"x.jsonl:2: the tokenizer loses U\+00E9: .*choose another data.tokenizer"):
        preparing.prepare(tmp_path, f"jsonl:{path}", tokenizer=str(directory))


def test_a_preparation_refuses_it_by_its_key(tmp_path):
    directory = save(tmp_path / "tokenizer", without_alphabet())
    path = preparing.write_jsonl(tmp_path / "x.jsonl", [{"text": "Café Zoë, 12 June 1789"}] * 3)
    with pytest.raises(ConfigError, match=r"tokenizer\.json cannot be used: it loses text: ") as error:
        preparing.prepare(tmp_path, f"jsonl:{path}", tokenizer=str(directory))
    assert error.value.key == "data.tokenizer" and not (tmp_path / "store.part").exists()


# --- Ids and bytes of added tokens ---


def another_id(spec):
    spec["added_tokens"].append(_added("a", 900))


def another_special_id(spec):
    spec["added_tokens"][2]["id"] = 700


def twice(spec):
    spec["added_tokens"].append(dict(spec["added_tokens"][2], id=259))


def behind_a_gap(spec):
    spec["added_tokens"].append(_added("<tool>", 400))


def _added(content: str, index: int) -> dict:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": index, "content": content, **flags}


@pytest.mark.parametrize("change", [another_id, another_special_id, twice, behind_a_gap])
def test_the_library_and_not_the_file_says_which_id_a_token_has(tmp_path, change):
    tokenizer = load(tmp_path, bytes_only(), change=change)
    for name, special in zip(SPECIALS, (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id), strict=True):
        assert special == tokenizer.rules.token_to_id(name) < tokenizer.vocab_size
        assert tokenizer.token_bytes_V[special] == 0
    text = "a banana, é\n"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes_V[ids].sum() == len(text.encode())
    if change is behind_a_gap:
        assert tokenizer.token_bytes_V[tokenizer.encode("<tool>")].tolist() == [len("<tool>")]


def test_bytes_that_are_counted_wrong_are_refused():
    built = bytes_only()
    trip = lambda texts: [(np.asarray(e.ids), built.decode(e.ids)) for e in built.encode_batch(texts)]  # noqa: E731
    round_trip.check(trip, np.ones(300, np.int32), [], {})
    with pytest.raises(ValueError, match="its tokens of 'Hello World' stand for 22 bytes"):
        round_trip.check(trip, np.full(300, 2, np.int32), [], {})
