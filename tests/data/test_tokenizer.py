"""The bytes, and tokenizer.json in the styles of Llama 3 and Qwen (byte-level), Llama 2 and Mistral, and Gemma."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from anchorjax import data
from anchorjax.data.store import tokens as store_lib
from anchorjax.data.text import tokenizer as tokenizer_lib
from anchorjax.errors import ConfigError
from anchorjax.training.setup import Setup

TOKENIZER = tokenizer_lib.load("bytes")
BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]
LINES = [
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want.",
    "Emma Woodhouse, handsome, clever, and rich; with a comfortable home and happy disposition.",
    "  In the 21 years, 1811 to 1832:\n\tnaïve café — “quoted”\n",
] * 10


def byte_level() -> tokenizers.Tokenizer:
    """As SmolLM2's and Llama 3's: digits and words apart, then bytes; its post-processor puts <s> before a text."""
    built = tokenizers.Tokenizer(models.BPE())
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    built.pre_tokenizer = pre_tokenizers.Sequence(split)
    built.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    built.train_from_iterator(LINES, trainer)
    built.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    built.add_tokens([tokenizers.AddedToken("<tool…>", special=False)])  # text, as Qwen's <tool_call>
    return built


def sentencepiece(prepend: bool) -> tokenizers.Tokenizer:
    """As Llama 2's (with a space put before a text) and Gemma's (without)."""
    built = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    replace = normalizers.Replace(" ", "▁")
    built.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace] if prepend else [replace])
    strip = [decoders.Strip(" ", 1, 0)] if prepend else []
    built.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    specials = ["<unk>", "<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=specials + BYTE_PIECES, show_progress=False)
    built.train_from_iterator([line.replace(" ", "▁") for line in LINES], trainer)
    spec = json.loads(built.to_str())  # byte pieces are ordinary ones in real files
    spec["added_tokens"] = [added for added in spec["added_tokens"] if added["content"] in specials]
    return tokenizers.Tokenizer.from_str(json.dumps(spec))


def unigram() -> tokenizers.Tokenizer:
    """A SentencePiece Unigram model with Metaspace."""
    trained = tokenizers.Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["<unk>", "<s>", "</s>", "<pad>"]
    trained.train_from_iterator(
        LINES, trainers.UnigramTrainer(vocab_size=200, special_tokens=specials, unk_token="<unk>", show_progress=False)
    )
    pieces = json.loads(trained.to_str())["model"]["vocab"]
    pieces = pieces[:4] + [[piece, -20.0] for piece in BYTE_PIECES] + pieces[4:]
    built = tokenizers.Tokenizer(models.Unigram([tuple(piece) for piece in pieces], unk_id=0, byte_fallback=True))
    built.pre_tokenizer = pre_tokenizers.Metaspace()
    built.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    built.add_special_tokens(specials)
    return built


STYLES = {
    "byte_level": byte_level,
    "llama2": lambda: sentencepiece(prepend=True),
    "gemma": lambda: sentencepiece(prepend=False),
    "unigram": unigram,
}
SPECIALS = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "pad_token": "<pad>"}


def save(directory, built=None, tokenizer_config=SPECIALS, config=None, change=None):
    """A directory with tokenizer.json; `change` edits its JSON, None leaves out a file."""
    directory.mkdir(exist_ok=True)
    spec = json.loads((built or byte_level()).to_str())
    if change:
        change(spec)
    files = {"tokenizer.json": spec, "tokenizer_config.json": tokenizer_config, "config.json": config}
    for name, content in files.items():
        if content is not None:
            (directory / name).write_text(json.dumps(content))
    return directory


def load(*arguments, **options) -> tokenizer_lib.Tokenizer:
    return tokenizer_lib.load(str(save(*arguments, **options)))


def refusal(directory) -> str:
    with pytest.raises(ValueError) as caught:
        tokenizer_lib.load(str(directory))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module", params=STYLES)
def style(request, tmp_path_factory):
    """(name of the style, tokenizer, its directory)."""
    directory = save(tmp_path_factory.mktemp("tokenizer"), STYLES[request.param]())
    return request.param, tokenizer_lib.load(str(directory)), directory


@given(st.text())
def test_every_text_survives_the_round_trip(text):
    ids = TOKENIZER.encode(text)
    assert ids.dtype == np.int32
    assert TOKENIZER.decode(ids) == text


@given(st.text())
def test_token_bytes_count_the_bytes_of_a_text(text):
    ids = np.append(TOKENIZER.encode(text), [TOKENIZER.bos_id, TOKENIZER.eos_id, TOKENIZER.pad_id])
    assert TOKENIZER.token_bytes_V[ids].sum() == len(text.encode())


def test_decode_drops_specials_and_marks_broken_text():
    ids = [256, 72, 105, 257, 258, 0xC3]
    assert TOKENIZER.decode(ids) == "Hi\N{REPLACEMENT CHARACTER}"


def test_specials_are_the_last_ids():
    assert (TOKENIZER.bos_id, TOKENIZER.eos_id, TOKENIZER.pad_id) == (256, 257, 258)
    assert TOKENIZER.token_bytes_V.shape == (TOKENIZER.vocab_size,) == (259,)


# "▁" is how SentencePiece writes a space, "<" begins specials and byte pieces: both have tests of their own.
TEXTS = st.lists(st.one_of(st.sampled_from([*" ".join(LINES).split(" "), " ", "\n", "  "]), st.text())).map("".join)
TEXTS = TEXTS.filter(lambda text: "▁" not in text and "<" not in text)


@given(text=TEXTS)
def test_token_bytes_of_every_style_count_the_bytes_of_a_text(style, text):
    name, tokenizer, _ = style
    ids = np.append(tokenizer.encode(text), [tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id])
    prepended = {"llama2": bool(text), "unigram": bool(text) and not text.startswith(" ")}.get(name, 0)
    assert tokenizer.token_bytes_V[ids].sum() == len(text.encode()) + prepended


@given(text=TEXTS)
def test_every_text_survives_the_round_trip_through_every_style(style, text):
    name, tokenizer, _ = style
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    # Unigram's space before a text is only put where there is none: what it was before is not known.
    assert tokenizer.decode(ids) == (text.removeprefix(" ") if name == "unigram" else text)


def check_offsets(tokenizer, text: str) -> None:
    """The ids are those of `encode`, and every character belongs to a token."""
    ids, offsets_T2 = tokenizer.encode_with_offsets(text)
    np.testing.assert_array_equal(ids, tokenizer.encode(text))
    assert offsets_T2.shape == (len(ids), 2)
    assert (np.diff(offsets_T2, axis=0) >= 0).all()
    assert {c for begin, end in offsets_T2.tolist() for c in range(begin, end)} == set(range(len(text)))


@given(text=st.text())
def test_offsets_of_bytes_cover_a_text(text):
    check_offsets(TOKENIZER, text)


@given(text=TEXTS)
def test_offsets_of_every_style_cover_a_text(style, text):
    check_offsets(style[1], text)


@pytest.mark.parametrize("name", ["byte_level", "gemma"])
def test_offsets_say_what_each_token_is_of(tmp_path, name):
    """Also with Llama 3's post-processor, which cuts the space off a word's offsets."""

    def trim(spec):
        spec["post_processor"] = {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        }

    tokenizer = load(tmp_path, STYLES[name](), change=trim)
    ids, offsets_T2 = tokenizer.encode_with_offsets(LINES[0])
    assert len(ids) < len(LINES[0])
    assert [LINES[0][begin:end] for begin, end in offsets_T2] == [tokenizer.decode([token]) for token in ids]


def test_ids_are_those_of_transformers(style):
    from transformers import PreTrainedTokenizerFast

    _, tokenizer, directory = style
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"))
    for text in [*LINES[:3], "", " ", "日本語 🙂\r\n\x00", "1234 don't", "x <tool…> y"]:
        assert tokenizer.encode(text).tolist() == theirs.encode(text, add_special_tokens=False), text
    together = tokenizer.encode_batch(LINES)
    assert [ids.tolist() for ids in together] == [tokenizer.encode(line).tolist() for line in LINES]
    assert tokenizer.encode_batch([]) == []
    assert tokenizer.vocab_size == len(theirs)
    assert len(tokenizer.encode(LINES[0])) < 0.8 * len(LINES[0]), "nothing has been learned"


def test_specials_are_found_and_stand_for_no_text(style):
    _, tokenizer, _ = style
    ids = [tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id]
    assert [tokenizer.rules.id_to_token(index) for index in ids] == ["<s>", "</s>", "<pad>"]
    assert tokenizer.token_bytes_V.dtype == np.int32
    assert tokenizer.token_bytes_V.shape == (tokenizer.vocab_size,)
    assert tokenizer.token_bytes_V[ids].tolist() == [0, 0, 0]
    outside = [-1, tokenizer.vocab_size, 2**40]
    assert tokenizer.decode([*ids, *tokenizer.encode("Emma"), *ids, *outside]) == "Emma"


@pytest.mark.parametrize("name", ["byte_level", "llama2", "gemma"])
@pytest.mark.parametrize("marked", [True, False])
def test_a_text_that_spells_a_special_stays_text(tmp_path, name, marked):
    """A document could otherwise end itself. Some files do not mark what tokenizer_config.json calls special."""

    def mark(spec):
        for added in spec["added_tokens"]:
            added["special"] = marked

    tokenizer = load(tmp_path, STYLES[name](), change=mark)
    text = "a</s>b<s>c<pad>"
    check_offsets(tokenizer, text)
    ids = tokenizer.encode(text)
    assert not {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id} & set(ids.tolist())
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes_V[ids].sum() == len(text.encode()) + (name == "llama2")
    assert tokenizer.decode([tokenizer.eos_id]) == ""
    assert tokenizer.token_bytes_V[tokenizer.eos_id] == 0


def test_an_added_token_that_is_text_counts_its_spelling(tmp_path):
    tokenizer = load(tmp_path)
    ids = tokenizer.encode("a<tool…>")
    assert len(ids) == 2 and tokenizer.decode(ids) == "a<tool…>"
    assert tokenizer.token_bytes_V[ids].tolist() == [1, len("<tool…>".encode())]


def test_bytes_are_of_the_normalized_text(tmp_path):
    built = byte_level()
    built.normalizer = normalizers.NFC()
    tokenizer = load(tmp_path, built)
    assert tokenizer.token_bytes_V[tokenizer.encode("e\N{COMBINING ACUTE ACCENT}")].sum() == len("é".encode())


def test_texts_are_neither_cut_nor_padded(tmp_path):
    built = byte_level()
    whole = load(tmp_path / "whole", built).encode_batch(LINES)
    built.enable_truncation(5)
    built.enable_padding(length=300)
    cut = load(tmp_path / "cut", built).encode_batch(LINES)
    assert [ids.tolist() for ids in cut] == [ids.tolist() for ids in whole]


def test_the_vocabulary_reaches_to_the_highest_id(tmp_path):
    def spread(spec):
        spec["model"]["vocab"]["zz"] = 777

    tokenizer = load(tmp_path, change=spread)
    assert tokenizer.vocab_size == 778 and tokenizer.token_bytes_V[[776, 777]].tolist() == [0, 2]


def test_the_name_is_of_the_content(tmp_path):
    first = load(tmp_path / "first")
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    assert first.name == tokenizer_lib.load(str(tmp_path / "second")).name
    assert first.name.startswith("hf:") and len(first.name) == 19
    others = [
        load(tmp_path / "rules", sentencepiece(prepend=True)),
        load(tmp_path / "specials", tokenizer_config={**SPECIALS, "bos_token": "</s>"}),
    ]
    assert len({first.name, *(other.name for other in others)}) == 3


def test_a_home_directory_is_meant_by_a_tilde(tmp_path, monkeypatch):
    save(tmp_path / "mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tokenizer_lib.load("~/mine").name.startswith("hf:")


# pad 0, bos 1, eos 2
@pytest.mark.parametrize(
    ("tokenizer_config", "config", "ids"),
    [
        (SPECIALS, {"bos_token_id": 7, "eos_token_id": 8}, (1, 2, 0)),
        ({"bos_token": "<s>", "eos_token": "</s>"}, None, (1, 2, 2)),
        ({"bos_token": None, "eos_token": "</s>", "pad_token": "<pad>"}, None, (2, 2, 0)),
        ({"eos_token": "</s>"}, {"bos_token_id": 1, "pad_token_id": 0}, (1, 2, 2)),
        ({"bos_token": {"content": "<s>"}, "eos_token": None}, {"eos_token_id": 2}, (1, 2, 2)),
        (None, {"bos_token_id": 1, "eos_token_id": [2, 7], "pad_token_id": None}, (1, 2, 2)),
        (None, {"bos_token_id": None, "eos_token_id": 0}, (0, 0, 0)),
    ],
)
def test_where_specials_come_from(tmp_path, tokenizer_config, config, ids):
    tokenizer = load(tmp_path, tokenizer_config=tokenizer_config, config=config)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == ids


@pytest.mark.parametrize(
    ("tokenizer_config", "config", "words"),
    [
        (None, None, "names an EOS token"),
        ({"bos_token": "<s>"}, {"bos_token_id": 1}, "names an EOS token"),
        ({"eos_token": "<end>"}, {"eos_token_id": 2}, "eos_token '<end>' is not in tokenizer.json"),
        ({"eos_token": ["</s>"]}, None, "eos_token ['</s>'] is not in"),
        ({"eos_token": "</s>", "pad_token": 3}, None, "pad_token 3 is not in"),
        (None, {"eos_token_id": 10**6}, "eos_token_id 1000000 is not in"),
        (None, {"eos_token_id": -1}, "eos_token_id -1 is not in"),
        (None, {"eos_token_id": "2"}, "eos_token_id '2' is not in"),
        (None, {"eos_token_id": []}, "eos_token_id [] is not in"),
        (None, {"eos_token_id": 2, "bos_token_id": True}, "bos_token_id True is not in"),
        ([], None, "tokenizer_config.json cannot be read: it holds no JSON object"),
    ],
)
def test_specials_that_cannot_be_used(tmp_path, tokenizer_config, config, words):
    message = refusal(save(tmp_path, tokenizer_config=tokenizer_config, config=config))
    assert words in message and str(tmp_path) in message


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff", b'{"model": {}}'])
def test_a_file_that_is_no_tokenizer(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    assert f"{tmp_path / 'tokenizer.json'} cannot be read" in refusal(tmp_path)


def test_schemes_that_lose_characters_are_refused_by_name(tmp_path):
    vocabulary = {"[UNK]": 0, "Hello": 1, "World": 2, "<s>": 3, "</s>": 4, "<pad>": 5}
    words = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    message = refusal(save(tmp_path / "words", words))
    assert f"{tmp_path}/words/tokenizer.json cannot be used: it loses text: 'two  spaces," in message
    assert "comes back as '[UNK] [UNK]" in message and "this is WordLevel with Whitespace" in message

    def no_fallback(spec):
        spec["model"]["byte_fallback"] = False

    save(tmp_path / "pieces", unigram(), change=no_fallback)
    assert "this is Unigram with Metaspace" in refusal(tmp_path / "pieces")


@pytest.mark.parametrize("name", ["words", ""])
def test_an_unknown_name_says_what_there_could_be(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal(name).endswith("it must be bytes, or a directory with tokenizer.json")


def test_the_run_refuses_it_by_its_key(tiny_config):
    config = tiny_config(data__tokenizer="/nowhere")
    for use in (lambda: Setup.make(config), lambda: data.load_tokenizer(config.data)):
        with pytest.raises(
            ConfigError, match=r"^config.data.tokenizer='/nowhere' .*no /nowhere/tokenizer.json"
        ) as caught:
            use()
        assert caught.value.key == "data.tokenizer"


def test_a_run_fits_its_vocabulary(tiny_config, tmp_path):
    directory = save(tmp_path)
    setup = Setup.make(tiny_config(data__tokenizer=str(directory), model__vocab_size=0, data__batch_size=8))
    assert 0 <= setup.config.model.vocab_size - setup.tokenizer.vocab_size < 64
    assert setup.tokenizer.vocab_size == tokenizer_lib.load(str(directory)).vocab_size


def test_a_store_of_its_tokens(style):
    _, tokenizer, _ = style
    store = store_lib.build([{"text": line} for line in LINES], tokenizer)
    assert (store.num_documents, store.tokens.dtype) == (len(LINES), np.uint16)
    assert store.document(2)[-1] == tokenizer.eos_id
    assert tokenizer.decode(store.document(2)).lstrip(" ") == LINES[2].lstrip(" ")


def test_torch_and_transformers_are_not_needed(tmp_path):
    code = f"""
import sys
sys.modules["torch"] = sys.modules["transformers"] = None  # importing them fails
from anchorjax.data.text import tokenizer
assert "tokenizers" not in sys.modules
tokenizer.load({str(save(tmp_path))!r}).encode("x")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
