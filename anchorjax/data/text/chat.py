"""Chat templates of Hugging Face directories, which turn messages into the text that a chat model expects.

A template is a jinja2 program that comes with a checkpoint. It runs in jinja2's sandbox, where it has access to the
messages and the names of special tokens, and can only write text.
"""

import dataclasses
import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import numpy as np
from jinja2 import ext, nodes, sandbox

from anchorjax.data.text import marks
from anchorjax.data.text.marks import Marked
from anchorjax.data.text.special_tokens import content_of, named_specials, read_fields
from anchorjax.data.text.tokenizer import Tokenizer
from anchorjax.errors import EvaluationError

# For templates that write today's date, so that a prompt is the same on any day. It is Llama 3's own default date.
_TODAY = datetime.date(2024, 7, 26)
_END = "THE_ANSWER_GOES_ON_HERE "  # appended to a begun answer; its space shows whether the template strips


@dataclasses.dataclass(frozen=True, eq=False)
class ChatTemplate:
    """A compiled template, its source, and the special tokens that it may write, by names such as "bos_token".

    `place` is what messages call the template.
    """

    template: jinja2.Template = dataclasses.field(repr=False)
    source: str = dataclasses.field(repr=False)
    specials: Mapping[str, str]
    place: str = "the chat template"

    @classmethod
    def open(cls, directory: Path) -> "ChatTemplate":
        """Reads chat_template.jinja, or else tokenizer_config.json.

        Raises ValueError if there is no template, or it is not valid.
        """
        directory = Path(directory).expanduser()
        config = read_fields(directory / "tokenizer_config.json")
        source, place = _source(directory, config)
        if source is None:
            raise ValueError(f"{directory} has no chat template: neither chat_template.jinja nor tokenizer_config.json")
        texts = {name: content_of(token) for name, token in named_specials(directory).items()}
        specials = {name: text for name, text in texts.items() if name.endswith("_token") and isinstance(text, str)}
        try:
            return cls.of(source, specials, place)
        except ValueError as error:
            raise ValueError(f"{directory}: {error}") from error

    @classmethod
    def of(cls, source: str, specials: Mapping[str, str], place: str = "the chat template") -> "ChatTemplate":
        """Compiles a template. Raises ValueError if it is not valid."""
        try:
            return cls(_environment(_Generation).from_string(source), source, specials, place)
        except (jinja2.TemplateError, RecursionError) as error:  # thousands of parentheses
            raise ValueError(f"the chat template is not valid: {error}") from error

    def render(self, messages: Sequence[Mapping[str, str]], begun: bool = False) -> str:
        """Renders the messages ({"role": ..., "content": ...}) and the header of the assistant's next turn.

        With `begun` the last message is the beginning of the assistant's answer, and the text ends with it.

        Raises ValueError if the template rejects these messages, or breaks out of its sandbox.
        """
        if begun:
            messages = [*messages[:-1], messages[-1] | {"content": messages[-1]["content"] + _END}]
        text = self._render(self.template, messages, prompt=not begun)
        return _up_to_end(text) if begun else text

    def render_whole(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Renders a conversation that is over. Raises ValueError as `render` does."""
        return self._render(self.template, messages, prompt=False)

    def render_marked(self, messages: Sequence[Mapping[str, Any]]) -> Marked:
        """Renders a conversation, and tells which message wrote what. No text may hold a NUL character.

        Raises ValueError as `render` does.
        """
        messages = [dict(message) for message in messages]
        numbers = {id(message): number for number, message in enumerate(messages)}
        template, _ = self._with_marks
        return Marked.read(self._render(template, messages, prompt=False, **marks.variables(numbers)))

    @functools.cached_property
    def marks_generation(self) -> bool:
        """Whether the template marks what the model generates: {% generation %}."""
        return self._with_marks[1]

    @functools.cached_property
    def line(self) -> int:
        """The line at which the template writes the assistant's messages, as far as its code tells."""
        return marks.line_of_assistant(_environment(_Generation).parse(self.source))

    @functools.cached_property
    def _with_marks(self) -> tuple[jinja2.Template, bool]:
        environment = _environment(marks.Generation)
        tree = environment.parse(self.source)
        marks_generation = marks.add(tree, environment)
        code = environment.compile(tree)
        return jinja2.Template.from_code(environment, code, environment.make_globals(None)), marks_generation

    def _render(self, template: jinja2.Template, messages: Sequence[Mapping[str, Any]], prompt: bool, **more) -> str:
        try:
            # What transformers gives to every template: some ask whether tools or documents are None.
            return template.render(
                **self.specials, **more, messages=messages, tools=None, documents=None, add_generation_prompt=prompt
            )
        except Exception as error:  # the template is foreign code and may raise anything
            raise ValueError(f"the chat template does not take these messages: {error}") from error


def frame(prompt: str, answer_prefix: str, tokenizer: Tokenizer, chat: ChatTemplate | None) -> tuple[str, np.ndarray]:
    """Returns (the text before the answer prefix, int32 ids of BOS, that text and the prefix).

    With a template the prompt is the user's turn, and the tokenizer must come from a Hugging Face directory.

    Raises:
      EvaluationError: the template rejects the prompt.
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
    """Returns the text before `_END`, as transformers does; it is stripped if the template strips messages."""
    before, mark, after = text.rpartition(_END.rstrip())
    if not mark:
        raise ValueError("the chat template does not take these messages: it does not write what the last one begins")
    return before if after.startswith(" ") else before.rstrip()


def _source(directory: Path, config: Mapping[str, Any]) -> tuple[str | None, str]:
    """Returns the template, or None, and what messages call it."""
    file = directory / "chat_template.jinja"
    try:
        return file.read_text(encoding="utf-8-sig"), str(file)
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
    return source, f"the chat_template of {directory / 'tokenizer_config.json'}"


def _environment(generation: type[ext.Extension]) -> sandbox.ImmutableSandboxedEnvironment:
    """Makes the environment that transformers uses, for which templates are written."""
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _TODAY.strftime
    return environment


class _Generation(ext.Extension):
    """{% generation %}...{% endgeneration %}, which marks training targets; here it renders its content."""

    tags = frozenset({"generation"})

    def parse(self, parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """Writes JSON without the HTML escapes of jinja2's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
