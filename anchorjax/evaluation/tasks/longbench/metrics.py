"""The metrics of one answer and one reference, from 0 to 1, with the numbers of THUDM/LongBench's metrics.py.

`rouge` and `jieba` are what its scores are made with, and others give other numbers: rouge-score takes another kind of
ROUGE-L and drops all Chinese. They are imported when a task first needs them. For code LongBench asks fuzzywuzzy, which
asks Python's difflib, and so does this; python-Levenshtein, if it is installed, and rapidfuzz count edits instead,
which gives more for most lines.
"""

import collections
import contextlib
import difflib
import functools
import importlib.util
import logging
import re
import string
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

from anchorjax.errors import EvaluationError, install_extra

RETRIEVED = {"retrieval": r"Paragraph (\d+)", "retrieval_zh": r"段落(\d+)"}  # what a reference holds
_LIBRARIES = {"rouge_l": ("rouge",), "rouge_l_zh": ("rouge", "jieba"), "qa_f1_zh": ("jieba",)}

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NUMBER = re.compile(r"\d+")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CHINESE = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～"
    "｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)
_NO_PUNCTUATION_ZH = str.maketrans("", "", string.punctuation + _CHINESE)
_NOT_CODE = ("`", "#", "//")  # lines with these are talk about code


def check_libraries(metrics: Iterable[str]) -> None:
    """Raises EvaluationError if one that these metrics need is not installed."""
    for metric in metrics:
        for library in _LIBRARIES.get(metric, ()):
            if importlib.util.find_spec(library) is None:
                raise EvaluationError(f"{library} is missing: {install_extra('eval')}")


def qa_f1(prediction: str, reference: str) -> float:
    """F1 of words, in lower case, without punctuation and articles, as in SQuAD (arXiv 1606.05250)."""

    def words(text: str) -> list[str]:
        return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()

    return _f1(words(prediction), words(reference))


def qa_f1_zh(prediction: str, reference: str) -> float:
    """The same of words as jieba finds them in Chinese."""

    def words(text: str) -> list[str]:
        bare = ("".join(word.lower().translate(_NO_PUNCTUATION_ZH).split()) for word in _words_zh(text))
        return [word for word in bare if word]

    return _f1(words(prediction), words(reference))


def _f1(predicted: Sequence[str], expected: Sequence[str]) -> float:
    same = (collections.Counter(predicted) & collections.Counter(expected)).total()
    return 2 * same / (len(predicted) + len(expected)) if same else 0.0


def rouge_l(prediction: str, reference: str) -> float:
    """F of the longest common subsequences of sentences (ROUGE-L, summary level), words as they are between spaces.

    The library goes one call deeper for each word of two sentences. Where Python does not allow that, LongBench counts
    0; here it may go as deep as it must.
    """
    import rouge

    try:
        with _deeper(len(prediction.split()) + len(reference.split())):
            scores = rouge.Rouge(metrics=["rouge-l"], stats=["f"]).get_scores(prediction, reference)
    except ValueError:  # one of them has no words, only full stops
        return 0.0
    return scores[0]["rouge-l"]["f"]


def rouge_l_zh(prediction: str, reference: str) -> float:
    """The same of words as jieba finds them in Chinese."""
    return rouge_l(" ".join(_words_zh(prediction)), " ".join(_words_zh(reference)))


@contextlib.contextmanager
def _deeper(calls: int) -> Iterator[None]:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(before + calls)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def _words_zh(text: str) -> list[str]:
    import jieba

    jieba.setLogLevel(logging.WARNING)  # it tells how long its dictionary takes
    return jieba.lcut(text)


def classification(prediction: str, reference: str, classes: Sequence[str]) -> float:
    """1 / how many names of classes the prediction holds, if the right one is among them."""
    found = [name for name in classes if name in prediction]
    for name in found:  # as official: the one behind one that is removed is passed over
        if name in reference and name != reference:
            found.remove(name)
    return 1 / len(found) if reference in found else 0.0


def count(prediction: str, reference: str) -> float:
    """The share of the prediction's numbers that are the reference."""
    numbers = _NUMBER.findall(prediction)
    return numbers.count(reference) / len(numbers) if numbers else 0.0


def retrieval(pattern: str, prediction: str, reference: str) -> float:
    """`count` with the number that `pattern` finds in the reference."""
    return count(prediction, re.search(pattern, reference)[1])


def code_similarity(prediction: str, reference: str) -> float:
    """How alike the prediction's first line of code and the reference are, in whole percent."""
    lines = prediction.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in _NOT_CODE)), "")
    if line == reference:
        return 1.0
    if not line or not reference:
        return 0.0
    return round(100 * difflib.SequenceMatcher(None, line, reference).ratio()) / 100


METRICS: dict[str, Callable[..., float]] = {
    "qa_f1": qa_f1,
    "qa_f1_zh": qa_f1_zh,
    "rouge_l": rouge_l,
    "rouge_l_zh": rouge_l_zh,
    "classification": classification,
    "count": count,
    **{name: functools.partial(retrieval, pattern) for name, pattern in RETRIEVED.items()},
    "code_similarity": code_similarity,
}
