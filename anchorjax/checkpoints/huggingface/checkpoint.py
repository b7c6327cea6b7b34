"""A decoder's weights from a model directory, and back into one, tensor by tensor.

The host holds one tensor at a time on its way to the devices, and one on its way back.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import jax
import ml_dtypes
import numpy as np

from anchorjax import precision, processes, sharding
from anchorjax.checkpoints.huggingface.weights import BUFFERS, Weights, order, write_files
from anchorjax.config import LoraConfig, ModelConfig
from anchorjax.errors import WeightsError
from anchorjax.models import families
from anchorjax.models.decoder import Decoder
from anchorjax.models.families import Leaf
from anchorjax.models.linear import Adapter, Bias, named_leaves, named_linears, named_params

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SHOWN = 3  # names listed in a message


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of a tensor in the decoder: a leaf, and a layer if the leaf belongs to a block."""

    leaf: str
    layer: int | None
    inputs: int  # as in families.Leaf
    size: tuple[int, ...]  # of the leaf, without layers
    is_bias: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in the checkpoint."""
        if self.inputs:
            return math.prod(self.size[self.inputs :]), math.prod(self.size[: self.inputs])
        return (math.prod(self.size),) if self.is_bias else self.size

    def from_checkpoint(self, tensor: np.ndarray) -> np.ndarray:
        """Returns a view in the decoder's shape."""
        return (tensor.T if self.inputs else tensor).reshape(self.size)

    def to_checkpoint(self, x: np.ndarray) -> np.ndarray:
        return x.reshape(self.shape[::-1]).T if self.inputs else x.reshape(self.shape)


def places(params: Decoder, model: ModelConfig) -> dict[str, Place]:
    """Returns the place of every tensor of a checkpoint of this (concrete or abstract) decoder, by name, in order."""
    leaves, kinds = named_leaves(params), named_params(params)

    def place(leaf: Leaf, layer: int | None) -> Place:
        name = leaf.name if layer is None else f"blocks.{leaf.name}"
        size = leaves[name].shape
        return Place(name, layer, leaf.inputs, size if layer is None else size[1:], isinstance(kinds[name], Bias))

    found = {EMBEDDING: place(Leaf("embed_VD"), None)}
    for layer in range(model.num_layers):
        for name, leaf in families.load(model.family).block.items():
            found[f"model.layers.{layer}.{name}"] = place(leaf, layer)
    found["model.norm.weight"] = place(Leaf("final_norm_D"), None)
    if not model.tie_embeddings:
        found[HEAD] = place(Leaf("unembed_DV", 1), None)
    return found


def load(params: Decoder, model: ModelConfig, weights: Weights) -> Decoder:
    """Returns the decoder with the checkpoint's weights, in its own shardings and dtypes. Adapters stay.

    Args:
      params: on the current mesh; donated, so it must not be used afterwards.

    Raises:
      WeightsError: a tensor is missing, unexpected, or has another shape.
    """
    wanted = places(params, model)
    if model.tie_embeddings and HEAD in weights.tensors and EMBEDDING not in weights.tensors:
        wanted[HEAD] = wanted.pop(EMBEDDING)  # safetensors' own save_model keeps one name of two, the first by alphabet
    _compare(wanted, weights, model)
    leaves, structure = named_leaves(params), jax.tree.structure(params)
    for name, place in wanted.items():
        leaves[place.leaf] = _put(leaves[place.leaf], place.from_checkpoint(weights.read(name)), place.layer)
    return jax.tree.unflatten(structure, leaves.values())


def _compare(wanted: Mapping[str, Place], weights: Weights, model: ModelConfig) -> None:
    found = {name: info for name, info in weights.tensors.items() if not name.endswith(BUFFERS)}
    if model.tie_embeddings and {HEAD, EMBEDDING} <= found.keys():
        if _digest(weights, HEAD) != _digest(weights, EMBEDDING):
            raise WeightsError(f"{weights.directory}: {HEAD} is not the embedding, although config.json ties them")
        del found[HEAD]
    if missing := wanted.keys() - found.keys():
        raise WeightsError(f"{weights.directory} lacks {_some(missing)}")
    if extra := found.keys() - wanted.keys():
        raise WeightsError(f"{weights.directory}: a {model.family} model of its config.json has no {_some(extra)}")
    for name, place in wanted.items():
        if found[name].shape != place.shape:
            raise WeightsError(
                f"{found[name].file}: {name} has shape {found[name].shape}; config.json makes it {place.shape}"
            )


def _digest(weights: Weights, name: str) -> tuple:
    """Returns a digest, to compare two tensors without holding both in memory."""
    x = weights.read(name)
    return x.shape, x.dtype, hashlib.sha256(x.view(np.uint8)).digest()


def _some(names) -> str:
    rest = len(names) - SHOWN
    return ", ".join(sorted(names)[:SHOWN]) + (f" and {rest} others" if rest > 0 else "")


def _put(leaf: jax.Array, value: np.ndarray, layer: int | None) -> jax.Array:
    pspec = leaf.sharding.spec if layer is None else sharding.one_layer(leaf.sharding.spec)
    # Waits, so that the host never holds two tensors.
    return jax.block_until_ready(_replace(leaf, sharding.put(value, pspec), layer))


@functools.partial(jax.jit, donate_argnums=0)
def _replace(leaf: jax.Array, value: jax.Array, layer: jax.Array | None) -> jax.Array:
    """Writes into the leaf even if all of it is replaced, since an unused buffer would not be donated."""
    value = value.astype(leaf.dtype)
    if layer is None:
        return jax.lax.dynamic_update_slice(leaf, value, (0,) * leaf.ndim)
    return jax.lax.dynamic_update_index_in_dim(leaf, value, layer, 0)


def save(params: Decoder, model: ModelConfig, lora: LoraConfig, directory: Path, dtype: str) -> None:
    """Writes the weights into an existing directory, with adapters merged in fp32.

    All processes of a job must call it together: each tensor is gathered by itself, and process 0 writes.
    """
    found, leaves, linears = places(params, model), named_leaves(params), named_linears(params)

    def read(name: str) -> np.ndarray:
        place = found[name]
        linear = linears.get(place.leaf)
        adapter = linear.adapter if linear else None
        x = processes.to_host(_take(leaves[place.leaf], adapter, place.layer, lora))
        with np.errstate(over="ignore"):
            narrow = np.ascontiguousarray(place.to_checkpoint(x), DTYPES[dtype])
        if not np.isfinite(narrow).all():
            raise WeightsError(f"{name} has values that are not finite in {dtype}; choose another --dtype")
        return narrow

    tensors = {name: jax.ShapeDtypeStruct(place.shape, DTYPES[dtype]) for name, place in found.items()}
    if processes.is_main():
        return write_files(directory, tensors, read)
    for name in order(tensors):
        read(name)


def _take(leaf: jax.Array, adapter: Adapter | None, layer: int | None, lora: LoraConfig) -> jax.Array:
    """Returns a copy of a leaf's layer, with its adapter's product added; the leaf itself would cache its host copy."""
    if adapter is None:
        return jax.numpy.copy(leaf) if layer is None else leaf[layer]
    product = jax.numpy.tensordot(adapter.down[...][layer], adapter.up[...][layer], 1, precision=precision.EXACT)
    return leaf[layer].astype("float32") + lora.alpha / lora.rank * product
