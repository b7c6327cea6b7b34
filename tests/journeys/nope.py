"""Attention without positions: every token is rotated as at position 0 (NoPE, arXiv 2305.19466)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from anchorjax.masks import Mask
from anchorjax.models.spec import Spec
from anchorjax.models.variants import plain
from anchorjax.models.variants.plain import attend, cache

__all__ = ["attend", "cache", "contexts"]


def contexts(
    masks: Sequence[Mask], positions_BT: jax.Array, spec: Spec, start: jax.Array | None = None
) -> tuple[plain.LayerContext, ...]:
    return plain.contexts(masks, jnp.zeros_like(positions_BT), spec, start)
