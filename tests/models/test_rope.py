"""Rotary embedding: frequencies of every scaling, phases against float64, and the property attention relies on."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from anchorjax.config import RopeConfig
from anchorjax.models import rope
from configs import common

H = 64
MILLION = 2**20

# Search results of LongRoPE look like this: the fast pairs by little, most slow ones by about the factor.
LONG = tuple(1.08 + 63 * i**4 / (i**4 + 14**4) for i in range(H // 2))
SHORT = tuple(1 + 1.8 * (2 * i / H) ** 2 for i in range(H // 2))


def config(**changes) -> RopeConfig:
    return RopeConfig(**(common.base().rope.to_dict() | {"theta": 1e4, "scaling": "none"} | changes))


LLAMA_31 = config(theta=5e5, scaling="llama3", factor=8, low_freq_factor=1, high_freq_factor=4, original_length=8192)
QWEN_25 = config(theta=1e6, scaling="yarn", factor=4, original_length=32768)
PHI_3 = config(  # the 128K one, but for its lists
    scaling="longrope", factor=32, original_length=4096, short_factors=SHORT, long_factors=LONG
)

SCALED = {
    "linear": config(scaling="linear", factor=4),
    "linear by a fraction": config(theta=5e6, scaling="linear", factor=2.7),
    "dynamic": config(scaling="dynamic", factor=2, original_length=4096),
    "dynamic, theta 5e6": config(theta=5e6, scaling="dynamic", factor=8.5, original_length=65536),
    "yarn, Qwen 2.5": QWEN_25,
    "yarn, Llama 2": config(scaling="yarn", factor=32, original_length=4096),
    "yarn, other ramp": config(scaling="yarn", factor=16, original_length=2048, beta_fast=8, beta_slow=0.5),
    "yarn, ramp without width": config(scaling="yarn", factor=4, original_length=6),
    "yarn, ramp beyond the pairs": config(theta=100, scaling="yarn", factor=4, original_length=65536, beta_fast=1000),
    "yarn, attention": config(scaling="yarn", factor=4, original_length=4096, attention_factor=1.3),
    "llama3, Llama 3.1": LLAMA_31,
    "llama3, Llama 3.2": dataclasses.replace(LLAMA_31, factor=32),
    "llama3, other ramp": dataclasses.replace(
        LLAMA_31, theta=1e4, low_freq_factor=2.5, high_freq_factor=30, original_length=2048
    ),
    "longrope": PHI_3,
    "longrope, factor 1": dataclasses.replace(PHI_3, factor=1),
    "longrope, attention": dataclasses.replace(PHI_3, attention_factor=1.19),
}
CASES = pytest.mark.parametrize("scaled", SCALED.values(), ids=SCALED)


# Frequencies against other sources


def by_transformers(scaled: RopeConfig, length: int) -> tuple[np.ndarray, float]:
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = {"rope_type": scaled.scaling, "rope_theta": scaled.theta, "factor": scaled.factor}
    wanted = {
        "yarn": ("beta_fast", "beta_slow"),
        "llama3": ("low_freq_factor", "high_freq_factor"),
        "longrope": ("short_factors", "long_factors"),
    }
    for name in wanted.get(scaled.scaling, ()):
        parameters[name.replace("factors", "factor")] = getattr(scaled, name)
    if scaled.scaling in wanted:
        parameters["original_max_position_embeddings"] = scaled.original_length
    if scaled.attention_factor:
        parameters["attention_factor"] = scaled.attention_factor
    theirs = transformers.LlamaConfig(
        hidden_size=2 * H,
        num_attention_heads=2,
        head_dim=H,
        max_position_embeddings=scaled.original_length or 2048,
        rope_parameters=parameters,
    )
    frequency_h, factor = ROPE_INIT_FUNCTIONS[scaled.scaling](theirs, "cpu", seq_len=length)
    return frequency_h.double().numpy(), factor


@pytest.mark.parametrize("length", [1024, 131072])
@CASES
def test_frequencies_are_those_of_transformers(scaled, length):
    """Up to its fp32, in which the exponents 2i/64 are exact; the worst is 2.7e-7, on a ramp."""
    frequency_h, factor = rope.frequencies(scaled, H, length)
    theirs_h, their_factor = by_transformers(scaled, length)
    assert frequency_h.dtype == np.float64
    np.testing.assert_allclose(frequency_h, theirs_h, rtol=5e-7)
    assert factor == pytest.approx(their_factor, rel=1e-12)


def test_tables_need_no_mesh():
    config = RopeConfig(scaling="none", theta=10000.0)
    positions_T = np.array([0, 1023, 1024, 1499])
    cos_BTh, sin_BTh = rope.tables(jnp.asarray(positions_T[None]), 1500, H, config)
    phases_Th = positions_T[:, None] * rope.frequencies(config, H, 1500)[0]
    np.testing.assert_allclose(cos_BTh[0], np.cos(phases_Th), atol=2e-7)
    np.testing.assert_allclose(sin_BTh[0], np.sin(phases_Th), atol=2e-7)


def by_formula(scaled: RopeConfig, length: int) -> tuple[list[float], float]:
    """The papers' formulas, pair by pair in Python's floats."""
    theta, s, L = scaled.theta, scaled.factor, scaled.original_length
    if scaled.scaling == "dynamic":
        theta *= (s * max(length, L) / L - (s - 1)) ** (H / (H - 2))
    attention = 1.0
    if scaled.scaling == "yarn":
        attention = 0.1 * math.log(s) + 1
    if scaled.scaling == "longrope" and s > 1:
        attention = math.sqrt(1 + math.log(s) / math.log(L))

    def bound(rotations):
        return H * math.log(L / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    def one(i):
        plain = theta ** (-2 * i / H)
        wave_length = 2 * math.pi / plain
        if scaled.scaling == "linear":
            return plain / s
        if scaled.scaling == "longrope":
            return plain / (scaled.long_factors if length > L else scaled.short_factors)[i]
        if scaled.scaling == "llama3":
            if wave_length < L / scaled.high_freq_factor:
                return plain
            if wave_length > L / scaled.low_freq_factor:
                return plain / s
            low, high = scaled.low_freq_factor, scaled.high_freq_factor
            smooth = (L / wave_length - low) / (high - low)
            return (1 - smooth) * plain / s + smooth * plain
        if scaled.scaling == "yarn":
            low = max(math.floor(bound(scaled.beta_fast)), 0)
            high = min(math.ceil(bound(scaled.beta_slow)), H - 1)
            ramp = min(max((i - low) / (high - low or 0.001), 0), 1)
            return plain / s * ramp + plain * (1 - ramp)
        return plain

    return [one(i) for i in range(H // 2)], scaled.attention_factor or attention


def exact(positions: np.ndarray, scaled: RopeConfig, length: int = MILLION) -> tuple[np.ndarray, np.ndarray, float]:
    frequency_h, factor = by_formula(scaled, length)
    phases = positions[:, None].astype(np.float64) * np.array(frequency_h)
    return factor * np.cos(phases), factor * np.sin(phases), factor


def tables(positions: np.ndarray, scaled: RopeConfig, length: int = MILLION, **options) -> list[np.ndarray]:
    both = rope.tables(jnp.asarray(positions, jnp.int32)[None], length, H, scaled, **options)
    assert all(x.dtype == jnp.float32 for x in both)
    return [np.asarray(x[0], np.float64) for x in both]


def some_positions(length: int = MILLION) -> np.ndarray:
    few = np.arange(min(length, 3000))
    return np.concatenate([few, np.random.default_rng(0).integers(0, length, 10000), [length - 1]])


UNSCALED = {f"theta {theta:g}": config(theta=theta) for theta in (1e4, 5e6, 1e9)}


@pytest.mark.parametrize("scaled", (UNSCALED | SCALED).values(), ids=UNSCALED | SCALED)
def test_tables_are_exact_to_fp32_up_to_a_million_positions(scaled, one_device):
    positions = some_positions()
    *wanted, factor = exact(positions, scaled)
    for got, want in zip(tables(positions, scaled), wanted, strict=True):
        assert np.abs(got - want).max() < 2e-7 * factor


def test_phases_formed_in_fp32_would_fail_that(one_device):
    """The fault that the host tables avoid: 4e-3 at 64K tokens and theta 5e6."""
    positions = np.arange(2**16)
    phases = positions.astype(np.float32)[:, None] * np.float32(5e6) ** (-np.arange(0, H, 2, dtype=np.float32) / H)
    assert np.abs(np.cos(phases) - exact(positions, config(theta=5e6))[0]).max() > 1e-3


# What each scaling promises


@pytest.mark.parametrize("name", ["dynamic", "longrope"])
@pytest.mark.parametrize("length", [4095, 4096, 4097])
def test_rows_beyond_the_original_length_turn_more_slowly(name, length, one_device):
    scaled = SCALED[name]
    assert scaled.original_length == 4096
    positions = some_positions(length)
    *wanted, factor = exact(positions, scaled, length)
    for got, want in zip(tables(positions, scaled, length), wanted, strict=True):
        assert np.abs(got - want).max() < 2e-7 * factor
    original_h, _ = rope.frequencies(scaled, H, 100)
    frequency_h, _ = rope.frequencies(scaled, H, length)
    assert np.array_equal(frequency_h, original_h) == (length <= 4096)
    assert (frequency_h <= original_h).all()


def test_dynamic_is_unscaled_up_to_the_original_length():
    unscaled_h, _ = rope.frequencies(config(), H, 4096)
    np.testing.assert_array_equal(rope.frequencies(SCALED["dynamic"], H, 4096)[0], unscaled_h)


def test_dynamic_of_a_single_pair():
    """H - 2 is 0 in the usual formula."""
    assert rope.frequencies(SCALED["dynamic"], 2, 10000)[0].tolist() == [1.0]


@pytest.mark.parametrize("name", ["linear", "dynamic", "llama3, Llama 3.1"])
def test_only_yarn_and_longrope_have_an_attention_factor(name):
    assert rope.frequencies(SCALED[name], H, MILLION)[1] == 1


@CASES
def test_local_layers_have_their_own_base_and_no_scaling(scaled, one_device):
    scaled = dataclasses.replace(scaled, local_theta=777.0)
    frequency_h, factor = rope.frequencies(scaled, H, MILLION, local=True)
    assert factor == 1
    np.testing.assert_allclose(frequency_h, by_formula(config(theta=777.0), MILLION)[0], rtol=1e-14)
    positions = some_positions()
    *wanted, _ = exact(positions, config(theta=777.0))
    for got, want in zip(tables(positions, scaled, local=True), wanted, strict=True):
        assert np.abs(got - want).max() < 2e-7
    # The others do not notice.
    for got, want in zip(tables(positions, scaled), exact(positions, scaled), strict=False):
        assert np.abs(got - want).max() < 4e-7


@CASES
def test_local_layers_without_a_base_are_as_the_others(scaled):
    frequency_h, factor = rope.frequencies(scaled, H, MILLION)
    local_h, local_factor = rope.frequencies(scaled, H, MILLION, local=True)
    np.testing.assert_array_equal(local_h, frequency_h)
    assert local_factor == factor


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 64), st.integers(0, MILLION // 64 - 1))
def test_linear_by_f_at_f_times_p_is_unscaled_at_p(f, p):
    with jax.set_mesh(jax.make_mesh((1,), ("data",))):
        far = tables(np.array([f * p]), config(scaling="linear", factor=f))
        near = tables(np.array([p]), config())
        np.testing.assert_allclose(far, near, atol=4e-7)


@settings(max_examples=100, deadline=None)
@given(st.floats(1e4, 1e8), st.floats(1, 100), st.integers(1024, 10**6), st.sampled_from([16, 64, 128]))
def test_yarn_and_llama3_keep_the_fastest_pair_and_stretch_the_slowest_in_full(theta, factor, original, H):
    plain_h, _ = rope.frequencies(config(theta=theta), H, MILLION)
    rotations_h = plain_h * original / (2 * math.pi)
    assume(rotations_h[-1] < 1 < 32 < rotations_h[0])
    for scaling in ("yarn", "llama3"):
        scaled = config(theta=theta, scaling=scaling, factor=factor, original_length=original)
        stretch_h = plain_h / rope.frequencies(scaled, H, MILLION)[0]
        assert stretch_h[0] == 1
        assert stretch_h[-1] == pytest.approx(factor)
        assert (np.diff(stretch_h) >= -1e-12 * factor).all()


# The rotation


def rotated(x: jax.Array, positions: np.ndarray, dtype: str) -> jax.Array:
    cos, sin = rope.tables(jnp.asarray(positions, jnp.int32)[None], MILLION, H, config())
    return rope.rotate(x, cos, sin, dtype)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, MILLION - 400), st.integers(0, MILLION - 400))
def test_scores_depend_on_distance_only(shift_a, shift_b):
    with jax.set_mesh(jax.make_mesh((1,), ("data",))):
        x = jax.random.normal(jax.random.key(0), (1, 8, 2, H))
        places = np.arange(8) * 50

        def scores(shift):
            turned = rotated(x, places + shift, "float32")
            return jnp.einsum("btnh,bsnh->bnts", turned, turned)

        np.testing.assert_allclose(scores(shift_a), scores(shift_b), atol=5e-5)


def test_bfloat16_rotation_reproduces_the_fault(one_device):
    """A shift of 16 changes scores by far more in bf16 than in fp32 (arXiv 2411.13476, Section 2)."""
    x = jax.random.normal(jax.random.key(0), (1, 256, 2, H))

    def change(dtype):
        scores = []
        for shift in (0, 16):
            turned = rotated(x, np.arange(256) + shift, dtype)
            scores.append(jnp.einsum("btnh,bsnh->bnts", turned, turned))
        return float(jnp.mean(jnp.abs(scores[0] - scores[1])))

    assert change("bfloat16") > 100 * change("float32")


def test_rotation_keeps_dtype_and_length(one_device):
    x = jax.random.normal(jax.random.key(0), (1, 16, 2, H), jnp.bfloat16)
    turned = rotated(x, np.arange(16), "float32")
    assert turned.dtype == jnp.bfloat16
    np.testing.assert_allclose(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-2)
