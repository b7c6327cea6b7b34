"""RULER (arXiv 2404.06654): 13 synthetic tasks at any length, from the prompt on and from the answer on.

    sample.py         what a task makes
    sizing.py         how much filler fits into a length
    haystack.py       noise and essays, and where a needle can go in
    vocabulary.py     words, numbers and uuids
    needles.py        niah_single, niah_multikey, niah_multivalue, niah_multiquery
    variables.py      vt: variable tracking
    words.py          cwe and fwe: common and frequent words
    questions.py      qa_1 and qa_2: SQuAD and HotpotQA between other documents
    tasks.py          the registry, and `make`
    scores.py         the metrics and their averages

Prompts, answer prefixes, numbers of generated tokens, depths and metrics are those of NVIDIA/RULER. Different are:

- Sample i is a function of (task, length, seed, i) alone and sized for itself, where RULER draws all samples from one
  stream and sizes the first. The distributions are the same, the samples are not.
- Essays are Jane Austen's novels unless a file with RULER's is named, and sentences end by a rule of our own (RULER:
  nltk's Punkt). Scores on Austen are not RULER's, and each sample says so in `material`.
- Keys and values of one sample are all different, and no distractor holds an asked key or its value; RULER leaves
  that to chance.
- Below 2048 tokens the worked example of vt is shorter; a HotpotQA question that does not fit with its ten documents
  keeps those that hold the answer.
- cwe has RULER's lists of below 4096 tokens where those of above have no room, which happens with bytes.
- cwe past the 8,166 words of its vocabulary goes on with pairs of them (RULER: a file of English words).
- With a chat template, worked examples stand in the user's turn.
"""

from anchorjax.evaluation.tasks.ruler.sample import Sample
from anchorjax.evaluation.tasks.ruler.scores import averages, match
from anchorjax.evaluation.tasks.ruler.tasks import TASKS, Samples, make

__all__ = ["TASKS", "Sample", "Samples", "averages", "make", "match"]
