"""RULER: 13 tasks of retrieval, tracking and counting by length: `anchorjax evaluate ruler --hf DIR --lengths=4K`.

Writes ruler.json (percent by task and length, with the averages over what was scored, over all 13 tasks and over the 11
of the AnchorAttention paper), a heat map, and every answer (answers.jsonl); rerun the command to resume.
With --last=5 the scores are means over a run's last five checkpoints, as the paper has them. The tasks with questions
(qa_1, qa_2) need --squad and --hotpot; essays are Jane Austen's unless --essays names RULER's. Exit codes: 0 done, 1
failed, 2 bad input.
"""

import argparse
import functools
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from anchorjax.evaluation import heat_maps, options, runner
from anchorjax.evaluation.record import Cell
from anchorjax.evaluation.task import Example, How
from anchorjax.evaluation.tasks.ruler import scores, tasks
from anchorjax.inference.language_model import Description
from anchorjax.parsing import on_disk

_QUESTIONS = {"qa_1": "squad", "qa_2": "hotpot"}


class Ruler:
    """All samples of the tasks that were asked for."""

    name, kind = "ruler", "generate"

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        options.add_model(parser)
        options.add_samples(parser, samples=100)
        parser.add_argument("--tasks", default="", help=f"comma separated, of {', '.join(tasks.TASKS)}; default: all")
        parser.add_argument("--squad", type=on_disk, help="SQuAD's dev-v2.0.json")
        parser.add_argument("--hotpot", type=on_disk, help="HotpotQA's hotpot_dev_distractor_v1.json")
        of_last = "mean over so many of a run's last checkpoints"
        parser.add_argument("--last", type=options.positive, dest="last_checkpoints", help=of_last)

    def __init__(self, arguments: argparse.Namespace, model: Description):
        options.check_lengths(arguments.lengths, model)
        options.steps(arguments, model)
        named = [task.strip() for task in arguments.tasks.split(",")] if arguments.tasks else []
        for task, option in _QUESTIONS.items() if not named else ():
            if getattr(arguments, option) is None:
                print(f"{task} is left out: --{option} names no file")
        able = [task for task in tasks.TASKS if getattr(arguments, _QUESTIONS.get(task, ""), True) is not None]
        files = {name: getattr(arguments, name) for name in ("essays", "squad", "hotpot")}
        chat = options.chat_template(arguments, model)
        self._samples = {
            (task, length): tasks.make(
                task, model.tokenizer, length, arguments.samples, arguments.seed, chat=chat, **files
            )
            for task in named or able
            for length in arguments.lengths
        }
        self.request = {"seed": arguments.seed, "template": arguments.template} | options.material(**files)
        self.asked = {"samples": arguments.samples}

    def examples(self) -> list[Example]:
        return [
            Example(
                task,
                length,
                index,
                functools.partial(operator.getitem, samples, index),
                How(tasks.TASKS[task].max_new_tokens),
                length,
            )
            for (task, length), samples in self._samples.items()
            for index in range(len(samples))
        ]

    def facts(self, task: str, length: int) -> dict[str, Any]:
        return {}

    def score(self, example: Example, made: tasks.Sample, output: str) -> dict[str, Any]:
        """Percent of the references in the answer."""
        share = scores.match(tasks.TASKS[example.task].metric, output, made.references)
        return {"score": 100 * share} | ({"material": made.material} if made.material else {})

    def tables(self, cells: Sequence[Cell]) -> dict[str, Any]:
        """Means over samples and checkpoints by task and length, and their averages by length."""
        order = list(tasks.TASKS)
        cells = sorted(cells, key=lambda cell: (order.index(cell.task), cell.length))
        steps = [str(lines[0]["step"]) for lines in cells[0].lines]
        result: dict[str, Any] = {"scores": {}, "averages": {}, "by_step": {step: {} for step in steps}}
        material = {}
        for cell in cells:
            length = str(cell.length)
            result["scores"].setdefault(cell.task, {})[length] = cell.mean()
            for step, mean in zip(steps, cell.scores(), strict=True):
                result["by_step"][step].setdefault(cell.task, {})[length] = mean
            # The shortest lists of words are RULER's own where longer ones are not, and the other way round.
            if text := cell.lines[0][0].get("material"):
                material.setdefault(cell.task, text)
        for length in map(str, sorted({cell.length for cell in cells})):
            column = {task: row[length] for task, row in result["scores"].items() if length in row}
            result["averages"][length] = scores.averages(column)
        return result | {"material": material}

    def figures(self, result: Mapping[str, Any]) -> dict[str, bytes]:
        lengths = list(result["averages"])
        percent = [[row.get(length, math.nan) for length in lengths] for row in result["scores"].values()]
        drawn = heat_maps.by_length(percent, list(result["scores"]), list(map(int, lengths)), "RULER, percent")
        return {"ruler.png": drawn}

    def text(self, result: Mapping[str, Any]) -> str:
        lengths = list(result["averages"])
        rows = dict(result["scores"])
        scored = [("scored", f"mean of {len(rows)}")] if len(rows) < len(tasks.TASKS) else []
        for name, label in (*scored, ("ruler", "mean of 13"), ("paper", "mean of 11 (paper)")):
            row = {length: one[name] for length, one in result["averages"].items() if name in one}
            rows |= {label: row} if row else {}
        lines = [f"{'percent':<18}" + "".join(f"{length:>9}" for length in lengths)]
        for label, row in rows.items():
            lines.append(f"{label:<18}" + "".join(f"{row.get(length, math.nan):>9.1f}" for length in lengths))
        return "\n".join([*lines, *(f"note: {task}: {text}" for task, text in result["material"].items())])


def main(argv: Sequence[str] | None = None) -> int:
    return runner.main(Ruler, "ruler", __doc__, argv)
