"""The sections that describe a model: its sizes and features, RoPE, adapters."""

import dataclasses

from anchorjax.config.keys import MAX_INT, Section, key

LORA_TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
DTYPES = ("float32", "bfloat16")
ROPE_SCALINGS = ("auto", "none", "linear", "dynamic", "yarn", "llama3", "longrope")


@dataclasses.dataclass(frozen=True)
class ModelConfig(Section):
    NAME = "model"
    family: str = key("", "module of anchorjax/models/families; empty: the checkpoint's, or llama", role="given")
    # Sizes: 0 takes the checkpoint's. Without init_from they must be given.
    num_layers: int = key(0, "L: layers; 0: the checkpoint's", low=0, role="size")
    d_model: int = key(0, "D: width of the residual stream; 0: the checkpoint's", low=0, role="size")
    d_ff: int = key(
        0,
        "F: width of the feed-forward layer; about 8/3 D, as SwiGLU has three matrices where a plain MLP has two; "
        "0: the checkpoint's",
        low=0,
        role="size",
    )
    num_heads: int = key(0, "N: query heads; 0: the checkpoint's", low=0, role="size")
    num_kv_heads: int = key(
        0, "K: key and value heads; fewer than N is grouped-query attention; 0: the checkpoint's", low=0, role="size"
    )
    head_dim: int = key(0, "H: width of a head; 0: the checkpoint's", low=0, role="size")
    vocab_size: int = key(
        0,
        "V: tokens; 0: the checkpoint's, or the tokenizer's rounded up to a multiple of 64, which shards evenly",
        low=0,
        role="given",
    )
    norm_eps: float = key(
        0.0, "added to the mean square in RMSNorm; 0: the checkpoint's, or 1e-5", low=0, high=1, role="given"
    )
    tie_embeddings: bool = key(
        True, "one matrix for input and output, which halves the parameters of a small model", role="given"
    )
    # Features: what families differ in.
    activation: str = key(
        "silu", "activation of the gate; Gemma: gelu_tanh", choices=("silu", "gelu_tanh"), role="feature"
    )
    qkv_bias: bool = key(False, "biases of query, key and value (Qwen 2)", role="feature")
    qk_norm: bool = key(False, "RMSNorm of every query and key head (Qwen 3, Gemma 3)", role="feature")
    post_norms: bool = key(False, "norms after attention and feed-forward too (Gemma)", role="feature")
    norm_offset: bool = key(False, "norms multiply by 1 + weight (Gemma)", role="feature")
    scale_embeddings: bool = key(False, "multiply embeddings by sqrt(D) (Gemma)", role="feature")
    query_scale: float = key(0.0, "logits are q.k / sqrt(query_scale); 0: head_dim", low=0, role="feature")
    attention_soft_cap: float = key(
        0.0, "attention logits become cap * tanh(logit / cap); 0: no softcap (Gemma 2)", low=0, role="feature"
    )
    final_soft_cap: float = key(0.0, "softcap of the output's logits; 0: none (Gemma 2)", low=0, role="feature")
    sliding_window: int = key(
        0, "keys of its document that a query sees, its own among them; 0: all", low=0, role="feature"
    )
    global_every: int = key(
        0,
        "every n-th layer has no sliding window; 0: all layers have it (Gemma 2: 2, Gemma 3: 6)",
        low=0,
        role="feature",
    )
    # The run's own.
    compute_dtype: str = key(
        "bfloat16", "dtype of activations and matmul inputs; sums within a device are float32", choices=DTYPES
    )
    param_dtype: str = key("float32", "dtype of weights", choices=DTYPES)
    dropout: float = key(
        0.0,
        "dropout of the residual branches; long-context runs see each document once and need none",
        low=0,
        high=0.99,
    )
    remat: str = key(
        "attention",
        "what the backward pass recomputes. none: no matrix product; attention: all but attention; full: everything; "
        "offload: as attention, and what is kept lies in the host's memory",
        choices=("none", "attention", "full", "offload"),
        resume="free",
    )
    ffn_chunk: int = key(
        0,
        "tokens of a device that the feed-forward layer takes at once, which bounds its memory; 0: all",
        low=0,
        resume="free",
    )

    def __post_init__(self):
        super().__post_init__()
        self.require(
            self.num_heads % max(1, self.num_kv_heads) == 0,
            "num_kv_heads",
            f"it must divide model.num_heads={self.num_heads}",
        )
        self.require(self.head_dim % 2 == 0, "head_dim", "it must be even: RoPE rotates pairs")
        self.require(
            self.sliding_window or not self.global_every, "global_every", "without model.sliding_window it must be 0"
        )


@dataclasses.dataclass(frozen=True)
class RopeConfig(Section):
    NAME = "rope"
    theta: float = key(
        0.0,
        "RoPE base; raise it with seq_len (paper: 64K 5e6, 128K 1e7); 0: the checkpoint's, or 1e4",
        low=0,
    )
    local_theta: float = key(
        0.0, "RoPE base of layers with a sliding window, never scaled; 0: the checkpoint's, or rope.theta", low=0
    )
    dtype: str = key(
        "float32", "dtype of cosines and sines; bfloat16 reproduces the fault that the paper describes", choices=DTYPES
    )
    scaling: str = key("auto", "RoPE scaling; auto: the checkpoint's, or none", choices=ROPE_SCALINGS)
    factor: float = key(1.0, "how many times longer than rope.original_length rows are", low=1, role="scaling")
    original_length: int = key(
        0, "positions that the checkpoint was trained on; linear does not need it", low=0, role="scaling"
    )
    attention_factor: float = key(
        0.0,
        "multiplies rotated queries and keys (yarn, longrope); 0: the scaling's own formula",
        low=0,
        role="scaling",
    )
    beta_fast: float = key(
        32.0, "yarn: pairs with more rotations over original_length are not stretched", low=0, role="scaling"
    )
    beta_slow: float = key(
        1.0, "yarn: pairs with fewer rotations over original_length are stretched in full", low=0, role="scaling"
    )
    low_freq_factor: float = key(
        1.0, "llama3: pairs with fewer rotations over original_length are stretched in full", low=0, role="scaling"
    )
    high_freq_factor: float = key(
        4.0, "llama3: pairs with more rotations over original_length are not stretched", low=0, role="scaling"
    )
    short_factors: tuple[float, ...] = key(
        (), "longrope: H / 2 stretches, for rows up to original_length", role="scaling"
    )
    long_factors: tuple[float, ...] = key((), "longrope: H / 2 stretches, for longer rows", role="scaling")

    def __post_init__(self):
        super().__post_init__()
        for name in ("theta", "local_theta"):
            base = getattr(self, name)
            self.require(base == 0 or base > 1, name, "it must be above 1, as frequencies are powers of 1 / base, or 0")
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
        """Whether frequencies depend on the length of a row."""
        return self.scaling in ("dynamic", "longrope")


@dataclasses.dataclass(frozen=True)
class LoraConfig(Section):
    NAME = "lora"
    rank: int = key(
        0, "0 trains all weights; r trains two thin matrices beside each target and freezes the rest", low=0
    )
    alpha: float = key(16.0, "the adapters' product is multiplied by alpha / rank", low=0)
    targets: tuple[str, ...] = key(("q", "k", "v", "o"), f"matrices with adapters, of {', '.join(LORA_TARGETS)}")

    def __post_init__(self):
        super().__post_init__()
        known = all(name in LORA_TARGETS for name in self.targets) and len(set(self.targets)) == len(self.targets)
        self.require(known, "targets", f"each must be one of {', '.join(LORA_TARGETS)}, and only once")
        self.require(bool(self.targets) or not self.rank, "targets", "with lora.rank it must name at least one")
        self.require(self.alpha > 0 or not self.rank, "alpha", "with lora.rank it must be above 0")


def _defaults(section: type[Section], *roles: str) -> dict:
    return {each.field: each.default for each in section.declared() if each.role in roles}


SIZES = tuple(_defaults(ModelConfig, "size"))
PLAIN = _defaults(ModelConfig, "feature")  # a Llama's; families say what differs
OPEN = _defaults(ModelConfig, "size", "given", "feature")  # values that leave it to the checkpoint in init_from
NEUTRAL_ROPE = _defaults(RopeConfig, "scaling")  # what transformers takes, or what says nothing
