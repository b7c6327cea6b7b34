"""Conversations on their way into a store: lists of messages with roles, and why a list is none."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from anchorjax.data.bad_rows import BadRow, utf8

ROLES = ("system", "user", "assistant", "tool")
_ASSISTANT = "assistant"
# Names under which a message may hold its reasoning; transformers gives templates the first that is there as both.
_REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Messages as chat templates take them: {"role": one of ROLES, "content": a text, ...} each.

    Other keys of a message, such as "tool_calls", are the template's to read.
    """

    messages: tuple[Mapping[str, Any], ...]

    @classmethod
    def of(cls, value: Any, key: str, max_bytes: int) -> "Conversation":
        """Reads a list of messages, or an object of two lists "role" and "content" as `datasets` may store it.

        A content of several parts, {"type": "text", "text": ...}, becomes one text. Keys without a value are removed.

        Args:
          key: what messages call the value.

        Raises:
          BadRow: see the reasons below.
        """
        if isinstance(value, Mapping):
            value = _rows(value, key)
        if not isinstance(value, list | tuple | np.ndarray):
            raise BadRow(f"{key} is not a list of messages")
        if not len(value):
            raise BadRow(f"{key} has no message")
        conversation = cls(tuple(_message(message, key) for message in value))
        if not any(message["role"] == _ASSISTANT for message in conversation.messages):
            raise BadRow(f"{key} has no message of the assistant")
        size = 0
        for text in conversation.texts():
            if "\0" in text:
                raise BadRow(f"{key} holds a NUL character")
            size += len(utf8(text, key))
        if size > max_bytes:
            raise BadRow(f"longer than data.max_row_bytes={max_bytes}")
        return conversation

    @property
    def assistant(self) -> tuple[int, ...]:
        """The numbers of the assistant's messages."""
        return tuple(number for number, message in enumerate(self.messages) if message["role"] == _ASSISTANT)

    def texts(self) -> Iterator[str]:
        """Yields every text in the messages, those inside tool calls too."""
        yield from _texts(self.messages)

    def __len__(self) -> int:
        """Returns the number of characters."""
        return sum(map(len, self.texts()))

    def encode(self) -> bytes:
        """Returns bytes that are the same for equal conversations alone."""
        return json.dumps(self.messages, sort_keys=True, default=str).encode()


def _rows(columns: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    lists = {name: column for name, column in columns.items() if isinstance(column, list | tuple | np.ndarray)}
    if not lists or len(lists) < len(columns) or len({len(column) for column in lists.values()}) > 1:
        raise BadRow(f"{key} is not a list of messages")
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


def _message(message: Any, key: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise BadRow(f"a message in {key} is not an object")
    message = {name: value for name, value in message.items() if value is not None}
    role = message.get("role")
    if role is None:
        raise BadRow(f"a message in {key} has no role", f"it has {', '.join(map(str, message)) or 'no keys'}")
    if role not in ROLES:
        raise BadRow(f"a role in {key} is not one of {', '.join(ROLES)}", f"it is {role!r}")
    if "content" in message:
        message["content"] = _content(message["content"], key)
    elif message.get("tool_calls") is None:
        raise BadRow(f"a message in {key} has no content")
    reasoning = next((message[name] for name in _REASONING if name in message), None)
    return message if reasoning is None else {"thinking": reasoning} | message | {"reasoning_content": reasoning}


def _content(content: Any, key: str) -> str:
    if isinstance(content, list | tuple | np.ndarray):
        if not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content):
            raise BadRow(f"a content in {key} has parts that are not texts")
        return "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise BadRow(f"a content in {key} is not a text")
    return content


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _texts(name)
            yield from _texts(inner)
    elif isinstance(value, Sequence | np.ndarray):
        for inner in value:
            yield from _texts(inner)
