"""The memory of a training step by formula, within milliseconds, for a search over many configurations.

A step holds its arguments, what the forward pass keeps, and the gradients that are made so far. Beside these it holds
the working set of the phase that it is in; the phase that needs most decides:

    feed-forward   backward pass of one layer's feed-forward part: FFN_ARRAYS arrays [t, F] and HIDDEN_ARRAYS [t, D]
    attention      backward pass of one layer's attention: HIDDEN_ARRAYS [t, D], HEAD_ARRAYS [t, N, H], and for all keys
                   that a device attends to KEY_ARRAYS [S, K, H] and both gradients in fp32
    loss           one chunk: logits, probabilities and their gradient in fp32; no gradient of a layer exists yet
    update         gradients of all weights; nothing that the forward pass kept

The numbers of arrays are those that the compilers for v5p and H100 hold at the peak in a step of Llama-3-8B
(`memory.at_peak`), and are no fit to the totals. tests/plan/test_estimate.py compares with compiled steps.
Letters: types.py; t tokens of one device and micro-batch, S keys that it attends to.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping

import jax
from jax.sharding import AbstractMesh, AxisType

from anchorjax import sharding
from anchorjax.config import AttentionConfig, Config, MeshConfig, OptimizerConfig
from anchorjax.models.flops import layer_weights
from anchorjax.models.linear import named_leaves
from anchorjax.models.spec import Spec
from anchorjax.plan import exchanges
from anchorjax.plan.memory import Memory
from anchorjax.training import trainable
from anchorjax.training.optimizer import make_optimizer
from anchorjax.training.state import TrainState, init_state
from anchorjax.types import Batch

FFN_ARRAYS = 4  # gate, up, and the gradients of both
HIDDEN_ARRAYS = 5  # the layer's input, its normalized copy, the residual stream behind attention, and gradients
HEAD_ARRAYS = 6  # queries, output and its gradient, and the queries' gradient in compute_dtype and (twice as wide) fp32
KEY_ARRAYS = 4  # keys, values, and the gradients of both as they are exchanged
LOGIT_ARRAYS = 3  # logits, probabilities, the gradient
GAPS = 0.02  # of all but arguments, between buffers: the one allowance (`memory` says what compilers leave)


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """What the terms are made of: numbers of tokens and of elements, all of one device."""

    config: Config
    shape: tuple[tuple[str, int], ...]

    def __getitem__(self, axis: str) -> int:
        return dict(self.shape)[axis]

    @property
    def wide(self) -> int:
        """Bytes of compute_dtype."""
        return jax.numpy.dtype(self.config.model.compute_dtype).itemsize

    @property
    def tokens(self) -> int:
        """t."""
        return exchanges.tokens(self.config, dict(self.shape))

    @property
    def hidden(self) -> int:
        """Elements of an array [t, D]."""
        return self.tokens * self.config.model.d_model

    @property
    def heads(self) -> int:
        """Elements of an array [t, N, H]."""
        return self.tokens * self.config.model.num_heads * self.config.model.head_dim // self["tensor"]

    @property
    def inner(self) -> int:
        """Elements of an array [t, F], or of a chunk of it."""
        chunk = self.config.model.ffn_chunk or self.tokens
        return min(chunk, self.tokens) * self.config.model.d_ff // self["tensor"]

    @property
    def keys(self) -> int:
        """Elements of an array [S, K, H] as attention reads it."""
        model, mesh, C = self.config.model, self.config.mesh, self["context"]
        K = model.num_kv_heads // self["tensor"]
        if C == 1:
            held = self.tokens * K
        elif mesh.context_strategy == "ring":  # its own shard and a received one
            held = 2 * self.tokens * K
        elif mesh.context_strategy == "ulysses":
            held = self.tokens * math.lcm(K, C) // mesh.ulysses_head_chunks
        else:
            held = self.tokens * C * K
        return held * model.head_dim

    @property
    def layer(self) -> int:
        """Elements of the weights of one layer, gathered."""
        return sum(layer_weights(self.config.model)) // self["tensor"]

    @property
    def vocabulary(self) -> int:
        """Elements of the part of the output matrix whose words a device has in the loss."""
        return self.config.model.vocab_size * self.config.model.d_model // (self["fsdp"] * self["tensor"])


def memory(config: Config, shape: Mapping[str, int]) -> Memory:
    """Bytes of one device; those of arguments are exact but for a compiler's padding.

    Args:
      config: with the sizes of the model (`Config.completed`).
      shape: of the mesh, as `Config.check_devices` returns it.
    """
    sizes = _Sizes(config, tuple(shape.items()))
    state = _state_of(config, sizes.shape)
    parameters, moments = _bytes(state.params), _bytes(state.opt_state)
    layers, ends = _gradients(config, state)
    kept = config.model.num_layers * _kept(sizes)
    offloads, moments_on_host = config.model.remat == "offload", config.optimizer.moments_on == "host"
    saved = 0 if offloads else kept
    sums = (layers + ends) * 4 // _width(config) if config.train.grad_accum_steps > 1 else 0
    copies = config.model.num_layers * sizes.layer * sizes.wide // _shards(sizes)
    copies *= config.model.compute_dtype != config.model.param_dtype and not config.lora.rank
    gathered = sizes.layer * sizes.wide
    exchanged = gathered + (2 * sizes.keys * sizes.wide if shape["context"] > 1 else 0)
    phases = {
        "layer": (sums + layers + _loss_gradient(sizes, state), saved, exchanged, copies + _layer(sizes) - exchanged),
        "loss": (sums + 4 * sizes.vocabulary, saved, sizes.vocabulary * sizes.wide, _loss(sizes)),
        "update": (sums + layers + ends, 0, 0, copies),
    }
    gradients, saved, exchanged, rest = max(phases.values(), key=sum)
    gaps = int(GAPS * (gradients + saved + exchanged + rest))
    return Memory(
        parameters=parameters,
        moments=0 if moments_on_host else moments,
        gradients=gradients,
        saved_activations=saved,
        collectives=exchanged,
        temporaries=rest + gaps,
        other_arguments=_batch(sizes),
        host=kept * offloads + moments * moments_on_host,
    )


def _kept(sizes: _Sizes) -> int:
    """Bytes that the forward pass keeps of one layer, by `model.remat`: its input, attention's results, products."""
    model, wide = sizes.config.model, sizes.wide
    attention = sizes.heads * wide + 4 * sizes.tokens * model.num_heads // sizes["tensor"]  # with its log-sum-exp
    keys = sizes.tokens * model.num_kv_heads * model.head_dim // sizes["tensor"]
    inner = sizes.tokens * model.d_ff // sizes["tensor"]
    products = (sizes.heads + 2 * keys + sizes.hidden + 2 * inner) * wide  # q, k, v, o, gate, up
    kept = {"full": 0, "attention": attention, "offload": attention, "none": attention + products}
    return sizes.hidden * wide + kept[model.remat]


def _layer(sizes: _Sizes) -> int:
    """The working set of the backward pass through one layer."""
    model, wide = sizes.config.model, sizes.wide
    chunked = 0 < model.ffn_chunk < sizes.tokens
    again = 3 * sizes.heads * wide if model.remat == "full" else 0  # what attention would have kept, made again
    sums = 4 * 3 * model.d_model * model.d_ff // sizes["tensor"] if chunked and not sizes.config.lora.rank else 0
    feed_forward = FFN_ARRAYS * sizes.inner * wide + again + sums
    chunks = sizes.config.mesh.ulysses_head_chunks if sizes["context"] > 1 else 1
    attention = HEAD_ARRAYS * sizes.heads * wide // chunks + sizes.keys * (KEY_ARRAYS * wide + 2 * 4)
    return HIDDEN_ARRAYS * sizes.hidden * wide + max(feed_forward, attention) + sizes.layer * wide


def _loss(sizes: _Sizes) -> int:
    """The working set of the loss, beside the output matrix: hidden states with their gradient, of all tokens and, with
    the gradient in fp32, of a chunk of all devices along fsdp; and the chunk's logits."""
    model, chunk = sizes.config.model, min(sizes.config.train.loss_chunk, sizes.tokens)
    gathered = sizes["fsdp"] * chunk * model.d_model * (sizes.wide + 4)
    logits = chunk * model.vocab_size // sizes["tensor"]
    return 2 * sizes.hidden * sizes.wide + gathered + LOGIT_ARRAYS * 4 * logits


def _loss_gradient(sizes: _Sizes, state: TrainState) -> int:
    """Bytes of the output matrix's gradient, which exists from the loss on, in the dtype and the part that rests."""
    if sizes.config.lora.rank:
        return 0
    names = named_leaves(state.params)
    return _bytes(names["embed_VD" if sizes.config.model.tie_embeddings else "unembed_DV"])


def _gradients(config: Config, state: TrainState) -> tuple[int, int]:
    """Bytes of the gradients of all layers' weights, and of all other weights."""
    by_name = {name: _bytes(leaf) for name, leaf in named_leaves(trainable.of(state.params)).items()}
    layers = sum(size for name, size in by_name.items() if name.startswith("blocks."))
    return layers, sum(by_name.values()) - layers


def _width(config: Config) -> int:
    return 4 if config.lora.rank else jax.numpy.dtype(config.model.param_dtype).itemsize


def _shards(sizes: _Sizes) -> int:
    """Devices that share the gathered weights of a layer."""
    return sizes["fsdp"] * (sizes["context"] if sizes.config.mesh.shard_weights_over == "fsdp_context" else 1)


def _batch(sizes: _Sizes) -> int:
    """All micro-batches of a device; numbers are int32 and flags a byte."""
    flags = sum(field.name.startswith("is_") for field in dataclasses.fields(Batch))
    numbers = len(dataclasses.fields(Batch)) - flags
    return (4 * numbers + flags) * sizes.tokens * sizes.config.train.grad_accum_steps


def _state_of(config: Config, shape: tuple[tuple[str, int], ...]) -> TrainState:
    """The state of a run: shapes, dtypes and shardings. Configurations that differ in other things share it."""
    model = dataclasses.replace(config.model, remat="attention", ffn_chunk=0)
    mesh = MeshConfig(shard_weights_over=config.mesh.shard_weights_over)
    attention = AttentionConfig.of_model(vars(config.attention))
    spec = Spec(model, config.rope, config.lora, attention, 0, config.max_position, mesh)
    return _state(spec, config.optimizer, shape)


@functools.lru_cache(maxsize=256)
def _state(spec: Spec, optimizer: OptimizerConfig, shape: tuple[tuple[str, int], ...]) -> TrainState:
    sizes = dict(shape)
    axis_types = (AxisType.Explicit,) * len(sharding.AXES)
    mesh = AbstractMesh(tuple(sizes[axis] for axis in sharding.AXES), sharding.AXES, axis_types=axis_types)
    with jax.sharding.use_abstract_mesh(mesh):
        return jax.eval_shape(lambda: init_state(0, spec, make_optimizer(optimizer, steps=1)))


def _bytes(tree) -> int:
    """Bytes of one device's parts of all arrays; what is no array of the mesh is a number."""
    arrays = [x for x in jax.tree.leaves(tree) if x.ndim]
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in arrays)
