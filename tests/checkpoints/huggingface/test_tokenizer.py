"""What an export changes in a tokenizer's files, file by file; test_exported_tokenizer.py asks other tools."""

import json

import pytest

from anchorjax.checkpoints.huggingface import tokenizer as hf_tokenizer
from anchorjax.data.text.chat import ChatTemplate
from anchorjax.errors import WeightsError
from tests.data.test_specials import BOS, BOTH, EOS, TURN, save

BEGINS = "{{ bos_token }}\r\n{{ messages[0]['content'] }}\r\n"
BARE = "{{ messages[0]['content'] }}\r\n\u00e9"
NEEDS_SYSTEM = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no') }}{% endif %}x"
UNKNOWN = f"was not changed: whether its chats begin with {BOS!r} is not known"


def export(directory) -> list[str]:
    return hf_tokenizer.export(directory, hf_tokenizer.open_exported(directory), 64, anchored=True)


@pytest.mark.parametrize(
    ("given", "wanted", "said"),
    [
        (BEGINS, BEGINS, []),
        (BARE, "{{ bos_token }}" + BARE, [f"chat_template.jinja begins with {BOS!r}"]),
        ("\ufeff" + BEGINS, BEGINS, ["chat_template.jinja has no byte order mark (it had one)"]),
        (
            "\ufeff" + BARE,
            "{{ bos_token }}" + BARE,
            [f"chat_template.jinja begins with {BOS!r}", "chat_template.jinja has no byte order mark (it had one)"],
        ),
        (
            NEEDS_SYSTEM,
            NEEDS_SYSTEM,
            [f"chat_template.jinja: the chat template takes no lone user message and {UNKNOWN}"],
        ),
        ("{% if %}", "{% if %}", [f"chat_template.jinja: the chat template is not valid and {UNKNOWN}"]),
    ],
)
def test_a_template_is_changed_only_where_it_must_and_all_is_said(tmp_path, given, wanted, said):
    file = save(tmp_path, BOTH) / "chat_template.jinja"
    file.write_bytes(given.encode())
    assert [line for line in export(tmp_path) if "chat" in line] == said
    assert file.read_bytes() == wanted.encode()


def test_templates_in_the_config_are_named(tmp_path):
    templates = [{"name": name, "template": text} for name, text in (("default", BARE), ("tool_use", NEEDS_SYSTEM))]
    save(tmp_path, BOTH | {"chat_template": templates})
    where = "tokenizer_config.json: chat_template"
    assert [line for line in export(tmp_path) if "chat" in line] == [
        f"{where} 'default' begins with {BOS!r}",
        f"{where} 'tool_use': the chat template takes no lone user message and {UNKNOWN}",
    ]
    written = json.loads((tmp_path / "tokenizer_config.json").read_text())["chat_template"]
    assert [one["template"] for one in written] == ["{{ bos_token }}" + BARE, NEEDS_SYSTEM]


def test_a_byte_order_mark_is_no_text_of_a_template(tmp_path):
    (save(tmp_path, BOTH) / "chat_template.jinja").write_bytes(("\ufeff" + BEGINS).encode())
    assert ChatTemplate.open(tmp_path).render([{"role": "user", "content": "a"}]).startswith(BOS)


def test_names_in_the_map_are_said_too(tmp_path):
    save(tmp_path, {}, {"bos_token": None, "eos_token": EOS})
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": 256}))
    said = [line for line in export(tmp_path) if "bos_token =" in line.replace("add_bos_token", "")]
    assert said == [
        f"special_tokens_map.json: bos_token = {BOS!r} (was None)",
        f"tokenizer_config.json: bos_token = {BOS!r}",
    ]


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("given", [["x"], "x", -1, True, [257, None], {}])
def test_ends_that_are_no_ids_are_refused(tmp_path, name, given):
    (save(tmp_path, BOTH) / name).write_text(json.dumps({"eos_token_id": given}))
    with pytest.raises(WeightsError, match=rf"^{tmp_path}/{name}: eos_token_id is .*; allowed: token ids$"):
        hf_tokenizer.open_exported(tmp_path)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [(None, 257), (257, 257), ([257], [257]), (258, [258, 257]), ([258, 257], [258, 257]), ([258], [258, 257])],
)
def test_ends_of_turns_are_kept_and_that_of_texts_is_among_them(tmp_path, given, wanted):
    file = save(tmp_path, BOTH) / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": given}))
    said = [line for line in export(tmp_path) if "eos_token_id" in line]
    assert json.loads(file.read_text())["eos_token_id"] == wanted
    assert bool(said) == (given != wanted)


def test_an_empty_name_is_filled_in(tmp_path):
    save(tmp_path, {"bos_token": "", "eos_token": TURN})
    assert f"tokenizer_config.json: bos_token = {TURN!r} (was '')" in export(tmp_path)
