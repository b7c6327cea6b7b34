"""Rows as prompts in tokens, cut in the middle where they are too long."""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from anchorjax.data.text.chat import ChatTemplate, frame
from anchorjax.data.text.tokenizer import Tokenizer
from anchorjax.errors import EvaluationError
from anchorjax.evaluation.tasks.longbench.rows import Row
from anchorjax.evaluation.tasks.longbench.tasks import Task

_SHORTEST = 2  # tokens of a prompt: one from each end


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """What a model is asked.

    Attributes:
      prompt: with a chat template, all turns up to the beginning of the answer.
      ids_T: int32 [T], BOS, then the prompt.
    """

    prompt: str = dataclasses.field(repr=False)
    max_new_tokens: int
    ids_T: np.ndarray = dataclasses.field(repr=False)


class Samples(Sequence):
    """Samples of one task; each is tokenized when it is asked for.

    Attributes:
      limit: tokens of a prompt, BOS included, but not those of a chat template.
    """

    def __init__(
        self,
        task: Task,
        rows: Sequence[Row],
        tokenizer: Tokenizer,
        context: int,
        max_length: int = 0,
        chat: ChatTemplate | None = None,
    ):
        """
        Args:
          context: tokens that the model takes, prompt, chat template and answer together.
          max_length: tokens of a prompt; 0: what the context leaves.
          chat: for tasks that take one.

        Raises:
          EvaluationError: the context has no room, or the template does not take a prompt.
        """
        self.task, self.rows = task, rows
        self._tokenizer, self._chat = tokenizer, chat if task.takes_template else None
        self._template_tokens = self._count_template()
        room = context - task.max_new_tokens - self._template_tokens
        self.limit = max_length or room
        if not _SHORTEST <= self.limit <= room:
            asked = f"a prompt of {max_length:,} tokens" if max_length else "a prompt"
            template = f", {self._template_tokens:,} of a chat template" if self._template_tokens else ""
            raise EvaluationError(
                f"{task.name}: {asked}{template} and {task.max_new_tokens:,} of the answer are more than the model's "
                f"context of {context:,}; --context=N allows more"
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        """A prompt of too many tokens becomes its first and last `limit / 2`, as text: the pieces join anew."""
        prompt = self.rows[index].prompt
        limit = self.limit
        while limit >= _SHORTEST:
            text, ids_T = frame(middle_cut(prompt, limit, self._tokenizer), "", self._tokenizer, self._chat)
            excess = len(ids_T) - self._template_tokens - self.limit
            if excess <= 0:
                return Sample(text, self.task.max_new_tokens, ids_T)
            limit -= excess  # half a character at the cut can be more tokens than it was
        raise EvaluationError(f"{self.task.name}: sample {index} cannot be cut to {self.limit:,} tokens")

    def digest(self, index: int) -> str:
        """Tells a sample from another one in its place."""
        return hashlib.sha256(self.rows[index].prompt.encode()).hexdigest()[:16]

    def _count_template(self) -> int:
        if self._chat is None:
            return 0
        prompt = "x"
        return len(frame(prompt, "", self._tokenizer, self._chat)[1]) - 1 - len(self._tokenizer.encode(prompt))


def middle_cut(text: str, limit: int, tokenizer: Tokenizer) -> str:
    """`text`, or its first and last tokens decoded if it has more than `limit`, BOS included."""
    ids_T = np.concatenate([np.asarray([tokenizer.bos_id], np.int32), tokenizer.encode(text)])
    if len(ids_T) <= limit:
        return text
    half = limit // 2
    return tokenizer.decode(ids_T[:half]) + tokenizer.decode(ids_T[-half:])
