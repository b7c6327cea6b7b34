"""How likely a model finds given tokens: whole rows in one pass, logits chunk by chunk.

A row is BOS and one document, which is plain causal attention, whatever mask the model was trained with. Rows are
padded at the end to one of a few lengths, so that few programs are compiled.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import reshard

from anchorjax import sharding
from anchorjax.errors import EvaluationError, UsageError
from anchorjax.inference.batching import batches, bucket, check_ids
from anchorjax.inference.language_model import LanguageModel
from anchorjax.models.decoder import Decoder, logits
from anchorjax.models.loss import token_nats
from anchorjax.models.spec import Spec
from anchorjax.sharding import BATCH, REPLICATED, WHOLE_ROWS
from anchorjax.types import PAD_SEGMENT

CHUNK = 512  # tokens whose logits exist at once on a device


@dataclasses.dataclass(frozen=True, eq=False)
class Score:
    """Scores of one row of T tokens; entry t is that of token t + 1, given the t + 1 tokens before it.

    Attributes:
      nats_t: float32 [T - 1], -log p.
      likeliest_t: bool [T - 1], whether the token is the one that greedy decoding takes; None if not asked for.
    """

    nats_t: np.ndarray
    likeliest_t: np.ndarray | None


@dataclasses.dataclass(frozen=True, eq=False)
class NextToken:
    """Distribution of the token after one row.

    Attributes:
      nats_V: float32 [V], -log p of every token.
      likeliest: the token that greedy decoding takes.
    """

    nats_V: np.ndarray
    likeliest: int


class Scorer:
    """A model that is ready to score rows."""

    def __init__(self, model: LanguageModel, batch_size: int = 1):
        """`batch_size`: rows at once; rounded up to what the mesh's rows ask for. Raises UsageError for FocusLLM."""
        model.description.check_scored()
        self.description, self.mesh, self._params = model.description, model.mesh, model.params
        shards = model.mesh.shape["data"] * model.mesh.shape["fsdp"]
        self.batch_size = -(-batch_size // shards) * shards

    def score(self, rows: Sequence[Sequence[int]], likeliest: bool = False) -> list[Score]:
        """In the order of the rows (ids, BOS included).

        Raises:
          UsageError: a row is empty or longer than the model's context.
          EvaluationError: it has a token that the model does not know, or the model gives NaN.
        """

        def find(rows, arrays, **options):
            nats_BT, likeliest_BT = jax.device_get(_score(self._params, *arrays, **options, likeliest=likeliest))
            for place, row in enumerate(rows):
                kept = np.s_[place, : len(row) - 1]
                self._check(nats_BT[kept])
                yield Score(nats_BT[kept], likeliest_BT[kept] if likeliest else None)

        return self._by_batches(rows, find)

    def next(self, rows: Sequence[Sequence[int]]) -> list[NextToken]:
        """In the order of the rows, which are as in `score`."""

        def find(rows, arrays, **options):
            last_B = np.array([*map(len, rows), *[1] * (self.batch_size - len(rows))], np.int32) - 1
            nats_BV, likeliest_B = jax.device_get(_next(self._params, *arrays, last_B, **options))
            self._check(nats_BV[: len(rows)])
            return map(NextToken, nats_BV[: len(rows)], likeliest_B.tolist())

        return self._by_batches(rows, find)

    def _check(self, nats: np.ndarray) -> None:
        if np.isnan(nats).any():
            dtype = self.description.model.compute_dtype
            raise EvaluationError(
                f"{self.description.directory} gives no probabilities (NaN) in {dtype}: its weights are damaged, or "
                "want another --dtype"
            )

    def _by_batches(self, rows: Sequence[Sequence[int]], find: Callable[..., Iterable[Any]]) -> list[Any]:
        """What `find` gives for each row, from (rows, their arrays, options of the program), called in the mesh."""
        for row in rows:
            if not 0 < len(row) <= self.description.context:
                raise UsageError(
                    f"a row of {len(row):,} tokens cannot be scored: 1 to {self.description.context:,} are allowed, "
                    "the model's context; --context=N allows more"
                )
        check_ids(rows, self.description)
        # RoPE may depend on the columns, and a score must not on what else is asked.
        kind = bucket if self.description.rope.depends_on_length else None
        found: dict[int, Any] = {}
        for numbers in batches(range(len(rows)), self.batch_size, lambda i: len(rows[i]), kind):
            some = [rows[i] for i in numbers]
            columns = bucket(max(map(len, some)))
            spec = self.description.spec(columns)
            with jax.set_mesh(self.mesh):
                found |= zip(numbers, find(some, self._arrays(some, columns), spec=spec), strict=True)
        return [found[i] for i in range(len(rows))]

    def _arrays(self, rows: Sequence[Sequence[int]], columns: int) -> tuple[jax.Array, jax.Array]:
        """(tokens, segment ids) [B, columns]."""
        tokens_BT = np.zeros((self.batch_size, columns), np.int32)
        segment_ids_BT = np.full((self.batch_size, columns), PAD_SEGMENT, np.int32)
        for place, row in enumerate(rows):
            tokens_BT[place, : len(row)], segment_ids_BT[place, : len(row)] = row, 0
        return sharding.put(tokens_BT, BATCH), sharding.put(segment_ids_BT, BATCH)


@functools.partial(jax.jit, static_argnames=("spec", "likeliest"))
def _score(params: Decoder, tokens_BT, segment_ids_BT, *, spec: Spec, likeliest: bool):
    """(nats, whether greedy) of the next token at each place, whole on each device; the last place is meaningless."""
    hidden_BTD = _hidden(params, tokens_BT, segment_ids_BT, spec)
    unembedding_DV, soft_cap = params.unembedding_DV(spec), spec.model.final_soft_cap
    targets_BT = jnp.concatenate([tokens_BT[:, 1:], tokens_BT[:, :1]], 1)
    nats_BT = token_nats(hidden_BTD, unembedding_DV, targets_BT, CHUNK, soft_cap)
    if not likeliest:
        return reshard(nats_BT, REPLICATED), None
    greedy_BT = _greedy(hidden_BTD, unembedding_DV, soft_cap)
    return reshard(nats_BT, REPLICATED), reshard(greedy_BT == targets_BT, REPLICATED)


@functools.partial(jax.jit, static_argnames="spec")
def _next(params: Decoder, tokens_BT, segment_ids_BT, last_B, *, spec: Spec):
    """(nats of every token, the likeliest) behind place last_B of each row: fp32 [B, V], int32 [B]."""
    hidden_BTD = reshard(_hidden(params, tokens_BT, segment_ids_BT, spec), WHOLE_ROWS)
    is_last_BT = reshard(jnp.arange(tokens_BT.shape[1]) == last_B[:, None], WHOLE_ROWS)
    last_BD = jnp.sum(hidden_BTD, 1, where=is_last_BT[:, :, None])
    logits_BV = logits(last_BD, params.unembedding_DV(spec), spec.model.final_soft_cap)
    logits_BV = reshard(logits_BV, REPLICATED)
    return -jax.nn.log_softmax(logits_BV), jnp.argmax(logits_BV, -1).astype(jnp.int32)


def _hidden(params: Decoder, tokens_BT, segment_ids_BT, spec: Spec) -> jax.Array:
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1], dtype=jnp.int32), tokens_BT.shape)
    return params.hidden(tokens_BT, reshard(positions_BT, BATCH), segment_ids_BT, spec)


def _greedy(hidden_BTD: jax.Array, unembedding_DV: jax.Array, soft_cap: float) -> jax.Array:
    """The likeliest next token at each place: int32 [B, T]."""
    B, T, D = hidden_BTD.shape
    hidden_BTD = reshard(hidden_BTD, WHOLE_ROWS)  # chunks are of rows that are whole
    matrix, _ = sharding.logits(jax.typeof(hidden_BTD).sharding.spec, unembedding_DV.shape[1])
    unembedding_DV = reshard(unembedding_DV, matrix)  # once, and not for each chunk
    padded_BtD = jnp.pad(hidden_BTD, ((0, 0), (0, -T % CHUNK), (0, 0)))
    chunks_nBcD = padded_BtD.reshape(B, -1, CHUNK, D).swapaxes(0, 1)

    def likeliest(hidden_BcD):
        logits_BcV = reshard(logits(hidden_BcD, unembedding_DV, soft_cap), WHOLE_ROWS)
        return jnp.argmax(logits_BcV, -1).astype(jnp.int32)

    return jax.lax.map(likeliest, chunks_nBcD).swapaxes(0, 1).reshape(B, -1)[:, :T]
