"""Evaluation tasks, the runner that asks them, and the record of their answers.

task.py     what a task is
runner.py   the loop: what the record lacks is made, batched, asked, scored and kept
record.py   one line an answer; tables are computed from lines
tasks/      one file or folder for each task
"""

# The module of each command, with `main(argv) -> int`: `anchorjax evaluate NAME` and `python eval/NAME.py`.
COMMANDS = {
    "harness": "anchorjax.evaluation.tasks.harness",
    "longbench": "anchorjax.evaluation.tasks.longbench.task",
    "longppl": "anchorjax.evaluation.tasks.longppl",
    "needle": "anchorjax.evaluation.tasks.needle",
    "perplexity": "anchorjax.evaluation.tasks.perplexity",
    "rope_precision": "anchorjax.experiments.rope_precision.command",
    "ruler": "anchorjax.evaluation.tasks.ruler.task",
}
