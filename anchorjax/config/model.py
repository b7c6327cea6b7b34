"""The sections that describe a model: its sizes and features, RoPE, adapters; and what they leave to a checkpoint."""

import dataclasses

from anchorjax.config.section import MAX_INT, Section, choice, number

LORA_TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
SIZES = ("num_layers", "d_model", "d_ff", "num_heads", "num_kv_heads", "head_dim")
PLAIN = {  # a Llama's; families say what differs
    "activation": "silu",
    "qkv_bias": False,
    "qk_norm": False,
    "post_norms": False,
    "norm_offset": False,
    "scale_embeddings": False,
    "query_scale": 0.0,
    "attention_soft_cap": 0.0,
    "final_soft_cap": 0.0,
    "sliding_window": 0,
    "global_every": 0,
}
NEUTRAL_ROPE = {  # of scalings: what transformers takes, or what says nothing
    "factor": 1.0,
    "original_length": 0,
    "attention_factor": 0.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "short_factors": (),
    "long_factors": (),
}
# Values of the model that leave it to the checkpoint in init_from.
OPEN = {**dict.fromkeys(SIZES, 0), "vocab_size": 0, "norm_eps": 0.0, "family": "", "tie_embeddings": True, **PLAIN}


@dataclasses.dataclass(frozen=True)
class ModelConfig(Section):
    NAME = "model"
    family: str
    num_layers: int = number(0)
    d_model: int = number(0)
    d_ff: int = number(0)
    num_heads: int = number(0)
    num_kv_heads: int = number(0)
    head_dim: int = number(0)
    vocab_size: int = number(0)
    norm_eps: float = number(0, 1)
    tie_embeddings: bool
    activation: str = choice("silu", "gelu_tanh")
    qkv_bias: bool
    qk_norm: bool
    post_norms: bool
    norm_offset: bool
    scale_embeddings: bool
    query_scale: float = number(0)
    attention_soft_cap: float = number(0)
    final_soft_cap: float = number(0)
    sliding_window: int = number(0)
    global_every: int = number(0)
    compute_dtype: str = choice("float32", "bfloat16")
    param_dtype: str = choice("float32", "bfloat16")
    remat: str = choice("none", "attention", "full")
    dropout: float = number(0, 0.99)

    def __post_init__(self):
        super().__post_init__()
        self.require(
            self.num_heads % max(1, self.num_kv_heads) == 0,
            "num_kv_heads",
            f"it must divide model.num_heads={self.num_heads}",
        )
        self.require(self.head_dim % 2 == 0, "head_dim", "it must be even: RoPE turns pairs")
        self.require(
            self.sliding_window or not self.global_every, "global_every", "without model.sliding_window it must be 0"
        )


@dataclasses.dataclass(frozen=True)
class RopeConfig(Section):
    NAME = "rope"
    theta: float = number(0)
    local_theta: float = number(0)
    dtype: str = choice("float32", "bfloat16")
    scaling: str = choice("auto", "none", "linear", "dynamic", "yarn", "llama3", "longrope")
    factor: float = number(1)
    original_length: int = number(0)
    attention_factor: float = number(0)
    beta_fast: float = number(0)
    beta_slow: float = number(0)
    low_freq_factor: float = number(0)
    high_freq_factor: float = number(0)
    short_factors: tuple
    long_factors: tuple

    def __post_init__(self):
        super().__post_init__()
        scaling, given = self.scaling, f"with rope.scaling={self.scaling!r} it must "
        for name, value in NEUTRAL_ROPE.items() if scaling == "auto" else ():
            self.require(getattr(self, name) == value, name, given + f"be {value!r}: the checkpoint says it")
        if scaling not in ("yarn", "longrope"):
            self.require(
                self.attention_factor == 0, "attention_factor", given + "be 0: only yarn and longrope have one"
            )
        if scaling == "none":
            self.require(self.factor == 1, "factor", given + "be 1")
        if scaling in ("dynamic", "yarn", "llama3", "longrope"):
            self.require(self.original_length > 1, "original_length", given + "be at least 2")
        if scaling == "yarn":
            self.require(
                self.theta == 0 or self.theta > 1, "theta", given + "be above 1: its ramp divides by log(theta)"
            )
            self.require(self.beta_slow > 0, "beta_slow", given + "be above 0")
            above = f"be above rope.beta_slow={self.beta_slow:g}"
            self.require(self.beta_fast > self.beta_slow, "beta_fast", given + above)
        if scaling == "llama3":
            self.require(self.low_freq_factor > 0, "low_freq_factor", given + "be above 0")
            above = f"be above rope.low_freq_factor={self.low_freq_factor:g}"
            self.require(self.high_freq_factor > self.low_freq_factor, "high_freq_factor", given + above)
        for name in ("short_factors", "long_factors"):
            factors = getattr(self, name)
            if scaling == "longrope":
                positive = all(type(x) in (int, float) and 0 < x <= MAX_INT for x in factors)
                self.require(len(factors) > 0 and positive, name, given + f"hold numbers above 0 and at most {MAX_INT}")
            else:
                self.require(not factors, name, given + "be empty")

    @property
    def depends_on_length(self) -> bool:
        """Whether pairs turn more slowly in longer rows."""
        return self.scaling in ("dynamic", "longrope")


@dataclasses.dataclass(frozen=True)
class LoraConfig(Section):
    NAME = "lora"
    rank: int = number(0)
    alpha: float = number(0)
    targets: tuple

    def __post_init__(self):
        super().__post_init__()
        known = all(name in LORA_TARGETS for name in self.targets) and len(set(self.targets)) == len(self.targets)
        self.require(known, "targets", f"each must be one of {', '.join(LORA_TARGETS)}, and only once")
        self.require(bool(self.targets) or not self.rank, "targets", "with lora.rank it must name at least one")
        self.require(self.alpha > 0 or not self.rank, "alpha", "with lora.rank it must be above 0")
