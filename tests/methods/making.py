"""Models whose logits are scaled, small enough to run whole."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from anchorjax import sharding
from anchorjax.inference import cached
from anchorjax.masks import Mask
from anchorjax.models import logit_scale
from anchorjax.models.decoder import Decoder, logits
from anchorjax.models.spec import Spec
from tests.models.making import spec_of

V = 64
SMALL = {"num_layers": 3, "d_model": 32, "d_ff": 32, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16}
SMALL |= {"vocab_size": V, "norm_eps": 1e-5, "compute_dtype": "float32"}


def scaled_spec(name: str, T: int, length: int, first: int = 0, by: str = "position", **model) -> Spec:
    """A small model for rows of T tokens; `length` is c, and `first` the first layer that is scaled."""
    spec = spec_of(SMALL | model, tiles=(16, 16), max_position=T)
    named = {"logit_scale_length": length, "logit_scale_from": first, "logit_scale_by": by} if name != "none" else {}
    return dataclasses.replace(spec, attention=dataclasses.replace(spec.attention, logit_scale=name, **named))


def make(spec: Spec) -> Decoder:
    return jax.jit(lambda: Decoder(jax.random.key(1), spec))()


def put(*arrays) -> list[jax.Array]:
    """Rows [B, T] on the current mesh."""
    return [sharding.put(np.asarray(x, np.int32), sharding.BATCH) for x in arrays]


@functools.partial(jax.jit, static_argnames="spec")
def run(params: Decoder, tokens_BT, positions_BT, segment_ids_BT, spec: Spec) -> jax.Array:
    hidden_BTD = params.hidden(tokens_BT, positions_BT, segment_ids_BT, spec)
    return logits(hidden_BTD, params.unembedding_DV(spec), spec.model.final_soft_cap)


def factors_of(positions_T, segment_ids_T, spec: Spec, window: int | None = None) -> np.ndarray:
    """t of the tokens of one row, fp32 [T]; call it inside a mesh of one device."""
    positions_BT, segment_ids_BT = put(np.asarray(positions_T)[None], np.asarray(segment_ids_T)[None])
    mask = Mask.from_segments(segment_ids_BT, spec.num_anchors, window)
    return np.asarray(logit_scale.factors(mask, positions_BT, spec.attention, has_cache=False))[0]


def decoded(params: Decoder, tokens_BT: np.ndarray, start_B: np.ndarray, chunk: int, spec: Spec) -> np.ndarray:
    """Logits [B, T - chunk + 1, V] behind column chunk - 1 and later ones: a chunk at once, the rest one by one.

    Args:
      params: used up.
      start_B: columns of padding in front of each row.
    """
    T = tokens_BT.shape[1]
    weights = cached.DecodeParams.of(params, spec)
    cache = jax.jit(lambda: cached.Cache.empty(jnp.asarray(start_B, jnp.int32), T, spec))()
    advance, found = jax.jit(cached.advance, static_argnames="spec"), []
    for first, stop in [(0, chunk), *((i, i + 1) for i in range(chunk, T))]:
        (some_BT,) = put(tokens_BT[:, first:stop])
        logits_BV, cache = advance(weights, cache, some_BT, spec=spec)
        found.append(np.asarray(logits_BV))
    return np.stack(found, 1)
