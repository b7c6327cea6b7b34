"""The assistant's turns in a conversation: which tokens of a chat template's text the model is trained to write.

A turn is what the assistant's message adds to the prompt that the model would see: its content and what ends it, such
as "<|im_end|>\\n", but not its header. Templates that mark it with {% generation %} say so themselves, and turns are
those of transformers' `return_assistant_tokens_mask`. In others a turn begins where the rendering of the messages
before it, with the header of the next turn, ends; that rendering must be how the whole text begins. It ends where

  - the rendering up to its message ends, if that too is how the whole text begins;
  - else the loop over messages that wrote it goes on (Qwen 3 writes a turn otherwise once it is not the last; Phi 3
    ends every text with EOS), if later messages change nothing there;
  - in the last message, the text ends.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anchorjax.data.bad_rows import BadRow
from anchorjax.data.conversations import Conversation
from anchorjax.data.text.chat import ChatTemplate
from anchorjax.data.text.tokenizer import HuggingFaceTokenizer, Tokenizer

Messages = Sequence[Mapping[str, Any]]
Span = tuple[int, int]

# Conversations of which a template must take one; some refuse a system's message, others need it.
_TURNS = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "It is 4."},
    {"role": "user", "content": "And 3 + 3?"},
    {"role": "assistant", "content": "It is 6."},
]
_SYSTEM = {"role": "system", "content": "Answer in one sentence."}
PROBES = (_TURNS, [_SYSTEM, *_TURNS], _TURNS[:2])


def find(chat: ChatTemplate, conversation: Conversation) -> tuple[str, list[Span]]:
    """Renders a conversation and finds the assistant's turns, as characters [begin, end) of the text.

    Raises:
      BadRow: the template does not take the messages, or a turn cannot be found.
    """
    messages = conversation.messages
    try:
        text = chat.render_whole(messages)
        if not chat.marks_generation:
            return text, _unmarked(chat, conversation, text)
        marked = chat.render_marked(messages)
    except ValueError as error:
        raise BadRow("the chat template does not take the messages", str(error)) from error
    if marked.text != text:
        raise BadRow("the chat template cuts what it marks", f"{chat.place}, line {chat.line}")
    return text, [(begin, end) for begin, end in marked.generated if begin < end]


def _unmarked(chat: ChatTemplate, conversation: Conversation, text: str) -> list[Span]:
    messages, spans = conversation.messages, []
    for number in conversation.assistant:
        where = f"message {number} from 0; {chat.place}, line {chat.line}"
        begin = _begin(chat, messages, number, text)
        if begin is None:
            reason = "the chat template writes what comes before an assistant's turn otherwise than in a prompt"
            raise BadRow(reason, where)
        end = _end(chat, messages, number, text, begin)
        if end is None:
            raise BadRow("the chat template does not tell where an assistant's turn ends", where)
        spans.append((begin, end))
    return spans


def _begin(chat: ChatTemplate, messages: Messages, number: int, text: str) -> int | None:
    """Returns the length of the prompt for message `number`, or None if the text does not begin with it."""
    try:
        prompt = chat.render(messages[:number])
    except ValueError:
        return None
    return len(prompt) if text.startswith(prompt) else None


def _end(chat: ChatTemplate, messages: Messages, number: int, text: str, begin: int) -> int | None:
    if number == len(messages) - 1:
        return len(text)
    try:
        so_far = chat.render_whole(messages[: number + 1])
    except ValueError:
        return None
    if text.startswith(so_far) and len(so_far) >= begin:
        return len(so_far)
    # Another content of later messages must change neither what the loop wrote nor where it did.
    later = [_changed(message) for message in messages[number + 1 :]]
    ends = {_loop_end(chat, some, number, text, begin) for some in (messages, [*messages[: number + 1], *later])}
    return ends.pop() if len(ends) == 1 else None


def _changed(message: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**message, "content": f"{message.get('content', '')} and more"}


def _loop_end(chat: ChatTemplate, messages: Messages, number: int, text: str, begin: int) -> int | None:
    """Returns the end of what one pass of a loop wrote for a message, if it is what `text` has there."""
    try:
        marked = chat.render_marked(messages)
        whole = chat.render_whole(messages)
    except ValueError:
        return None
    passes = marked.written.get(number, ())
    if marked.text != whole or len(passes) != 1:
        return None
    first, end = passes[0]
    return end if first <= begin <= end and whole[:end] == text[:end] else None


@dataclasses.dataclass(frozen=True, eq=False)
class ConversationEncoder:
    """Encodes conversations as transformers does, and flags the tokens of the assistant's turns.

    A text that spells a special token holds that token, whoever wrote it, as in transformers. Only one in a turn of the
    assistant is trained on.

    Attributes:
      drops_bos: whether texts begin with BOS, which the row's anchor stands for. A BOS that also begins other turns
        (SmolLM2: "<|im_start|>") is part of a header, and stays.
    """

    chat: ChatTemplate
    tokenizer: HuggingFaceTokenizer
    drops_bos: bool

    @classmethod
    def open(cls, directory: str, tokenizer: Tokenizer) -> "ConversationEncoder":
        """Reads the chat template of a tokenizer's directory, and tries it.

        Raises:
          ValueError: there is no template, it is not valid, or the turns of a small conversation cannot be found.
        """
        if not isinstance(tokenizer, HuggingFaceTokenizer):
            raise ValueError(f"conversations need a directory with a chat template, and not {directory!r}")
        chat = ChatTemplate.open(Path(directory).expanduser())
        probe, text = _probe(chat)
        encoder = cls(chat, tokenizer, _begins_with_bos(chat, tokenizer, probe, text))
        (found,) = encoder.encode([Conversation(tuple(probe))])
        if isinstance(found, BadRow):
            raise ValueError(f"{found}, in a conversation of {len(probe)} short messages ({found.detail})")
        return encoder

    def encode(self, conversations: Sequence[Conversation]) -> list[tuple[np.ndarray, np.ndarray] | BadRow]:
        """Returns for each conversation int32 ids [T] and bool flags [T], or why there are none.

        No EOS is appended: the text ends as the template ends it.
        """
        found: list[tuple[str, list[Span]] | BadRow] = []
        for conversation in conversations:
            try:
                found.append(find(self.chat, conversation))
            except BadRow as error:
                found.append(error)
        texts = [one[0] for one in found if not isinstance(one, BadRow)]
        encoded = iter(self.tokenizer.encode_with_specials_and_offsets(texts) if texts else [])
        return [one if isinstance(one, BadRow) else self._flag(one[0], one[1], *next(encoded)) for one in found]

    def _flag(self, text: str, spans: list[Span], ids_T: np.ndarray, offsets_T2: np.ndarray):
        begin_T, end_T = offsets_T2.T
        trained_T = np.zeros(len(ids_T), bool)
        for begin, end in spans:
            inside_T = (end_T > begin) & (begin_T < end)
            across_T = inside_T & ((begin_T < begin) | (end_T > end))
            if across_T.any():
                first, last = offsets_T2[int(np.argmax(across_T))]
                what = f"{text[first:last]!r} at character {first}; {self.chat.place}, line {self.chat.line}"
                return BadRow("a token lies partly in an assistant's turn and partly outside", what)
            trained_T |= inside_T
        if not trained_T.any():
            return BadRow("no token is the assistant's")
        dropped = int(self.drops_bos and ids_T[0] == self.tokenizer.bos_id)
        return ids_T[dropped:], trained_T[dropped:]


def _probe(chat: ChatTemplate) -> tuple[Messages, str]:
    error = None
    for probe in PROBES:
        try:
            return probe, chat.render_whole(probe)
        except ValueError as refused:
            error = error or refused
    raise ValueError(f"{chat.place} takes no simple conversation: {error}") from error


def _begins_with_bos(chat: ChatTemplate, tokenizer: HuggingFaceTokenizer, probe: Messages, text: str) -> bool:
    named = dataclasses.replace(chat, specials={**chat.specials, "bos_token": "\0"})
    spelled = tokenizer.spell(tokenizer.bos_id)
    return named.render_whole(probe).startswith("\0") or (text.startswith(spelled) and text.count(spelled) == 1)
