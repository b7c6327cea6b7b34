"""lm-eval's tasks (MMLU, HellaSwag, its RULER, LongBench, your own): `python eval/harness.py --hf DIR --tasks=mmlu`.

Needs requirements-eval.txt. A Hugging Face directory has the scores that lm-eval's own backend ("hf") gives it; a run
is asked with the beginning of sequence before every text, as all scripts do. lm-eval downloads the tasks' data, and
runs the code of tasks in --include-path. Writes harness.json, a picture, and every answer (answers.jsonl), with which a
killed evaluation goes on. Exit codes: 0 done, 1 failed, 2 bad input.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from anchorjax.data.text.special_tokens import read_json
from anchorjax.errors import EvaluationError, UsageError, UserError
from anchorjax.evaluation import earlier, options
from anchorjax.evaluation.results import Results
from anchorjax.evaluation.tasks import harness
from anchorjax.inference.language_model import Description
from anchorjax.pages import figures

KINDS = ("multiple_choice", "loglikelihood", "loglikelihood_rolling", "generate_until")
# Resamplings for the standard errors that have no formula. lm-eval's 100,000 are for many processes; these are one,
# since a process with JAX in it should not be forked.
BOOTSTRAP = 1000
KEPT = ("results", "groups", "group_subtasks", "versions", "n-shot", "higher_is_better", "n-samples")


def main(argv: list[str] | None = None) -> int:
    parser = options.Parser(description=__doc__.splitlines()[0])
    options.add_model(parser)
    options.add_output(parser)
    parser.add_argument("--tasks", required=True, help="comma separated names of tasks, groups or tags; * is allowed")
    parser.add_argument("--include-path", type=Path, help="a directory with tasks of your own (YAML)")
    parser.add_argument("--num-fewshot", type=int, help="examples in a prompt; default: the task's")
    few = "documents of each task; such scores are for trying"
    parser.add_argument("--limit", "--samples", type=options.positive, help=few)
    parser.add_argument(
        "--seed", type=options.seed, help="of examples and of prompts that tasks make; default: lm-eval's own"
    )
    parser.add_argument("--lengths", type=options.lengths, help="of prompts, for tasks that make them: 4K,8K; RULER's")
    parser.add_argument("--bos", choices=("auto", "always"), default="auto", help="before every text; auto: see above")
    return options.run("harness.py", lambda: evaluate(parser.parse_args(argv)))


def evaluate(arguments: argparse.Namespace) -> None:
    model = options.description(arguments)
    if importlib.util.find_spec("lm_eval") is None:
        raise UsageError("lm-eval is not installed: python -m pip install -r requirements-eval.txt")
    if arguments.num_fewshot is not None and arguments.num_fewshot < 0:
        raise UsageError(f"--num-fewshot={arguments.num_fewshot} is not allowed")
    chat = options.chat_template(arguments, model)
    bos = arguments.bos == "always" or model.is_run
    manager, tasks = load_tasks(arguments, model)
    request = options.request(model, context=model.context, bos=bos)
    step = model.steps()[-1]
    with Results(options.out_directory(arguments, model, "harness"), request) as results:
        adapter = harness.adapter(model, results, step=step, batch_size=arguments.batch_size, bos=bos, chat=chat)
        found = run(adapter, manager, tasks, arguments)
        asked = {
            name: getattr(arguments, name) for name in ("tasks", "num_fewshot", "limit", "seed", "lengths", "template")
        }
        asked["include_path"] = options.absolute(arguments.include_path)
        told = {"cut": adapter.cut, "no_system": adapter.no_system}
        asked |= {"step": step, "weights": adapter.mark, "lm_eval": importlib.metadata.version("lm_eval")}
        same = [*request, *(name for name in asked if name != "tasks")]
        whole = with_earlier(results.directory / "harness.json", request | asked | found | told, same)
        path = results.write(
            "harness.json", whole | {"notes": remarks(adapter, **{name: whole[name] for name in told})}
        )
        results.write("harness.png", picture(whole["results"]))
    print(tables(found))
    for note in remarks(adapter, **told):
        print(f"note: {note}")
    print(f"written to {path}")


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
                harness.settings(task.config.generation_kwargs or {}, model.files)
            except UserError as error:
                raise EvaluationError(f"the task {task.task_name}: {error}") from error
    return [loaded["groups"][name]] if name in loaded["groups"] else list(loaded["tasks"].values())


def metadata(arguments: argparse.Namespace, model: Description) -> dict[str, Any]:
    """What tasks that make their own prompts (RULER) are told: lengths, and a tokenizer to count them with."""
    told = {}
    if model.files:
        configs = [read_json(model.files / name) for name in ("tokenizer_config.json", "config.json")]
        if not any("auto_map" in config for config in configs):  # RULER would run the code that it names
            told["tokenizer"] = str(model.files)
    if arguments.lengths:
        options.check_lengths(arguments.lengths, model)
        if not told:
            raise UsageError(f"--lengths needs a Hugging Face tokenizer without code of its own in {model.directory}")
        told["max_seq_lengths"] = arguments.lengths
    return told


def run(adapter: harness.Harness, manager: Any, tasks: list[Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Of lm-eval's results what is in `KEPT`, as JSON."""
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
    kept = {name: found[name] for name in KEPT if name in found}
    return json.loads(json.dumps(kept, default=handle_non_serializable))


def with_earlier(file: Path, new: dict[str, Any], same: list[str]) -> dict[str, Any]:
    """`new`, with other tasks that an earlier command found."""
    before, new = earlier.beside(file, new, same, _overlap)
    first, second = (set(result.get("results", ())) for result in (before, new))
    if first <= second:
        return new
    if second < first:
        return before
    both = {"tasks": f"{before['tasks']},{new['tasks']}", "cut": before["cut"] + new["cut"]}
    both["no_system"] = before["no_system"] or new["no_system"]
    # A command may have found no groups; what only the earlier one has stays as it is.
    return earlier.union(before, before | new, KEPT) | both


def _overlap(before: dict[str, Any], new: dict[str, Any]) -> str:
    """No single command asks for a task twice, as itself and in a group."""
    first, second = set(before["results"]), set(new["results"])
    apart = not first & second or first <= second or second <= first
    return "" if apart else f"tasks: {before['tasks']!r} and {new['tasks']!r} overlap"


def remarks(adapter: harness.Harness, cut: int, no_system: bool) -> list[str]:
    """What a reader of the scores should know; see `Harness` for `cut` and `no_system`."""
    idle = harness.not_applied(adapter.model.files)
    found = {
        f"{cut} requests were longer than {adapter.max_length} tokens and lost their beginning": cut,
        "the chat template takes no system messages, and they were left out": no_system,
        f"generation_config.json asks for {idle}, which is not applied": idle,
    }
    return [text for text, holds in found.items() if holds]


def picture(results: dict[str, dict[str, Any]]) -> bytes:
    """The first metric of each task, where it is a share: perplexities have another axis."""
    shares = {}
    for task, row in results.items():
        metrics = {name: value for name, value in row.items() if "," in name and "_stderr," not in name}
        name, value = next(iter(metrics.items()), ("", None))
        if isinstance(value, int | float) and 0 <= value <= 1 and "perplexity" not in name:
            shares[f"{task} {name.removesuffix(',none')}"] = 100 * value
    x_label = "first metric of each task, percent" if shares else "no task has a share for its first metric"
    return figures.png(figures.bars(list(shares), list(shares.values()), x_label=x_label, name_value="{:.1f}".format))


def tables(found: dict[str, Any]) -> str:
    from lm_eval.utils import make_table

    return "\n".join(make_table(found, column) for column in ("results", "groups") if found.get(column))


if __name__ == "__main__":
    sys.exit(main())
