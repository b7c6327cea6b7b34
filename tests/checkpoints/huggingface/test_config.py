"""config.json: what is read, what is refused and by which name, and that others read what is written."""

import dataclasses
import json
import re
from typing import Any

import pytest
from transformers import AutoConfig

from anchorjax.checkpoints.huggingface import config as hf_config
from anchorjax.config import ModelConfig, RopeConfig
from anchorjax.errors import WeightsError
from anchorjax.models import families
from configs import common
from tests.checkpoints.huggingface import tiny

BASE = common.base().to_dict()
PUBLISHED = [size for name in families.available() for size in families.load(name).sizes]


def fields_of(name: str, **changes) -> dict[str, Any]:
    """As transformers writes them; `...` takes a field away."""
    config = tiny.CONFIGS[name]()
    fields = {**config.to_diff_dict(), "model_type": config.model_type, **changes}
    return {key: value for key, value in fields.items() if value is not ...}


def refusal(fields: dict[str, Any]) -> str:
    with pytest.raises(WeightsError) as caught:
        hf_config.read(fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Refusals: the family's tiny model, what is changed in it, what the message must say

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
REFUSED = [
    ("llama", {"num_experts": 8}, "num_experts=8 .*llama has no such field"),
    ("llama", {"attention_bias": True}, "attention_bias=True .*only False"),
    ("llama", {"mlp_bias": True}, "mlp_bias=True .*only False"),
    ("llama", {"pretraining_tp": 2}, "pretraining_tp=2 .*only 1"),
    ("llama", {"attention_dropout": 0.1}, r"attention_dropout=0.1 .*only 0.0"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 .*only 1.0"),
    ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config="),
    ("llama", {"auto_map": {"AutoModel": "modeling.py"}}, "auto_map="),
    ("llama", {"use_sliding_window": True}, "use_sliding_window=True .*only False"),
    ("llama", {"pruned_heads": {"0": [1]}}, "pruned_heads=.*only {}"),
    ("llama", {"is_encoder_decoder": True}, "is_encoder_decoder=True .*only False"),
    ("llama", {"per_layer_config": {"0": {"head_dim": 16}}}, "per_layer_config=.*no such field"),
    ("qwen2", {"dual_chunk_attention_config": {"chunk_size": 262144}}, "dual_chunk_attention_config=.*no such field"),
    ("llama", {"query_pre_attn_scalar": 256}, "query_pre_attn_scalar=256 .*no such field"),
    ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "architectures=.*must be LlamaForCausalLM"),
    ("llama", {"architectures": "LlamaForCausalLM"}, "architectures='Llama.*must be"),
    ("llama", {"model_type": "mixtral"}, "model_type='mixtral' .*must be one of gemma2, gemma3_text, llama"),
    ("llama", {"model_type": None}, "model_type=None .*must be one of"),
    ("llama", {"model_type": ["llama"]}, r"model_type=\['llama'\] .*must be one of"),
    ("gemma3", {"model_type": "gemma3"}, "model_type='gemma3' .*its text part alone is gemma3_text"),
    ("llama", {"hidden_act": "relu"}, "hidden_act='relu' .*silu, gelu_pytorch_tanh"),
    ("llama", {"hidden_act": ["silu"]}, r"hidden_act=\['silu'\] .*must be one of"),
    ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation='gelu' .*must be one of"),
    ("qwen2", {"use_sliding_window": True}, "use_sliding_window=True .*only False"),
    ("qwen3", {"use_sliding_window": True}, "use_sliding_window=True .*only False"),
    ("qwen3", {"attention_bias": True}, "attention_bias=True .*only False"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True .*only False"),
    ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0 .*only None"),
    ("gemma2", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types=.*family's pattern"),
    ("gemma2", {"layer_types": ["sliding_attention"]}, "layer_types=.*family's pattern"),
    ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types=.*family's pattern"),
    ("mistral", {"layer_types": ["full_attention"] * 2}, "layer_types=.*family's pattern"),
    ("gemma3", {"sliding_window_pattern": 5}, "sliding_window_pattern=5 .*only 6"),
    ("gemma3", {"_sliding_window_pattern": 5}, "_sliding_window_pattern=5 .*only 6"),
    *[
        ("gemma2", {size: ...}, f"has no {size}")
        for size in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    ],
    ("llama", {"head_dim": ..., "hidden_size": ...}, "hidden_size=None .*whole number above 0"),
    ("llama", {"head_dim": ..., "num_attention_heads": 0}, "num_attention_heads=0 .*whole number above 0"),
    ("llama", {"rms_norm_eps": None}, "has no rms_norm_eps"),
    ("llama", {"num_hidden_layers": "2"}, "num_hidden_layers='2' .*must be int"),
    ("llama", {"num_hidden_layers": 2.0}, "num_hidden_layers=2.0 .*must be int"),
    ("llama", {"num_hidden_layers": True}, "num_hidden_layers=True .*must be int"),
    ("llama", {"rms_norm_eps": "1e-5"}, "rms_norm_eps='1e-5' .*must be float"),
    ("llama", {"rms_norm_eps": True}, "rms_norm_eps=True .*must be float"),
    ("llama", {"tie_word_embeddings": 1}, "tie_word_embeddings=1 .*must be bool"),
    ("mistral", {"sliding_window": True}, "sliding_window=True .*must be int"),
    ("gemma2", {"final_logit_softcapping": 10**400}, "final_logit_softcapping=1000.*must be float"),
    # RoPE
    ("llama", {"rope_parameters": YARN | {"rope_type": "ntk"}}, "rope_type='ntk' .*must be one of default, linear"),
    ("llama", {"rope_parameters": YARN | {"type": "linear"}}, "rope_type='linear' .*must be one of"),
    ("llama", {"rope_parameters": YARN | {"rope_type": ["yarn"]}}, "rope_type=.*must be str"),
    ("llama", {"rope_parameters": YARN | {"mscale": 1.0}}, "rope_scaling.mscale=1.0 .*yarn has no such field"),
    ("llama", {"rope_parameters": YARN | {"truncate": False}}, "rope_scaling.truncate=False .*no such field"),
    (
        "llama",
        {"rope_parameters": YARN | {"rope_type": "default"}},
        "rope_scaling.factor=4.0 .*default has no such field",
    ),
    (
        "llama",
        {"rope_parameters": YARN | {"rope_type": "dynamic"}},
        "rope_scaling.original_max.*dynamic has no such field",
    ),
    ("llama", {"rope_parameters": YARN | {"partial_rotary_factor": 0.5}}, "rope_scaling.partial_rotary_factor=0.5"),
    ("llama", {"rope_parameters": YARN | {"factor": None}}, "has no rope_scaling.factor, which yarn RoPE needs"),
    ("llama", {"rope_parameters": YARN | {"rope_type": "llama3"}}, "has no rope_scaling.low_freq_factor"),
    ("llama", {"rope_parameters": LONG | {"short_factor": None}}, "has no rope_scaling.short_factor"),
    ("llama", {"rope_parameters": LONG | {"short_factor": 1.0}}, "rope_scaling.short_factor=1.0 .*must be list"),
    ("llama", {"rope_parameters": LONG | {"long_factor": [1, "2"]}}, "rope_scaling.long_factor='2' .*must be float"),
    ("llama", {"rope_parameters": YARN | {"factor": "4"}}, "rope_scaling.factor='4' .*must be float"),
    ("llama", {"rope_parameters": YARN | {"factor": True}}, "rope_scaling.factor=True .*must be float"),
    ("llama", {"rope_parameters": YARN | {"original_max_position_embeddings": 64.0}}, "original_max.*must be int"),
    ("llama", {"rope_parameters": {"rope_theta": "1e4"}}, "rope_theta='1e4' .*must be float"),
    ("llama", {"rope_parameters": 5}, "rope_parameters=5 .*must be dict"),
    ("llama", {"rope_parameters": ..., "rope_scaling": "yarn"}, "rope_scaling='yarn' .*must be dict"),
    ("llama", {"rope_scaling": YARN}, "rope_scaling=.*rope_parameters exists too, and contradicts"),
    ("llama", {"rope_parameters": {"full_attention": YARN}}, "rope_scaling.full_attention=.*no such field"),
    ("llama", {"rope_local_base_freq": 1e4}, "rope_local_base_freq=10000.0 .*llama has one base"),
    (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings": ...},
        "has no max_position_embeddings, which dynamic RoPE needs",
    ),
    ("llama", {"rope_parameters": LONG, "max_position_embeddings": ...}, "has no max_position_embeddings"),
    ("gemma3", {"rope_parameters": {"rope_theta": 1e6}}, "rope_parameters=.*must hold full_attention and sliding"),
    ("gemma3", {"rope_parameters": {"sliding_attention": YARN}}, "rope_parameters=.*window are not scaled"),
    ("gemma3", {"rope_parameters": {"sliding_attention": {"factor": 2.0}}}, "rope_parameters=.*window are not scaled"),
    ("gemma3", {"rope_parameters": {"full_attention": 5}}, "rope_parameters=5 .*must be dict"),
]


@pytest.mark.parametrize(("family", "changes", "message"), REFUSED, ids=[message[:60] for *_, message in REFUSED])
def test_a_field_that_would_change_the_maths_is_refused_by_name(family, changes, message):
    hf_config.read(fields_of(family))
    assert re.search(message, refusal(fields_of(family, **changes)))


@pytest.mark.parametrize("text", ["", "{", "[]", "5", '"llama"', "[" * 10**5, b"\xff"])
def test_a_file_that_is_none(text, tmp_path):
    (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(WeightsError, match=r"config\.json cannot be read: "):
        hf_config.load(tmp_path)


@pytest.mark.parametrize("name", tiny.names())
def test_fields_that_change_nothing_are_passed_over(name):
    changes = {"torch_dtype": "bfloat16", "dtype": "float16", "use_cache": False, "initializer_range": 0.5}
    changes |= {"bos_token_id": 3, "eos_token_id": [1, 2], "transformers_version": "4.0", "_name_or_path": "x"}
    assert hf_config.read(fields_of(name, **changes)) == hf_config.read(fields_of(name))


# What a field that is missing or null means: what transformers takes


def assert_as_transformers_reads(model_type: str, fields: dict[str, Any]) -> None:
    """Without fields, or with null, it is as with those that transformers fills in."""
    config = AutoConfig.for_model(model_type, **fields)
    filled = {**config.to_diff_dict(), "model_type": config.model_type}
    # Its own spelling of RoPE, and those of its defaults that it does not print.
    filled |= {key: getattr(config, key) for key in (*hf_config.SIZES, *OWN) if hasattr(config, key)}
    assert hf_config.read({"model_type": model_type, **fields}) == hf_config.read(filled)


OWN = ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar")
SIZES = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 7}


@pytest.mark.parametrize("name", families.available())
def test_a_missing_field_means_what_transformers_takes(name):
    assert_as_transformers_reads(families.load(name).model_type, SIZES | {"num_attention_heads": 32})


@pytest.mark.parametrize(
    ("model_type", "key"),
    [
        ("llama", "num_key_value_heads"),
        ("llama", "head_dim"),
        ("mistral", "head_dim"),
        ("mistral", "sliding_window"),
        ("qwen2", "num_key_value_heads"),
        ("qwen3", "num_key_value_heads"),
        ("gemma2", "attn_logit_softcapping"),
        ("gemma2", "final_logit_softcapping"),
        ("gemma3_text", "final_logit_softcapping"),
    ],
)
def test_null_means_what_transformers_takes(model_type, key):
    assert_as_transformers_reads(model_type, SIZES | {"num_attention_heads": 4, key: None})


# RoPE, in both spellings


@pytest.mark.parametrize("kind", tiny.SCALED)
@pytest.mark.parametrize("key", ["rope_type", "type"])
def test_both_spellings_of_rope_say_the_same(kind, key):
    new = fields_of(f"llama {kind}")
    scaling = dict(new["rope_parameters"])
    theta = scaling.pop("rope_theta")
    old = new | {"rope_parameters": None, "rope_theta": theta}
    old["rope_scaling"] = {key: scaling.pop("rope_type"), **scaling}
    assert hf_config.read(old) == hf_config.read(new)
    assert hf_config.read(new)[1]["theta"] == theta == 500.0
    base_outside = new | {"rope_theta": 500.0, "rope_parameters": {"rope_type": kind, **scaling}}
    assert hf_config.read(base_outside) == hf_config.read(new)


def test_both_spellings_of_two_bases_say_the_same():
    new = fields_of("gemma3")
    old = new | {
        "rope_parameters": None,
        "rope_theta": 5000.0,
        "rope_local_base_freq": 100.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }
    assert hf_config.read(old) == hf_config.read(new)
    rope = hf_config.read(new)[1]
    assert (rope["theta"], rope["local_theta"], rope["scaling"], rope["factor"]) == (5000.0, 100.0, "linear", 8.0)
    nothing = hf_config.read(new | {"rope_parameters": None})[1]
    assert (nothing["theta"], nothing["local_theta"]) == (1e6, 1e4)


@pytest.mark.parametrize("kind", ["yarn", "llama3", "longrope"])
def test_the_original_length_is_found_where_transformers_finds_it(kind):
    """The outermost counts first; without any the model's positions are meant."""
    fields, key = fields_of(f"llama {kind}"), "original_max_position_embeddings"
    assert hf_config.read(fields)[1]["original_length"] == 32
    assert hf_config.read(fields | {key: 48})[1]["original_length"] == 48
    without = {name: value for name, value in fields["rope_parameters"].items() if name != key}
    assert hf_config.read(fields | {"rope_parameters": without})[1]["original_length"] == 256


def test_longrope_has_its_factor_from_the_lengths():
    fields = fields_of("llama longrope")
    without = {name: value for name, value in fields["rope_parameters"].items() if name != "factor"}
    assert hf_config.read(fields | {"rope_parameters": without}) == hf_config.read(fields)


# Writing


def published(size: str, **rope) -> tuple[ModelConfig, RopeConfig]:
    model, own = families.published(size)
    return (
        ModelConfig(**(BASE["model"] | model)),
        RopeConfig(**(BASE["rope"] | {"theta": 1e4, "scaling": "none"} | own | rope)),
    )


def write(model: ModelConfig, rope: RopeConfig, **source) -> dict[str, Any]:
    fields = hf_config.write(model, rope, max_position=65536, dtype="bfloat16", source=source)
    return json.loads(json.dumps(fields))


def without_training(section) -> dict[str, Any]:
    fields = dataclasses.asdict(section)
    ours_alone = ("compute_dtype", "param_dtype", "remat", "ffn_chunk", "dropout", "dtype")
    return {key: x for key, x in fields.items() if key not in ours_alone}


SCALED = [
    {},
    {"scaling": "linear", "factor": 4.0},
    {"scaling": "dynamic", "factor": 2.0, "original_length": 4096},
    {"scaling": "yarn", "factor": 4.0, "original_length": 4096, "beta_fast": 16.0, "attention_factor": 1.2},
    {"scaling": "llama3", "factor": 8.0, "original_length": 8192, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    {"scaling": "longrope", "factor": 8.0, "original_length": 8192, "short_factors": (1.0,), "long_factors": (2.0,)},
]


@pytest.mark.parametrize("size", PUBLISHED)
def test_what_is_written_is_read_back(size):
    own = families.published(size)[1]
    for scaled in [{}] if "scaling" in own else SCALED:
        model, rope = published(size, **scaled)
        assert hf_config.read(write(model, rope)) == (without_training(model), without_training(rope))


@pytest.mark.parametrize("size", PUBLISHED)
def test_transformers_reads_what_is_written(size, tmp_path):
    model, rope = published(size)
    (tmp_path / "config.json").write_text(json.dumps(write(model, rope)))
    config = AutoConfig.from_pretrained(tmp_path)
    parameters = config.rope_parameters
    if rope.local_theta:
        assert parameters["sliding_attention"] == {"rope_type": "default", "rope_theta": rope.local_theta}
        parameters = parameters["full_attention"]
    names = hf_config.ROPE_FIELDS[parameters["rope_type"]]
    assert parameters["rope_type"] == rope.scaling.replace("none", "default")
    assert parameters["rope_theta"] == rope.theta
    for key, ours in names.items():
        assert parameters[key] == getattr(rope, ours), key
    assert config.max_position_embeddings == 65536
    assert config.dtype is not None and str(config.dtype) == "torch.bfloat16"
    for key, ours in {**hf_config.SIZES, **families.load(model.family).fields}.items():
        assert (getattr(config, key) or 0) == getattr(model, ours), key
    if model.global_every:
        assert [kind == "full_attention" for kind in config.layer_types[: 2 * model.global_every]] == [
            (layer + 1) % model.global_every == 0 for layer in range(2 * model.global_every)
        ]


def test_token_ids_are_kept_and_nothing_else():
    model, rope = published("llama3_8b")
    source = {"bos_token_id": 7, "eos_token_id": [1, 2], "vocab_size": 5, "attention_bias": True, "auto_map": {}}
    written = write(model, rope, **source)
    assert (written["bos_token_id"], written["eos_token_id"]) == (7, [1, 2])
    assert written == write(model, rope) | {"bos_token_id": 7, "eos_token_id": [1, 2]}


def test_another_activation_comes_back():
    model, rope = published("llama3_8b")
    model = dataclasses.replace(model, activation="gelu_tanh")
    assert hf_config.read(write(model, rope))[0]["activation"] == "gelu_tanh"


def test_gemma_without_windows_and_caps_comes_back():
    model, rope = published("gemma2_2b")
    model = dataclasses.replace(model, sliding_window=0, global_every=0, attention_soft_cap=0.0, final_soft_cap=0.0)
    written = write(model, rope)
    assert set(written["layer_types"]) == {"full_attention"}
    assert hf_config.read(written)[0] == without_training(model)


@pytest.mark.parametrize(
    ("size", "changes"),
    [
        ("llama3_8b", {"qkv_bias": True}),
        ("llama3_8b", {"qk_norm": True}),
        ("llama3_8b", {"post_norms": True}),
        ("llama3_8b", {"norm_offset": True}),
        ("llama3_8b", {"scale_embeddings": True}),
        ("llama3_8b", {"query_scale": 64.0}),
        ("llama3_8b", {"attention_soft_cap": 50.0}),
        ("llama3_8b", {"final_soft_cap": 30.0}),
        ("llama3_8b", {"sliding_window": 4096}),
        ("mistral_7b_v01", {"global_every": 2}),
        ("qwen25_7b", {"qkv_bias": False}),
        ("qwen3_8b", {"sliding_window": 512}),
        ("gemma2_2b", {"global_every": 3}),
        ("gemma2_2b", {"global_every": 0}),
        ("gemma2_2b", {"query_scale": 100.5}),
        ("gemma3_1b", {"attention_soft_cap": 50.0}),
    ],
)
def test_a_model_that_the_family_cannot_express_is_refused(size, changes):
    model, rope = published(size)
    ((key, value),) = changes.items()
    with pytest.raises(WeightsError, match=f"model.{key}={value!r} "):
        write(dataclasses.replace(model, **changes), rope)


def test_bases_that_the_family_cannot_express_are_refused():
    model, rope = published("llama3_8b")
    with pytest.raises(WeightsError, match="llama has one RoPE base"):
        write(model, dataclasses.replace(rope, local_theta=1e4))
    model, rope = published("gemma3_1b", local_theta=0.0)
    assert write(model, rope)["rope_local_base_freq"] == rope.theta
    with pytest.raises(WeightsError, match=r"does not scale layers with a window; rope.local_theta must be set"):
        write(model, dataclasses.replace(rope, scaling="linear", factor=2.0))
