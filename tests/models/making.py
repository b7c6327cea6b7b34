"""Specs of small decoders, from the defaults of configs/common.py."""

from typing import Any

from anchorjax.config import AttentionConfig, LoraConfig, ModelConfig, RopeConfig
from anchorjax.models.spec import Spec
from configs import common


def spec_of(
    model: dict[str, Any],
    *,
    implementation: str = "xla",
    tiles: tuple[int, int] = (8, 16),
    rope: dict[str, Any] | None = None,
    lora: dict[str, Any] | None = None,
    num_anchors: int = 1,
    max_position: int = 48,
) -> Spec:
    base = common.base().to_dict()
    return Spec(
        ModelConfig(**(base["model"] | model)),
        RopeConfig(**(base["rope"] | {"theta": 1e4, "scaling": "none"} | (rope or {}))),
        LoraConfig(**(base["lora"] | (lora or {}))),
        AttentionConfig(implementation, *tiles),
        num_anchors,
        max_position,
    )
