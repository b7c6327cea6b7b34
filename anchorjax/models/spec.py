"""The static arguments of the decoder's functions."""

import dataclasses

from anchorjax.config import AttentionConfig, FocusConfig, LoraConfig, MeshConfig, ModelConfig, RopeConfig


@dataclasses.dataclass(frozen=True)
class Spec:
    """What the decoder's functions need besides weights and arrays: hashable, and static under jit.

    Attributes:
      model, rope, lora: sections of the configuration.
      attention: the section as `attention.choose` returns it, with nothing left to choose.
      num_anchors: leading tokens of a row that every later one may see.
      max_position: every RoPE position is below it; some RoPE scalings depend on it.
      mesh: how devices share the work; the sizes of its axes are read from the current mesh.
      focus: the section; with `focus.chunk` layers have candidate projections (models/focus.py).
    """

    model: ModelConfig
    rope: RopeConfig
    lora: LoraConfig
    attention: AttentionConfig
    num_anchors: int
    max_position: int
    mesh: MeshConfig = MeshConfig()  # noqa: RUF009 - frozen
    focus: FocusConfig = FocusConfig()  # noqa: RUF009

    @property
    def gradient_dtype(self) -> str:
        """What devices exchange and add up gradients of the blocks' weights in."""
        return self.model.compute_dtype if self.mesh.gradient_dtype == "auto" else self.mesh.gradient_dtype

    @property
    def weight_dtype(self) -> str:
        """Matrices rest in param_dtype; beside adapters they are frozen, and no step needs more than compute_dtype."""
        return self.model.compute_dtype if self.lora.rank or self.focus.chunk else self.model.param_dtype
