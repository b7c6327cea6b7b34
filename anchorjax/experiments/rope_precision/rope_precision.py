"""What rounding does to RoPE in a model: Section 2 of "When Precision Meets Position" (arXiv 2411.13476).

Three experiments, each of passes at several sets of positions (`deviation.measure`), over samples and precisions:

    shifts    a text at the positions D1.. against the same text at D2..: how the deviation grows with the shift
    lengths   D1 = 0 against D2: how it grows with the length of the row, and which keys carry it
    layouts   the same of a row of documents, by mask: full, intra_doc and anchor, D1 = 0 (and each shift from FAR on,
              as if a longer row ended here) against D2; and reset: intra_doc at continued positions against positions
              that begin anew in every document, which in exact arithmetic is no difference

A name of PRECISIONS joins weights and a precision of `rotation.PRECISIONS`: the weights are the checkpoint's, or a
random-init baseline's ("random-...", and "narrow-..." with smaller weights).
"""

import dataclasses
import functools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from anchorjax.errors import EvaluationError
from anchorjax.evaluation import runner
from anchorjax.evaluation.record import Key, Line, Record
from anchorjax.evaluation.tasks.ruler.haystack import Essays
from anchorjax.experiments.rope_precision import deviation, random_init, rotation
from anchorjax.experiments.rope_precision.deviation import GROUPS, Deviation, Row
from anchorjax.inference.language_model import Description, LanguageModel
from anchorjax.masks import anchors_of

EXPERIMENTS = ("shifts", "lengths", "layouts")
LAYOUTS = ("full", "intra_doc", "anchor", "reset")
# What names of PRECISIONS begin with: whose weights, "" the checkpoint's, else the spread of a random-init baseline's.
WEIGHTS = {"": None, "random-": random_init.KAIMING, "narrow-": random_init.LINEAR}
PRECISIONS = tuple(prefix + name for prefix in WEIGHTS for name in rotation.PRECISIONS)
FAR = 2**16
PAPER_SHIFTS = (0, 2, 4, 6, 8, 10, 12, 14, 15, 17, 18, 20, 22, 50, 100, 200, 500, 1000, 2000)  # against 16
DIGITS = 7  # of what is kept; fp32 has no more


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured; JSON, and all that the numbers depend on beside the model and the text.

    Attributes:
      shifts: D1 of the experiment of that name.
      reference: D2.
      tokens: of rows in `shifts`.
      lengths: ascending; rows of `lengths` and `layouts` have the last, and the others are their beginnings.
      document_tokens: of documents in `layouts`.
    """

    experiments: tuple[str, ...]
    precisions: tuple[str, ...]
    shifts: tuple[int, ...]
    reference: int
    tokens: int
    lengths: tuple[int, ...]
    document_tokens: int
    samples: int
    seed: int

    def __post_init__(self):
        for name, chosen, known in (
            ("experiment", self.experiments, EXPERIMENTS),
            ("precision", self.precisions, PRECISIONS),
        ):
            unknown = [one for one in chosen if one not in known]
            if unknown or not chosen:
                raise EvaluationError(f"there is no {name} {''.join(unknown[:1])!r}; there are {', '.join(known)}")
        if self.max_position >= 2**31:
            raise EvaluationError(f"shifts and lengths ask for {self.max_position:,} positions; allowed: below 2**31")
        if "layouts" in self.experiments and self.document_tokens > self.lengths[-1] - 2:
            raise EvaluationError(
                f"documents of {self.document_tokens} tokens are too long for layouts: a row of {self.lengths[-1]} "
                "tokens must hold more than one"
            )

    def asked(self) -> dict[str, Any]:
        """The fields by their names in records, where the precisions are "variants"."""
        return {{"precisions": "variants"}.get(name, name): value for name, value in vars(self).items()}

    @property
    def max_position(self) -> int:
        return max(*self.shifts, self.reference) + max(self.tokens, self.lengths[-1])


@dataclasses.dataclass(frozen=True, eq=False)
class Pass:
    """One run of the model: `labels` name the sets of positions behind the reference."""

    precision: str
    experiment: str  # of EXPERIMENTS, or a layout
    sample: int
    labels: tuple[str, ...]
    lengths: tuple[int, ...]
    row: Callable[[], Row]

    def key(self, weights_id: str, label: str) -> Key:
        """Names a set of positions in the record."""
        return weights_id, f"{self.experiment} {self.precision} {label}", self.lengths[-1], self.sample


def passes(plan: Plan, description: Description, text: Essays, batch_size: int) -> Iterator[Pass]:
    """Yields all passes, ordered by weights: no weights are needed again after those that follow.

    Args:
      batch_size: shifts in a pass, beside the reference.
    """
    near, far = (0,), tuple(shift for shift in plan.shifts if shift >= FAR)
    of_layouts = {"layouts": dict.fromkeys(LAYOUTS, near + far)}
    shifts_of = {"shifts": {"shifts": plan.shifts}, "lengths": {"lengths": near}} | of_layouts
    for precision in sorted(plan.precisions, key=lambda name: list(WEIGHTS).index(weights_of(name))):
        for experiment in plan.experiments:
            for name, shifts in shifts_of[experiment].items():
                for sample in range(plan.samples):
                    for first in range(0, len(shifts), batch_size):
                        some = shifts[first : first + batch_size]
                        lengths = (plan.tokens,) if name == "shifts" else plan.lengths
                        row = functools.partial(make_row, plan, description, text, name, sample, some)
                        yield Pass(precision, name, sample, tuple(map(str, some)), lengths, row)


def weights_of(precision: str) -> str:
    """The entry of WEIGHTS that a name of PRECISIONS begins with."""
    return max((prefix for prefix in WEIGHTS if precision.startswith(prefix)), key=len)


def make_row(plan: Plan, description: Description, text: Essays, name: str, sample: int, shifts: Sequence[int]) -> Row:
    """The row of an experiment or layout: BOS, then text, or documents of it."""
    tokenizer = description.tokenizer
    T = plan.tokens if name == "shifts" else plan.lengths[-1]
    index_T = np.arange(T, dtype=np.int32)
    if name not in LAYOUTS:
        tokens = [tokenizer.bos_id, *excerpt(text, tokenizer, T - 1, f"{plan.seed} {sample}")]
        positions_PT = index_T + np.array([plan.reference, *shifts], np.int32)[:, None]
        return Row(np.array(tokens, np.int32), np.zeros(T, np.int32), description.num_anchors, positions_PT)
    size = plan.document_tokens
    documents = [
        excerpt(text, tokenizer, size, f"{plan.seed} {sample} {number}") for number in range(-(-(T - 1) // size))
    ]
    tokens_T = np.concatenate([[tokenizer.bos_id], *documents])[:T].astype(np.int32)
    segment_ids_T = np.where(index_T == 0, 0, (index_T - 1) // size + 1).astype(np.int32)
    continued_PT = index_T + np.array(shifts, np.int32)[:, None]
    if name == "reset":
        reset_T = np.where(index_T == 0, 0, (index_T - 1) % size).astype(np.int32)
        return Row(tokens_T, segment_ids_T, 0, np.concatenate([reset_T[None], continued_PT]))
    if name == "full":
        segment_ids_T = np.zeros_like(segment_ids_T)
    positions_PT = np.concatenate([index_T[None] + plan.reference, continued_PT])
    return Row(tokens_T, segment_ids_T, anchors_of(name), positions_PT.astype(np.int32))


def excerpt(text: Essays, tokenizer, tokens: int, seed: str) -> np.ndarray:
    """So many tokens from the beginning of a sentence on; a text that ends begins anew."""
    words, start = text.words, random.Random(seed).choice([0, *text.ends_S[:-1].tolist()])
    some = " ".join(words[(start + i) % len(words)] for i in range(tokens))  # a word has a token or more
    return tokenizer.encode(some)[:tokens]


def run(
    plan: Plan,
    some: Sequence[Pass],
    weights_id: str,
    load: Callable[[str], LanguageModel],
    record: Record,
) -> dict[Key, dict[str, Any]]:
    """What is found, by key; passes whose numbers the record has are not run again.

    It is not `runner.fill`, whose examples give one answer each, of one model: a pass gives the answers of several
    shifts against one reference, and precisions have different weights.

    Args:
      weights_id: of the checkpoint, in the record.
      load: gives a model with those of WEIGHTS; only the last is kept.
    """
    model = functools.lru_cache(maxsize=1)(load)
    keys_by_pass = {one: [one.key(weights_id, label) for label in one.labels] for one in some}
    missing = {one: [*filter(record.lacks, keys)] for one, keys in keys_by_pass.items()}
    total = sum(map(len, keys_by_pass.values()))
    with runner.progress("rope_precision", total, total - sum(map(len, missing.values()))) as advance:
        for one, left in missing.items():
            if not left:
                continue
            weights = weights_of(one.precision)
            precision = rotation.PRECISIONS[one.precision.removeprefix(weights)]
            found = deviation.measure(model(weights), one.row(), precision, one.lengths, plan.max_position)
            record.add(line(found, keys_by_pass[one].index(key), key) for key in left)
            advance(len(left))
    return {key: record.answers[key] for keys in keys_by_pass.values() for key in keys}


def line(found: Deviation, place: int, key: Key) -> Line:
    """One set of positions, for the record; the score is Eq. 4 of the longest rows, and columns are means of bins."""
    attention_gML, columns_T = found.attention_pgML[place], found.columns_pT[place]
    edges = column_edges(len(columns_T))
    weights_id, task, length, index = key
    return {
        "task": task,
        "length": length,
        "index": index,
        "score": rounded([attention_gML[:, -1].sum()])[0],
        "weights_id": weights_id,
        "attention": {group: rounded(attention_gML[g].sum(-1)) for g, group in enumerate(GROUPS)},
        "logit": rounded(found.logit_pML[place].sum(-1)),
        "all_logits": rounded(found.all_logits_pML[place].sum(-1)),
        "by_layer": rounded(attention_gML[:, -1].sum(0)),
        "columns": rounded(np.add.reduceat(columns_T, edges[:-1]) / np.diff(edges)),
    }


def column_edges(T: int) -> list[int]:
    """Bins of keys: the first eight alone, then up to each doubling."""
    return [*range(min(8, T)), *(8 << i for i in range(T.bit_length()) if 8 << i < T), T]


def rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values]


def summary(some: Sequence[Pass], weights_id: str, found: dict[Key, dict[str, Any]]) -> dict[str, Any]:
    """Experiment (or layout) -> precision -> label -> means over samples, and "low" and "high" of all keys' sums."""
    gathered: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for one in some:
        for label in one.labels:
            gathered.setdefault((one.experiment, one.precision, label), []).append(found[one.key(weights_id, label)])
    result: dict[str, Any] = {}
    for (experiment, precision, label), records in gathered.items():
        entry = _means(records)
        if experiment != "lengths":
            del entry["columns"], entry["by_layer"]
        result.setdefault(experiment, {}).setdefault(precision, {})[label] = entry
    return result


def _means(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    def mean(of: Callable[[dict[str, Any]], Sequence[float]]) -> list[float]:
        return rounded(np.mean([of(one) for one in records], 0))

    all_keys = np.array([np.sum(list(one["attention"].values()), 0) for one in records])
    groups = {group: mean(lambda one, group=group: one["attention"][group]) for group in GROUPS}
    return {
        "attention": {"all": rounded(all_keys.mean(0)), **groups},
        "low": rounded(all_keys.min(0)),
        "high": rounded(all_keys.max(0)),
        **{name: mean(lambda one, name=name: one[name]) for name in ("logit", "all_logits", "by_layer", "columns")},
    }
