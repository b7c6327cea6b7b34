"""Which tokens are special and which are added, by file: as transformers reads the same directory."""

import json

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from transformers import AutoTokenizer

from anchorjax.data.text import tokenizer as tokenizer_lib
from anchorjax.data.text.chat import ChatTemplate

BOS, EOS, TURN, CALL, PAD = "<|begin|>", "<|end|>", "<|turn|>", "<call>", "[PAD]"


def token(content: str, **flags) -> dict:
    return {"content": content, "special": True, "lstrip": False, "rstrip": False, "normalized": False, **flags}


DECODER = {"256": token(BOS), "257": token(EOS), "258": token(TURN)}
BOTH = {"bos_token": BOS, "eos_token": EOS}
DIRECTORIES = {  # tokenizer_config.json, special_tokens_map.json, added_tokens.json
    "only the map": (None, BOTH, None),
    "a config that names none": ({"model_max_length": 4096}, BOTH, None),
    "both differ": (BOTH, BOTH | {"eos_token": token(TURN)}, None),
    "both differ beside a decoder": (BOTH | {"added_tokens_decoder": DECODER}, BOTH | {"eos_token": token(TURN)}, None),
    "the map has the pad": (BOTH, {"pad_token": TURN}, None),
    "the map has the BOS": ({"eos_token": EOS}, BOTH, None),
    "the map says null": (BOTH | {"pad_token": TURN}, {"pad_token": None}, None),
    "no map": ({"bos_token": BOS, "eos_token": TURN}, None, None),
    "the EOS is only in the decoder": (
        {"bos_token": BOS, "eos_token": "<|new|>", "added_tokens_decoder": DECODER | {"259": token("<|new|>")}},
        None,
        None,
    ),
    "the decoder skips ids and has text": (
        BOTH | {"pad_token": PAD, "added_tokens_decoder": {"300": token(PAD), "280": token("<tool>", special=False)}},
        BOTH | {"eos_token": token(TURN)},
        None,
    ),
    "the pad is only a name": (BOTH | {"pad_token": PAD}, None, None),
    "the pad is in added_tokens.json": (BOTH, {"pad_token": PAD}, {PAD: 261, "<tool>": 260}),
    "added_tokens.json has an id of the file": (BOTH, {"pad_token": PAD}, {PAD: 260, "<tool>": 259}),
    "added_tokens.json has another id": (BOTH, None, {CALL: 260, TURN: 270}),
    "extra tokens are only names": (BOTH | {"additional_special_tokens": ["<|x|>", TURN]}, None, None),
    "the decoder makes text special": (
        BOTH | {"added_tokens_decoder": DECODER | {"259": token(CALL, normalized=True)}},
        None,
        None,
    ),
    "the decoder makes a special text": (
        BOTH
        | {"added_tokens_decoder": DECODER | {"258": token(TURN, special=False), "259": token(CALL, special=False)}},
        None,
        None,
    ),
    "the decoder strips": (
        BOTH | {"added_tokens_decoder": DECODER | {"258": token(TURN, rstrip=True), "259": token(CALL, lstrip=True)}},
        None,
        None,
    ),
    "the decoder strips a pad that is new": (
        BOTH | {"pad_token": PAD, "added_tokens_decoder": DECODER | {"260": token(PAD, rstrip=True)}},
        None,
        None,
    ),
    "text in decoder and file has a name": (
        BOTH | {"unk_token": CALL, "added_tokens_decoder": {"259": token(CALL, special=False, normalized=True)}},
        None,
        None,
    ),
    "added_tokens.json has what the file has": (BOTH, None, {CALL: 259, "<|x|>": 260}),
    "added_tokens.json has extra tokens": (
        BOTH | {"additional_special_tokens": ["<|x|>"], "image_token": "<tool>"},
        None,
        {"<|x|>": 261, "<tool>": 260},
    ),
    "extra tokens have names": (
        BOTH | {"extra_special_tokens": {"image_token": "<tool>", "boi": "<|x|>"}, "additional_special_tokens": [PAD]},
        None,
        None,
    ),
    "extra tokens have names beside a decoder": (
        BOTH | {"extra_special_tokens": {"image_token": "<tool>", "eos_token": TURN}, "added_tokens_decoder": DECODER},
        None,
        None,
    ),
    "text in decoder and file has a name of the model": (
        BOTH | {"call_token": CALL, "added_tokens_decoder": {"259": token(CALL, special=False, normalized=True)}},
        None,
        None,
    ),
    "a name of the model": (BOTH | {"image_token": "<tool>", "pad_token": PAD}, None, None),
    "the BOS is empty": (BOTH | {"bos_token": "", "pad_token": ""}, None, None),
    "the map's BOS is empty": (BOTH, {"bos_token": ""}, None),
    "an extra token is empty": (BOTH | {"additional_special_tokens": ["", "<|x|>"]}, None, None),
}


def byte_level() -> tokenizers.Tokenizer:
    """256 bytes, then BOS, EOS, the end of a turn, and an added token that is no special one."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    rules = tokenizers.Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    rules.pre_tokenizer, rules.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    rules.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in (BOS, EOS, TURN)])
    rules.add_tokens([AddedToken(CALL)])
    return rules


def save(directory, config=None, special_tokens_map=None, added_tokens=None):
    byte_level().save(str(directory / "tokenizer.json"))
    files = {"tokenizer_config": config, "special_tokens_map": special_tokens_map, "added_tokens": added_tokens}
    for name, content in files.items():
        if content is not None:
            (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


@pytest.fixture(params=DIRECTORIES)
def directory(request, tmp_path):
    return save(tmp_path, *DIRECTORIES[request.param])


def test_specials_and_added_tokens_are_those_of_transformers(directory):
    """A missing BOS is the EOS here, and so is a missing pad."""
    ours, theirs = tokenizer_lib.load(str(directory)), AutoTokenizer.from_pretrained(directory)
    eos = theirs.eos_token_id
    expected = [eos if index is None else index for index in (theirs.bos_token_id, eos, theirs.pad_token_id)]
    assert [ours.bos_id, ours.eos_id, ours.pad_id] == expected
    assert ours.rules.get_vocab() == theirs.get_vocab()
    text = f"a <tool> b{BOS}c{TURN} {PAD} <|x|><|new|>  {CALL} d"
    assert ours.encode_with_specials(text).tolist() == theirs.encode(text, add_special_tokens=False)
    assert ours.encode(text).tolist() == theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert ours.decode(ours.encode(text)) == text
    assert ours.token_bytes_V[ours.encode(text)].sum() == len(text.encode())


def test_a_template_has_the_same_specials(directory):
    theirs = AutoTokenizer.from_pretrained(directory)
    (directory / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}")
    messages = [{"role": "user", "content": "hello"}]
    theirs.chat_template = (directory / "chat_template.jinja").read_text()
    expected = theirs.apply_chat_template(messages, tokenize=False)
    assert ChatTemplate.open(directory).render(messages) == expected


def test_the_map_beside_a_decoder_names_nothing(tmp_path):
    directory = save(tmp_path, {"added_tokens_decoder": DECODER}, BOTH)
    assert AutoTokenizer.from_pretrained(directory).eos_token is None
    with pytest.raises(ValueError, match=r"names an EOS token \(special_tokens_map.json is ignored if there is an"):
        tokenizer_lib.load(str(directory))


def test_other_added_tokens_are_another_tokenizer(tmp_path):
    names = set()
    for number, extra in enumerate([{}, {"259": token("<tool>")}, {"259": token("<tool>", special=False)}]):
        (tmp_path / str(number)).mkdir()
        config = BOTH | {"added_tokens_decoder": DECODER | extra}
        names.add(tokenizer_lib.load(str(save(tmp_path / str(number), config))).name)
    assert len(names) == 3


@pytest.mark.parametrize(
    "listed", [5, None, [PAD], {"259": PAD}, {"259": {}}, {"x": token(PAD)}, {"259": token("")}, {"259": token(7)}]
)
def test_added_tokens_that_cannot_be_are_refused_in_one_line(tmp_path, listed):
    directory = save(tmp_path, BOTH | {"added_tokens_decoder": listed})
    with pytest.raises(ValueError, match=r"^\S+tokenizer_config.json: [^\n]*added token[^\n]*must be[^\n]*$"):
        tokenizer_lib.load(str(directory))


def test_a_pad_that_the_model_does_not_know_gives_way(tmp_path):
    """Llama 2 with a [PAD] that was added to the tokenizer alone."""
    whole = tokenizer_lib.load(str(save(tmp_path, BOTH | {"pad_token": PAD})))
    assert (whole.vocab_size, whole.pad_id) == (261, 260)
    assert whole.within(261) is whole
    fitted = whole.within(260)
    assert (fitted.vocab_size, fitted.pad_id, len(fitted.token_bytes_V)) == (260, 257, 260)
    assert (fitted.name, fitted.bos_id, fitted.eos_id) == (whole.name, 256, 257)
    assert fitted.encode("pad").tolist() == whole.encode("pad").tolist()
    assert whole.within(259) is whole  # text would be missing too: for others to refuse


@pytest.mark.parametrize(
    "config", [{"pad_token": "\ud800"}, {"added_tokens_decoder": DECODER | {"260": token("\ud800")}}]
)
def test_a_name_that_is_no_unicode_is_refused_in_one_line(tmp_path, config):
    directory = save(tmp_path, BOTH | config)
    with pytest.raises(ValueError, match=r"^\S+: the token '\\ud800' is not valid Unicode$"):
        tokenizer_lib.load(str(directory))
