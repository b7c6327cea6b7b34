"""Deviation of attention: by its definition in numpy and transformers, for every precision, length and mesh."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

from anchorjax import sharding
from anchorjax.experiments.rope_precision import deviation
from anchorjax.experiments.rope_precision.deviation import GROUPS, Row
from anchorjax.experiments.rope_precision.rotation import PRECISIONS
from anchorjax.inference import language_model
from anchorjax.masks import Mask, allowed
from anchorjax.models.decoder import masks_of_kinds
from anchorjax.models.variants import plain
from anchorjax.types import PAD_SEGMENT
from tests.checkpoints.huggingface import tiny
from tests.evaluation.making import write_tokenizer
from tests.models.making import spec_of

RNG = np.random.default_rng(5)
T_OF_TOY, FP32, BF16, ALL_BF16 = 64, 4.7e-6, 0.0317, 0.0485  # measured elsewhere, with fp32 phases


def deviation_of(weights: np.ndarray, others: np.ndarray, sees_TS: np.ndarray, keys=slice(None)) -> float:
    """Eq. 4 as it is written, of weights [L, N, T, S]."""
    norm_S = 1 / np.maximum(sees_TS.sum(0), 1)
    return float((norm_S * np.abs(weights - others).sum((0, 1, 2)))[keys].sum())


def softmax(logits: np.ndarray, sees_TS: np.ndarray) -> np.ndarray:
    weights = np.where(sees_TS, np.exp(np.where(sees_TS, logits, 0)), 0)
    return weights / np.maximum(weights.sum(-1, keepdims=True), 1e-30)


# One layer of random queries and keys


def narrow(x: np.ndarray) -> np.ndarray:
    return x.astype(ml_dtypes.bfloat16).astype(np.float32)


def toy(name: str, x_TNH: np.ndarray, shift: int) -> np.ndarray:
    """Queries or keys behind RoPE, each rounding of a precision written out."""
    precision = PRECISIONS[name]
    same = lambda x: x  # noqa: E731
    of_inputs, of_tables, of_products = (
        narrow if dtype == "bfloat16" else same for dtype in (precision.compute, precision.tables, precision.rotation)
    )
    T, _, H = x_TNH.shape
    phases_T1h = ((np.arange(T) + shift)[:, None] * 1e4 ** (-np.arange(0, H, 2) / H))[:, None]
    cos, sin = of_tables(np.cos(phases_T1h).astype(np.float32)), of_tables(np.sin(phases_T1h).astype(np.float32))
    x1, x2 = np.split(of_inputs(x_TNH), 2, -1)
    halves = (
        of_products(of_products(x1 * cos) - of_products(x2 * sin)),
        of_products(of_products(x2 * cos) + of_products(x1 * sin)),
    )
    return of_inputs(np.concatenate(halves, -1))


@pytest.fixture(scope="module")
def toys():
    """Eq. 4 of the shifts 16 and 0 against 16 by precision: (ours, in numpy)."""
    T = T_OF_TOY
    q_TNH, k_TNH, v_TNH = (np.random.default_rng(0).standard_normal((3, T, 8, 64)).astype(np.float32)).copy()
    found = {}
    mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])
    attend = jax.jit(deviation.compare_rows, static_argnames="spec", compiler_options=deviation.EXACTLY)
    pad = (0, deviation.BLOCK - T)
    segment_ids_T = np.pad(np.zeros(T, np.int32), pad, constant_values=PAD_SEGMENT)
    positions_BT = np.pad(np.arange(T, dtype=np.int32), pad) + np.array([[16], [16], [0]], np.int32)
    for name in ("fp32", "bf16", "bf16-tables", "bf16-rotation"):
        precision = PRECISIONS[name]
        sizes = {"num_layers": 1, "num_heads": 8, "num_kv_heads": 8, "head_dim": 64}
        sizes |= {"compute_dtype": precision.compute}
        spec = spec_of(sizes, rope={"dtype": precision.rotation}, max_position=1024)
        with jax.set_mesh(mesh):
            put = lambda x, spec: jax.device_put(x, jax.NamedSharding(mesh, spec))  # noqa: E731
            options = (put(positions_BT, sharding.BATCH), (T,), spec, precision)
            sight = deviation._context(Mask.from_segments(jnp.asarray(segment_ids_T)[None], 0), *options)
            rows = [
                put(jnp.asarray(np.stack([np.pad(x, (pad, (0, 0), (0, 0)))] * 3), precision.compute), sharding.HEADS)
                for x in (q_TNH, k_TNH, v_TNH)
            ]
            ours_p = np.asarray(attend(*rows, sight, spec=spec)[1][0]).sum((1, 2, 3))
        sees_TS = np.tri(T, dtype=bool)
        weights = [
            softmax(np.einsum("tnh,snh->nts", toy(name, q_TNH, d), toy(name, k_TNH, d)) / 8, sees_TS)[None]
            for d in (0, 16)
        ]
        found[name] = ours_p, deviation_of(*weights, sees_TS)
    return found


def test_toy_deviates_as_its_roundings_written_out(toys):
    for name, (ours_p, by_hand) in toys.items():
        assert ours_p[0] == 0, name  # at the same positions
        assert ours_p[1] == pytest.approx(by_hand, rel=1 if name == "fp32" else 0.01), name
    assert toys["fp32"][0][1] < FP32
    assert toys["bf16"][0][1] == pytest.approx(BF16, rel=0.05)
    assert toys["bf16-rotation"][0][1] == pytest.approx(ALL_BF16, rel=0.05)


def test_each_rounding_adds_to_the_deviation(toys):
    fp32, bf16, tables, rotation = (ours_p[1] for ours_p, _ in toys.values())
    assert 100 * fp32 < bf16 < tables < rotation


@pytest.mark.parametrize("window", [pytest.param(0, marks=pytest.mark.slow), 40])
def test_what_is_measured_is_the_attention_of_plain(window):
    """Documents behind an anchor, at shifted positions, with a softcap and a scale of the queries."""
    T = deviation.BLOCK
    model = {"num_layers": 1, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "compute_dtype": "float32"}
    model |= {"attention_soft_cap": 2.0, "query_scale": 5.0, "sliding_window": window}
    spec = spec_of(model, tiles=(16, 16), max_position=1024)
    segment_ids_BT = np.tile(np.repeat([0, 1, 2], [1, 60, T - 61]), (2, 1)).astype(np.int32)
    positions_BT = np.arange(T, dtype=np.int32) + np.array([[16], [700]], np.int32)
    mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        put = lambda x, spec: jax.device_put(x, jax.NamedSharding(mesh, spec))  # noqa: E731
        qkv = [put(RNG.standard_normal((2, T, n, 16)).astype(np.float32), sharding.HEADS) for n in (4, 2, 2)]
        positions_BT = put(positions_BT, sharding.BATCH)
        (mask,) = masks_of_kinds(Mask.from_segments(put(segment_ids_BT, sharding.BATCH), 1), spec)
        (context,) = plain.contexts([mask], positions_BT, spec)
        wanted, _ = plain.attend(*qkv, context, spec)
        (mask,) = masks_of_kinds(Mask.from_segments(jnp.asarray(segment_ids_BT[:1]), 1), spec)
        compared = deviation._context(mask, positions_BT, (T,), spec, PRECISIONS["fp32"])
        found, _ = deviation.compare_rows(*qkv, compared, spec)
    np.testing.assert_allclose(found, wanted, atol=2e-6)


# Whole models, against transformers


@pytest.fixture(scope="module", params=["llama untied", "mistral"])
def pair(request, tmp_path_factory):
    """(transformers' model, ours on one device, its window)."""
    directory = tmp_path_factory.mktemp("model")
    theirs = tiny.make(request.param, directory)
    write_tokenizer(directory)
    description = language_model.describe(hf=directory, dtype="float32")
    mesh = language_model.make_mesh(description.model, 1)
    return theirs, language_model.load(description, mesh), description.model.sliding_window or None


def make_row(T: int = 60) -> Row:
    """Three documents behind an anchor, at their places, at ones of their own, and far apart."""
    segment_ids_T = np.concatenate([[0], np.repeat([1, 2, 3], [21, 20, T - 42])]).astype(np.int32)
    index_T = np.arange(T, dtype=np.int32)
    reset_T = np.concatenate([[0], np.arange(21), np.arange(20), np.arange(T - 42)]).astype(np.int32)
    tokens_T = RNG.integers(3, tiny.VOCABULARY, T).astype(np.int32)
    return Row(tokens_T, segment_ids_T, 1, np.stack([index_T, reset_T, 3 * index_T]))


def sees(row: Row, window: int | None) -> np.ndarray:
    index_T, segment_ids_T = np.arange(len(row.tokens_T)), row.segment_ids_T
    arrays = (index_T[:, None], index_T, segment_ids_T[:, None], segment_ids_T)
    return allowed(*arrays, row.num_anchors, window)


def their_logits(theirs, row: Row, positions_T: np.ndarray, sees_TS: np.ndarray) -> np.ndarray:
    """[L, N, T, S] of a whole forward pass."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    mask = torch.where(torch.tensor(sees_TS), 0.0, torch.finfo(torch.float32).min)[None, None]
    positions = torch.tensor(positions_T)[None].long()
    found = []
    with torch.no_grad():
        ids = torch.tensor(row.tokens_T)[None].long()
        hidden = theirs(ids, position_ids=positions, attention_mask=mask, output_hidden_states=True).hidden_states
        for layer, x in zip(theirs.model.layers, hidden, strict=False):
            x, attention = layer.input_layernorm(x), layer.self_attn
            q, k = (
                y.reshape(1, len(row.tokens_T), -1, attention.head_dim).transpose(1, 2)
                for y in (attention.q_proj(x), attention.k_proj(x))
            )
            q, k = apply_rotary_pos_emb(q, k, *theirs.model.rotary_emb(x, positions))
            k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
            found.append((q @ k.transpose(2, 3) * attention.scaling)[0])
    return torch.stack(found).double().numpy()


def test_both_equations_by_brute_force(pair):
    theirs, ours, window = pair
    row, lengths = make_row(), (25, 60)
    found = deviation.measure(ours, row, PRECISIONS["fp32"], lengths, max_position=256)
    sees_TS = sees(row, window)
    logits = [their_logits(theirs, row, positions_T, sees_TS) for positions_T in row.positions_PT]
    starts_T = np.isin(np.arange(60), (1, 22, 42))
    groups = {"first": np.arange(60) == 0, "starts": starts_T, "others": ~starts_T & (np.arange(60) > 0)}
    for p, m in ((p, m) for p in range(2) for m in range(2)):
        length = lengths[m]
        short = np.s_[..., :length, :length]
        weights = [softmax(x[short], sees_TS[short]) for x in (logits[0], logits[p + 1])]
        for g, group in enumerate(GROUPS):
            expected = deviation_of(*weights, sees_TS[short], groups[group][:length])
            np.testing.assert_allclose(found.attention_pgML[p, g, m].sum(), expected, rtol=1e-3, err_msg=group)
        moved = np.abs(logits[p + 1] - logits[0])[short] * sees_TS[short]
        np.testing.assert_allclose(found.logit_pML[p, m], moved[..., 0].mean(-1).sum(-1), rtol=1e-3)
        means = (moved.sum(-1) / sees_TS[short].sum(-1)).mean(-1)
        np.testing.assert_allclose(found.all_logits_pML[p, m], means.sum(-1), rtol=1e-3)
    np.testing.assert_allclose(found.columns_pT.sum(-1), found.attention_pgML[:, :, -1].sum((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(found.columns_pT[:, 0], found.attention_pgML[:, 0, -1].sum(-1), rtol=1e-5)


def test_float32_phases_deviate_where_positions_are_far(pair):
    row, index_T = make_row(), np.arange(60, dtype=np.int32)
    far = Row(row.tokens_T, row.segment_ids_T, 1, index_T + np.array([[16], [0], [2**20 - 60]], np.int32))
    exact, rounded = (
        deviation.measure(pair[1], far, PRECISIONS[name], (25, 60), 2**20).attention_pgML.sum((1, 2, 3))
        for name in ("fp32", "fp32-phases32")
    )
    assert exact.max() < 3 * exact.min()
    assert rounded[0] == pytest.approx(exact[0], rel=1)
    assert rounded[1] > 100 * exact[1]


@pytest.mark.parametrize("pair", ["llama untied"], indirect=True)
def test_stripes_and_meshes_change_nothing(pair, monkeypatch):
    """A row of several stripes is what its beginning is in one, and devices share heads and rows of it."""
    _, ours, _ = pair
    row = make_row(150)
    beginning = Row(row.tokens_T[:60], row.segment_ids_T[:60], 1, row.positions_PT[:, :60])
    short = deviation.measure(ours, beginning, PRECISIONS["fp32"], (60,), max_position=2048)
    with monkeypatch.context() as patch:
        patch.setattr(deviation, "BLOCK", 32)
        long = deviation.measure(ours, row, PRECISIONS["fp32"], (60, 150), max_position=2048)
    np.testing.assert_allclose(long.attention_pgML[:, :, 0], short.attention_pgML[:, :, 0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(long.logit_pML[:, 0], short.logit_pML[:, 0], rtol=1e-4)
    everywhere = language_model.load(ours.description)
    assert everywhere.mesh.shape["tensor"] == 2 and everywhere.mesh.shape["fsdp"] == 4
    spread = deviation.measure(everywhere, beginning, PRECISIONS["fp32"], (60,), max_position=2048)
    for name in ("attention_pgML", "logit_pML", "all_logits_pML", "columns_pT"):
        np.testing.assert_allclose(getattr(spread, name), getattr(short, name), rtol=1e-4, atol=1e-6, err_msg=name)


def test_keys_no_query_sees_weigh_nothing():
    norms_MS = deviation.column_norms(np.array([0, 0, 1, -1]), 0, None, (2, 4))
    assert norms_MS.tolist() == [[1 / 2, 1, 0, 0], [1 / 2, 1, 1, 0]]
    groups_gS = deviation.column_groups(np.array([0, 0, 1, -1]))
    assert groups_gS.tolist() == [[True, False, False, False], [False, False, True, False], [False, True, False, False]]
