"""A decoder's weights from tensors: which sets of them are refused, onto many devices, and one at a time."""

import json
import re
import weakref

import jax
import numpy as np
import pytest
import torch
import transformers

from anchorjax import sharding
from anchorjax.checkpoints.huggingface import checkpoint as hf_checkpoint
from anchorjax.checkpoints.huggingface.weights import SINGLE, Weights, write_files
from anchorjax.cli import convert
from anchorjax.errors import WeightsError
from anchorjax.models.decoder import Decoder
from anchorjax.models.linear import named_leaves
from tests.checkpoints.huggingface import tiny
from tests.models.conftest import one_device  # noqa: F401 - a fixture

Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """`saved(name)`: the directory of a tiny model, made once."""
    made = {}

    def save(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("model")
            tiny.make(name, made[name])
        return made[name]

    return save


@pytest.fixture
def changed(saved, tmp_path):
    """`changed(name, change)`: the same with change(tensors) called on all of its arrays by name."""

    def make(name, change):
        weights = Weights.open(saved(name))
        tensors = {tensor: weights.read(tensor) for tensor in weights.tensors}
        change(tensors)
        (tmp_path / "config.json").write_bytes((saved(name) / "config.json").read_bytes())
        write_files(tmp_path, tensors, tensors.__getitem__)
        return tmp_path

    return make


def refusal(directory) -> str:
    with pytest.raises(WeightsError) as caught:
        tiny.load(directory, tiny.read(directory))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def values(directory) -> dict[str, np.ndarray]:
    return {name: np.asarray(x) for name, x in named_leaves(tiny.load(directory, tiny.read(directory))).items()}


def assert_equal(got, wanted):
    assert got.keys() == wanted.keys()
    for name, x in wanted.items():
        np.testing.assert_array_equal(got[name], x, err_msg=name)


# Which sets of tensors are refused


@pytest.mark.parametrize("tensor", [Q, "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"])
def test_a_missing_tensor_is_named(changed, one_device, tensor):  # noqa: F811
    directory = changed("llama untied", lambda tensors: tensors.pop(tensor))
    assert refusal(directory).endswith(f"lacks {tensor}")


def test_many_missing_tensors_are_counted(changed, one_device):  # noqa: F811
    def without_a_layer(tensors):
        for name in [name for name in tensors if ".layers.1." in name]:
            del tensors[name]

    message = refusal(changed("llama", without_a_layer))
    assert re.search(r"lacks model.layers.1.\S+weight, model.layers.1.\S+weight, \S+weight and 6 others$", message)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("llama", "model.layers.2.self_attn.q_proj.weight"),
        ("llama", "model.layers.0.self_attn.q_proj.bias"),
        ("llama", "model.layers.0.self_attn.q_norm.weight"),
        ("llama", "score.weight"),
        ("qwen3", "model.layers.0.self_attn.q_proj.bias"),
        ("mistral", "model.layers.0.mlp.experts.0.weight"),
    ],
)
def test_a_tensor_that_has_no_place_is_named(changed, one_device, name, tensor):  # noqa: F811
    directory = changed(name, lambda tensors: tensors.update({tensor: np.zeros(3, np.float32)}))
    assert refusal(directory).endswith(f"a {name} model of its config.json has no {tensor}")


@pytest.mark.parametrize("shape", [(32, 16), (16, 32), (33, 32), (32, 32, 1), (1024,)])
def test_a_tensor_of_another_shape_is_named(changed, one_device, shape):  # noqa: F811
    """Also those that have as many numbers, and could be read without an error."""
    directory = changed("llama", lambda tensors: tensors.update({Q: np.zeros(shape, np.float32)}))
    message = refusal(directory)
    assert message == f"{directory / SINGLE}: {Q} has shape {shape}; config.json makes it (32, 32)"


def test_a_bias_of_another_shape_is_named(changed, one_device):  # noqa: F811
    bias = "model.layers.0.self_attn.k_proj.bias"
    directory = changed("qwen2", lambda tensors: tensors.update({bias: np.zeros((2, 8), np.float32)}))
    assert refusal(directory).endswith(f"{bias} has shape (2, 8); config.json makes it (16,)")


def tie(tensors):
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()


def test_a_tied_head_that_is_the_embedding_is_accepted(saved, changed, one_device):  # noqa: F811
    assert_equal(values(changed("llama", tie)), values(saved("llama")))


@pytest.mark.parametrize("name", ["llama", "qwen2 tied", "gemma2", "gemma3"])
def test_a_tied_head_alone_is_the_embedding_too(saved, changed, one_device, name):  # noqa: F811
    """As safetensors' `save_model` leaves it: of two names of one tensor, the first by alphabet."""
    change = lambda tensors: tensors.update({"lm_head.weight": tensors.pop("model.embed_tokens.weight")})  # noqa: E731
    directory = changed(name, change)
    assert_equal(values(directory), values(saved(name)))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory)
    np.testing.assert_array_equal(theirs.get_input_embeddings().weight.detach(), values(directory)["embed_VD"])


def test_a_tied_head_of_another_shape_is_named(changed, one_device):  # noqa: F811
    def change(tensors):
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")[:-1]

    assert refusal(changed("llama", change)).endswith(
        f"lm_head.weight has shape ({tiny.VOCABULARY - 1}, 32); config.json makes it ({tiny.VOCABULARY}, 32)"
    )


def test_a_head_alone_is_no_embedding_where_they_are_two(changed, one_device):  # noqa: F811
    directory = changed("llama untied", lambda tensors: tensors.pop("model.embed_tokens.weight"))
    assert refusal(directory).endswith("lacks model.embed_tokens.weight")


@pytest.mark.parametrize("change", ["a bit", "a dtype", "a shape"])
def test_a_tied_head_that_is_not_the_embedding_is_refused(changed, one_device, change):  # noqa: F811
    def untie(tensors):
        tie(tensors)
        if change == "a bit":
            tensors["lm_head.weight"].view(np.uint32)[-1, -1] ^= 1
        elif change == "a dtype":
            tensors["lm_head.weight"] = tensors["lm_head.weight"].astype(np.float16)
        else:
            tensors["lm_head.weight"] = tensors["lm_head.weight"].reshape(32, tiny.VOCABULARY)

    assert "lm_head.weight is not the embedding, although config.json ties them" in refusal(changed("llama", untie))


def test_rotary_frequencies_are_passed_over(saved, changed, one_device):  # noqa: F811
    def add(tensors):
        for name in ("model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"):
            tensors[name] = np.full(4, np.nan, np.float32)

    assert_equal(values(changed("llama untied", add)), values(saved("llama untied")))


def test_nothing_is_read_before_all_is_known_to_fit(changed, one_device, monkeypatch):  # noqa: F811
    directory = changed("llama untied", lambda tensors: tensors.pop(Q))
    monkeypatch.setattr(Weights, "read", lambda *_: pytest.fail("a tensor was read"))
    refusal(directory)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_buffers_do_not_decide_the_dtype_of_a_checkpoint(changed, tmp_path_factory, dtype):
    """Old Llamas have frequencies in fp32 beside weights of 16 bits; with them, all came out twice as large."""

    def narrow(tensors):
        for name, x in tensors.items():
            tensors[name] = x.astype(hf_checkpoint.DTYPES[dtype])
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)

    source, (ours, out) = changed("llama untied", narrow), (tmp_path_factory.mktemp("x") / name for name in ("a", "b"))
    assert Weights.open(source).dtype == dtype
    assert convert.main(["from-hf", str(source), str(ours)]) == convert.main(["to-hf", str(ours), str(out)]) == 0
    assert Weights.open(out).dtype == dtype
    model = json.loads((ours / "config.json").read_text())["model"]
    assert model["param_dtype"] == ("bfloat16" if dtype == "bfloat16" else "float32")  # which holds float16
    before, after = Weights.open(source), Weights.open(out)
    for name in after.tensors:
        np.testing.assert_array_equal(after.read(name), before.read(name), err_msg=name)


# Onto devices


@pytest.mark.parametrize("mesh_shape", [(1, 8, 1, 1), (2, 2, 1, 2), (1, 4, 2, 1)])
@pytest.mark.parametrize("name", ["llama untied", "qwen2 tied", "gemma3"])
def test_every_mesh_gets_the_same_values_in_the_decoder_s_own_shardings(saved, name, mesh_shape):
    spec = tiny.read(saved(name))
    weights = Weights.open(saved(name))
    with jax.set_mesh(sharding.make_mesh(dict(zip(sharding.AXES, mesh_shape, strict=True)))):
        fresh = jax.jit(lambda: Decoder(jax.random.key(0), spec))()
        wanted = {leaf: (x.sharding, x.dtype, x.shape) for leaf, x in named_leaves(fresh).items()}
        params = hf_checkpoint.load(fresh, spec.model, weights)
    leaves = named_leaves(params)
    for leaf, x in leaves.items():
        assert x.sharding.is_equivalent_to(wanted[leaf][0], x.ndim), leaf
        assert (x.dtype, x.shape) == wanted[leaf][1:], leaf
    for tensor, place in hf_checkpoint.places(params, spec.model).items():
        x = np.asarray(leaves[place.leaf])
        got = place.to_checkpoint(x if place.layer is None else x[place.layer])
        np.testing.assert_array_equal(got, weights.read(tensor), err_msg=tensor)


def test_what_lies_on_many_devices_is_written_as_it_was(saved, tmp_path):
    spec, before = tiny.read(saved("llama untied")), Weights.open(saved("llama untied"))
    with jax.set_mesh(sharding.make_mesh(dict(zip(sharding.AXES, (1, 2, 2, 2), strict=True)))):
        params = tiny.load(saved("llama untied"), spec)
        hf_checkpoint.save(params, spec.model, spec.lora, tmp_path, "float32")
    after = Weights.open(tmp_path)
    assert after.tensors.keys() == before.tensors.keys()
    for name in before.tensors:
        np.testing.assert_array_equal(after.read(name), before.read(name), err_msg=name)


@pytest.mark.parametrize(("stored", "kept"), [("bfloat16", "float32"), ("float16", "float32"), ("float32", "bfloat16")])
def test_weights_take_the_dtype_that_the_run_asks_for(tmp_path, one_device, stored, kept):  # noqa: F811
    theirs = tiny.make("llama untied", tmp_path, getattr(torch, stored))
    spec = tiny.read(tmp_path, param_dtype=kept)
    params = tiny.load(tmp_path, spec)
    leaves = named_leaves(params)
    places = hf_checkpoint.places(params, spec.model)
    for name, x in theirs.state_dict().items():
        leaf = leaves[places[name].leaf]
        assert leaf.dtype == kept, name
        got = np.asarray(leaf if places[name].layer is None else leaf[places[name].layer], np.float32)
        wanted = x.to(getattr(torch, kept)).float().numpy()
        np.testing.assert_array_equal(places[name].to_checkpoint(got), wanted, err_msg=name)


def test_the_buffers_that_were_there_are_used_again(saved, one_device):  # noqa: F811
    """Else the devices would hold a leaf twice."""
    spec = tiny.read(saved("llama untied"))
    fresh = sharding.zeros(lambda: Decoder(jax.random.key(0), spec))
    hf_checkpoint.load(fresh, spec.model, Weights.open(saved("llama untied")))
    assert all(x.is_deleted() for x in jax.tree.leaves(fresh))


def test_adapters_stay_and_are_merged_into_what_is_written(saved, one_device, tmp_path):  # noqa: F811
    spec = tiny.read(saved("llama untied"), lora={"rank": 2, "alpha": 3.0, "targets": ("q", "o", "down")})
    fresh = jax.jit(lambda: Decoder(jax.random.key(0), spec))()
    noise = lambda path, x: x + (jax.random.normal(jax.random.key(1), x.shape) if "up'" in str(path) else 0)  # noqa: E731
    fresh = jax.tree_util.tree_map_with_path(noise, fresh)
    adapters = {name: np.asarray(x) for name, x in named_leaves(fresh).items() if "_adapter." in name}
    params = hf_checkpoint.load(fresh, spec.model, Weights.open(saved("llama untied")))
    assert_equal({name: named_leaves(params)[name] for name in adapters}, adapters)
    hf_checkpoint.save(params, spec.model, spec.lora, tmp_path, "float32")
    before, after = Weights.open(saved("llama untied")), Weights.open(tmp_path)
    for name, place in hf_checkpoint.places(params, spec.model).items():
        got, wanted = (place.from_checkpoint(weights.read(name)) for weights in (after, before))
        stem = place.leaf.rsplit("_", 1)[0] + "_adapter"
        if f"{stem}.down" in adapters:
            down, up = (adapters[f"{stem}.{side}"][place.layer] for side in ("down", "up"))
            assert np.abs(down).max() > 0 and np.abs(up).max() > 0
            wanted = wanted + 1.5 * np.tensordot(down, up, 1)
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5, err_msg=name)


# One tensor at a time


def test_the_host_holds_one_tensor_at_a_time(saved, monkeypatch):
    """Each is gone from the host before the next is read, and none is read twice."""
    alive, names, read = [], [], Weights.read

    def watched(self, name):
        assert not [ref for ref in alive if ref() is not None], f"{names[-1]} was still there when {name} was read"
        array = read(self, name)
        alive.append(weakref.ref(array))
        names.append(name)
        return array

    monkeypatch.setattr(Weights, "read", watched)
    with jax.set_mesh(sharding.make_mesh(dict(zip(sharding.AXES, (1, 8, 1, 1), strict=True)))):
        tiny.load(saved("qwen2"), tiny.read(saved("qwen2")))
    assert sorted(names) == sorted(Weights.open(saved("qwen2")).tensors)


def test_one_tensor_at_a_time_comes_back_to_the_host(saved, one_device, tmp_path, monkeypatch):  # noqa: F811
    """One is asked for once the last was written, and none twice."""
    spec, taken = tiny.read(saved("qwen2")), []
    params = tiny.load(saved("qwen2"), spec)
    take = hf_checkpoint._take

    def watched(leaf, adapter, layer, lora):
        assert not [ref for _, ref in taken if ref() is not None]
        x = take(leaf, adapter, layer, lora)
        taken.append(((id(leaf), layer), weakref.ref(x)))
        return x

    monkeypatch.setattr(hf_checkpoint, "_take", watched)
    hf_checkpoint.save(params, spec.model, spec.lora, tmp_path, "bfloat16")
    assert len({key for key, _ in taken}) == len(taken) == len(hf_checkpoint.places(params, spec.model))
