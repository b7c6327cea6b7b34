"""Chat templates of Hugging Face directories: messages as the text that a tuned model expects.

A template is a program in jinja2's language that came with a checkpoint. It runs in jinja2's sandbox, where it sees
the messages and the names of special tokens and can only write text.
"""

import dataclasses
import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import numpy as np
from jinja2 import ext, nodes, sandbox

from anchorjax.data.text.special_tokens import content_of, named_specials, read_json
from anchorjax.data.text.tokenizer import Tokenizer
from anchorjax.errors import EvaluationError

# For templates that write today's date: the same prompt on any day. Llama 3's use it where they are told no date.
_TODAY = datetime.date(2024, 7, 26)
_END = "THE_ANSWER_GOES_ON_HERE "  # behind an answer that has begun; the space tells whether the template strips


@dataclasses.dataclass(frozen=True, eq=False)
class ChatTemplate:
    """A compiled template, its source, and the special tokens that it may write, by names such as "bos_token"."""

    template: jinja2.Template = dataclasses.field(repr=False)
    source: str = dataclasses.field(repr=False)
    specials: Mapping[str, str]

    @classmethod
    def open(cls, directory: Path) -> "ChatTemplate":
        """That of chat_template.jinja, or else of tokenizer_config.json.

        Raises ValueError: there is none, or it is no valid template.
        """
        directory = Path(directory).expanduser()
        config = read_json(directory / "tokenizer_config.json")
        source = _source(directory, config)
        if source is None:
            raise ValueError(f"{directory} has no chat template: neither chat_template.jinja nor tokenizer_config.json")
        texts = {name: content_of(token) for name, token in named_specials(directory).items()}
        specials = {name: text for name, text in texts.items() if name.endswith("_token") and isinstance(text, str)}
        try:
            return cls.of(source, specials)
        except ValueError as error:
            raise ValueError(f"{directory}: {error}") from error

    @classmethod
    def of(cls, source: str, specials: Mapping[str, str]) -> "ChatTemplate":
        """Raises ValueError: no valid template."""
        try:
            return cls(_environment().from_string(source), source, specials)
        except (jinja2.TemplateError, RecursionError) as error:  # thousands of parentheses
            raise ValueError(f"the chat template is not valid: {error}") from error

    def render(self, messages: Sequence[Mapping[str, str]], begun: bool = False) -> str:
        """The messages ({"role": ..., "content": ...}) and the header of the assistant's next turn.

        With `begun` the last message is what the assistant has begun to say, and the text ends with it.

        Raises ValueError: the template does not take these messages, or goes beyond its sandbox.
        """
        messages = [dict(message) for message in messages]
        if begun:
            messages[-1]["content"] += _END
        try:
            # What transformers gives to every template: some ask whether tools or documents are None.
            text = self.template.render(
                **self.specials, messages=messages, tools=None, documents=None, add_generation_prompt=not begun
            )
        except Exception as error:  # a program of somebody else's: anything can go wrong in it
            raise ValueError(f"the chat template does not take these messages: {error}") from error
        return _up_to_end(text) if begun else text


def frame(prompt: str, answer_prefix: str, tokenizer: Tokenizer, chat: ChatTemplate | None) -> tuple[str, np.ndarray]:
    """What a model is asked: (the text before the answer prefix, int32 ids of both behind the beginning of sequence).

    With a template the prompt is the user's turn, and the tokenizer must be that of a Hugging Face directory.

    Raises:
      EvaluationError: the template does not take the prompt.
    """
    try:
        text = chat.render([{"role": "user", "content": prompt}]) if chat else prompt
    except ValueError as error:
        raise EvaluationError(str(error)) from error
    encode = tokenizer.encode_with_specials if chat else tokenizer.encode
    ids_T = encode(text + answer_prefix)
    if not chat or ids_T[:1].tolist() != [tokenizer.bos_id]:  # some templates write it themselves
        ids_T = np.concatenate([np.asarray([tokenizer.bos_id], np.int32), ids_T])
    return text, ids_T


def _up_to_end(text: str) -> str:
    """The text before the mark, as transformers cuts it: where a template strips a message, so is what is left."""
    before, mark, after = text.rpartition(_END.rstrip())
    if not mark:
        raise ValueError("the chat template does not take these messages: it does not write what the last one begins")
    return before if after.startswith(" ") else before.rstrip()


def _source(directory: Path, config: Mapping[str, Any]) -> str | None:
    file = directory / "chat_template.jinja"
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    source = config.get("chat_template")
    if isinstance(source, list):  # several, for chats with tools and without
        by_name = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = by_name.get("default")
    if source is not None and not isinstance(source, str):
        raise ValueError(f"{directory / 'tokenizer_config.json'}: chat_template is a {type(source).__name__}")
    return source


def _environment() -> sandbox.ImmutableSandboxedEnvironment:
    """As transformers sets it up, which templates are written for."""
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _TODAY.strftime
    return environment


class _Generation(ext.Extension):
    """{% generation %}...{% endgeneration %} marks what a model was trained on; here it is what it encloses."""

    tags = frozenset({"generation"})

    def parse(self, parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """jinja2's own writes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
