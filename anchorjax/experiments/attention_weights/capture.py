"""Queries, keys and values of every layer as attention gets them, from one forward pass over a row."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from anchorjax import processes, sharding
from anchorjax.errors import EvaluationError
from anchorjax.inference.language_model import LanguageModel
from anchorjax.masks import Mask
from anchorjax.models.decoder import Decoder, is_global, masks_of_kinds
from anchorjax.models.spec import Spec
from anchorjax.models.variants import plain
from anchorjax.sharding import BATCH


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """A text and who sees whom in it.

    Attributes:
      tokens_T, segment_ids_T: int32, without padding.
      num_anchors: leading tokens that every later one sees.
    """

    tokens_T: np.ndarray
    segment_ids_T: np.ndarray
    num_anchors: int


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """What one layer attends with: q [T, N, H], and k, v [T, K, H], in compute_dtype, and its mask over the row.

    Queries and keys are rotated, and queries have the scale of logits in them: what is left is to divide q k' by
    sqrt(H), and to cap it as the mask says.
    """

    q_TNH: np.ndarray
    k_TKH: np.ndarray
    v_TKH: np.ndarray
    mask: Mask


def capture(model: LanguageModel, row: Row) -> list[Layer]:
    """Runs the model over the row with its own attention, at the positions 0 to T - 1.

    Memory for q, k and v of all layers is needed: 0.5 GB for 8192 tokens of SmolLM2-135M in bfloat16.

    Raises:
      EvaluationError: a variant other than `plain`.
    """
    description, T = model.description, len(row.tokens_T)
    if description.attention.variant != "plain":
        raise EvaluationError(f"attention.variant={description.attention.variant} is not measured; allowed: plain")
    spec = dataclasses.replace(description.spec(description.context), num_anchors=row.num_anchors)
    rows = model.mesh.shape["data"] * model.mesh.shape["fsdp"]  # one for each device; the first is read

    def repeated(x_T):
        return sharding.put(np.repeat(np.asarray(x_T, np.int32)[None], rows, 0), pspec=BATCH)

    with jax.set_mesh(model.mesh):
        arrays = repeated(row.tokens_T), repeated(np.arange(T)), repeated(row.segment_ids_T)
        q_LTNH, k_LTKH, v_LTKH = (processes.to_host(x)[:, 0] for x in _forward(model.params, *arrays, spec))
    mask = Mask.from_segments(jnp.asarray(row.segment_ids_T)[None], row.num_anchors)
    kinds = masks_of_kinds(mask, spec)
    return [
        Layer(*arrays, kinds[0 if len(kinds) == 1 or is_global(number, spec.model) else 1])
        for number, arrays in enumerate(zip(q_LTNH, k_LTKH, v_LTKH, strict=True))
    ]


@functools.partial(jax.jit, static_argnames="spec")
def _forward(params: Decoder, tokens_BT, positions_BT, segment_ids_BT, spec: Spec):
    masks = masks_of_kinds(Mask.from_segments(segment_ids_BT, spec.num_anchors), spec)
    contexts = plain.contexts(masks, positions_BT, spec)
    return params.through_blocks(tokens_BT, contexts, _attend, spec)[1]


def _attend(q_BTNH, k_BTKH, v_BTKH, context: plain.LayerContext, spec: Spec, layer, head_scale_N=None):
    """The attention of `plain`, which keeps what it attends with."""
    named = {"layer": layer, "head_scale_N": head_scale_N}
    out_BTNH, _ = plain.attend(q_BTNH, k_BTKH, v_BTKH, context, spec, **named)
    return out_BTNH, (*plain.rotated(q_BTNH, k_BTKH, context, spec, **named), v_BTKH)
