"""The memory of prompts, condensed once before decoding (FocusLLM, models/focus.py).

A prompt [BOS, k chunks of c tokens, rest] becomes k columns of the cache with the candidates' keys and values, and the
columns of BOS and the rest, at positions 0, 1, ... The rest are the last `focus.local` tokens and what is left of a
chunk. Chunks are encoded in groups with the prompt's last `focus.prompt` tokens behind each, a group for all rows at
once, which bounds memory. A prompt without a whole chunk before its last `focus.local` tokens is the frozen model's.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import reshard

from anchorjax import sharding
from anchorjax.config import FocusConfig
from anchorjax.models.decoder import Attend, embedded
from anchorjax.models.focus import Chunks, Condensed, condense
from anchorjax.models.spec import Spec
from anchorjax.models.variants.plain import write
from anchorjax.sharding import BATCH, CACHE, HEADS, WHOLE_ROWS

GROUP = 4096  # tokens of the chunks of a row that are encoded at once: bounds activations


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Memory:
    """Candidates of the rows of a batch.

    Attributes:
      layers: keys before RoPE and values of each layer [B, M, K, H], M places for candidates.
      count_B: int32, how many of the places a row has filled.
    """

    layers: tuple[Condensed, ...]
    count_B: jax.Array

    def given(self, layer: int, offset_BT: jax.Array, attend: Attend) -> Attend:
        """`attend` with the candidates' keys and values at the columns that are theirs.

        Args:
          offset_BT: of the T columns from the row's first one.
        """

        def attend_given(q_BTNH, k_BTKH, v_BTKH):
            mapped = jax.shard_map(_replaced, in_specs=(HEADS, CACHE, BATCH, WHOLE_ROWS), out_specs=HEADS)
            pairs = zip((k_BTKH, v_BTKH), self.layers[layer], strict=True)
            return attend(q_BTNH, *(mapped(own, theirs, offset_BT, self.count_B) for own, theirs in pairs))

        return attend_given


def _replaced(x_BTKH: jax.Array, candidates_BMKH: jax.Array, offset_BT: jax.Array, count_B: jax.Array) -> jax.Array:
    place_BT = jnp.clip(offset_BT, 0, candidates_BMKH.shape[1] - 1)
    found_BTKH = jax.vmap(lambda candidates_MKH, place_T: candidates_MKH[place_T])(candidates_BMKH, place_BT)
    is_candidate_BT = (offset_BT >= 0) & (offset_BT < count_B[:, None])
    return jnp.where(is_candidate_BT[..., None, None], found_BTKH, x_BTKH)


def shortened(prompt: Sequence[int], focus: FocusConfig, pad_id: int) -> list[int]:
    """The prompt's columns: padding in place of candidates, BOS and the tokens behind the chunks."""
    chunks = focus.chunks(len(prompt))
    return [pad_id] * chunks + [prompt[0], *prompt[1 + chunks * focus.chunk :]]


def remember(params, prompts: Sequence[Sequence[int]], rows: int, spec: Spec) -> Memory | None:
    """Encodes the chunks of the prompts, on the current mesh; None if there are none.

    Args:
      params: DecodeParams.
      rows: of the batch; excess rows repeat the last prompt.
    """
    focus = spec.focus
    counts = np.array([focus.chunks(len(prompts[min(row, len(prompts) - 1)])) for row in range(rows)], np.int32)
    most = int(counts.max())
    if not most:
        return None
    size = min(max(1, GROUP // (focus.chunk + focus.prompt)), _power(most))
    places = size * _power(-(-most // size))
    tokens_BPc = np.zeros((rows, places, focus.chunk), np.int32)
    anchor_B1, prompt_Bm = np.zeros((rows, 1), np.int32), np.zeros((rows, focus.prompt), np.int32)
    for row, count in enumerate(counts):
        prompt = np.asarray(prompts[min(row, len(prompts) - 1)], np.int32)
        anchor_B1[row] = prompt[0]
        if count:
            prompt_Bm[row] = prompt[-focus.prompt :]
            tokens_BPc[row, :count] = prompt[1 : 1 + count * focus.chunk].reshape(count, -1)
    layers = _empty(rows, places, spec)
    for first in range(0, most, size):
        some = slice(first, first + size)
        is_real_BC = np.arange(places)[None, some] < counts[:, None]
        arrays = anchor_B1, tokens_BPc[:, some], prompt_Bm, is_real_BC
        layers = _encode(params, layers, *(sharding.put(x, WHOLE_ROWS) for x in arrays), np.int32(first), spec=spec)
    return Memory(layers, sharding.put(counts, WHOLE_ROWS))


def _power(size: int) -> int:
    """The next power of two: shapes are few."""
    return 1 << (size - 1).bit_length()


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _empty(rows: int, places: int, spec: Spec) -> tuple[Condensed, ...]:
    model = spec.model
    shape = rows, places, model.num_kv_heads, model.head_dim
    zeros = functools.partial(jnp.zeros, shape, model.compute_dtype, out_sharding=CACHE)
    return tuple((zeros(), zeros()) for _ in range(model.num_layers))


@functools.partial(jax.jit, static_argnames="spec", donate_argnames="layers")
def _encode(params, layers, anchor_B1, memory_BCc, prompt_Bm, is_real_BC, first, *, spec: Spec):
    """`layers` with the candidates of some chunks from place `first` on."""
    chunks = Chunks.of(anchor_B1, memory_BCc, prompt_Bm, is_real_BC)
    contexts = chunks.layout().contexts(spec)
    tokens = chunks.tokens_BR, chunks.candidates_BC
    streams = tuple(embedded(reshard(x, BATCH), params.embed_VD, spec.model) for x in tokens)
    kept = []
    for number, (block, old) in enumerate(zip(params.blocks, layers, strict=True)):
        streams, new = condense(block, streams, contexts, spec, number)
        kept.append(tuple(write(was, now, first) for was, now in zip(old, new, strict=True)))
    return tuple(kept)
