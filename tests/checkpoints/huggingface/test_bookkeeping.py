"""Fields of real config.json files that change no maths: read, and left."""

import dataclasses

import numpy as np
import pytest
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from anchorjax.checkpoints.huggingface import config as hf_config
from anchorjax.config import RopeConfig
from anchorjax.errors import WeightsError
from anchorjax.models import families, rope
from tests.checkpoints.huggingface import tiny
from tests.checkpoints.huggingface.test_config import fields_of

SEEN = {  # in public copies of these families, beside what transformers itself writes
    "unsloth_fixed": True,
    "unsloth_version": "2025.3.19",
    "_attn_implementation_autoset": True,
    "_flash_attn_2_enabled": True,
    "_commit_hash": "0123abc",
    "attention_bias": False,
    "attn_implementation": "flash_attention_2",
    "gradient_checkpointing": False,
    "id2label": {"0": "LABEL_0"},
    "keys_to_ignore_at_inference": ["past_key_values"],
    "label2id": {"LABEL_0": 0},
    "max_sequence_length": 2048,
    "mlp_bias": False,
    "model_max_length": 4096,
    "output_attentions": False,
    "pretraining_tp": 1,
    "pruned_heads": {},
    "return_dict": True,
    "task_specific_params": {"text-generation": {"do_sample": True}},
    "tokenizer_class": "LlamaTokenizer",
    "torchscript": False,
    "use_bfloat16": False,
    "use_sliding_window": False,
}


@pytest.mark.parametrize("name", families.available())
@pytest.mark.parametrize("field", SEEN)
def test_bookkeeping_is_read_and_left(name, field):
    assert hf_config.read(fields_of(name, **{field: SEEN[field]})) == hf_config.read(fields_of(name))


def test_every_field_that_transformers_gives_to_all_models_is_known():
    """Its PretrainedConfig, and what of generation it takes out of config.json."""
    base = {field.name: getattr(PreTrainedConfig(), field.name) for field in dataclasses.fields(PreTrainedConfig)}
    unset = {"architectures", "transformers_version", "dtype"}
    values = {name: value for name, value in base.items() if name not in unset and value is not None}
    values |= {"problem_type": "regression", "id2label": {"0": "a"}, "label2id": {"a": 0}}
    values |= GenerationConfig._get_default_generation_params()
    assert len(values) > 15
    for name, value in values.items():
        assert hf_config.read(fields_of("llama", **{name: value})) == hf_config.read(fields_of("llama")), name


def test_a_window_that_mistral_is_told_not_to_use_counts_as_in_transformers():
    """Its configuration has no `use_sliding_window`, and its masks go by `sliding_window` alone."""
    fields = fields_of("mistral", sliding_window=9, use_sliding_window=False)
    assert AutoConfig.for_model("mistral", sliding_window=9, use_sliding_window=False).sliding_window == 9
    assert hf_config.read(fields)[0]["sliding_window"] == 9


# RoPE

YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 8.0, "original_max_position_embeddings": 32}


def their_frequencies(**scaling) -> np.ndarray:
    config = AutoConfig.for_model("llama", **tiny.SMALL, rope_parameters=YARN | scaling)
    return ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")[0].numpy()


@pytest.mark.parametrize("scaling", [{}, {"truncate": True}, {"finetuned": True}, {"finetuned": False}])
def test_yarn_with_fields_that_say_the_usual_is_transformers_own(scaling):
    values = hf_config.read(fields_of("llama", rope_parameters=YARN | scaling))[1]
    ours = rope.frequencies(RopeConfig(**values, dtype="float32"), 8, 256)[0]
    np.testing.assert_allclose(ours, their_frequencies(**scaling), rtol=1e-6)


def test_yarn_between_pairs_is_another_and_refused():
    assert np.abs(their_frequencies(truncate=False) - their_frequencies()).max() > 0.01
    for value in (False, 0, "true"):
        with pytest.raises(WeightsError, match=r"rope_scaling.truncate=.* is not supported: yarn"):
            hf_config.read(fields_of("llama", rope_parameters=YARN | {"truncate": value}))
    linear = {"rope_type": "linear", "rope_theta": 500.0, "factor": 8.0, "truncate": True}
    with pytest.raises(WeightsError, match=r"rope_scaling.truncate=True is not supported: linear"):
        hf_config.read(fields_of("llama", rope_parameters=linear))


@pytest.mark.parametrize("kind", tiny.SCALED)
def test_both_spellings_may_stand_beside_each_other_if_they_agree(kind):
    new = fields_of(f"llama {kind}")
    scaling = {"type" if key == "rope_type" else key: value for key, value in new["rope_parameters"].items()}
    theta = scaling.pop("rope_theta")
    both = new | {"rope_scaling": scaling, "rope_theta": theta}
    assert hf_config.read(both) == hf_config.read(new)
    for other in ({"rope_scaling": scaling | {"factor": 9.0}}, {"rope_theta": 7.0}):
        with pytest.raises(WeightsError, match="rope_parameters exists too, and contradicts it"):
            hf_config.read(both | other)


def test_both_spellings_of_two_bases_may_stand_beside_each_other():
    new = fields_of("gemma3")
    old = {"rope_theta": 5000.0, "rope_local_base_freq": 100.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    assert hf_config.read(new | old) == hf_config.read(new)
    with pytest.raises(WeightsError, match="rope_parameters exists too, and contradicts it"):
        hf_config.read(new | old | {"rope_local_base_freq": 101.0})
