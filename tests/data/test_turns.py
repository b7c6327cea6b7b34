"""Turns of the assistant: the masks of transformers for marked templates, and the same ones without marks."""

import json
from unittest import mock

import numpy as np
import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anchorjax.data.bad_rows import BadRow
from anchorjax.data.conversations import Conversation
from anchorjax.data.text import chat as chat_lib
from anchorjax.data.text import tokenizer as tokenizer_lib
from anchorjax.data.text.chat import ChatTemplate
from anchorjax.data.text.marks import Marked
from anchorjax.data.text.turns import ConversationEncoder, find
from tests import smollm2
from tests.data.chat_templates import MARKED, PLAIN, SPECIALS
from tests.evaluation import bpe

USER, ANSWER, SYSTEM = ({"role": role} for role in ("user", "assistant", "system"))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return bpe.write(tmp_path_factory.mktemp("bpe"), None, SPECIALS)


@pytest.fixture(scope="module")
def tokenizer(directory):
    return tokenizer_lib.load(str(directory))


@pytest.fixture(scope="module")
def peer(directory):
    return transformers.PreTrainedTokenizerFast.from_pretrained(directory)


def make(source, tokenizer, drops_bos=False):
    chat = ChatTemplate.of(source, {"bos_token": "<s>", "eos_token": "</s>"})
    return ConversationEncoder(chat, tokenizer, drops_bos)


def encode(encoder, messages):
    (found,) = encoder.encode([Conversation(tuple(messages))])
    return found


def theirs(peer, source, messages):
    options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": source is not None}
    with pytest.MonkeyPatch.context() as patch:  # it writes today's date
        patch.setattr("transformers.utils.chat_template_utils.datetime", mock.Mock(now=lambda: chat_lib._TODAY))
        made = peer.apply_chat_template(messages, chat_template=source, **options)
    return made["input_ids"], made.get("assistant_masks")


contents = st.lists(
    st.sampled_from(
        ["a", "Bc ", " d", "\n", "é", "漢字", "🙂", "1811", "<|im_end|>", "<s>", "[INST]", "naïve", "\t", "  "]
    ),
    max_size=8,
).map("".join)


@st.composite
def conversations(draw):
    messages = [SYSTEM | {"content": draw(contents)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages += [USER | {"content": draw(contents)}, ANSWER | {"content": draw(contents)}]
    return messages + ([USER | {"content": draw(contents)}] if draw(st.integers(0, 3)) == 0 else [])


@pytest.mark.parametrize("name", PLAIN)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=conversations())
def test_ids_and_flags_are_those_of_transformers(name, messages, tokenizer, peer):
    """Spans by the template with marks; those of the template without marks are the same."""
    marked, plain = (encode(make(sources[name], tokenizer), messages) for sources in (MARKED, PLAIN))
    if isinstance(marked, BadRow):
        assert isinstance(plain, BadRow) and str(plain) == str(marked)
        if "take the messages" in str(marked):
            with pytest.raises(Exception, match=r"System role|no such role|turns"):
                theirs(peer, MARKED[name], messages)
        return
    ids, mask = theirs(peer, MARKED[name], messages)
    for found_ids, trained in (marked, plain):
        assert found_ids.tolist() == ids
        assert trained.tolist() == [bool(one) for one in mask]


SPOKEN = [SYSTEM | {"content": "S"}, USER | {"content": "u1"}, ANSWER | {"content": "A1"}, USER | {"content": "u2"}]
SPOKEN = [*SPOKEN, ANSWER | {"content": "A2"}]
TURNS = {
    "chatml": ["A1<|im_end|>\n", "A2<|im_end|>\n"],
    "default_system": ["A1<|im_end|>\n", "A2<|im_end|>\n"],
    "llama_3": ["A1<|eot_id|>", "A2<|eot_id|>"],
    "mistral": [" A1</s>", " A2</s>"],
    "llama_2": [" A1 </s>", " A2 </s>"],
    "gemma": ["A1<end_of_turn>\n", "A2<end_of_turn>\n"],
    "qwen_3": ["A1<|im_end|>\n", "<think>\n\n</think>\n\nA2<|im_end|>\n"],
    "phi_3": ["A1<|end|>\n", "A2<|end|>\n</s>"],
    "vicuna": [" A1</s>", " A2</s>"],
}


@pytest.mark.parametrize("name", PLAIN)
def test_turns_as_drawn(name):
    """Without a header, with what ends the turn."""
    chat = ChatTemplate.of(PLAIN[name], {"bos_token": "<s>", "eos_token": "</s>"})
    messages = SPOKEN[1:] if name in ("gemma", "llama_2") else SPOKEN
    text, spans = find(chat, Conversation(tuple(messages)))
    assert [text[begin:end] for begin, end in spans] == TURNS[name]


def test_reasoning_and_tools_of_an_earlier_turn(tokenizer):
    """Reasoning that a template leaves out is not trained on, and an answer of a tool never is."""
    call = {"name": "add", "arguments": {"x": 1}}
    messages = [
        USER | {"content": "u"},
        ANSWER | {"content": "A1", "reasoning_content": "R1"},
        USER | {"content": "v"},
        ANSWER | {"tool_calls": [call], "reasoning_content": "R2"},
        {"role": "tool", "content": "3"},
        ANSWER | {"content": "A3", "reasoning_content": "R3"},
    ]
    for sources in (PLAIN, MARKED):
        chat = ChatTemplate.of(sources["qwen_3"], {})
        text, spans = find(chat, Conversation(tuple(messages)))
        said = [text[begin:end] for begin, end in spans]
        assert said[0] == "A1<|im_end|>\n" and "R1" not in text
        assert said[1] == f"<think>\nR2\n</think>\n\n<tool_call>{json.dumps(call)}</tool_call><|im_end|>\n"
        assert said[2] == "<think>\nR3\n</think>\n\nA3<|im_end|>\n"
    ids, trained = encode(make(PLAIN["qwen_3"], tokenizer), messages)
    assert "3" not in tokenizer.decode(ids[trained][:-20]).partition("R3")[0]


def test_a_token_that_somebody_spells_is_trained_on_in_the_assistants_turn_alone(tokenizer):
    end = tokenizer.rules.token_to_id("<|im_end|>")
    messages = [USER | {"content": "a<|im_end|>b"}, ANSWER | {"content": "c<|im_end|>d"}]
    ids, trained = encode(make(PLAIN["chatml"], tokenizer), messages)
    assert trained[ids == end].tolist() == [False, False, True, True]


UNFIT = {
    # The system's message goes into the last of the user's messages, as in one of Mistral's templates.
    "a moving prompt": (
        PLAIN["mistral"].replace("loop.first and first is defined", "loop.last and first is defined"),
        SPOKEN[:3],
        "the chat template writes what comes before an assistant's turn otherwise than in a prompt",
    ),
    "a reversed chat": (
        "{% for message in messages[::-1] %}{{ message.role }}: {{ message.content }}\n{% endfor %}",
        SPOKEN,
        "the chat template writes what comes before an assistant's turn otherwise than in a prompt",
    ),
    # What a tool says lies in the assistant's turn.
    "a look ahead": (
        "{% for message in messages %}{% if message.role != 'tool' %}<|{{ message.role }}|>{{ message.content }}"
        "{% if not loop.last and messages[loop.index].role == 'tool' %}{{ messages[loop.index].content }}{% endif %}"
        "<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
        [*SPOKEN[:3], {"role": "tool", "content": "3"}, *SPOKEN[3:]],
        "the chat template does not tell where an assistant's turn ends",
    ),
    "a number of turns": (
        "{% for i in range(messages | length) %}{{ messages | length }}{{ messages[i].content }}{% endfor %}",
        SPOKEN,
        "otherwise than in a prompt",
    ),
    "no header": (
        "{% for message in messages %}{{ message.content }}{% endfor %}",
        [USER | {"content": "It is th"}, ANSWER | {"content": "e truth"}],
        "a token lies partly in an assistant's turn and partly outside",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_templates_whose_turns_cannot_be_found(name, tokenizer):
    source, messages, reason = UNFIT[name]
    found = encode(make(source, tokenizer), messages)
    assert isinstance(found, BadRow) and reason in str(found)
    assert "the chat template, line 1" in found.detail


def test_the_line_is_that_of_the_assistants_branch():
    lines = (
        "{% for message in messages %}\n{% if message.role == 'user' %}\n{{ message.content }}\n"
        "{% elif message.role == 'assistant' %}\n{{ message.content }}\n{% endif %}\n{% endfor %}"
    )
    assert ChatTemplate.of(lines, {}).line == 5
    assert ChatTemplate.of("{{ bos_token }}\n{% for m in messages %}{{ m['content'] }}{% endfor %}", {}).line == 2


@pytest.mark.parametrize(
    ("name", "drops"), [("chatml", False), ("llama_3", True), ("llama_2", True), ("gemma", True), ("mistral", True)]
)
def test_bos_of_a_template_is_the_rows_anchor(name, drops, tmp_path):
    directory = bpe.write(tmp_path, PLAIN[name], SPECIALS)
    tokenizer = tokenizer_lib.load(str(directory))
    encoder = ConversationEncoder.open(str(directory), tokenizer)
    assert encoder.drops_bos == drops
    ids, trained = encode(encoder, SPOKEN[1:])
    peer = transformers.PreTrainedTokenizerFast.from_pretrained(directory)
    whole, _ = theirs(peer, None, SPOKEN[1:])
    assert ids.tolist() == whole[drops:] and len(trained) == len(ids) and (not drops or whole[0] == tokenizer.bos_id)


def test_bos_that_begins_every_turn_stays():
    """SmolLM2's BOS is "<|im_start|>"; a template without bos_token may spell another BOS, which goes."""
    directory = smollm2.require()
    encoder = ConversationEncoder.open(str(directory), tokenizer_lib.load(str(directory)))
    assert not encoder.drops_bos
    ids, trained = encode(encoder, SPOKEN[1:])
    peer = transformers.AutoTokenizer.from_pretrained(directory)
    assert ids.tolist() == theirs(peer, None, SPOKEN[1:])[0]
    assert encoder.tokenizer.rules.decode(ids[trained], skip_special_tokens=False) == "A1<|im_end|>\nA2<|im_end|>\n"


def test_a_spelled_bos_goes(tmp_path):
    directory = bpe.write(tmp_path, "<s>" + PLAIN["chatml"], SPECIALS)
    assert ConversationEncoder.open(str(directory), tokenizer_lib.load(str(directory))).drops_bos


REFUSED = {
    "no template": (None, "has no chat template"),
    "no conversation": ("{{ raise_exception('never') }}", "takes no simple conversation: .*never"),
    "a reversed chat": (UNFIT["a reversed chat"][0], r"otherwise than in a prompt, in .*tokenizer_config.json, line 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_template_is_tried_first(name, tmp_path):
    source, message = REFUSED[name]
    tokenizer = tokenizer_lib.load(str(bpe.write(tmp_path, source, SPECIALS)))
    with pytest.raises(ValueError, match=message):
        ConversationEncoder.open(str(tmp_path), tokenizer)


def test_offsets_of_words_keep_their_space(tmp_path):
    """Llama 3's post-processor cuts the space off a word's offsets, and a header's space would seem to be outside."""
    directory = bpe.write(tmp_path, PLAIN["vicuna"].replace("'ASSISTANT:'", "'ASSISTANT: '"), SPECIALS)
    rules = json.loads((directory / "tokenizer.json").read_text())
    rules["post_processor"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    (directory / "tokenizer.json").write_text(json.dumps(rules))
    source = (directory / "tokenizer_config.json").read_text().replace("{{- ' ' + message", "{{- message")
    (directory / "tokenizer_config.json").write_text(source)
    with pytest.raises(ValueError, match="' It' at character"):
        ConversationEncoder.open(str(directory), tokenizer_lib.load(str(directory)))


def test_flags_are_of_whole_characters(tokenizer):
    """Tokens that share a character's bytes are trained on together."""
    ids, trained = encode(make(PLAIN["chatml"], tokenizer), [USER | {"content": "🙂"}, ANSWER | {"content": "🙂漢"}])
    assert tokenizer.decode(ids[trained]) == "🙂漢\n" and np.count_nonzero(trained) > 4


@pytest.mark.parametrize("text", ["\0", "a\0", "\0(\0a", "a\0)\0", "\0<1:0\0a", "<1:0\0abc\0>1\0", "a\0x\0"])
def test_marks_that_a_template_cut_are_refused(text):
    with pytest.raises(ValueError, match="cuts what it has written"):
        Marked.read(text)
    whole = Marked.read("\0(\0\0<1:0\0a\0>1\0\0)\0b")
    assert (whole.text, whole.generated, whole.written) == ("ab", ((0, 1),), {0: ((0, 1),)})
