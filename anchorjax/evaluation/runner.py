"""The only loop of the evaluations: what the record lacks is made, batched, asked, scored and kept.

Examples are asked in the order of their sizes, whatever their task, so that the rows of a batch are alike. Making a
long sample takes seconds and megabytes: AHEAD batches of samples are made at a time, and sorted again by their exact
lengths.
"""

import argparse
import contextlib
import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tqdm

from anchorjax import background, processes
from anchorjax.evaluation import options, windows
from anchorjax.evaluation.record import Cell, Line, Record
from anchorjax.evaluation.task import Example, Task
from anchorjax.inference import language_model
from anchorjax.inference.batching import batches, bucket
from anchorjax.inference.generation import Generator
from anchorjax.inference.language_model import Description
from anchorjax.inference.scoring import Scorer
from anchorjax.parsing import Parser

AHEAD = 8  # batches of samples in memory
QUIET = 30.0  # seconds between signs of life where no bar can be drawn


class Engine:
    """One checkpoint, loaded when the first answer is missing, as a generator or as a scorer and never as both."""

    def __init__(self, model: Description, step: int | None, batch_size: int, extra: int = 0):
        """`extra`: tokens of a row to score beyond the model's context."""
        self.model, self.step, self.weights_id = model, step, model.weights_id(step)
        self._batch_size, self._extra = batch_size, extra
        self._ready: Scorer | Generator | None = None

    def generator(self) -> Generator:
        if not isinstance(self._ready, Generator):
            self._ready = None  # a generator keeps the weights in another layout
            self._ready = Generator(language_model.load(self.model, step=self.step), self._batch_size)
        return self._ready

    def scorer(self) -> Scorer:
        if not isinstance(self._ready, Scorer):
            self.model.check_scored()  # before the weights are read
            self._ready = None
            loaded = language_model.load(self.model, step=self.step)
            wider = dataclasses.replace(self.model, context=self.model.context + self._extra)
            self._ready = Scorer(dataclasses.replace(loaded, description=wider), self._batch_size)
        return self._ready


@dataclasses.dataclass(frozen=True)
class Way:
    """How a batch is asked.

    Attributes:
      ask: (what the examples share, what they made) -> an output for each; outputs are dicts for the line.
      batch_size: asked only if something is missing.
      size: tokens of what an example made.
      kind: for `batches`, from what the examples share.
    """

    ask: Callable[[Any, Sequence[Any]], Sequence[Any]]
    batch_size: Callable[[], int]
    size: Callable[[Any], int]
    kind: Callable[[Any], Callable[[int], int] | None]


def generating(engine: Engine) -> Way:
    def ask(how, made):
        prompts = [one.ids_T.tolist() for one in made]
        return engine.generator().generate(prompts, how.max_new_tokens, **how.options())

    return Way(
        ask,
        lambda: engine.generator().batch_size,
        lambda one: len(one.ids_T),
        lambda how: engine.generator().kind(how.max_new_tokens),
    )


def scoring(engine: Engine) -> Way:
    def ask(_, made):
        front = [engine.model.tokenizer.bos_id]
        asked = [(one.ids_T, way) for one in made for way in one.ways]
        nats = iter(windows.score(engine.scorer(), *zip(*asked, strict=True), front))
        return [list(itertools.islice(nats, len(one.ways))) for one in made]

    return Way(ask, lambda: engine.scorer().batch_size, lambda one: len(one.ids_T), lambda how: bucket)


def fill(
    record: Record,
    engine: Engine,
    examples: Sequence[Example],
    way: Way,
    line: Callable[[Example, Any, Any], Line],
    label: str,
) -> None:
    """Puts into the record what it lacks; `line` makes the fields of an answer from (example, what it made, output)."""

    def lacks(one: Example) -> bool:
        return record.lacks((engine.weights_id, one.task, one.length, one.index), one.id)

    missing = sum(map(lacks, examples))
    if not missing:
        return
    groups: dict[Any, list[Example]] = {}
    for one in sorted(examples, key=lambda one: one.size):
        groups.setdefault(one.how, []).append(one)
    batch_size = way.batch_size()
    watchdog = processes.Watchdog(processes.STUCK_S)
    with progress(label, len(examples), len(examples) - missing) as advance, watchdog:
        for how, group in groups.items():
            # All examples are counted, so that after a kill the same ones come together.
            for first in range(0, len(group), AHEAD * batch_size):
                left = [(one, one.make()) for one in group[first : first + AHEAD * batch_size] if lacks(one)]
                asked = batches(left, batch_size, lambda pair: way.size(pair[1]), way.kind(how))
                for some in watchdog.each(asked):
                    outputs = way.ask(how, [made for _, made in some])
                    record.add(
                        {"task": one.task, "length": one.length, "index": one.index}
                        | line(one, made, output)
                        | {"weights_id": engine.weights_id, "step": engine.step}
                        | ({"id": one.id} if one.id else {})
                        for (one, made), output in zip(some, outputs, strict=True)
                    )
                    advance(len(some))


@contextlib.contextmanager
def progress(label: str, total: int, done: int) -> Iterator[Callable[[int], None]]:
    """A bar of answers on a terminal, elsewhere a line every QUIET seconds; what it yields adds to those done."""
    if processes.is_main() and sys.stderr.isatty():
        with tqdm.tqdm(total=total, initial=done, desc=label) as bar:
            yield bar.update
        return
    with alive(lambda: f"{label}: {done:,} of {total:,} answers"):

        def advance(more: int) -> None:
            nonlocal done
            done += more

        yield advance


def alive(tell: Callable[[], str]) -> contextlib.AbstractContextManager[None]:
    """Prints what `tell` gives on stderr every QUIET seconds, however long a single step takes; on process 0 alone."""
    if not processes.is_main():
        return contextlib.nullcontext()
    return background.every(QUIET, lambda: print(tell(), file=sys.stderr, flush=True))


def answer(record: Record, task: Task, engine: Engine) -> None:
    """Asks all that the record lacks of a task, of one checkpoint."""

    def line(example: Example, made: Any, output: Any) -> Line:
        if task.kind == "score":
            return task.score(example, made, output)
        said = {"text": output.text, "tokens": len(output.tokens), "reason": output.reason}
        return task.score(example, made, output.text) | said

    way = (generating if task.kind == "generate" else scoring)(engine)
    of_step = "" if engine.step is None else f" of step {engine.step}"
    fill(record, engine, task.examples(), way, line, f"{task.name}{of_step}")


def cells_of(task: Task) -> list[dict[str, Any]]:
    """The cells that a task asks, for `Record.begin`."""
    counts: dict[tuple[str, int], int] = {}
    for one in task.examples():
        counts[one.task, one.length] = counts.get((one.task, one.length), 0) + 1
    return [
        {"task": task_name, "length": length, "examples": count} | task.facts(task_name, length)
        for (task_name, length), count in counts.items()
    ]


def summarise(record: Record, task: Task, asked: dict[str, Any], cells: Sequence[Cell]) -> None:
    """Writes the result of all answers to the same question, and prints it."""
    result = {**record.request, **asked, **task.tables(cells), "commands": record.commands}
    path = record.write(f"{task.name}.json", result)
    for name, png in task.figures(result).items():
        record.write(name, png)
    print(task.text(result))
    print(f"written to {path}")


def evaluate(task: Task, model: Description, arguments: argparse.Namespace, command: str, folder: str = "") -> None:
    """Answers, summarises and prints a task; `folder`: other than its name."""
    steps = options.steps(arguments, model)
    engines = [Engine(model, step, arguments.batch_size) for step in steps]
    ids = [engine.weights_id for engine in engines]
    several = hasattr(arguments, "last_checkpoints")
    told = {"steps": steps, "weights": ids} if several else {"step": steps[0], "weights": ids[0]}
    asked = {**task.asked, "context": model.context, **told}
    directory = options.out_directory(arguments, model, folder or task.name)
    request = options.request(model, **task.request)
    with Record(directory, request, lambda: options.earlier_request(request, model)) as record:
        record.begin(command, asked, cells_of(task))
        for number, engine in enumerate(engines):
            answer(record, task, engine)
            engines[number] = engine = None  # weights of one checkpoint at a time
        processes.on_main(lambda: summarise(record, task, asked, record.cells(asked, ids)))


def main(task: type[Task], name: str, about: str, argv: Sequence[str] | None):
    """The command of a task: its `add_options` and constructor, and `evaluate`. Returns the exit code."""
    command = options.as_typed(name, argv)
    parser = Parser(options.program(name), about)
    task.add_options(parser)

    def run(arguments: argparse.Namespace) -> None:
        model = options.description(arguments)
        with alive(lambda: f"{name}: preparing"):
            made = processes.main_first(lambda: task(arguments, model))
        evaluate(made, model, arguments, command)

    return options.run(parser, argv, run)
