"""LongBench from local files: `anchorjax evaluate longbench --hf DIR --data=LONGBENCH`.

--data holds narrativeqa.jsonl and the others as LongBench's data.zip has them. Writes longbench.json (percent by task,
averages by category), a bar chart and every answer (answers.jsonl); rerun the command to resume. Exit codes: 0 done,
1 failed, 2 bad input.
"""

import argparse
import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from anchorjax.evaluation import options, runner
from anchorjax.evaluation.record import Cell
from anchorjax.evaluation.task import Example, How
from anchorjax.evaluation.tasks.longbench import rows, scores
from anchorjax.evaluation.tasks.longbench.metrics import check_libraries
from anchorjax.evaluation.tasks.longbench.samples import Sample, Samples
from anchorjax.evaluation.tasks.longbench.tasks import EVEN, PUBLISHED, TASKS
from anchorjax.inference.language_model import Description
from anchorjax.inference.sampling import Sampling
from anchorjax.pages import figures
from anchorjax.parsing import on_disk


class LongBench:
    """The tasks whose files are there. A cell's length is the most tokens that a prompt may have."""

    name, kind = "longbench", "generate"

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        options.add_model(parser)
        options.add_template(parser)
        options.add_out(parser)
        parser.add_argument("--data", type=on_disk, required=True, help="directory with TASK.jsonl files")
        of_all = "comma separated; default: all in English and Chinese with a file"
        parser.add_argument("--tasks", default="", help=of_all)
        parser.add_argument("--e", action="store_true", help="default tasks are those of LongBench-E: TASK_e.jsonl")
        parser.add_argument("--samples", type=options.positive_or_0, default=0, help="the first of each task; 0: all")
        cut = "tokens of a prompt, cut in its middle if it has more; 0: what the model's context leaves"
        parser.add_argument("--max-length", type=options.tokens_or_0, default=0, help=cut)

    def __init__(self, arguments: argparse.Namespace, model: Description):
        options.steps(arguments, model)
        names = [name.strip() for name in arguments.tasks.split(",")] if arguments.tasks else []
        default = EVEN if arguments.e else PUBLISHED
        files = rows.find(arguments.data.expanduser(), names, default)
        check_libraries(TASKS[name].metric for name in files)
        chat = options.chat_template(arguments, model)
        self._samples = {
            name: Samples(
                TASKS[name],
                rows.read(file, TASKS[name], arguments.samples),
                model.tokenizer,
                model.context,
                arguments.max_length,
                chat,
            )
            for name, file in files.items()
        }
        left_out = [name for name in default if name not in files]
        if left_out and not names:
            print(f"left out, without a file in {arguments.data}: {', '.join(left_out)}")
        self._model = model
        self.request = {
            "context": model.context,
            "max_length": arguments.max_length,
            "template": arguments.template,
        }
        self.asked = {"data": options.absolute(arguments.data), "samples": arguments.samples}

    def examples(self) -> list[Example]:
        return [
            Example(
                name,
                samples.limit,
                index,
                functools.partial(operator.getitem, samples, index),
                self._how(name),
                len(samples.rows[index].prompt),
                samples.digest(index),
            )
            for name, samples in self._samples.items()
            for index in range(len(samples))
        ]

    def _how(self, name: str) -> How:
        """Where answers end with their line, a newline ends them, but as in pred.py not as the first token."""
        task = TASKS[name]
        if not task.ends_with_line:
            return How(task.max_new_tokens)
        newline = int(self._model.tokenizer.encode("\n")[-1])
        barred = Sampling(not_first=(*self._model.eos_ids, newline))
        return How(task.max_new_tokens, barred, stop_ids=(newline,))

    def facts(self, task: str, length: int) -> dict[str, Any]:
        return {}

    def score(self, example: Example, made: Sample, output: str) -> dict[str, Any]:
        row = self._samples[example.task].rows[example.index]
        return {"score": scores.score(TASKS[example.task], output, row), "words": row.length}

    def tables(self, cells: Sequence[Cell]) -> dict[str, Any]:
        order = list(TASKS)
        cells = sorted(cells, key=lambda cell: order.index(cell.task))
        lines = {cell.task: cell.lines[0] for cell in cells}
        means = {cell.task: cell.mean() for cell in cells}
        return {
            "scores": means,
            "counts": {task: len(some) for task, some in lines.items()},
            "prompt_tokens": {cell.task: cell.length for cell in cells},  # at most
            "by_length": {task: scores.by_length(some) for task, some in lines.items() if TASKS[task].is_even},
            "averages": scores.averages(means),
        }

    def figures(self, result: Mapping[str, Any]) -> dict[str, bytes]:
        shown = {"x_label": "LongBench, percent", "name_value": "{:.1f}".format}
        drawn = figures.bars(list(result["scores"]), list(result["scores"].values()), **shown)
        return {"longbench.png": figures.png(drawn)}

    def text(self, result: Mapping[str, Any]) -> str:
        lines = [f"{'percent':<24}{'score':>8}{'samples':>9}"]
        for name, value in result["scores"].items():
            parts = "".join(f"  {part} {mean:.2f}" for part, mean in result["by_length"].get(name, {}).items())
            lines.append(f"{name:<24}{value:>8.2f}{result['counts'][name]:>9}{parts}")
        for language, means in result["averages"].items():
            lines += [f"{f'mean {language} {category}':<24}{value:>8.2f}" for category, value in means.items()]
        return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    return runner.main(LongBench, "longbench", __doc__, argv)
