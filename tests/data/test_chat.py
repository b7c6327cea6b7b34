"""Chat templates: the text and the ids of transformers' apply_chat_template."""

import datetime
import json

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorjax.data.text.chat import ChatTemplate
from anchorjax.data.text.tokenizer import HuggingFaceTokenizer
from tests.data.test_tokenizer import STYLES
from tests.evaluation import bpe

LLAMA_2 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'].strip() + ' [/INST]' }}{% else %}{{ message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)
TEMPLATES = {
    "turns": bpe.TEMPLATE,
    "llama_2": LLAMA_2,
    "blocks": """
    {%- for message in messages %}
        {%- if loop.index0 == 3 %}
            {%- break %}
        {%- endif %}
        {%- generation %}
<|{{ message.role }}|>
{{ message | tojson }}<|end|>
        {%- endgeneration %}
    {% endfor %}
    """,
    "tools": "{% if tools is not none or documents is not none %}tools: {{ tools | tojson }}{% endif %}{{ messages }}",
}
MESSAGES = [{"role": "user", "content": "What is <b>1811</b>, naïvely?\n"}]


def peer(directory) -> transformers.PreTrainedTokenizerFast:
    return transformers.PreTrainedTokenizerFast.from_pretrained(directory)


@pytest.fixture(scope="module", params=TEMPLATES)
def directory(request, tmp_path_factory):
    return bpe.write(tmp_path_factory.mktemp(request.param), TEMPLATES[request.param])


@pytest.mark.parametrize("roles", [["user"], ["system", "user"], ["user", "assistant", "user", "user"]])
def test_text_and_ids_are_those_of_transformers(directory, roles):
    messages = [MESSAGES[0] | {"role": role} for role in roles]
    theirs, ours = peer(directory), ChatTemplate.open(directory)
    text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert ours.render(messages) == text
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    tokenizer = HuggingFaceTokenizer.open(directory)
    assert tokenizer.encode_with_specials(text).tolist() == ids
    assert (tokenizer.encode(text).tolist() == ids) == ("<" not in text.replace("<b>", "").replace("</b>", ""))


@given(content=st.text(st.sampled_from("a b\n1é<|>s/user🙂"), max_size=40))
@settings(max_examples=60, deadline=None)
def test_ids_of_any_content(content):
    directory = bpe.directory()
    messages = [{"role": "user", "content": content}]
    ids = peer(directory).apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    text = ChatTemplate.open(directory).render(messages)
    assert bpe.tokenizer().encode_with_specials(text).tolist() == ids


@pytest.mark.parametrize("style", STYLES)
def test_specials_of_every_style(style, tmp_path):
    STYLES[style]().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    tokenizer = HuggingFaceTokenizer.open(tmp_path)
    text = "<s>It is </s> a truth<s>"
    theirs = peer(tmp_path)(text, add_special_tokens=False)["input_ids"]
    ids = tokenizer.encode_with_specials(text)
    assert ids.tolist() == theirs and ids.dtype == np.int32
    assert [int((ids == i).sum()) for i in (tokenizer.bos_id, tokenizer.eos_id)] == [2, 1]
    if style != "unigram":  # its pieces include the specials' names
        assert not {tokenizer.bos_id, tokenizer.eos_id} & set(tokenizer.encode(text).tolist())  # text stays text


def write(directory, **config):
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def test_where_a_template_is_found(tmp_path):
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "by default {{ eos_token }}"}]
    write(tmp_path, chat_template=several, eos_token={"content": "</s>", "lstrip": False})
    assert ChatTemplate.open(tmp_path).render(MESSAGES) == "by default </s>"
    (tmp_path / "chat_template.jinja").write_text("in a file{{ bos_token }}")
    (tmp_path / "special_tokens_map.json").write_text('{"bos_token": "<s>"}')
    assert ChatTemplate.open(tmp_path).render(MESSAGES) == "in a file<s>"


def test_the_date_is_the_same_on_any_day(tmp_path):
    template = "{{ strftime_now('%d %b %Y') }}"
    assert ChatTemplate.of(template, {}).render(MESSAGES) == datetime.date(2024, 7, 26).strftime("%d %b %Y")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "has no chat template: neither chat_template.jinja nor tokenizer_config.json"),
        ({"chat_template": [{"name": "rag", "template": ""}]}, "has no chat template"),
        ({"chat_template": 3}, "chat_template is a int"),
        ({"chat_template": "{% if %}"}, "the chat template is not valid: Expected an expression"),
        ({"chat_template": "{% include 'x' %}{% endif %}"}, "the chat template is not valid"),
        ({"chat_template": "{{" + "(" * 3000 + "1" + ")" * 3000 + "}}"}, "the chat template is not valid"),
    ],
)
def test_templates_that_cannot_be_opened(tmp_path, config, message):
    with pytest.raises(ValueError, match=message):
        ChatTemplate.open(write(tmp_path, **config))


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('only pairs') }}",
        "{{ messages[5].content }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception.__globals__['os'] }}",
        "{% include '/etc/passwd' %}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content + 1 }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ 'a' * 10**13 }}",
        "{{ cycler() }}",
    ],
)
def test_templates_that_fail_or_leave_the_sandbox(template):
    with pytest.raises(ValueError, match="the chat template does not take these messages: "):
        ChatTemplate.of(template, {}).render(MESSAGES)
