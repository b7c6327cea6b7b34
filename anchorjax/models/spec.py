"""What the decoder's functions need beside weights and tokens."""

import dataclasses

from anchorjax.config import AttentionConfig, LoraConfig, ModelConfig, RopeConfig


@dataclasses.dataclass(frozen=True)
class Spec:
    """What the decoder's functions need beside its weights (static)."""

    model: ModelConfig
    rope: RopeConfig
    lora: LoraConfig
    attention: AttentionConfig  # of `attention.choose`: nothing left to choose
    max_position: int

    @property
    def weight_dtype(self) -> str:
        """Matrices rest in param_dtype; beside adapters they are frozen, and no step needs more than compute_dtype."""
        return self.model.compute_dtype if self.lora.rank else self.model.param_dtype
