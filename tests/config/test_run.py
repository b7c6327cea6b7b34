"""Every rule of the configuration: what is refused, by which key, and in which words."""

import dataclasses
import json
import math

import pytest

from anchorjax import config as configuration
from anchorjax.config import KEYS, NEUTRAL_ROPE, OPEN, RESUME, SECTIONS, Config, resolve
from anchorjax.errors import ConfigError
from tests import tiny


def refusal(**overrides) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        tiny.config(**overrides)
    assert "\n" not in str(caught.value)
    return caught.value


def device_refusal(num_devices: int, **overrides) -> ConfigError:
    config = tiny.config(**overrides)
    with pytest.raises(ConfigError) as caught:
        config.check_devices(num_devices)
    return caught.value


def test_defaults_have_every_key_and_no_other():
    base = configuration.base().to_dict()
    assert set(base) == {field.name for field in dataclasses.fields(Config)}
    for name, section in SECTIONS.items():
        assert set(base[name]) == {field.name for field in dataclasses.fields(section)}, name


def test_every_field_of_a_section_is_a_declared_key_with_a_reason_and_an_allowed_default():
    fields = [f"{name}.{field.name}" for name, section in SECTIONS.items() for field in dataclasses.fields(section)]
    assert set(KEYS) == {"seed", "init_from", *fields}
    for name, key in KEYS.items():
        assert key.why and "\n" not in key.why and not key.why.endswith("."), name
        assert key.checked(key.default) == key.default, name
        assert key.resume in RESUME, name
        assert key.type is not tuple or key.item in (str, float), name


@pytest.mark.parametrize(
    ("key", "hint"), [("train__stepz", "config.train.steps"), ("model__num_head", "config.model.num_heads")]
)
def test_unknown_key_is_refused_with_the_one_that_was_meant(key, hint):
    error = refusal(**{key: 1})
    assert error.key == key.replace("__", ".")
    assert f"did you mean {hint}?" in str(error)


def test_unknown_section_and_unlike_key():
    assert refusal(modle={}).key == "modle"
    assert "did you mean" not in str(refusal(train__qqqqqq=1))


@pytest.mark.parametrize("path", ["seed", "model", "model.num_layers", "mesh.tensor"])
def test_missing_key_is_named(path):
    mapping = tiny.mapping()
    *section, key = path.split(".")
    del (mapping[section[0]] if section else mapping)[key]
    with pytest.raises(ConfigError, match="the key is missing") as caught:
        resolve(mapping)
    assert caught.value.key == path


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("model__num_layers", True, "int"),
        ("model__num_layers", 2.0, "int"),
        ("model__num_layers", "2", "int"),
        ("model__num_layers", None, "int"),
        ("optimizer__learning_rate", "1e-3", "float"),
        ("optimizer__learning_rate", True, "float"),
        ("model__tie_embeddings", 1, "bool"),
        ("data__source", 3, "str"),
        ("seed", 0.0, "int"),
    ],
)
def test_wrong_type_is_refused(key, value, allowed):
    error = refusal(**{key: value})
    assert (error.key, error.value) == (key.replace("__", "."), value)
    assert error.allowed == f"it must be {allowed}"


def test_section_that_is_none():
    assert "a section" in str(refusal(train=5))


def test_int_is_taken_where_a_float_is_meant():
    rate = tiny.config(optimizer__learning_rate=1).optimizer.learning_rate
    assert type(rate) is float and rate == 1.0


NUMBERS = [name for name, key in KEYS.items() if key.low is not None and "." in name]


@pytest.mark.parametrize("name", NUMBERS)
def test_number_outside_of_its_range_is_refused(name):
    low, high = KEYS[name].low, KEYS[name].high
    bad = [low - 1, -(10**9), 10**400, -(10**400)]
    bad += [low] if KEYS[name].open_low else []
    bad += [high + 1] if high < math.inf else []
    if KEYS[name].type is float:
        bad = [*(float(x) for x in bad if abs(x) < 10**300), math.nan, math.inf, -math.inf]
    for value in bad:
        error = refusal(**{name.replace(".", "__"): value})
        assert error.key == name, value


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_seed_outside_of_its_range_is_refused(seed):
    assert refusal(seed=seed).key == "seed"


@pytest.mark.parametrize(
    "key",
    [
        "model.remat",
        "model.compute_dtype",
        "attention.implementation",
        "data.mask",
        "data.packing",
        "optimizer.schedule",
    ],
)
def test_unknown_choice_is_refused_with_the_choices(key):
    error = refusal(**{key.replace(".", "__"): "other"})
    assert KEYS[key].choices and error.key == key and error.allowed.endswith(", ".join(KEYS[key].choices))


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ({"model__num_heads": 4, "model__num_kv_heads": 3}, "model.num_kv_heads"),
        ({"model__head_dim": 15}, "model.head_dim"),
        ({"data__batch_size": 4, "train__grad_accum_steps": 3}, "train.grad_accum_steps"),
        ({"data__interleave": 1}, "data.interleave"),
        ({"data__store": "gs://bucket/store"}, "data.store"),
        ({"optimizer__decay_steps": 2}, "optimizer.decay_steps"),
        ({"train__exact_alpha": 0.3}, "train.exact_alpha"),
        ({"train__exact_gamma": 0.3}, "train.exact_gamma"),
        ({"train__exact_tail": 32}, "train.exact_tail"),
        ({"data__pose_chunks": 3}, "data.pose_chunks"),
        ({"train__objective": "exact", "train__exact_tail": 65}, "train.exact_tail"),
        ({"rope__theta": 0.5}, "rope.theta"),
        ({"rope__local_theta": 1.0}, "rope.local_theta"),
        (
            {
                "optimizer__schedule": "wsd",
                "optimizer__decay_steps": 7,
                "optimizer__warmup_steps": 2,
                "train__steps": 8,
            },
            "optimizer.decay_steps",
        ),
        ({"data__interleave": 2, "data__boundary_targets": True}, "data.boundary_targets"),
        ({"mesh__fsdp": 0}, "mesh.fsdp"),
        ({"mesh__context": -2}, "mesh.context"),
        ({"mesh__context": -1}, "mesh.context"),  # fsdp is -1 already
    ],
)
def test_values_that_do_not_fit_each_other_are_refused(overrides, key):
    assert refusal(**overrides).key == key


def test_a_key_that_nothing_would_read_is_refused_with_what_reads_it():
    error = refusal(data__pose_chunks=3)
    assert error.allowed == "only data.positions=pose uses it, so it must be 2"
    tiny.config(data__pose_chunks=3, data__positions="pose", data__max_position=128)
    for each in (each for each in KEYS.values() if each.used_with):
        section, (other, values) = each.name.rpartition(".")[0], each.used_with
        deciding = KEYS[f"{section}.{other}"]
        assert set(values) <= set(deciding.choices) and deciding.default not in values


EIGHT = (1.0,) * 8  # pairs of the tiny model's heads of width 16
ROPES = {
    "none": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0, "original_length": 32},
    "yarn": {"factor": 4.0, "original_length": 32},
    "llama3": {"factor": 4.0, "original_length": 32},
    "longrope": {"factor": 4.0, "original_length": 32, "short_factors": EIGHT, "long_factors": EIGHT},
}


def rope(scaling: str, **changes) -> dict[str, object]:
    return {f"rope__{key}": value for key, value in ({"scaling": scaling} | ROPES[scaling] | changes).items()}


@pytest.mark.parametrize("scaling", ROPES)
def test_rope_scaling_with_what_it_needs_is_taken(scaling):
    config = tiny.config(**rope(scaling))
    assert config.rope.scaling == scaling
    assert resolve(json.loads(json.dumps(config.to_dict()))) == config
    tiny.config(**rope(scaling, local_theta=1e4))
    if scaling in ("yarn", "longrope"):
        tiny.config(**rope(scaling, attention_factor=1.2))


@pytest.mark.parametrize(
    ("scaling", "key", "value", "allowed"),
    [
        ("none", "factor", 2.0, "be 1"),
        ("dynamic", "original_length", 0, "at least 2"),
        ("yarn", "original_length", 0, "at least 2"),
        ("llama3", "original_length", 0, "at least 2"),
        ("longrope", "original_length", 0, "at least 2"),
        ("longrope", "original_length", 1, "at least 2"),  # log(1) would divide
        ("yarn", "theta", 1.0, "above 1"),
        ("yarn", "beta_slow", 0.0, "above 0"),
        ("yarn", "beta_fast", 1.0, "above rope.beta_slow=1"),
        ("yarn", "beta_slow", 33.0, None),
        ("llama3", "low_freq_factor", 0.0, "above 0"),
        ("llama3", "high_freq_factor", 1.0, "above rope.low_freq_factor=1"),
        ("llama3", "low_freq_factor", 5.0, None),
        ("none", "short_factors", EIGHT, "be empty"),
        ("linear", "long_factors", EIGHT, "be empty"),
        ("yarn", "long_factors", EIGHT, "be empty"),
        *(
            ("longrope", key, value, "numbers above 0")
            for key in ("short_factors", "long_factors")
            for value in [(), *((*EIGHT[1:], bad) for bad in (0, -1.0, math.nan, math.inf, 10**400, True, "1", None))]
        ),
        ("longrope", "short_factors", EIGHT[1:], "model.head_dim/2=8 numbers, not 7"),
        ("longrope", "long_factors", EIGHT * 2, "model.head_dim/2=8 numbers, not 16"),
    ],
)
def test_rope_scaling_without_what_it_needs_is_refused(scaling, key, value, allowed):
    error = refusal(**rope(scaling, **{key: value}))
    if allowed is None:  # the other end of the pair is named
        assert error.key == {"beta_slow": "rope.beta_fast", "low_freq_factor": "rope.high_freq_factor"}[key]
    else:
        assert error.key == f"rope.{key}" and allowed in error.allowed


def test_what_a_rope_scaling_does_not_use_is_not_checked():
    tiny.config(**rope("linear", original_length=0, beta_slow=99.0, low_freq_factor=99.0))


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ({"data__batch_size": 6}, "data.batch_size"),
        ({"data__batch_size": 8, "train__grad_accum_steps": 2}, "data.batch_size"),
        ({"mesh__fsdp": 1, "mesh__context": 8, "data__seq_len": 60}, "data.seq_len"),
        ({"mesh__fsdp": 2, "mesh__tensor": 4, "model__num_kv_heads": 2}, "model.num_heads"),
        ({"mesh__fsdp": 2, "mesh__tensor": 4, "model__num_heads": 4}, "model.num_kv_heads"),
        (
            {"mesh__fsdp": 4, "mesh__tensor": 2, "model__d_ff": 63, "data__batch_size": 4},
            "model.d_ff",
        ),
        ({"mesh__fsdp": 4, "mesh__tensor": 2, "model__d_model": 36, "data__batch_size": 4}, "model.d_model"),
        ({"model__d_model": 36, "data__batch_size": 8}, "model.d_model"),
        ({"mesh__fsdp": 3}, "mesh.fsdp"),
        ({"mesh__fsdp": 4}, "mesh.fsdp"),  # uses half of the devices
        ({"mesh__data": 16}, "mesh.data"),
        ({"mesh__slices": 3, "data__batch_size": 8}, "mesh.slices"),
        ({"mesh__slices": 8, "mesh__data": 2, "mesh__context": 2, "data__batch_size": 4}, "mesh.slices"),
    ],
)
def test_shapes_that_do_not_divide_are_refused(overrides, key):
    error = device_refusal(8, **overrides)
    assert error.key == key and any(digit.isdigit() for digit in error.allowed)


def test_free_mesh_axis_takes_what_is_left():
    shape = tiny.config(mesh__tensor=2, data__batch_size=4).check_devices(8)
    assert shape == {"data": 1, "fsdp": 4, "context": 1, "tensor": 2}


@pytest.mark.parametrize(("data", "fsdp"), [(1, 8), (2, 4), (4, 2), (8, 1)])
def test_slices_split_data_and_fsdp(data, fsdp):
    config = tiny.config(mesh__slices=4, mesh__data=data, mesh__fsdp=fsdp, data__batch_size=8)
    assert config.check_devices(8) == {"data": data, "fsdp": fsdp, "context": 1, "tensor": 1}


def test_defaults_leave_open_what_a_checkpoint_decides():
    base = configuration.base().to_dict()
    assert {key: base["model"][key] for key in OPEN} == OPEN
    assert {key: base["rope"][key] for key in NEUTRAL_ROPE} == NEUTRAL_ROPE


@pytest.mark.parametrize("key", NEUTRAL_ROPE)
def test_a_scaling_left_to_the_checkpoint_takes_no_values(key):
    value = (1.0,) * 8 if "factors" in key else NEUTRAL_ROPE[key] + 3
    error = refusal(**{"rope__scaling": "auto", f"rope__{key}": value})
    assert error.key == f"rope.{key}" and "the checkpoint says it" in error.allowed


@pytest.mark.parametrize("scaling", ["none", "linear", "dynamic", "llama3"])
def test_scalings_without_a_factor_of_attention_refuse_one(scaling):
    given = {"rope__scaling": scaling, "rope__original_length": 64, "rope__attention_factor": 1.3}
    assert refusal(**given).key == "rope.attention_factor"
