"""LongBench from local files: `python eval/longbench.py --hf DIR --data=LONGBENCH`.

--data holds narrativeqa.jsonl and the others as LongBench's data.zip has them. Writes longbench.json (percent by task,
averages by category), a bar chart and every answer (answers.jsonl), with which a killed evaluation goes on. Exit codes:
0 done, 1 failed, 2 bad input.
"""

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path

from anchorjax.evaluation import earlier, options
from anchorjax.evaluation.answering import answer
from anchorjax.evaluation.results import Results
from anchorjax.evaluation.tasks import longbench
from anchorjax.evaluation.tasks.longbench import TASKS, Samples, Task
from anchorjax.inference import language_model
from anchorjax.inference.generation import Generator
from anchorjax.inference.language_model import Description
from anchorjax.inference.sampling import Sampling
from anchorjax.pages import figures


def main(argv: list[str] | None = None) -> int:
    parser = options.Parser(description=__doc__.splitlines()[0])
    options.add_model(parser)
    options.add_output(parser)
    parser.add_argument("--data", type=Path, required=True, help="directory with TASK.jsonl files")
    parser.add_argument("--tasks", default="", help="comma separated; default: all in English and Chinese with a file")
    parser.add_argument("--e", action="store_true", help="default tasks are those of LongBench-E: TASK_e.jsonl")
    parser.add_argument("--samples", type=options.positive_or_0, default=0, help="the first of each task; 0: all")
    parser.add_argument(
        "--max-length",
        type=options.tokens_or_0,
        default=0,
        help="tokens of a prompt, cut in its middle if it has more; 0: what the model's context leaves",
    )
    return options.run("longbench.py", lambda: evaluate(parser.parse_args(argv)))


def evaluate(arguments: argparse.Namespace) -> None:
    model = options.description(arguments)
    samples = read_samples(arguments, model)
    request = options.request(
        model, context=model.context, max_length=arguments.max_length, template=arguments.template
    )
    step = model.steps()[-1]
    mark = model.mark(step)
    generator = functools.cache(lambda: Generator(language_model.load(model, step=step), arguments.batch_size))
    with Results(options.out_directory(arguments, model, "longbench"), request) as results:
        scores = {name: score(generator, one, mark, model, results) for name, one in samples.items()}
        result = summary(scores, samples)
        asked = {"data": options.absolute(arguments.data), "samples": arguments.samples, "step": step}
        asked["weights"] = mark
        whole = with_earlier(results.directory / "longbench.json", request | asked | result, [*request, *asked])
        path = results.write("longbench.json", whole)
        results.write("longbench.png", picture(whole["scores"]))
    print(table(result))
    print(f"written to {path}")


def read_samples(arguments: argparse.Namespace, model: Description) -> dict[str, Samples]:
    """By task. Raises UserError for what cannot be asked or scored, before any weight is read."""
    names = [name.strip() for name in arguments.tasks.split(",")] if arguments.tasks else []
    default = longbench.EVEN if arguments.e else longbench.PUBLISHED
    files = longbench.find(arguments.data.expanduser(), names, default)
    longbench.check_libraries(TASKS[name].metric for name in files)
    chat = options.chat_template(arguments, model)
    samples = {}
    for name, file in files.items():
        rows = longbench.read(file, TASKS[name], arguments.samples)
        samples[name] = Samples(TASKS[name], rows, model.tokenizer, model.context, arguments.max_length, chat)
    left_out = [name for name in default if name not in files]
    if left_out and not names:
        print(f"left out, without a file in {arguments.data}: {', '.join(left_out)}")
    return samples


def score(
    generator: Callable[[], Generator], samples: Samples, mark: str, model: Description, results: Results
) -> list[float]:
    """Percent of each sample."""
    keys = [f"{mark} {samples.key(index)}" for index in range(len(samples))]
    how = line_end(samples.task, model)
    answers = answer(generator, samples, keys, results, samples.task.name, **how)
    return [longbench.score(samples.task, *pair) for pair in zip(answers, samples.rows, strict=True)]


def line_end(task: Task, model: Description) -> dict:
    """For tasks whose answers end with their line: a newline ends them, and as in pred.py nothing does at once."""
    if not task.ends_with_line:
        return {}
    newline = int(model.tokenizer.encode("\n")[-1])
    return {"stop_ids": (newline,), "sampling": Sampling(not_first=(*model.eos_ids, newline))}


def summary(scores: dict[str, list[float]], samples: dict[str, Samples]) -> dict:
    means = {name: sum(values) / len(values) for name, values in scores.items()}
    by_length = {
        name: longbench.by_length(samples[name].rows, values) for name, values in scores.items() if TASKS[name].is_even
    }
    return {
        "scores": means,
        "counts": {name: len(values) for name, values in scores.items()},
        "prompt_tokens": {name: one.limit for name, one in samples.items()},  # at most
        "by_length": by_length,
        "averages": longbench.averages(means),
    }


def with_earlier(file: Path, new: dict, same: list[str]) -> dict:
    """`new`, with other tasks that an earlier command found."""
    whole = earlier.union(*earlier.beside(file, new, same), ("scores", "counts", "prompt_tokens", "by_length"))
    return whole | {"averages": longbench.averages(whole["scores"])}


def table(result: dict) -> str:
    lines = [f"{'percent':<24}{'score':>8}{'samples':>9}"]
    for name, value in result["scores"].items():
        parts = "".join(f"  {part} {mean:.2f}" for part, mean in result["by_length"].get(name, {}).items())
        lines.append(f"{name:<24}{value:>8.2f}{result['counts'][name]:>9}{parts}")
    for language, means in result["averages"].items():
        lines += [f"{f'mean {language} {category}':<24}{value:>8.2f}" for category, value in means.items()]
    return "\n".join(lines)


def picture(scores: dict[str, float]) -> bytes:
    return figures.png(
        figures.bars(list(scores), list(scores.values()), x_label="LongBench, percent", name_value="{:.1f}".format)
    )


if __name__ == "__main__":
    sys.exit(main())
