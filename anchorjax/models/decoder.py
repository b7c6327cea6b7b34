"""The one decoder of all families: RMSNorm, RoPE, grouped-query attention, gated feed-forward.

- Families differ by what `ModelConfig` says: biases, extra norms, windows, soft caps (models/families).
- Modules are plain pytrees of `nnx.Param`; only JAX transforms act on them.
- Each weight is made with its own sharding: cut along `fsdp` and `tensor`, gathered over `fsdp` where used.
- Blocks are stacked along a layer axis and run by the one `lax.scan`, under the one remat policy.
- Weights rest in `param_dtype` and are cast to `compute_dtype` before they are gathered. Norms are fp32.

Sources: Llama (arXiv 2302.13971), SwiGLU (2002.05202), GQA (2305.13245), Gemma 2 (2408.00118).
Letters: types.py.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import reshard
from jax.typing import ArrayLike

from anchorjax import precision, sharding
from anchorjax.attention import gradient
from anchorjax.config import ModelConfig
from anchorjax.masks import Mask
from anchorjax.models import logit_scale, rope, tiled
from anchorjax.models.embedding import looked_up
from anchorjax.models.layers import dropout, norm_scale, rms_norm
from anchorjax.models.linear import Adapter, Candidate, CandidateBias, Linear, draw
from anchorjax.models.spec import Spec
from anchorjax.models.variants import VARIANTS

LAYER_INPUT = "layer_input"  # name of what a block reads, for remat policies
MAX_OFFSET = 4  # tokens that a fresh head may look back


# (q_BTNH, k_BTKH, v_BTKH) before RoPE -> (out_BTNH, what is kept of it): who sees whom is not the block's concern.
# A model that has logit scales adds `head_scale_N` by name.
Attend = Callable[..., tuple[jax.Array, Any]]


def _draw_query_and_key(key: jax.Array, spec: Spec) -> tuple[jax.Array, jax.Array]:
    """Weights [D, N, H] and [D, K, H] of heads that begin by looking 1 to MAX_OFFSET tokens back.

    A query head is its key head turned back by its offset's phases, so that after RoPE the score of equal
    inputs is largest at that distance. Heads thus need not find their neighbours first, which takes a small
    model a hundred steps. After mimetic initialisation (Trockman & Kolter, arXiv 2305.09828), which makes
    query and key products close to the identity.
    """
    config = spec.model
    D, N, K, H = config.d_model, config.num_heads, config.num_kv_heads, config.head_dim
    key, offset_key = jax.random.split(key)
    k_DKH = draw(key, (D, K, H), D, spec.weight_dtype)
    offset_1N = jax.random.randint(offset_key, (1, N), 1, MAX_OFFSET + 1)
    frequencies_h, _ = rope.frequencies(spec.rope, H, spec.max_position)
    phases_1Nh = -offset_1N[..., None] * jnp.asarray(frequencies_h, jnp.float32)
    shared_1NDH = jnp.repeat(k_DKH, N // K, axis=1).swapaxes(0, 1)[None]
    q_1NDH = rope.rotate(shared_1NDH, jnp.cos(phases_1Nh), jnp.sin(phases_1Nh), "float32")  # heads as tokens
    return q_1NDH[0].swapaxes(0, 1), k_DKH


class Attention(nnx.Module):
    def __init__(self, key: jax.Array, spec: Spec):
        config, adapters = spec.model, jax.random.fold_in(key, 1)
        D, N, K, H = config.d_model, config.num_heads, config.num_kv_heads, config.head_dim
        qk, v, o = jax.random.split(key, 3)
        q_DNH, k_DKH = _draw_query_and_key(qk, spec)
        v_DKH = draw(v, (D, K, H), D, spec.weight_dtype)
        o_NHD = draw(o, (N, H, D), N * H * _residual_branches(spec), spec.weight_dtype)
        make = functools.partial(_linears, key=adapters, spec=spec, biased="qkv" if config.qkv_bias else "")
        weights = {"q": ("D->NH", q_DNH), "k": ("D->KH", k_DKH), "v": ("D->KH", v_DKH), "o": ("NH->D", o_NHD)}
        self.q, self.k, self.v, self.o = make(weights)
        if spec.focus.chunk:
            self.candidate = Candidates(weights, spec)
        if config.qk_norm:
            self.q_norm_H, self.k_norm_H = norm_scale(H, spec), norm_scale(H, spec)
        if spec.attention.logit_scale == "scalable_softmax":
            self.logit_scale_N = logit_scale.head_scales(N, spec.attention)

    def __call__(
        self, x_BTD: jax.Array, attend: Attend, spec: Spec, of_candidates: bool = False
    ) -> tuple[jax.Array, Any]:
        """Returns the output [B, T, D] and what `attend` keeps; `of_candidates`: by the projections of candidates."""
        by = self.candidate if of_candidates else self
        q_BTNH, k_BTKH, v_BTKH = by.q(x_BTD, spec), by.k(x_BTD, spec), by.v(x_BTD, spec)
        if spec.model.qk_norm:
            q_BTNH = rms_norm(q_BTNH, self.q_norm_H, spec.model)
            k_BTKH = rms_norm(k_BTKH, self.k_norm_H, spec.model)
        scaled = spec.attention.logit_scale == "scalable_softmax"
        by_head = {"head_scale_N": self.logit_scale_N[...]} if scaled else {}
        out_BTNH, kept = attend(q_BTNH, k_BTKH, v_BTKH, **by_head)
        return by.o(out_BTNH, spec), kept


class Candidates(nnx.Module):
    """FocusLLM's projections of candidates, which begin as copies of the frozen ones (models/focus.py)."""

    def __init__(self, weights: dict[str, tuple[str, jax.Array]], spec: Spec):
        for name, (letters, weight) in weights.items():
            has_bias = spec.model.qkv_bias and name != "o"
            linear = Linear(letters, weight.astype(spec.model.param_dtype), spec, has_bias)
            linear.weight = Candidate(linear.weight[...])
            linear.bias = CandidateBias(linear.bias[...]) if has_bias else None
            setattr(self, name, linear)


class FeedForward(nnx.Module):
    def __init__(self, key: jax.Array, spec: Spec):
        D, F, dtype = spec.model.d_model, spec.model.d_ff, spec.weight_dtype
        gate, up, down = jax.random.split(key, 3)
        down_FD = draw(down, (F, D), F * _residual_branches(spec), dtype)
        weights = {"gate": ("D->F", draw(gate, (D, F), D, dtype)), "up": ("D->F", draw(up, (D, F), D, dtype))}
        weights |= {"down": ("F->D", down_FD)}
        self.gate, self.up, self.down = _linears(weights, jax.random.fold_in(key, 1), spec)

    def __call__(self, x_BTD: jax.Array, spec: Spec) -> jax.Array:
        if 0 < spec.model.ffn_chunk < tiled.tokens_of_device(x_BTD):
            return tiled.by_chunks(_feed_forward, x_BTD, (self.gate, self.up, self.down), spec)
        hidden_BTF = ACTIVATION[spec.model.activation](self.gate(x_BTD, spec)) * self.up(x_BTD, spec)
        return self.down(hidden_BTF, spec)


def _feed_forward(x_cD: jax.Array, linears: tuple[Linear, Linear, Linear], spec: Spec) -> jax.Array:
    """`FeedForward` of some tokens of a device."""
    gate, up, down = linears
    hidden_cF = ACTIVATION[spec.model.activation](gate.on_device(x_cD, spec)) * up.on_device(x_cD, spec)
    return down.on_device(hidden_cF, spec)


ACTIVATION = {"silu": jax.nn.silu, "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True)}


def _linears(weights: dict[str, tuple[str, jax.Array]], key: jax.Array, spec: Spec, biased: str = "") -> list[Linear]:
    """A module's linear layers from (letters, weight) by name, with adapters on those that `lora.targets` names."""
    made = []
    for place, (name, (letters, weight)) in enumerate(weights.items()):
        adapter = None
        if spec.lora.rank and name in spec.lora.targets:
            adapter = Adapter(jax.random.fold_in(key, place), letters, weight.shape, spec)
        made.append(Linear(letters, weight, spec, name in biased, adapter))
    return made


class Block(nnx.Module):
    def __init__(self, key: jax.Array, spec: Spec):
        attention, ffn = jax.random.split(key)
        self.attention = Attention(attention, spec)
        self.ffn = FeedForward(ffn, spec)
        norms = ["attention_norm_D", "ffn_norm_D"]
        if spec.model.post_norms:
            norms += ["post_attention_norm_D", "post_ffn_norm_D"]
        for name in norms:
            setattr(self, name, norm_scale(spec.model.d_model, spec))

    def __call__(
        self, x_BTD, attend: Attend, spec: Spec, dropout_key=None, of_candidates: bool = False
    ) -> tuple[jax.Array, Any]:
        """Returns the residual stream [B, T, D] behind the block, and what `attend` keeps."""
        config = spec.model
        normed_BTD = rms_norm(x_BTD, self.attention_norm_D, config)
        branch_BTD, kept = self.attention(normed_BTD, attend, spec, of_candidates)
        if config.post_norms:
            branch_BTD = rms_norm(branch_BTD, self.post_attention_norm_D, config)
        x_BTD += dropout(branch_BTD, dropout_key, 0, config.dropout)
        branch_BTD = self.ffn(rms_norm(x_BTD, self.ffn_norm_D, config), spec)
        if config.post_norms:
            branch_BTD = rms_norm(branch_BTD, self.post_ffn_norm_D, config)
        return x_BTD + dropout(branch_BTD, dropout_key, 1, config.dropout), kept


class Decoder(nnx.Module):
    """Embedding, stacked blocks, final norm; `hidden` and `unembedding_DV` are what a loss needs."""

    def __init__(self, key: jax.Array, spec: Spec):
        config = spec.model
        embed, common, unembed, blocks = jax.random.split(key, 4)
        V, D, over = config.vocab_size, config.d_model, spec.mesh.shard_weights_over
        # A part common to all tokens, which the softmax over tokens does not see, lets heads tell distance.
        common_1D = draw(common, (1, D), D, spec.weight_dtype)
        embed_VD = draw(embed, (V, D), D, spec.weight_dtype) + common_1D
        self.embed_VD = nnx.Param(reshard(embed_VD, sharding.at_rest(sharding.EMBEDDING, over)))
        self.blocks = jax.vmap(lambda key: Block(key, spec))(jax.random.split(blocks, config.num_layers))
        self.final_norm_D = norm_scale(D, spec)
        if not config.tie_embeddings:
            unembed_DV = draw(unembed, (D, V), D, spec.weight_dtype)
            self.unembed_DV = nnx.Param(reshard(unembed_DV, sharding.at_rest(sharding.UNEMBEDDING, over)))

    def hidden(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        segment_ids_BT: jax.Array,
        spec: Spec,
        dropout_key: jax.Array | None = None,
        index_BT: jax.Array | None = None,
    ) -> jax.Array:
        """Final hidden states [B, T, D] in compute_dtype; masks and their plans are built once for all layers.

        Args:
          tokens_BT, positions_BT, segment_ids_BT: int32, as in `types.Batch`.
          spec: the configuration of model and attention (static).
          dropout_key: typed key; without one nothing is dropped.
          index_BT: int32, as in `types.Batch`; None: tokens are in their row's order.
        """
        variant = VARIANTS[spec.attention.variant]
        mask = Mask.from_segments(segment_ids_BT, spec.num_anchors, index_BT=index_BT)
        masks = masks_of_kinds(mask, spec)
        contexts = variant.contexts(masks, positions_BT, spec)
        x_BTD, _ = self.through_blocks(tokens_BT, contexts, variant.attend, spec, dropout_key)
        return rms_norm(x_BTD, self.final_norm_D, spec.model)

    def through_blocks(
        self,
        tokens_BT: jax.Array,
        contexts: tuple[Any, ...],
        attend: Callable[..., tuple[jax.Array, Any]],
        spec: Spec,
        dropout_key: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        """The residual stream behind the last block [B, T, D], and what `attend` kept of each layer, stacked.

        Args:
          contexts: a pytree for each of `kinds_of_layers`.
          attend: a variant's (anchorjax/models/variants), or a measurement in its place; gets q, k, v [B, T, heads, H]
            and by name `context`, `spec`, `layer`, the layer's number from 0 as an int32 scalar, and `head_scale_N`,
            fp32, if the model has logit scales.
        """
        config = spec.model
        # Rounded after the look-up: the gradient of a frequent token is a sum over the whole row, and in
        # bfloat16 it stalls (64K equal terms gave 1/20 of their sum).
        x_BTD = embedded(tokens_BT, precision.widened(self.embed_VD[...]), config)

        def one_block(x_BTD, layer):
            block, number = layer
            x_BTD = checkpoint_name(x_BTD, LAYER_INPUT)
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, number)

            def attend_by_kind(*q_k_v, **by_head):
                named = {"spec": spec, "layer": number, **by_head}
                by_kind = [functools.partial(attend, context=context, **named) for context in contexts]
                if len(by_kind) == 1:
                    return by_kind[0](*q_k_v)
                return jax.lax.cond(is_global(number, config), *by_kind, *q_k_v)

            return block(x_BTD, attend_by_kind, spec, key)

        layers = (self.blocks, jnp.arange(config.num_layers))
        return jax.lax.scan(remat(one_block, config.remat), x_BTD, layers)

    def unembedding_DV(self, spec: Spec) -> jax.Array:
        """The output matrix in compute_dtype, cut as it rests."""
        matrix = self.embed_VD[...].T if spec.model.tie_embeddings else self.unembed_DV[...]
        return matrix.astype(spec.model.compute_dtype)


def embedded(tokens_BT: jax.Array, embed_VD: jax.Array, config: ModelConfig) -> jax.Array:
    """Rows of the embedding [B, T, D] in compute_dtype."""
    x_BTD = looked_up(tokens_BT, embed_VD, config.compute_dtype)
    if config.scale_embeddings:
        x_BTD *= jnp.asarray(config.d_model**0.5, x_BTD.dtype)  # rounded, as Gemma was trained
    return x_BTD


def is_global(layer: ArrayLike, config: ModelConfig) -> ArrayLike:
    """Whether a layer, numbered from 0, has no window where others have one."""
    return (layer + 1) % max(1, config.global_every) == 0


def kinds_of_layers(config: ModelConfig) -> list[int | None]:
    """The window of each kind of layer, None for all: those without first, if there are two."""
    if not config.sliding_window:
        return [None]
    return [None, config.sliding_window] if config.global_every else [config.sliding_window]


def layers_of_kinds(config: ModelConfig) -> list[int]:
    """How many layers are of each of `kinds_of_layers`."""
    without_window = config.num_layers // config.global_every if config.global_every else 0
    counts = [without_window, config.num_layers - without_window]
    return counts if len(kinds_of_layers(config)) == 2 else [config.num_layers]


def masks_of_kinds(mask: Mask, spec: Spec) -> list[Mask]:
    """The mask of each of `kinds_of_layers`: `mask`, which says who shares a document, with window and softcap."""
    soft_cap = spec.model.attention_soft_cap or None
    return [dataclasses.replace(mask, window=window, soft_cap=soft_cap) for window in kinds_of_layers(spec.model)]


def logits(hidden_BTD: jax.Array, unembedding_DV: jax.Array, soft_cap: float = 0.0) -> jax.Array:
    """fp32 logits [..., V] of hidden states [..., D], capped unless soft_cap is 0. A loss has its own, by chunks.

    The output matrix is moved to where the hidden states' columns are, unless it lies there.
    """
    matrix, pspec = sharding.logits(jax.typeof(hidden_BTD).sharding.spec, unembedding_DV.shape[1])
    arrays = hidden_BTD, reshard(unembedding_DV, matrix)
    logits_V = precision.einsum("...d,dv->...v", *arrays, preferred_element_type=jnp.float32, out_sharding=pspec)
    return soft_cap * jnp.tanh(logits_V / soft_cap) if soft_cap else logits_V


def _residual_branches(spec: Spec) -> int:
    """GPT-2's: dividing their variance by their number keeps the residual stream's at any depth."""
    return 2 * spec.model.num_layers


def remat(block, policy: str):
    policies = jax.checkpoint_policies
    attention = policies.save_only_these_names(gradient.NAME)
    if policy == "none":
        # Norms, RoPE and activation functions are cheaper to do again than to keep: with its gathered weights a layer
        # kept 190 MB of them on a row of 4096 (SmolLM2-135M, fp32), more than twice its products.
        products = policies.save_from_both_policies(policies.checkpoint_dots, attention)
        return jax.checkpoint(block, policy=products, prevent_cse=False)  # scan keeps both passes apart
    offload = policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[LAYER_INPUT, gradient.NAME],
        offload_src="device",
        offload_dst=sharding.HOST,
    )
    return jax.checkpoint(block, policy={"attention": attention, "offload": offload, "full": None}[policy])
