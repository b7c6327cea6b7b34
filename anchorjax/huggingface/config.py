"""`config.json` of a model directory, to and from our configuration.

Reading takes every field for its meaning or refuses it: a field that is not known here may change the maths, and a
checkpoint that is read almost right is the worst of all. Both spellings of RoPE are read (`rope_theta` beside
`rope_scaling`, and `rope_parameters` of transformers 5); the first, which every tool knows, is written.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anchorjax.config import PLAIN, ModelConfig, RopeConfig
from anchorjax.errors import WeightsError
from anchorjax.huggingface.directory import member
from anchorjax.models import families
from anchorjax.models.families import Family

FILE = "config.json"

SIZES = {  # by ModelConfig's names
    "vocab_size": "vocab_size",
    "hidden_size": "model_width",
    "intermediate_size": "ffn_width",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_width",
    "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tie_embeddings",
}
DEFAULTS = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "hidden_act": "silu"}
ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
FIXED = {"attention_dropout": 0.0, "quantization_config": None, "partial_rotary_factor": 1.0}

# What a model is trained or served with, not what it computes.
HARMLESS = (
    *("_name_or_path", "_attn_implementation", "architectures", "bos_token_id", "cache_implementation", "dtype"),
    *("eos_token_id", "initializer_range", "max_window_layers", "model_type", "pad_token_id", "torch_dtype"),
    *("transformers_version", "use_cache"),
)
READ_APART = (  # by name, below
    *("hidden_act", "hidden_activation", "layer_types", "max_position_embeddings", "original_max_position_embeddings"),
    *("rope_local_base_freq", "rope_parameters", "rope_scaling", "rope_theta", "sliding_window"),
    *("sliding_window_pattern", "_sliding_window_pattern"),
)

ROPE_FIELDS = {  # of rope_scaling, by kind; by RopeConfig's names
    "default": {},
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor", "original_max_position_embeddings": "original_length"},
    "yarn": {
        "factor": "factor",
        "original_max_position_embeddings": "original_length",
        "attention_factor": "attention_factor",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
    },
    "llama3": {
        "factor": "factor",
        "original_max_position_embeddings": "original_length",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
    },
    "longrope": {
        "factor": "factor",
        "original_max_position_embeddings": "original_length",
        "attention_factor": "attention_factor",
        "short_factor": "short_factors",
        "long_factor": "long_factors",
    },
}


NEUTRAL_ROPE = {  # what transformers takes, or what says nothing
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


def load(directory: Path) -> dict[str, Any]:
    """The file's fields. Raises WeightsError if it is missing or no JSON object."""
    file = member(directory, FILE)
    try:
        fields = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(fields, dict):
        raise WeightsError(f"{file} holds no JSON object")
    return fields


def read(fields: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields of ModelConfig that a checkpoint decides, and those of RopeConfig.

    Raises:
      WeightsError: another family, a field that is missing, or one that would change the maths, by name.
    """
    name, family = _family(fields)
    given = {key: value for key, value in fields.items() if value is not None}
    given = DEFAULTS | dict(family.defaults) | given
    _refuse(fields, family)
    model = {"family": name, **PLAIN, **family.features}
    given.setdefault("num_key_value_heads", given.get("num_attention_heads"))
    if "head_dim" not in given:
        given["head_dim"] = _whole(given, "hidden_size") // _whole(given, "num_attention_heads")
    for key, ours in {**SIZES, **family.fields}.items():
        model[ours] = _value(given, key, ours, model.get(ours))
    if fields.get("sliding_window", 0) is None:
        model["window"] = 0
    model["activation"] = _activation(given, family)
    _check_layers(given, model)
    return model, _rope(given, model)


def _family(fields: Mapping[str, Any]) -> tuple[str, Family]:
    known = {families.load(name).model_type: name for name in families.available()}
    name = known.get(fields.get("model_type"))
    if name is None:
        hint = "; its text part alone is gemma3_text" if fields.get("model_type") == "gemma3" else ""
        raise _error("model_type", fields.get("model_type"), f"it must be one of {', '.join(known)}{hint}")
    family = families.load(name)
    if fields.get("architectures") not in (None, [], [family.architecture]):
        raise _error("architectures", fields["architectures"], f"it must be {family.architecture}")
    return name, family


def _refuse(fields: Mapping[str, Any], family: Family) -> None:
    fixed = FIXED | dict(family.fixed)
    known = {*HARMLESS, *READ_APART, *SIZES, *family.fields, *fixed}
    for key, value in fields.items():
        if key not in known and value is not None:
            raise _error(key, value, f"{family.model_type} is not known to have it, and it may change the maths")
        if key in fixed and value is not None and value != fixed[key]:
            raise _error(key, value, f"only {fixed[key]!r} is supported")


def _value(given: Mapping[str, Any], key: str, ours: str, default: Any) -> Any:
    """A field in the type that ModelConfig wants."""
    if key not in given:
        if default is None:
            raise WeightsError(f"{FILE} has no {key}")
        return default
    kind = ModelConfig.__dataclass_fields__[ours].type
    value = given[key]
    if kind is float and type(value) in (int, float):
        return float(value)
    if type(value) is not kind:
        raise _error(key, value, f"it must be {kind.__name__}")
    return value


def _whole(given: Mapping[str, Any], key: str) -> int:
    value = given.get(key)
    if type(value) is not int or value < 1:
        raise _error(key, value, "it must be a whole number above 0")
    return value


def _activation(given: Mapping[str, Any], family: Family) -> str:
    name = given["hidden_activation" if "hidden_activation" in family.defaults else "hidden_act"]
    if name not in ACTIVATIONS:
        raise _error("hidden_act", name, f"it must be one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def layer_types(model: Mapping[str, Any]) -> list[str]:
    """Of transformers: which layers have a window."""
    every = model["global_every"]

    def has_window(layer: int) -> bool:
        return bool(model["window"]) and not (every and (layer + 1) % every == 0)

    return ["sliding_attention" if has_window(n) else "full_attention" for n in range(model["num_layers"])]


def _check_layers(given: Mapping[str, Any], model: dict[str, Any]) -> None:
    """The pattern of windows is the family's. A model without a window has no pattern."""
    for key in ("sliding_window_pattern", "_sliding_window_pattern"):
        if given.get(key, model["global_every"]) != model["global_every"]:
            raise _error(key, given[key], f"only {model['global_every']} is supported")
    if not model["window"]:
        model["global_every"] = 0
    if given.get("layer_types") not in (None, layer_types(model)):
        raise _error("layer_types", given["layer_types"], "it must follow the family's pattern")


def _rope(given: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    parameters = given.get("rope_parameters")
    if parameters is None:
        scaling = {"rope_theta": given.get("rope_theta"), **(given.get("rope_scaling") or {})}
        local_theta = given.get("rope_local_base_freq")
    elif "full_attention" in parameters:
        scaling, local = parameters["full_attention"], parameters.get("sliding_attention") or {}
        if local.get("rope_type", "default") != "default":
            raise _error("rope_parameters", parameters, "layers with a window are not scaled here")
        local_theta = local.get("rope_theta")
    else:
        scaling, local_theta = parameters, given.get("rope_local_base_freq")
    scaling = {key: value for key, value in scaling.items() if value is not None}
    local_theta = local_theta or families.load(model["family"]).local_theta
    default_theta = 1e6 if local_theta else 1e4
    rope = {"theta": float(scaling.pop("rope_theta", default_theta)), "local_theta": float(local_theta)}
    return NEUTRAL_ROPE | rope | _scaling(scaling, given)


def _scaling(scaling: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    kinds = {scaling.pop(key) for key in ("rope_type", "type") if key in scaling} or {"default"}
    kind = kinds.pop()
    if kinds or kind not in ROPE_FIELDS:
        raise _error("rope_scaling", kind, f"it must be one of {', '.join(ROPE_FIELDS)}")
    rope = {"scaling": "none" if kind == "default" else kind}
    for key, value in scaling.items():
        if key == "partial_rotary_factor" and value == 1.0:
            continue
        if key not in ROPE_FIELDS[kind]:
            raise _error(f"rope_scaling.{key}", value, f"{kind} is not known to have it, and it may change the maths")
        ours = ROPE_FIELDS[kind][key]
        value_type = RopeConfig.__dataclass_fields__[ours].type
        rope[ours] = tuple(float(x) for x in value) if value_type is tuple else value_type(value)
    trained = given.get("original_max_position_embeddings", given.get("max_position_embeddings"))
    if "original_max_position_embeddings" in ROPE_FIELDS[kind] and "original_length" not in rope:
        if type(trained) is not int:
            raise WeightsError(f"{FILE} has no max_position_embeddings, which {kind} RoPE needs")
        rope["original_length"] = trained
    if kind == "longrope" and "factor" not in rope:
        rope["factor"] = given["max_position_embeddings"] / rope["original_length"]
    return rope


def write(
    model: ModelConfig, rope: RopeConfig, *, max_position: int, dtype: str, source: Mapping[str, Any]
) -> dict[str, Any]:
    """Fields of `config.json`.

    Args:
      max_position: positions that the model was trained on.
      dtype: of the weights beside it.
      source: fields of the checkpoint that training began with, or none: token ids and the like are kept.

    Raises:
      WeightsError: the family's checkpoints cannot say what this model does, by name.
    """
    family = families.load(model.family)
    fields = {key: value for key, value in source.items() if key in KEPT}
    fields |= {"model_type": family.model_type, "architectures": [family.architecture], "torch_dtype": dtype}
    names = {**SIZES, **family.fields}
    fields |= {key: getattr(model, ours) for key, ours in names.items()}
    for key in ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping"):
        if key in fields:
            fields[key] = fields[key] or None
    if fields.get("query_pre_attn_scalar") == 0:
        fields["query_pre_attn_scalar"] = model.head_width
    activation = {ours: name for name, ours in ACTIVATIONS.items()}[model.activation]
    fields["hidden_activation" if "hidden_activation" in family.defaults else "hidden_act"] = activation
    fields |= family.fixed
    if family.features.get("global_every"):
        fields["layer_types"] = layer_types(vars(model))
    fields |= _rope_fields(rope, family, max_position)
    _refuse_features(model, family, names.values())
    return fields


KEPT = ("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "use_cache")


def _rope_fields(rope: RopeConfig, family: Family, max_position: int) -> dict[str, Any]:
    fields: dict[str, Any] = {"rope_theta": rope.theta, "rope_scaling": None, "max_position_embeddings": max_position}
    if rope.local_theta and not family.local_theta:
        raise WeightsError(f"{family.model_type} has one RoPE base for all layers; rope.local_theta must be 0")
    if family.local_theta:
        fields["rope_local_base_freq"] = rope.local_theta or rope.theta
    if rope.scaling != "none":
        names = ROPE_FIELDS[rope.scaling]
        values = {key: getattr(rope, ours) for key, ours in names.items()}
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        if values.get("attention_factor") == 0:
            del values["attention_factor"]  # the scaling's own
        fields["rope_scaling"] = {"rope_type": rope.scaling, **values}
    if rope.scaling == "dynamic":
        # transformers takes the length that it was trained on from here; what is longer is found as it comes.
        fields["max_position_embeddings"] = fields["rope_scaling"].pop("original_max_position_embeddings")
    return fields


def _refuse_features(model: ModelConfig, family: Family, named) -> None:
    features = {**PLAIN, **family.features}
    for key, value in features.items():
        # Without a window there is no pattern either.
        if key in named or (key == "global_every" and not model.window):
            continue
        if getattr(model, key) != value:
            raise WeightsError(
                f"model.{key}={getattr(model, key)!r} cannot be written as {family.model_type}, which has {value!r}"
            )


def _error(key: str, value: Any, allowed: str) -> WeightsError:
    return WeightsError(f"{FILE}: {key}={value!r} is not supported: {allowed}")
