"""RULER: 13 tasks of retrieval, tracking and counting by length: `python eval/ruler.py --hf DIR --lengths=4K,8K`.

Writes ruler.json (percent by task and length, with the averages over what was scored, over all 13 tasks and over the 11
of the AnchorAttention paper), a heat map, and every answer (answers.jsonl), with which a killed evaluation goes on.
With --last=5 the scores are means over a run's last five checkpoints, as the paper has them. The tasks with questions
(qa_1, qa_2) need --squad and --hotpot; essays are Jane Austen's unless --essays names RULER's. Exit codes: 0 done, 1
failed, 2 bad input.
"""

import argparse
import functools
import math
import sys
from pathlib import Path

from anchorjax.errors import UsageError
from anchorjax.evaluation import earlier, heat_maps, options
from anchorjax.evaluation.answering import answer
from anchorjax.evaluation.results import Results
from anchorjax.evaluation.tasks import ruler
from anchorjax.inference import language_model
from anchorjax.inference.generation import Generator
from anchorjax.inference.language_model import Description

QUESTIONS = {"qa_1": "squad", "qa_2": "hotpot"}


def main(argv: list[str] | None = None) -> int:
    parser = options.Parser(description=__doc__.splitlines()[0])
    options.add_model(parser)
    options.add_samples(parser, samples=100)
    parser.add_argument("--tasks", default="", help=f"comma separated, of {', '.join(ruler.TASKS)}; default: all")
    parser.add_argument("--squad", type=Path, help="SQuAD's dev-v2.0.json")
    parser.add_argument("--hotpot", type=Path, help="HotpotQA's hotpot_dev_distractor_v1.json")
    parser.add_argument("--last", type=options.positive, help="mean over so many of a run's last checkpoints")
    return options.run("ruler.py", lambda: evaluate(parser.parse_args(argv)))


def evaluate(arguments: argparse.Namespace) -> None:
    model = options.description(arguments)
    options.check_lengths(arguments.lengths, model)
    steps = _steps(arguments.last, model)
    samples = make_samples(arguments, model)
    material = options.material(essays=arguments.essays, squad=arguments.squad, hotpot=arguments.hotpot)
    request = options.request(model, seed=arguments.seed, template=arguments.template, **material)
    with Results(options.out_directory(arguments, model, "ruler"), request) as results:
        marks = {step: model.mark(step) for step in steps}
        by_step = {
            step: score(model, step, mark, samples, results, arguments.batch_size) for step, mark in marks.items()
        }
        result = summary(by_step, samples)
        asked = {"samples": arguments.samples, "context": model.context, "steps": steps}
        asked["weights"] = list(marks.values())
        whole = with_earlier(results.directory / "ruler.json", request | asked | result, [*request, *asked])
        path = results.write("ruler.json", whole)
        results.write("ruler.png", picture(whole["scores"]))
    print(table(result))
    print(f"written to {path}")


def make_samples(arguments: argparse.Namespace, model: Description) -> dict[tuple[str, int], ruler.Samples]:
    """By task and length. Raises UserError for what cannot be made, before any weight is read."""
    if arguments.tasks:
        tasks = [task.strip() for task in arguments.tasks.split(",")]
    else:
        left_out = [task for task, option in QUESTIONS.items() if getattr(arguments, option) is None]
        tasks = [task for task in ruler.TASKS if task not in left_out]
        for task in left_out:
            print(f"{task} is left out: --{QUESTIONS[task]} names no file")
    chat = options.chat_template(arguments, model)
    make = functools.partial(
        ruler.make,
        tokenizer=model.tokenizer,
        num_samples=arguments.samples,
        seed=arguments.seed,
        chat=chat,
        essays=arguments.essays,
        squad=arguments.squad,
        hotpot=arguments.hotpot,
    )
    return {(task, length): make(task, length=length) for task in tasks for length in arguments.lengths}


def _steps(last: int | None, model: Description) -> list[int | None]:
    """Of the checkpoints to score."""
    if model.is_hugging_face and last:
        raise UsageError("--last is for --workdir: a Hugging Face directory holds one checkpoint")
    steps = model.steps()
    if last and last > len(steps):
        raise UsageError(f"--last={last} is more than the {len(steps)} checkpoints in {model.directory}")
    return steps[-(last or 1) :]


def score(
    model: Description, step: int | None, mark: str, samples, results: Results, batch_size: int
) -> dict[str, dict[int, float]]:
    """Percent by task and length of one checkpoint."""

    @functools.cache
    def generator() -> Generator:
        return Generator(language_model.load(model, step=step), batch_size)

    scores: dict[str, dict[int, float]] = {}
    for (task, length), some in samples.items():
        keys = [f"{mark} {task} {length} {index}" for index in range(len(some))]
        label = f"{task} {length}" + (f" of step {step}" if step is not None else "")
        answers = answer(generator, some, keys, results, label)
        metric = ruler.TASKS[task].metric
        matches = [ruler.match(metric, *pair) for pair in zip(answers, some.references(), strict=True)]
        scores.setdefault(task, {})[length] = 100 * sum(matches) / len(matches)
    return scores


def summary(by_step: dict, samples: dict) -> dict:
    """Means over the checkpoints: `scores` by task and length, and `averages` by length."""
    tasks, lengths = (list(dict.fromkeys(part)) for part in zip(*samples, strict=True))
    mean = {
        task: {length: sum(one[task][length] for one in by_step.values()) / len(by_step) for length in lengths}
        for task in tasks
    }
    averages = {length: ruler.averages({task: mean[task][length] for task in tasks}) for length in lengths}
    # The shortest lists of words are RULER's own where longer ones are not, and the other way round.
    material = {task: next(filter(None, (samples[task, n][0].material for n in lengths)), "") for task in tasks}
    return {
        "scores": mean,
        "averages": averages,
        "by_step": {str(step): one for step, one in by_step.items()},
        "material": {task: text for task, text in material.items() if text},
    }


def with_earlier(file: Path, new: dict, same: list[str]) -> dict:
    """`new`, with other tasks or lengths that an earlier command found."""
    before, new = earlier.beside(file, new, same, _ragged)
    whole = earlier.union(before, new, ("scores", "by_step", "material"))
    lengths = sorted(next(iter(whole["scores"].values())), key=int)
    whole["scores"] = {task: {length: row[length] for length in lengths} for task, row in whole["scores"].items()}
    columns = {length: {task: row[length] for task, row in whole["scores"].items()} for length in lengths}
    return whole | {"averages": {length: ruler.averages(column) for length, column in columns.items()}}


def _ragged(before: dict, new: dict) -> str:
    """Not every task would have every length, as no single command asks."""
    first, second = before["scores"], new["scores"]
    same_lengths = set(next(iter(first.values()))) == set(next(iter(second.values())))
    return "" if same_lengths or set(first) == set(second) else "other tasks at other lengths"


def table(result: dict) -> str:
    lengths = list(next(iter(result["scores"].values())))
    lines = [f"{'percent':<18}" + "".join(f"{length:>9}" for length in lengths)]
    for task, row in result["scores"].items():
        lines.append(f"{task:<18}" + "".join(f"{row[length]:>9.1f}" for length in lengths))
    scored = [("scored", f"mean of {len(result['scores'])}")] if len(result["scores"]) < len(ruler.TASKS) else []
    for name, label in (*scored, ("ruler", "mean of 13"), ("paper", "mean of 11 (paper)")):
        cells = [result["averages"][length].get(name, math.nan) for length in lengths]
        if not all(map(math.isnan, cells)):
            lines.append(f"{label:<18}" + "".join(f"{cell:>9.1f}" for cell in cells))
    lines += [f"note: {task}: {text}" for task, text in result["material"].items()]
    return "\n".join(lines)


def picture(scores: dict) -> bytes:
    lengths = list(next(iter(scores.values())))
    percent = [[row[length] for length in lengths] for row in scores.values()]
    return heat_maps.by_length(percent, list(scores), list(map(int, lengths)), "RULER, percent")


if __name__ == "__main__":
    sys.exit(main())
