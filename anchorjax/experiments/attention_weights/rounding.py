"""Biased rounding of P V: how often queries share a maximum, and what the rounding of their sums does.

"Why Low-Precision Transformer Training Fails" (arXiv 2510.04212) traces an exploding loss to one rounding. With P =
exp(S - max S), a query with two keys at its maximum has two weights of exactly 1, so that its sum over values begins
with v_1 + v_2: two bfloat16 numbers of one sign, whose sum has one bit more than bfloat16 holds. Its last bit is a tie,
and the small terms behind it, if of the same sign, break the tie the same way each time: the rounded sum is too large
in size. The paper's fix subtracts another maximum where several keys share it, BETA times it if it is positive and 0 if
negative. No weight is then 1, products have bits below the tie, and roundings go both ways.

Three computations of one query's output, each against float64 of the same weights and values:

    paper      S and P rounded to bfloat16, products added in fp32, the sum before the division rounded to bfloat16
    mitigated  the same with the paper's maximum
    ours       S in fp32, P rounded to bfloat16 but for the anchor's, which is fp32; added and divided in fp32, and
               rounded once behind the division, as the kernels of TPUs and GPUs do (anchorjax/attention)

An error is (rounded - exact) sign(exact) / ulp, ulp being bfloat16's at the exact value: +0.5 to -0.5, positive where
rounding makes the sum larger in size. Roundings without bias have mean 0.
"""

import dataclasses

import ml_dtypes
import numpy as np

from anchorjax.experiments.attention_weights.capture import Layer

BETA = 2.0  # the paper's code
BF16 = ml_dtypes.bfloat16
COMPUTATIONS = ("paper", "mitigated", "ours")


@dataclasses.dataclass(frozen=True)
class Counts:
    """Sums over queries that see two keys or more, heads and rows; `+` adds them up.

    Attributes:
      queries: one for each head.
      shared_bf16: of these, with several keys at the maximum of the logits rounded to bfloat16.
      shared_fp32: with several at the maximum of fp32 logits.
      ones: with several weights that are 1 when fp32 weights are rounded to bfloat16, the anchor's left out, as it is
        not rounded.
      first: with the row's first key at the maximum of the fp32 logits.
      values: entries of outputs of all queries; shared_values: of those in `shared_bf16`.
      errors, shared_errors: sums of their errors by computation, in ulps.
    """

    queries: int = 0
    shared_bf16: int = 0
    shared_fp32: int = 0
    ones: int = 0
    first: int = 0
    values: int = 0
    shared_values: int = 0
    errors: tuple[float, ...] = (0.0,) * len(COMPUTATIONS)
    shared_errors: tuple[float, ...] = (0.0,) * len(COMPUTATIONS)

    def __add__(self, other: "Counts") -> "Counts":
        summed = {}
        for field in dataclasses.fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            both = zip(mine, theirs, strict=True) if isinstance(mine, tuple) else None
            summed[field.name] = tuple(a + b for a, b in both) if both else mine + theirs
        return Counts(**summed)

    def result(self) -> dict:
        """Shares of queries, and mean errors by computation; None where no query counts."""

        def mean(sums: tuple[float, ...], count: int) -> dict:
            return {name: total / count if count else None for name, total in zip(COMPUTATIONS, sums, strict=True)}

        shares = {name: getattr(self, name) / max(self.queries, 1) for name in ("shared_bf16", "shared_fp32", "ones")}
        return {
            "queries": self.queries,
            **shares,
            "first": self.first / max(self.queries, 1),
            "error": mean(self.errors, self.values),
            "error_of_shared": mean(self.shared_errors, self.shared_values),
        }


def probe(layer: Layer) -> Counts:
    """Probes a layer on the host, a head after the other: memory for some float64 [T, T] is needed."""
    sees_TS = np.asarray(layer.mask.materialize())[0]
    heads, anchors = layer.q_TNH.shape[1], layer.mask.num_anchors
    of_key = heads // layer.k_TKH.shape[1]
    total = Counts()
    for head in range(heads):
        q_TH = layer.q_TNH[:, head].astype(np.float32)
        k_TH, v_TH = (x[:, head // of_key].astype(np.float32) for x in (layer.k_TKH, layer.v_TKH))
        logits_TS = (q_TH @ k_TH.T) * np.float32(q_TH.shape[1] ** -0.5)
        if cap := layer.mask.soft_cap:
            logits_TS = cap * np.tanh(logits_TS / np.float32(cap))
        total += probe_logits(logits_TS, narrow(v_TH), sees_TS, anchors)
    return total


def probe_logits(logits_TS: np.ndarray, v_SH: np.ndarray, sees_TS: np.ndarray, num_anchors: int = 0) -> Counts:
    """Counts one head's queries.

    Args:
      logits_TS: fp32, as they go into the softmax.
      v_SH: fp32 values that bfloat16 holds.
      sees_TS: bool; queries that see fewer than two keys do not count.
      num_anchors: leading keys whose weights `ours` does not round.
    """
    several_T = sees_TS.sum(1) > 1
    sees_TS = sees_TS[several_T]
    logits_TS = np.where(sees_TS, logits_TS[several_T], -np.inf).astype(np.float32)
    rounded_TS = narrow(logits_TS)
    shared_T, at_max_TS = _shared(rounded_TS), logits_TS == logits_TS.max(1, keepdims=True)
    weights_TS = weights(logits_TS, logits_TS.max(1, keepdims=True))
    cast_TS = narrow(weights_TS)
    ones_T = (cast_TS[:, num_anchors:] == 1).sum(1) > 1
    cast_TS[:, :num_anchors] = weights_TS[:, :num_anchors]
    unnormalised = [
        unnormalised_error(narrow(weights(rounded_TS, maximum(rounded_TS, mitigated))), v_SH)
        for mitigated in (False, True)
    ]
    total_T1 = weights_TS.sum(1, keepdims=True, dtype=np.float32)
    errors = [*unnormalised, error(narrow((cast_TS @ v_SH) / total_T1), _exact(cast_TS, v_SH) / total_T1)]
    return Counts(
        queries=len(sees_TS),
        shared_bf16=int(shared_T.sum()),
        shared_fp32=int((at_max_TS.sum(1) > 1).sum()),
        ones=int(ones_T.sum()),
        first=int(at_max_TS[:, 0].sum()),
        values=errors[0].size,
        shared_values=errors[0][shared_T].size,
        errors=tuple(float(one.sum()) for one in errors),
        shared_errors=tuple(float(one[shared_T].sum()) for one in errors),
    )


def maximum(logits_TS: np.ndarray, mitigated: bool) -> np.ndarray:
    """Returns what is subtracted from the logits [T, 1]: their maximum, or the paper's where several keys share it."""
    max_T1 = logits_TS.max(1, keepdims=True)
    if not mitigated:
        return max_T1
    other_T1 = np.where(max_T1 > 0, BETA * max_T1, 0).astype(np.float32)
    return np.where(_shared(logits_TS)[:, None], other_T1, max_T1)


def unnormalised_error(weights_TS: np.ndarray, v_SH: np.ndarray) -> np.ndarray:
    """Errors of sums over values that are added in fp32 and rounded to bfloat16 before the division: float64 [T, H]."""
    return error(narrow(weights_TS @ v_SH), _exact(weights_TS, v_SH))


def error(rounded: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Returns (rounded - exact) sign(exact) in ulps of bfloat16, which has 8 bits; 0 where `exact` is 0."""
    ulp = np.ldexp(1.0, np.frexp(np.where(exact, exact, 1.0))[1] - 8)
    return (rounded.astype(np.float64) - exact) * np.sign(exact) / ulp


def weights(logits_TS: np.ndarray, max_T1: np.ndarray) -> np.ndarray:
    """exp(S - max) in fp32, unnormalised."""
    return np.exp(logits_TS - max_T1, dtype=np.float32)


def narrow(x: np.ndarray) -> np.ndarray:
    """Rounds to bfloat16; the result is fp32."""
    return x.astype(BF16).astype(np.float32)


def _shared(logits_TS: np.ndarray) -> np.ndarray:
    return (logits_TS == logits_TS.max(1, keepdims=True)).sum(1) > 1


def _exact(weights_TS: np.ndarray, v_SH: np.ndarray) -> np.ndarray:
    return weights_TS.astype(np.float64) @ v_SH.astype(np.float64)
