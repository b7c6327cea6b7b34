"""Evaluation tasks, the runner that asks them, and the record of their answers.

task.py     what a task is
runner.py   the loop: what the record lacks is made, batched, asked, scored and kept
record.py   one line an answer; tables are computed from lines
tasks/      one file or folder for each task
"""

# Maps a task's name to its help line and the module whose `main(argv) -> int` runs it.
COMMANDS = {
    "ruler": ("RULER: 13 tasks of retrieval, tracking and counting by length", f"{__name__}.tasks.ruler.task"),
    "needle": ("a needle in a haystack, by depth and length", f"{__name__}.tasks.needle"),
    "longbench": ("LongBench from local files", f"{__name__}.tasks.longbench.task"),
    "longppl": ("LongPPL: perplexity of the tokens that need a long context", f"{__name__}.tasks.longppl"),
    "perplexity": ("perplexity by position, of a run's held-out rows or of a text", f"{__name__}.tasks.perplexity"),
    "harness": ("lm-eval's tasks: MMLU, HellaSwag, its RULER, your own", f"{__name__}.tasks.harness"),
    "rope_precision": (
        "how far rounding moves attention when positions are shifted",
        "anchorjax.experiments.rope_precision.command",
    ),
    "attention_weights": (
        "entropy of attention by layer, and biased rounding of its sums",
        "anchorjax.experiments.attention_weights.command",
    ),
}
