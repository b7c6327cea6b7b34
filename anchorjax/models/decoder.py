"""A Llama-style decoder: RMSNorm, RoPE, grouped-query attention, SwiGLU.

- Modules are plain pytrees of `nnx.Param`; only JAX transforms act on them.
- Each weight is made with its own sharding: cut along `fsdp` and `tensor`, gathered over `fsdp` where used.
- Blocks are stacked along a layer axis and run by the one `lax.scan`, under the one remat policy.
- Weights rest in `param_dtype` and are cast to `compute_dtype` before they are gathered. Norms are fp32.

Sources: Llama (arXiv 2302.13971), RMSNorm (1910.07467), SwiGLU (2002.05202), GQA (2305.13245).
Letters: types.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jax.sharding import reshard

from anchorjax.attention import gradient, sharded
from anchorjax.config import AttentionConfig, ModelConfig
from anchorjax.masks import Mask
from anchorjax.models import rope
from anchorjax.sharding import ACTIVATIONS, HEADS, ROWS

MAX_OFFSET = 4  # tokens that a fresh head may look back


@dataclasses.dataclass(frozen=True)
class Shape:
    """What the decoder's functions need beside its weights (static)."""

    model: ModelConfig
    attention: AttentionConfig  # of `attention.choose`: nothing left to choose
    max_position: int


def _weight(key: jax.Array, shape: tuple[int, ...], spec: P, config: ModelConfig, fan_in: float) -> nnx.Param:
    """Truncated normal of variance 1 / fan_in: outputs have the inputs' variance at every width.

    The usual constant 0.02 is that at D = 2500 only; narrow models would start with nearly uniform attention.
    """
    return nnx.Param(reshard(_draw(key, shape, config, fan_in), spec))


def _draw(key: jax.Array, shape: tuple[int, ...], config: ModelConfig, fan_in: float) -> jax.Array:
    return fan_in**-0.5 * jax.random.truncated_normal(key, -3, 3, shape, config.param_dtype)


def _draw_query_and_key(key: jax.Array, config: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """Weights [D, N, H] and [D, K, H] of heads that begin by looking 1 to MAX_OFFSET tokens back.

    A query head is its key head turned back by its offset's phases, so that after RoPE the score of equal
    inputs is largest at that distance. Heads thus need not find their neighbours first, which takes a small
    model a hundred steps. After mimetic initialisation (Trockman & Kolter, arXiv 2305.09828), which makes
    query and key products close to the identity.
    """
    D, N, K, H = config.model_width, config.num_heads, config.num_kv_heads, config.head_width
    key, offset_key = jax.random.split(key)
    k_DKH = _draw(key, (D, K, H), config, D)
    offset_1N = jax.random.randint(offset_key, (1, N), 1, MAX_OFFSET + 1)
    phases_1Nh = -offset_1N[..., None] * config.rope_theta ** (-jnp.arange(0, H, 2) / H)
    shared_1NDH = jnp.repeat(k_DKH, N // K, axis=1).swapaxes(0, 1)[None]
    q_1NDH = rope.rotate(shared_1NDH, jnp.cos(phases_1Nh), jnp.sin(phases_1Nh), "float32")  # heads as tokens
    return q_1NDH[0].swapaxes(0, 1), k_DKH


def _gathered(param: nnx.Param, spec: P, dtype: str) -> jax.Array:
    """The weight as its user wants it: cast first, so that half as many bytes travel."""
    return reshard(param[...].astype(dtype), spec)


def rms_norm(x_BTD: jax.Array, scale_D: nnx.Param, eps: float) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) * scale over the last axis, in fp32; returns x's dtype."""
    x = x_BTD.astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)
    return (x * scale_D[...]).astype(x_BTD.dtype)


def dropout(x_BTD: jax.Array, key: jax.Array | None, place: int, rate: float) -> jax.Array:
    """Zeroes a share `rate` of a residual branch and scales up the rest; `place` tells a block's branches apart."""
    if key is None:
        return x_BTD
    keep = jax.random.bernoulli(jax.random.fold_in(key, place), 1 - rate, x_BTD.shape, out_sharding=ACTIVATIONS)
    return jnp.where(keep, x_BTD / (1 - rate), 0).astype(x_BTD.dtype)


class Attention(nnx.Module):
    def __init__(self, key: jax.Array, config: ModelConfig):
        D, N, K, H = config.model_width, config.num_heads, config.num_kv_heads, config.head_width
        qk, v, o = jax.random.split(key, 3)
        q_DNH, k_DKH = _draw_query_and_key(qk, config)
        self.q_DNH = nnx.Param(reshard(q_DNH, P("fsdp", "tensor", None)))
        self.k_DKH = nnx.Param(reshard(k_DKH, P("fsdp", "tensor", None)))
        self.v_DKH = _weight(v, (D, K, H), P("fsdp", "tensor", None), config, D)
        self.o_NHD = _weight(o, (N, H, D), P("tensor", None, "fsdp"), config, N * H * _residual_branches(config))

    def __call__(self, x_BTD, cos_BTh, sin_BTh, mask: Mask, plan, shape: Shape) -> jax.Array:
        dtype, rope_dtype = shape.model.compute_dtype, shape.model.rope_dtype

        def project(weight):
            weight = _gathered(weight, P(None, "tensor", None), dtype)
            return jnp.einsum("btd,dnh->btnh", x_BTD, weight, out_sharding=HEADS)

        q_BTNH, k_BTKH, v_BTKH = project(self.q_DNH), project(self.k_DKH), project(self.v_DKH)
        q_BTNH = rope.rotate(q_BTNH, cos_BTh, sin_BTh, rope_dtype)
        k_BTKH = rope.rotate(k_BTKH, cos_BTh, sin_BTh, rope_dtype)
        out_BTNH = sharded.apply(q_BTNH, k_BTKH, v_BTKH, mask, plan, shape.attention.implementation)
        o_NHD = _gathered(self.o_NHD, P("tensor", None, None), dtype)
        return jnp.einsum("btnh,nhd->btd", out_BTNH, o_NHD, out_sharding=ACTIVATIONS)


class FeedForward(nnx.Module):
    def __init__(self, key: jax.Array, config: ModelConfig):
        D, F = config.model_width, config.ffn_width
        gate, up, down = jax.random.split(key, 3)
        self.gate_DF = _weight(gate, (D, F), P("fsdp", "tensor"), config, D)
        self.up_DF = _weight(up, (D, F), P("fsdp", "tensor"), config, D)
        self.down_FD = _weight(down, (F, D), P("tensor", "fsdp"), config, F * _residual_branches(config))

    def __call__(self, x_BTD: jax.Array, shape: Shape) -> jax.Array:
        dtype, hidden = shape.model.compute_dtype, P(ROWS, "context", "tensor")

        def project(weight):
            return jnp.einsum("btd,df->btf", x_BTD, _gathered(weight, P(None, "tensor"), dtype), out_sharding=hidden)

        hidden_BTF = jax.nn.silu(project(self.gate_DF)) * project(self.up_DF)
        down_FD = _gathered(self.down_FD, P("tensor", None), dtype)
        return jnp.einsum("btf,fd->btd", hidden_BTF, down_FD, out_sharding=ACTIVATIONS)


class Block(nnx.Module):
    def __init__(self, key: jax.Array, config: ModelConfig):
        attention, ffn = jax.random.split(key)
        self.attention = Attention(attention, config)
        self.ffn = FeedForward(ffn, config)
        self.attention_norm_D = _norm_scale(config)
        self.ffn_norm_D = _norm_scale(config)

    def __call__(self, x_BTD, cos_BTh, sin_BTh, mask: Mask, plan, shape: Shape, dropout_key) -> jax.Array:
        eps, rate = shape.model.norm_eps, shape.model.dropout
        normed_BTD = rms_norm(x_BTD, self.attention_norm_D, eps)
        x_BTD += dropout(self.attention(normed_BTD, cos_BTh, sin_BTh, mask, plan, shape), dropout_key, 0, rate)
        return x_BTD + dropout(self.ffn(rms_norm(x_BTD, self.ffn_norm_D, eps), shape), dropout_key, 1, rate)


class Decoder(nnx.Module):
    """Embedding, stacked blocks, final norm; `hidden` and `unembedding_DV` are what a loss needs."""

    def __init__(self, key: jax.Array, config: ModelConfig):
        embed, common, unembed, blocks = jax.random.split(key, 4)
        V, D = config.vocab_size, config.model_width
        # A part common to all tokens, which the softmax over tokens does not see, lets heads tell distance.
        common_1D = _draw(common, (1, D), config, D)
        self.embed_VD = nnx.Param(reshard(_draw(embed, (V, D), config, D) + common_1D, P("tensor", "fsdp")))
        self.blocks = jax.vmap(lambda key: Block(key, config))(jax.random.split(blocks, config.num_layers))
        self.final_norm_D = _norm_scale(config)
        if not config.tie_embeddings:
            self.unembed_DV = _weight(unembed, (D, V), P("fsdp", "tensor"), config, D)

    def hidden(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        segment_ids_BT: jax.Array,
        num_anchors: int,
        shape: Shape,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Final hidden states [B, T, D] in compute_dtype; the mask's plan is built once for all layers.

        Args:
          tokens_BT, positions_BT, segment_ids_BT: int32, as in `types.Batch`.
          num_anchors: leading tokens that every later one may see (static).
          shape: the configuration of model and attention (static).
          dropout_key: typed key; without one nothing is dropped.
        """
        config = shape.model
        mask = Mask.from_segments(segment_ids_BT, num_anchors)
        plan = sharded.plan(mask, shape.attention.q_tile, shape.attention.kv_tile)
        cos_BTh, sin_BTh = rope.tables(positions_BT, shape.max_position, config.head_width, config.rope_theta)
        # Rounded after the look-up: the gradient of a frequent token is a sum over the whole row, and in
        # bfloat16 it stalls (64K equal terms gave 1/20 of their sum).
        embed_VD = _gathered(self.embed_VD, P(None, None), "float32")
        x_BTD = embed_VD.at[tokens_BT].get(out_sharding=ACTIVATIONS).astype(config.compute_dtype)

        def one_block(x_BTD, layer):
            block, number = layer
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, number)
            return block(x_BTD, cos_BTh, sin_BTh, mask, plan, shape, key), None

        layers = (self.blocks, jnp.arange(config.num_layers))
        x_BTD, _ = jax.lax.scan(_remat(one_block, config.remat), x_BTD, layers)
        return rms_norm(x_BTD, self.final_norm_D, config.norm_eps)

    def unembedding_DV(self, config: ModelConfig) -> jax.Array:
        """The output matrix in compute_dtype, cut over the vocabulary."""
        if config.tie_embeddings:
            return _gathered(self.embed_VD, P("tensor", None), config.compute_dtype).T
        return _gathered(self.unembed_DV, P(None, "tensor"), config.compute_dtype)


def logits(hidden_BTD: jax.Array, unembedding_DV: jax.Array) -> jax.Array:
    """fp32 logits [..., V] of hidden states [..., D]; the loss calls it chunk by chunk."""
    spec = P(*jax.typeof(hidden_BTD).sharding.spec[:-1], "tensor")
    return jnp.einsum(
        "...d,dv->...v", hidden_BTD, unembedding_DV, preferred_element_type=jnp.float32, out_sharding=spec
    )


def _norm_scale(config: ModelConfig) -> nnx.Param:
    return nnx.Param(jnp.ones(config.model_width, config.param_dtype))


def _residual_branches(config: ModelConfig) -> int:
    """GPT-2's: dividing their variance by their number keeps the residual stream's at any depth."""
    return 2 * config.num_layers


def _remat(block, policy: str):
    if policy == "none":
        return block
    saved = jax.checkpoint_policies.save_only_these_names(gradient.NAME) if policy == "attention" else None
    return jax.checkpoint(block, policy=saved)
