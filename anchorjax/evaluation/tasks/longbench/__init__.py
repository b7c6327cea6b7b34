"""LongBench (arXiv 2308.14508): 21 tasks in English, Chinese and code, and LongBench-E's 13, from files of the user.

    prompts.py      what each task asks
    tasks.py        the registry: prompt, tokens of the answer, metric, category
    rows.py         the files: NAME.jsonl, a sample a line
    samples.py      prompts as the model gets them, cut in the middle where they are too long
    metrics.py      of one answer and one reference
    scores.py       scores of answers, by length, and averages

Prompts, numbers of generated tokens, cuts, chat templates, ends of answers and metrics are those of THUDM/LongBench:
pred.py, eval.py and metrics.py. Different are:

- BOS precedes every prompt and counts as a token; there only if the tokenizer adds it.
- Without --max-length a prompt may have what the model's context leaves beside the answer and the chat template; there
  are numbers by model, such as 3500 of 4096. A prompt that after its cut has more tokens than that is cut a bit more.
- A chat template is the model's own; pred.py has some by name.
- ROUGE-L of texts on which `rouge` goes deeper than Python allows is computed; there it is 0 (`metrics.rouge_l`).
"""

from anchorjax.evaluation.tasks.longbench.metrics import check_libraries
from anchorjax.evaluation.tasks.longbench.rows import Row, find, read
from anchorjax.evaluation.tasks.longbench.samples import Samples
from anchorjax.evaluation.tasks.longbench.scores import averages, by_length, score
from anchorjax.evaluation.tasks.longbench.tasks import EVEN, PUBLISHED, TASKS, Task

__all__ = [
    "EVEN",
    "PUBLISHED",
    "TASKS",
    "Row",
    "Samples",
    "Task",
    "averages",
    "by_length",
    "check_libraries",
    "find",
    "read",
    "score",
]
