"""What an evaluation task is: examples, the score of an answer, and tables of scores. `runner` does all else."""

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from anchorjax.evaluation.record import Cell
from anchorjax.evaluation.windows import Window
from anchorjax.inference.sampling import Sampling


@dataclasses.dataclass(frozen=True)
class How:
    """How answers are generated; the prompts of a batch share it. See `Generator.generate`."""

    max_new_tokens: int
    sampling: Sampling = Sampling()  # noqa: RUF009 - frozen
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()

    def options(self) -> dict[str, Any]:
        """Those that are not the default."""
        return {
            name: getattr(self, name)
            for name in ("sampling", "stop", "stop_ids")
            if getattr(self, name) != getattr(type(self), name)
        }


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """A document to score.

    Attributes:
      ids_T: int [T], without BOS.
      ways: each a set of windows over the document; a score's output has one array for each of them.
    """

    ids_T: np.ndarray
    ways: Sequence[Sequence[Window]]


@dataclasses.dataclass(frozen=True)
class Example:
    """One question, whose tokens are made only when its answer is missing.

    Attributes:
      task, length, index: name it in the record.
      make: for a task that generates, an object with `ids_T`, the prompt with BOS; for one that scores, a `Reading`.
      how: what the examples of a batch share: a `How` for a task that generates.
      size: about how many tokens it has: examples are asked in this order.
      id: tells it from another example that may have had the same index, such as a digest of its text.
    """

    task: str
    length: int
    index: int | str
    make: Callable[[], Any] = dataclasses.field(repr=False)
    how: Hashable
    size: int
    id: str = ""


class Task(Protocol):
    """A task; its constructor takes (parsed arguments, model) and raises UserError before any weight is read.

    Attributes:
      name: of the files that it writes, and of its script.
      kind: "generate" answers with a text, "score" with -log p of given tokens.
      request: JSON; all that every answer depends on, beside the model.
      asked: JSON; what the tables depend on beside that, such as the number of samples.
    """

    name: str
    kind: Literal["generate", "score"]
    request: Mapping[str, Any]
    asked: Mapping[str, Any]

    def examples(self) -> Sequence[Example]: ...

    def facts(self, task: str, length: int) -> dict[str, Any]:
        """What the tables need to know of a cell beside its answers; JSON."""
        ...

    def score(self, example: Example, made: Any, output: Any) -> dict[str, Any]:
        """{"score": ..., and what else the tables need}.

        Args:
          output: the text, or of each way of the `Reading` float64 [T], -log p of the document's tokens.
        """
        ...

    def tables(self, cells: Sequence[Cell]) -> dict[str, Any]:
        """The result; a pure function of the answers."""
        ...

    def figures(self, result: Mapping[str, Any]) -> Mapping[str, bytes]:
        """PNG files by name."""
        ...

    def text(self, result: Mapping[str, Any]) -> str:
        """What is printed."""
        ...
