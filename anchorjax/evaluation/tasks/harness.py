"""lm-eval's tasks (MMLU, HellaSwag, its RULER, LongBench, your own).

    anchorjax evaluate harness --hf DIR --tasks=mmlu

Needs the extra `eval`. A Hugging Face directory has the scores that lm-eval's own backend ("hf") gives it; for a run,
BOS precedes every text, as in all evaluations. lm-eval downloads the tasks' data, and runs the code of tasks in
--include-path. Writes harness.json, a picture, and every answer (answers.jsonl); rerun the command to resume. Exit
codes: 0 done, 1 failed, 2 bad input.
"""

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anchorjax import processes
from anchorjax.data.text.special_tokens import read_fields
from anchorjax.errors import EvaluationError, UsageError, UserError, install_extra
from anchorjax.evaluation import options
from anchorjax.evaluation.record import Cell, Record
from anchorjax.evaluation.tasks import lm_eval_model
from anchorjax.inference.language_model import Description
from anchorjax.pages import figures
from anchorjax.parsing import Parser, on_disk

KINDS = ("multiple_choice", "loglikelihood", "loglikelihood_rolling", "generate_until")
# Resamplings for the standard errors that have no formula. lm-eval's 100,000 are for many processes; these are one,
# since a process with JAX in it should not be forked.
BOOTSTRAP = 1000
KEPT = ("results", "groups", "group_subtasks", "versions", "n-shot", "higher_is_better", "n-samples")


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(options.program("harness"), __doc__)
    options.add_model(parser)
    options.add_template(parser)
    options.add_out(parser)
    parser.add_argument("--tasks", required=True, help="comma separated names of tasks, groups or tags; * is allowed")
    parser.add_argument("--include-path", type=on_disk, help="a directory with tasks of your own (YAML)")
    parser.add_argument("--num-fewshot", type=options.positive_or_0, help="examples in a prompt; default: the task's")
    few = "documents of each task; such scores are for trying; default: all"
    parser.add_argument("--limit", "--samples", type=options.positive, help=few)
    drawn = "random seed of examples and of prompts that tasks make; default: lm-eval's own"
    parser.add_argument("--seed", type=options.seed, help=drawn)
    parser.add_argument(
        "--lengths", type=options.lengths, help="tokens of prompts, for tasks that make them, such as RULER's: 4K,8K"
    )
    of_bos = "auto: BOS before every text of a run, and for a Hugging Face directory where its tokenizer puts it"
    parser.add_argument("--bos", choices=("auto", "always"), default="auto", help=of_bos)
    return options.run(parser, argv, lambda arguments: evaluate(arguments, options.as_typed("harness", argv)))


def evaluate(arguments: argparse.Namespace, command: str) -> None:
    model = options.description(arguments)
    (step,) = options.steps(arguments, model)
    if importlib.util.find_spec("lm_eval") is None:
        raise UsageError(f"lm-eval is not installed: {install_extra('eval')}")
    chat = options.chat_template(arguments, model)
    bos = arguments.bos == "always" or model.is_run
    manager, tasks = processes.main_first(lambda: load_tasks(arguments, model))  # it downloads
    request = options.request(model, context=model.context, bos=bos)
    asked = {name: getattr(arguments, name) for name in ("num_fewshot", "limit", "seed", "lengths", "template")}
    asked |= {"include_path": options.absolute(arguments.include_path), "step": step}
    asked |= {"weights": model.weights_id(step), "lm_eval": importlib.metadata.version("lm_eval")}
    directory = options.out_directory(arguments, model, "harness")
    with Record(directory, request, lambda: options.earlier_request(request, model)) as record:
        adapter = lm_eval_model.adapter(model, record, step=step, batch_size=arguments.batch_size, bos=bos, chat=chat)
        found = run(adapter, manager, tasks, arguments)
        record.add(lines_of(found, adapter, asked))
        cells = [
            {"task": name, "length": 0, "examples": [digest(asked)], "asked_as": arguments.tasks}
            for name in found["results"]
        ]
        record.begin(command, asked, cells)
        result = request | asked | summary(record.cells(asked, [asked["weights"]]), model)
        path = record.write("harness.json", result | {"commands": record.commands})
        record.write("harness.png", picture(result["results"]))
    print(tables(found))
    for note in result["notes"]:
        print(f"note: {note}")
    print(f"written to {path}")


def digest(asked: Mapping[str, Any]) -> str:
    """The index of lm-eval's scores in the record."""
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


def lines_of(found: Mapping[str, Any], adapter: lm_eval_model.Harness, asked: Mapping[str, Any]) -> list[dict]:
    """What lm-eval computed from the answers: a line for each task and group."""
    told = {"cut": adapter.cut, "no_system": adapter.no_system}
    lines = []
    for name, row in found["results"].items():
        table = {key: found[key][name] for key in KEPT if name in found.get(key, {})}
        line = {"task": name, "length": 0, "index": digest(asked), "score": main_score(row)[1], "tables": table}
        lines.append(line | told | {"weights_id": asked["weights"], "step": asked["step"]})
        told = {"cut": 0, "no_system": adapter.no_system}  # counted once
    return lines


def summary(cells: Sequence[Cell], model: Description) -> dict[str, Any]:
    """lm-eval's tables of all tasks that were asked the same, and notes for their readers."""
    lines = {cell.task: cell.lines[0][0] for cell in cells}
    found: dict[str, Any] = {"tasks": ",".join(dict.fromkeys(cell.facts["asked_as"] for cell in cells))}
    for key in KEPT:
        rows = {name: line["tables"][key] for name, line in lines.items() if key in line["tables"]}
        found |= {key: rows} if rows else {}
    found |= {"cut": sum(line["cut"] for line in lines.values())}
    found |= {"no_system": any(line["no_system"] for line in lines.values())}
    return found | {"notes": remarks(model, found["cut"], found["no_system"])}


def load_tasks(arguments: argparse.Namespace, model: Description) -> tuple[Any, list[Any]]:
    """lm-eval's TaskManager, and the tasks and groups that were asked for, with their data.

    Raises UserError for what cannot be evaluated, before any weight is read.
    """
    from lm_eval.tasks import TaskManager

    if arguments.include_path and not arguments.include_path.is_dir():
        raise UsageError(f"--include-path={arguments.include_path} is not a directory")
    manager = TaskManager(include_path=arguments.include_path, metadata=metadata(arguments, model))
    names = []
    for pattern in map(str.strip, arguments.tasks.split(",")):
        matching = manager.match_tasks([pattern])
        if not matching:
            raise UsageError(f"--tasks: lm-eval has no task {pattern!r}, and no group or tag of that name")
        names += matching
    tasks = [task for name in dict.fromkeys(names) for task in load_task(name, manager, model)]
    try:
        manager.load(tasks)
    except ValueError as error:
        raise UsageError(f"--tasks: {error}") from error
    return manager, tasks


def load_task(name: str, manager: Any, model: Description) -> list[Any]:
    """[the task], [the group] or all tasks of a tag."""
    try:
        loaded = manager.load([name])
    except Exception as error:  # tasks are programs, and download their data: they raise anything
        reason = next(iter(str(error).splitlines()), "")
        raise EvaluationError(f"the task {name} cannot be loaded: {type(error).__name__}: {reason}") from error
    for task in loaded["tasks"].values():
        if task.OUTPUT_TYPE not in KINDS or getattr(task, "MULTIMODAL", False):
            raise EvaluationError(f"the task {task.task_name} asks for more than a language model of text can do")
        if getattr(task, "UNSAFE_CODE", False):
            raise EvaluationError(f"the task {task.task_name} runs code that the model writes, which is not done here")
        if task.OUTPUT_TYPE == "generate_until":
            try:
                lm_eval_model.settings(task.config.generation_kwargs or {}, model.files)
            except UserError as error:
                raise EvaluationError(f"the task {task.task_name}: {error}") from error
    return [loaded["groups"][name]] if name in loaded["groups"] else list(loaded["tasks"].values())


def metadata(arguments: argparse.Namespace, model: Description) -> dict[str, Any]:
    """What tasks that make their own prompts (RULER) are told: lengths, and a tokenizer to count them with."""
    told = {}
    if model.files:
        configs = [read_fields(model.files / name) for name in ("tokenizer_config.json", "config.json")]
        if not any("auto_map" in config for config in configs):  # RULER would run the code that it names
            told["tokenizer"] = str(model.files)
    if arguments.lengths:
        options.check_lengths(arguments.lengths, model)
        if not told:
            raise UsageError(f"--lengths needs a Hugging Face tokenizer without code of its own in {model.directory}")
        told["max_seq_lengths"] = arguments.lengths
    return told


def run(
    adapter: lm_eval_model.Harness, manager: Any, tasks: list[Any], arguments: argparse.Namespace
) -> dict[str, Any]:
    """The tables of lm-eval's results that are in `KEPT`, as JSON."""
    from lm_eval import simple_evaluate
    from lm_eval.utils import handle_non_serializable

    os.environ["DISABLE_MULTIPROC"] = "1"  # see BOOTSTRAP
    seeds = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    try:
        found = simple_evaluate(
            model=adapter,
            tasks=tasks,
            task_manager=manager,
            num_fewshot=arguments.num_fewshot,
            limit=arguments.limit,
            apply_chat_template=arguments.template == "chat",
            bootstrap_iters=BOOTSTRAP,
            log_samples=False,
            **({} if arguments.seed is None else dict.fromkeys(seeds, arguments.seed)),
        )
    except (AssertionError, ValueError) as error:  # what its samplers raise for more examples than a task has
        if not any(Path(frame.filename).name == "samplers.py" for frame in traceback.extract_tb(error.__traceback__)):
            raise
        asked = "num_fewshot of a task" if arguments.num_fewshot is None else f"--num-fewshot={arguments.num_fewshot}"
        raise UsageError(f"{asked} is not allowed: {error}") from error
    for row in found["results"].values():
        row.pop("sample_len", None)  # a count of documents, which "n-samples" tells: no score
    kept = {name: found[name] for name in KEPT if name in found}
    return json.loads(json.dumps(kept, default=handle_non_serializable))


def remarks(model: Description, cut: int, no_system: bool) -> list[str]:
    """Notes for a reader of the scores; see `Harness` for `cut` and `no_system`."""
    idle = lm_eval_model.not_applied(model.files)
    found = {
        f"{cut} requests were longer than {model.context} tokens and lost their beginning": cut,
        "the chat template takes no system messages, and they were left out": no_system,
        f"generation_config.json asks for {idle}, which is not applied": idle,
    }
    return [text for text, holds in found.items() if holds]


def main_score(row: Mapping[str, Any]) -> tuple[str, float | None]:
    """The first metric of a task, and its value if it is a number."""
    metrics = {name: value for name, value in row.items() if "," in name and "_stderr," not in name}
    name, value = next(iter(metrics.items()), ("", None))
    return name, value if isinstance(value, int | float) else None


def picture(results: Mapping[str, Mapping[str, Any]]) -> bytes:
    """The first metric of each task, where it is a share: perplexities have another axis."""
    shares = {}
    for task, row in results.items():
        name, value = main_score(row)
        if value is not None and 0 <= value <= 1 and "perplexity" not in name:
            shares[f"{task} {name.removesuffix(',none')}"] = 100 * value
    x_label = "first metric of each task, percent" if shares else "no task has a share for its first metric"
    return figures.png(figures.bars(list(shares), list(shares.values()), x_label=x_label, name_value="{:.1f}".format))


def tables(found: dict[str, Any]) -> str:
    from lm_eval.utils import make_table

    return "\n".join(make_table(found, column) for column in ("results", "groups") if found.get(column))
