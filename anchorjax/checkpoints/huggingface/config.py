"""`config.json` of a model directory, to and from our configuration.

Reading understands a field or rejects it: an unknown field may change the maths, and a checkpoint that is read almost
right raises no error. Both spellings of RoPE are read (`rope_theta` beside
`rope_scaling`, and `rope_parameters` of transformers 5); the first, which every tool knows, is written.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_origin

from anchorjax.checkpoints.huggingface.directory import member
from anchorjax.config import MAX_INT, NEUTRAL_ROPE, PLAIN, ModelConfig, RopeConfig, upgraded
from anchorjax.errors import WeightsError
from anchorjax.files import read_json
from anchorjax.models import families
from anchorjax.models.families import Family

FILE = "config.json"

SIZES = {  # config.json -> ModelConfig
    "vocab_size": "vocab_size",
    "hidden_size": "d_model",
    "intermediate_size": "d_ff",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tie_embeddings",
}
DEFAULTS = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "hidden_act": "silu"}
ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
FIXED = {  # other values would be another model in every family
    "attention_dropout": 0.0,
    "quantization_config": None,
    "partial_rotary_factor": 1.0,
    "use_sliding_window": False,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "tie_encoder_decoder": False,
    "pruned_heads": {},
    # Of Llama; in others' files left from a conversion, and passed over by transformers.
    "attention_bias": False,
    "mlp_bias": False,
    "pretraining_tp": 1,
}

# Settings of training or serving, not of the computation.
HARMLESS = (
    *("_name_or_path", "architectures", "bos_token_id", "cache_implementation", "dtype", "eos_token_id"),
    *("initializer_range", "max_window_layers", "model_type", "pad_token_id", "torch_dtype", "use_cache"),
    *("transformers_version", "transformers.js_config", "is_llama_config", "gradient_checkpointing"),
    # Which kernel computes it.
    *("_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal", "attn_implementation"),
    *("_flash_attn_2_enabled", "_experts_implementation", "_experts_implementation_internal"),
    *("experts_implementation", "chunk_size_feed_forward", "torchscript", "use_bfloat16", "tf_legacy_loss"),
    # The rest of transformers' PretrainedConfig: what a call returns, heads of other tasks, where it came from.
    *("_commit_hash", "name_or_path", "_output_attentions", "output_attentions", "output_hidden_states"),
    *("return_dict", "keys_to_ignore_at_inference", "tie_last_hidden_states", "is_decoder", "finetuning_task"),
    *("cross_attention_hidden_size", "id2label", "label2id", "num_labels", "problem_type", "task_specific_params"),
    *("base_model_tp_plan", "base_model_pp_plan", "base_model_ep_plan", "base_model_fsdp_plan", "prefix"),
    # Of the tokenizer; the length is max_position_embeddings.
    *("tokenizer_class", "sep_token_id", "decoder_start_token_id", "model_max_length", "max_sequence_length"),
    # Generation settings: transformers reads them from generation_config.json and ignores these.
    *("max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "temperature"),
    *("top_k", "top_p", "typical_p", "diversity_penalty", "repetition_penalty", "length_penalty", "bad_words_ids"),
    *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "num_return_sequences", "output_scores"),
    *("return_dict_in_generate", "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values"),
    *("exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens", "epsilon_cutoff", "eta_cutoff"),
    *("encoder_repetition_penalty", "num_assistant_tokens", "num_assistant_tokens_schedule", "target_lookbehind"),
    *("assistant_confidence_threshold", "assistant_lookbehind"),
)
HARMLESS_PREFIX = "unsloth_"  # unsloth_fixed, unsloth_version: the tool that saved it
READ_APART = (  # by name, below
    *("hidden_act", "hidden_activation", "layer_types", "max_position_embeddings", "original_max_position_embeddings"),
    *("rope_local_base_freq", "rope_parameters", "rope_scaling", "rope_theta", "sliding_window"),
    *("sliding_window_pattern", "_sliding_window_pattern"),
)

ROPE_FIELDS = {  # of rope_scaling, by kind; by RopeConfig's names
    "default": {},
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor"},
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
ORIGINAL = "original_max_position_embeddings"
OPTIONAL = (ORIGINAL, "attention_factor", "beta_fast", "beta_slow")


def load(directory: Path) -> dict[str, Any]:
    """Reads the fields of config.json, with today's keys if it is ours.

    Raises:
      WeightsError: the file is missing or is not a JSON object.
    """
    return upgraded(read_json(member(directory, FILE), WeightsError) or {})


def read(fields: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the fields of ModelConfig that a checkpoint sets, and those of RopeConfig.

    Raises:
      WeightsError: another family, a field that is missing, or one that would change the maths, by name.
    """
    name, family = _family(fields)
    _refuse(fields, family)
    # null differs from a missing field: Gemma 2 has soft caps unless they are null.
    given = _present({**DEFAULTS, **family.defaults, **fields})
    model = {"family": name, **PLAIN, **family.features}
    given.setdefault("num_key_value_heads", given.get("num_attention_heads"))
    if "head_dim" not in given:
        given["head_dim"] = _whole(given, "hidden_size") // _whole(given, "num_attention_heads")
    for key, ours in {**SIZES, **family.fields}.items():
        model[ours] = _value(given, key, ours, model.get(ours))
    model["activation"] = _activation(given, family)
    _check_layers(given, model)
    return model, _rope(given, model)


def _family(fields: Mapping[str, Any]) -> tuple[str, Family]:
    known = {families.load(name).model_type: name for name in families.available()}
    model_type = fields.get("model_type")
    if type(model_type) is not str or model_type not in known:
        hint = "; its text part alone is gemma3_text" if model_type == "gemma3" else ""
        raise _error("model_type", model_type, f"it must be one of {', '.join(known)}{hint}")
    name = known[model_type]
    family = families.load(name)
    if fields.get("architectures") not in (None, [], [family.architecture]):
        raise _error("architectures", fields["architectures"], f"it must be {family.architecture}")
    return name, family


def _refuse(fields: Mapping[str, Any], family: Family) -> None:
    fixed = FIXED | dict(family.fixed)
    known = {*HARMLESS, *READ_APART, *SIZES, *family.fields, *fixed}
    for key, value in fields.items():
        if key not in known and value is not None and not key.startswith(HARMLESS_PREFIX):
            raise _error(key, value, f"{family.model_type} has no such field, and it may change the maths")
        if key in fixed and value is not None and value != fixed[key]:
            raise _error(key, value, f"only {fixed[key]!r} is supported")


def _value(given: Mapping[str, Any], key: str, ours: str, default: Any) -> Any:
    if key in given:
        return _typed(key, given[key], ModelConfig.__dataclass_fields__[ours].type)
    if default is None:
        raise WeightsError(f"{FILE} has no {key}")
    return default


def _typed(key: str, value: Any, kind: type) -> Any:
    """Converts a value to the type of our configuration."""
    kind = get_origin(kind) or kind  # tuple[float, ...]
    if kind is tuple and type(value) is list:
        return tuple(_typed(key, x, float) for x in value)
    if kind is float and type(value) is int and abs(value) <= MAX_INT:
        return float(value)
    if type(value) is not kind:
        raise _error(key, value, f"it must be {'list' if kind is tuple else kind.__name__}")
    return value


def _whole(given: Mapping[str, Any], key: str) -> int:
    value = given.get(key)
    if type(value) is not int or value < 1:
        raise _error(key, value, "it must be a whole number above 0")
    return value


def _activation(given: Mapping[str, Any], family: Family) -> str:
    key = _activation_field(family)
    name = given.get(key)
    if type(name) is not str or name not in ACTIVATIONS:
        raise _error(key, name, f"it must be one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _activation_field(family: Family) -> str:
    return "hidden_activation" if "hidden_activation" in family.defaults else "hidden_act"


def layer_types(model: Mapping[str, Any]) -> list[str]:
    """Returns transformers' layer_types: which layers have a sliding window."""
    every = model["global_every"]

    def has_window(layer: int) -> bool:
        return bool(model["sliding_window"]) and not (every and (layer + 1) % every == 0)

    return ["sliding_attention" if has_window(n) else "full_attention" for n in range(model["num_layers"])]


def _check_layers(given: Mapping[str, Any], model: dict[str, Any]) -> None:
    """Checks that the pattern of windows is the family's. A model without a window has no pattern."""
    for key in ("sliding_window_pattern", "_sliding_window_pattern"):
        if given.get(key, model["global_every"]) != model["global_every"]:
            raise _error(key, given[key], f"only {model['global_every']} is supported")
    if not model["sliding_window"]:
        model["global_every"] = 0
    if given.get("layer_types") not in (None, layer_types(model)):
        raise _error("layer_types", given["layer_types"], "it must follow the family's pattern")


def _rope(given: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    family = families.load(model["family"])
    if "rope_scaling" in given and "rope_parameters" in given:  # some tools write both
        one, other = (
            _rope({key: value for key, value in given.items() if key != spelling}, model)
            for spelling in ("rope_parameters", "rope_scaling")
        )
        if one != other:
            raise _error("rope_scaling", given["rope_scaling"], "rope_parameters exists too, and contradicts it")
        return one
    spelling = "rope_parameters" if "rope_parameters" in given else "rope_scaling"
    scaling, local = _typed(spelling, given.get(spelling, {}), dict), {}
    if spelling == "rope_parameters" and family.local_theta:
        scaling, local = _by_kind_of_layer(scaling)
    scaling = _present({"rope_theta": given.get("rope_theta"), **scaling})
    local = _present({"rope_theta": given.get("rope_local_base_freq"), **local})
    if local and not family.local_theta:
        raise _error("rope_local_base_freq", local["rope_theta"], f"{family.model_type} has one base for all layers")
    theta = scaling.pop("rope_theta", 1e6 if family.local_theta else 1e4)
    local_theta = local.pop("rope_theta", family.local_theta)
    if local.pop("rope_type", "default") != "default" or local:
        raise _error("rope_parameters", given["rope_parameters"], "layers with a window are not scaled here")
    bases = {"theta": _typed("rope_theta", theta, float), "local_theta": _typed("rope_theta", local_theta, float)}
    return NEUTRAL_ROPE | bases | _scaling(scaling, given)


def _by_kind_of_layer(parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the entries of `rope_parameters` for layers without and with a window."""
    kinds = ("full_attention", "sliding_attention")
    if parameters.keys() - set(kinds):
        raise _error("rope_parameters", parameters, f"it must hold {' and '.join(kinds)}")
    return [_typed("rope_parameters", parameters.get(kind) or {}, dict) for kind in kinds]


def _scaling(scaling: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    kinds = [scaling.pop(key) for key in ("rope_type", "type") if key in scaling] or ["default"]
    kind = _typed("rope_type", kinds[0], str)
    if kind not in ROPE_FIELDS or kinds[-1] != kind:
        raise _error("rope_type", kinds[-1], f"it must be one of {', '.join(ROPE_FIELDS)}")
    rope = {"scaling": "none" if kind == "default" else kind}
    if kind == "longrope" and "factor" not in scaling:
        scaling["factor"] = _max_position(kind, given) / max(1, _original_length(kind, scaling, given))
    for key, value in scaling.items():
        if (key == "partial_rotary_factor" and value == 1.0) or (kind == "yarn" and _idle_in_yarn(key, value)):
            continue
        if key not in ROPE_FIELDS[kind]:
            raise _error(f"rope_scaling.{key}", value, f"{kind} has no such field, and it may change the maths")
        ours = ROPE_FIELDS[kind][key]
        rope[ours] = _typed(f"rope_scaling.{key}", value, RopeConfig.__dataclass_fields__[ours].type)
    for key in ROPE_FIELDS[kind]:
        if key not in scaling and key not in OPTIONAL:
            raise WeightsError(f"{FILE} has no rope_scaling.{key}, which {kind} RoPE needs")
    if kind in ("dynamic", "yarn", "llama3", "longrope"):
        rope["original_length"] = _original_length(kind, scaling, given)
    return rope


def _idle_in_yarn(key: str, value: Any) -> bool:
    """Returns whether the field has no effect: `finetuned` is unused, `truncate: true` is transformers' default."""
    return key == "finetuned" or (key == "truncate" and value is True)


def _original_length(kind: str, scaling: Mapping[str, Any], given: Mapping[str, Any]) -> int:
    """Returns the original context length, from the fields that transformers reads, in its order."""
    for place in (given, scaling) if kind != "dynamic" else ():
        if ORIGINAL in place:
            return _typed(ORIGINAL, place[ORIGINAL], int)
    return _max_position(kind, given)


def _max_position(kind: str, given: Mapping[str, Any]) -> int:
    if "max_position_embeddings" not in given:
        raise WeightsError(f"{FILE} has no max_position_embeddings, which {kind} RoPE needs")
    return _typed("max_position_embeddings", given["max_position_embeddings"], int)


def _present(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}


def write(
    model: ModelConfig, rope: RopeConfig, *, max_position: int, dtype: str, source: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the fields of `config.json`.

    Args:
      max_position: positions that the model was trained on.
      dtype: of the weights beside it.
      source: fields of the checkpoint that training began with, or none: token ids and the like are kept.

    Raises:
      WeightsError: the family's checkpoints cannot express this model; the field is named.
    """
    family = families.load(model.family)
    fields = {key: value for key, value in source.items() if key in KEPT}
    fields |= {"model_type": family.model_type, "architectures": [family.architecture], "torch_dtype": dtype}
    names = {**SIZES, **family.fields}
    fields |= {key: getattr(model, ours) for key, ours in names.items()}
    for key in ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping"):
        if key in names:
            fields[key] = fields[key] or None
    if "query_pre_attn_scalar" in names:
        if model.query_scale % 1:
            raise WeightsError(f"model.query_scale={model.query_scale!r} must be a whole number in {family.model_type}")
        fields["query_pre_attn_scalar"] = int(model.query_scale) or model.head_dim
    fields[_activation_field(family)] = {ours: name for name, ours in ACTIVATIONS.items()}[model.activation]
    fields |= family.fixed
    if family.features.get("global_every"):
        fields["layer_types"] = layer_types(vars(model))
    fields |= _rope_fields(rope, family, max_position)
    _refuse_features(model, family, {"activation", *names.values()})
    return fields


KEPT = ("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "use_cache")


def _rope_fields(rope: RopeConfig, family: Family, max_position: int) -> dict[str, Any]:
    fields: dict[str, Any] = {"rope_theta": rope.theta, "rope_scaling": None, "max_position_embeddings": max_position}
    if rope.local_theta and not family.local_theta:
        raise WeightsError(f"{family.model_type} has one RoPE base for all layers; rope.local_theta must be 0")
    if family.local_theta:
        if not rope.local_theta and rope.scaling != "none":
            raise WeightsError(f"{family.model_type} does not scale layers with a window; rope.local_theta must be set")
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
        fields["max_position_embeddings"] = rope.original_length
    return fields


def _refuse_features(model: ModelConfig, family: Family, named) -> None:
    features = {**PLAIN, **family.features}
    for key, value in features.items():
        # A model without a window has no pattern.
        if key in named or (key == "global_every" and not model.sliding_window):
            continue
        if getattr(model, key) != value:
            raise WeightsError(
                f"model.{key}={getattr(model, key)!r} cannot be written as {family.model_type}, which has {value!r}"
            )


def _error(key: str, value: Any, allowed: str) -> WeightsError:
    return WeightsError(f"{FILE}: {key}={value!r} is not supported: {allowed}")
