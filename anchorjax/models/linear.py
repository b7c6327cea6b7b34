"""Linear layers with a bias and a LoRA adapter where a model has them, and the stable names of all weights.

What a weight is for is its type: `Bias`, `Scale` (of a norm), `LogitScale`, `nnx.LoRAParam` (of an adapter), or a plain
`nnx.Param` for a matrix; weights of FocusLLM's projections are `Candidate` too. Decay, trainability and export go by
these types and by `Linear`, never by names.

Names of weights are part of the checkpoint format, and older than `Linear`: a matrix is `q_DNH`, its bias `q_bias_NH`
and its adapter `q_adapter.down`, side by side in the module that owns them. `named_leaves` alone maps the structure to
these names.

Sources: LoRA (arXiv 2106.09685). Letters: types.py; r is the rank of an adapter.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.custom_derivatives import CustomVJPPrimal
from jax.sharding import PartitionSpec, reshard

from anchorjax import precision, sharding
from anchorjax.models.spec import Spec
from anchorjax.sharding import ACTIVATIONS, TOKENS


class Bias(nnx.Param):
    """A bias: it has no weight decay, and lies flat in a Hugging Face checkpoint."""


class Candidate(nnx.Param):
    """A matrix of the projections of FocusLLM's candidates (models/focus.py), trained beside frozen ones."""


class CandidateBias(Bias, Candidate):
    """A bias of these projections."""


ADAPTERS = nnx.LoRAParam | Candidate  # what is trained beside frozen weights


class Scale(nnx.Param):
    """The scale of a norm: it has no weight decay."""


class LogitScale(nnx.Param):
    """Each head's s of scalable softmax, fp32: it has no weight decay, and is trained beside adapters too."""


def draw(key: jax.Array, shape: tuple[int, ...], fan_in: float, dtype: str) -> jax.Array:
    """Truncated normal of variance 1 / fan_in: outputs have the inputs' variance at every width.

    The usual constant 0.02 is that at D = 2500 only; narrow models would start with nearly uniform attention.
    """
    return fan_in**-0.5 * jax.random.truncated_normal(key, -3, 3, shape, dtype)


def gathered(weight: jax.Array, dtype: str) -> jax.Array:
    """The weight as it is used: cast first, so that half as many bytes travel."""
    for pspec in sharding.gathering(jax.typeof(weight).sharding.spec):
        weight = reshard(weight.astype(dtype), pspec)
    return weight.astype(dtype)


class Adapter(nnx.Module):
    """LoRA: two thin fp32 matrices whose product is added to a frozen weight; it starts at zero.

    Attributes:
      down: [inputs..., r], drawn.
      up: [r, outputs...], zeros.
    """

    def __init__(self, key: jax.Array, letters: str, size: tuple[int, ...], spec: Spec):
        inputs, rank = _num_inputs(letters), spec.lora.rank
        down_pspec, up_pspec = sharding.adapter(_at_rest(letters, spec), inputs)
        down = draw(key, (*size[:inputs], rank), math.prod(size[:inputs]), "float32")
        self.down = nnx.LoRAParam(reshard(down, down_pspec))
        self.up = nnx.LoRAParam(reshard(jnp.zeros((rank, *size[inputs:]), "float32"), up_pspec))


class Linear(nnx.Module):
    """x [B, T, inputs...] -> x W + x down up alpha / r + b [B, T, outputs...].

    Attributes:
      letters: the axes of the weight, as "D->NH": a key of `sharding.WEIGHTS`, which says how it is cut.
      weight: [inputs..., outputs...].
      bias: [outputs...], or None.
      adapter: an Adapter, or None.
    """

    def __init__(
        self, letters: str, weight: jax.Array, spec: Spec, has_bias: bool = False, adapter: Adapter | None = None
    ):
        pspec, inputs = _at_rest(letters, spec), _num_inputs(letters)
        self.letters = letters
        self.weight = nnx.Param(reshard(weight, pspec))
        zeros = jnp.zeros(weight.shape[inputs:], weight.dtype)
        self.bias = Bias(reshard(zeros, sharding.bias(pspec, inputs))) if has_bias else None
        self.adapter = adapter

    def __call__(self, x: jax.Array, spec: Spec) -> jax.Array:
        """Returns the outputs in compute_dtype, which the weights are cast to before they are gathered."""
        inputs, outputs = self.letters.lower().split("->")
        out = sharding.OUTPUTS[outputs.upper()]
        y = _matmul(x, self.weight[...], inputs, outputs, out, spec)
        if self.adapter is not None:
            low = _matmul(x, self.adapter.down[...], inputs, "r", ACTIVATIONS, spec)
            share = _matmul(low, self.adapter.up[...], "r", outputs, out, spec)
            y = y + share * (spec.lora.alpha / spec.lora.rank)
        if self.bias is not None:
            # In fp32, as the bias's gradient sums over all tokens.
            wide = y.astype(jnp.float32)
            bias = self.bias[...].astype(y.dtype).astype(jnp.float32)
            y = (wide + broadcast(bias, wide)).astype(y.dtype)
        return y

    def on_device(self, x_c: jax.Array, spec: Spec) -> jax.Array:
        """Inside of a `shard_map`, with `whole` weights: x [c, inputs...] of a device's tokens -> [c, outputs...]."""
        inputs, outputs = self.letters.lower().split("->")
        y = precision.einsum(f"c{inputs},{inputs}{outputs}->c{outputs}", x_c, self.weight[...])
        if self.adapter is not None:
            low = precision.einsum(f"c{inputs},{inputs}r->cr", x_c, self.adapter.down[...])
            share = precision.einsum(f"cr,r{outputs}->c{outputs}", low, self.adapter.up[...])
            y = y + share * (spec.lora.alpha / spec.lora.rank)
        if "tensor" in sharding.WEIGHTS[self.letters][: _num_inputs(self.letters)]:
            y = jax.lax.psum(y, "tensor")
        return y


def _at_rest(letters: str, spec: Spec) -> PartitionSpec:
    return sharding.at_rest(sharding.WEIGHTS[letters], spec.mesh.shard_weights_over)


def at_rest(linears, spec: Spec):
    """A tree of linear layers with the PartitionSpec of each weight in its place."""

    def of_linear(node: Linear):
        pspec, inputs = _at_rest(node.letters, spec), _num_inputs(node.letters)
        down, up = sharding.adapter(pspec, inputs)
        by_name = {"weight": pspec, "bias": sharding.bias(pspec, inputs), "down": down, "up": up}
        return jax.tree.map_with_path(
            lambda path, _: by_name[_join(path).removesuffix(".value").rpartition(".")[2]], node
        )

    return jax.tree.map(of_linear, linears, is_leaf=lambda node: isinstance(node, Linear))


def whole(linears, spec: Spec):
    """Inside of a `shard_map`: linear layers as their products use them, cast first and then gathered.

    Args:
      linears: this device's parts of the weights, as they rest.
    """

    def one(weight: jax.Array, pspec: PartitionSpec) -> jax.Array:
        weight = weight.astype(spec.model.compute_dtype)
        cut, others = _gathered_axes(pspec)
        for axis, name in reversed(cut):
            weight = jax.lax.all_gather(weight, name, axis=axis, tiled=True)
        return jax.lax.pcast(weight, others, to="varying")  # each device has other tokens: the gradients differ

    return jax.tree.map(one, linears, at_rest(linears, spec))


def reduced(gradients, linears, spec: Spec):
    """Inside of a `shard_map`: the sum over all tokens of `whole` weights' gradients, cut as the weights rest.

    Args:
      gradients: fp32, of this device's tokens.
      linears: gives the dtypes of the result.
    """

    def one(gradient: jax.Array, weight: jax.Array, pspec: PartitionSpec) -> jax.Array:
        return precision.rounded(_reduced(gradient.astype(spec.gradient_dtype), pspec), weight.dtype)

    return jax.tree.map(one, gradients, linears, at_rest(linears, spec))


def _reduced(gradient: jax.Array, pspec: PartitionSpec) -> jax.Array:
    """Inside of a `shard_map`: the sum over all tokens of a whole weight's gradient, cut as the weight rests."""
    cut, others = _gathered_axes(pspec)
    for axis, name in cut:
        gradient = jax.lax.psum_scatter(gradient, name, scatter_dimension=axis, tiled=True)
    return jax.lax.psum(gradient, others)


def _gathered_axes(pspec: PartitionSpec) -> tuple[list[tuple[int, str]], tuple[str, ...]]:
    """Pairs (axis of the weight, axis of the mesh) of the cuts that a gather undoes, and the rest of TOKENS.

    One axis of the mesh at a time: for v5p:4x4x4, libtpu 0.0.42 makes all-reduces of the whole weight from gathers and
    reductions over both of 8 x 8.
    """
    cut = [(axis, name) for axis, names in enumerate(pspec) for name in sharding.axes_of(names) if name in TOKENS]
    return cut, tuple(name for name in TOKENS if name not in dict(map(reversed, cut)))


def _num_inputs(letters: str) -> int:
    return letters.index("->")


def _matmul(x: jax.Array, weight: jax.Array, inputs: str, outputs: str, out: PartitionSpec, spec: Spec) -> jax.Array:
    """x [B, T, inputs...] times weight [inputs..., outputs...], as it rests.

    If no device holds only a part of the tokens, rows and tokens are made one axis: the weight's gradient sums over
    both, and for a sum over two axes XLA on CPUs first makes transposed copies, a third of a feed-forward layer's time.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if any(mesh.shape[axis] > 1 for axis in TOKENS):
        pspec = jax.typeof(weight).sharding.spec
        return _product(_Product(inputs, outputs, out, pspec, weight.dtype.name, spec), x, weight)
    weight = gathered(weight, spec.model.compute_dtype)
    B, T = x.shape[:2]
    x_X = reshard(x, sharding.whole_tokens(jax.typeof(x).sharding.spec)).reshape(B * T, *x.shape[2:])
    joined = sharding.joined_tokens(out)
    y_X = precision.einsum(f"x{inputs},{inputs}{outputs}->x{outputs}", x_X, weight, out_sharding=joined)
    return reshard(y_X.reshape(B, T, *y_X.shape[1:]), out)


@dataclasses.dataclass(frozen=True)
class _Product:
    """What is static of a product: letters and places of its three arrays, and the weight's dtype as it rests."""

    inputs: str
    outputs: str
    out: PartitionSpec
    at_rest: PartitionSpec
    param_dtype: str
    spec: Spec

    @property
    def into(self) -> PartitionSpec:
        return sharding.OUTPUTS.get(self.inputs.upper(), ACTIVATIONS)

    def __call__(self, x: jax.Array, whole: jax.Array) -> jax.Array:
        letters = f"bt{self.inputs},{self.inputs}{self.outputs}->bt{self.outputs}"
        return precision.einsum(letters, x, whole, out_sharding=self.out)

    def pulled(self, dy: jax.Array, whole: jax.Array) -> jax.Array:
        """The gradient of the input."""
        letters = f"bt{self.outputs},{self.inputs}{self.outputs}->bt{self.inputs}"
        return precision.einsum(letters, dy, whole, out_sharding=self.into)

    def gradient(self, x: jax.Array, dy: jax.Array) -> jax.Array:
        """The gradient of the weight, as it rests: summed over tokens by each device, then over devices by parts."""
        letters = f"bt{self.inputs},bt{self.outputs}->{self.inputs}{self.outputs}"
        exact = jnp.promote_types(x.dtype, self.spec.gradient_dtype)

        def local(x, dy):
            gradient = precision.einsum(letters, x, dy, preferred_element_type=exact)
            gradient = _reduced(gradient.astype(self.spec.gradient_dtype), self.at_rest)
            return precision.rounded(gradient, self.param_dtype)

        return jax.shard_map(local, in_specs=(self.into, self.out), out_specs=self.at_rest)(x, dy)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(product: _Product, x: jax.Array, weight: jax.Array) -> jax.Array:
    """`product` of x and a weight that rests cut, where devices have different tokens.

    JAX's own gradient sums the whole weight's over all devices and then cuts it, which takes twice the bytes and more.
    """
    return product(x, gathered(weight, product.spec.model.compute_dtype))


def _product_forward(product: _Product, x: CustomVJPPrimal, weight: CustomVJPPrimal):
    whole = gathered(weight.value, product.spec.model.compute_dtype)
    kept = x.value if weight.perturbed else None  # a frozen weight (beside adapters) has no gradient
    return product(x.value, whole), (kept, whole)


def _product_backward(product: _Product, residuals, dy: jax.Array):
    x, whole = residuals
    return product.pulled(dy, whole), None if x is None else product.gradient(x, dy)


_product.defvjp(_product_forward, _product_backward, symbolic_zeros=True)


def broadcast(weight: jax.Array, x: jax.Array) -> jax.Array:
    """A weight of x's last axes, repeated to x's shape.

    NumPy's rules first give it axes of length 1, and its gradient from one row is then a sum over the middle axis of
    [1, 4096, 576]: 110 ms with XLA's CPU library (jax 0.10.2), where the sum over both leading axes takes 1.
    """
    axes = tuple(range(x.ndim - weight.ndim, x.ndim))
    return jax.lax.broadcast_in_dim(weight, x.shape, axes, out_sharding=jax.typeof(x).sharding)


def map_by_type(change: Callable[[type, Any], Any], params):
    """Replaces each leaf of a tree of modules by `change(type of the parameter, leaf)`."""

    def one(node):
        return jax.tree.map(lambda leaf: change(type(node), leaf), node)

    return jax.tree.map(one, params, is_leaf=lambda node: isinstance(node, nnx.Variable))


def named_leaves(tree) -> dict[str, jax.Array]:
    """Leaves by name, e.g. "blocks.attention.q_DNH": the same names whatever wraps them in memory.

    The order is that of `jax.tree.leaves`, so that the values can be unflattened.
    """
    return {name.removesuffix(".value"): leaf for name, leaf in _named(tree, lambda node: False).items()}


def named_params(tree) -> dict[str, nnx.Variable]:
    """Parameters by the names of `named_leaves`."""
    return _named(tree, lambda node: isinstance(node, nnx.Variable))


def named_linears(tree) -> dict[str, Linear]:
    """Linear layers by the names of their weights."""
    nodes = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: isinstance(node, Linear))
    found = [(_join(path), node) for path, node in nodes if isinstance(node, Linear)]
    return {f"{name}_{node.letters.replace('->', '')}": node for name, node in found}


def _named(tree, is_leaf: Callable[[Any], bool]) -> dict[str, Any]:
    found = {}
    for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, Linear) or is_leaf(x)):
        if not isinstance(node, Linear):
            found[_join(path)] = node
            continue
        names = {"weight": node.letters.replace("->", ""), "adapter": "adapter"}
        names["bias"] = f"bias_{node.letters.split('->')[1]}"
        for (first, *rest), leaf in jax.tree_util.tree_leaves_with_path(node, is_leaf=is_leaf):
            found[".".join(filter(None, (f"{_join(path)}_{names[_join([first])]}", _join(rest))))] = leaf
    return found


def _join(path) -> str:
    return jax.tree_util.keystr(tuple(path), simple=True, separator=".")
