"""The modelled time of a step: small cases by hand, sums, and which way each input moves it."""

import dataclasses
import types

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from anchorjax.models import flops
from anchorjax.plan import exchanges, hardware, tiles, time, work
from anchorjax.plan.documents import Documents
from anchorjax.plan.exchanges import Exchange
from anchorjax.plan.links import Links
from tests import tiny
from tests.plan.meshes import FakeMesh

H100, V5P = hardware.HARDWARE["h100"], hardware.HARDWARE["v5p"]


def mesh_of(*sizes, chips=None):
    """GPUs numbered node by node, or a torus of chips."""
    devices = np.empty(int(np.prod(sizes)), object)
    places = list(np.ndindex(*chips)) if chips else [None] * len(devices)
    devices[:] = [types.SimpleNamespace(id=number, coords=place, slice_index=0) for number, place in enumerate(places)]
    return FakeMesh(devices.reshape(sizes))


def config_of(**changes):
    sizes = {"num_layers": 4, "d_model": 1024, "d_ff": 4096, "num_heads": 8, "num_kv_heads": 4, "head_dim": 128}
    sizes |= {"vocab_size": 32000, "compute_dtype": "bfloat16", "tie_embeddings": False}
    given = {f"model__{name}": value for name, value in sizes.items()}
    given |= {"data__seq_len": 8192, "data__batch_size": 8, "attention__q_tile": 512, "attention__kv_tile": 512}
    given |= {"attention__implementation": "pallas_gpu"}
    return tiny.config(**given | changes)


def documents_of(config, live_tiles=40.0, pairs=None, imbalance=1.0, batch_wait=1.0):
    """Rows with so many live tiles of 512, of which three quarters is visible."""
    names = {field.name: 0 for field in dataclasses.fields(Documents)}
    pairs = live_tiles * 512 * 512 * 0.75 if pairs is None else pairs
    found = {"source": "a test", "q_tile": 512, "kv_tile": 512, "live_tiles": live_tiles, "pairs": pairs}
    return Documents(**names | found | {"imbalance": imbalance, "batch_wait": batch_wait, "fill": 0.9})


def seconds_of(made, *names):
    return sum(part.seconds for part in made.parts if any(name in part.name for name in names))


def test_products_by_hand():
    """One device, 65536 tokens: 6 FLOPs a weight and token, 2 more for all but the last product, and the loss."""
    config, alone = config_of(), {"data": 1, "fsdp": 1, "context": 1, "tensor": 1}
    D, F, H, V = 1024, 4096, 128, 32000
    attention, ffn = D * H * 2 * (8 + 4), 3 * D * F
    layers, loss = work.product_flops(config, alone)
    assert layers == 65536 * 4 * (6 * (attention + ffn) + 2 * (attention + 2 * D * F))
    assert loss == 65536 * D * V * (2 + 4 + 4)  # two parts of the logits' fp32 gradient, in each of two products
    assert work.product_flops(config_of(model__remat="none"), alone)[0] == 65536 * 4 * 6 * (attention + ffn)
    # Eight devices share tokens along fsdp and context, and weights along tensor.
    assert work.product_flops(config, {"data": 1, "fsdp": 2, "context": 2, "tensor": 2})[0] == layers / 8
    # The model's own FLOPs are those of the products, but for recomputation and the second part.
    needed = flops.train_flops(config.model, 65536, 0)
    assert needed == 65536 * (4 * 6 * (attention + ffn) + 6 * D * V)


def test_attention_on_a_gpu_by_hand():
    """40 live tiles of 512 x 512 x 128, 7 products of each, 8 rows, 4 layers and 8 heads on 8 devices."""
    config = config_of()
    made = time.model(config, mesh_of(1, 4, 2, 1), H100, documents_of(config))
    each = 7 * 2 * 512 * 512 * 128 / (989e12 * tiles.GPU_SHARE["h100"])
    assert seconds_of(made, "attention kernels") == pytest.approx(40 * each * 8 * 4 * 8 / 8)
    twice = time.model(config_of(model__remat="full"), mesh_of(1, 4, 2, 1), H100, documents_of(config))
    assert seconds_of(twice, "attention kernels") == pytest.approx(40 * each * 9 / 7 * 8 * 4 * 8 / 8)


def test_attention_on_a_tpu_by_hand():
    cost = tiles.COST["v5p", 512, 512]
    config = config_of(attention__implementation="pallas_tpu")
    made = time.model(config, mesh_of(1, 4, 2, 1, chips=(2, 2, 2)), V5P, documents_of(config))
    # A quarter of what the tiles hold is hidden, so half of them are masked; 16 lines of tiles in a row.
    cycles = sum(
        20 * cost[which].whole + 20 * cost[which].masked + 40 * cost[which].step + 16 * cost[which].line
        for which in tiles.PASSES
    )
    # Two cores of 1.75 GHz share the heads.
    assert seconds_of(made, "attention kernels") == pytest.approx(cycles / 2 / 1.7509e9 * 8 * 4 * 8 / 8, rel=1e-3)


def test_parts_sum_to_the_step_within_its_bounds():
    for mesh, facts in ((mesh_of(1, 8, 2, 1), H100), (mesh_of(1, 4, 2, 1, chips=(2, 2, 2)), V5P)):
        config = config_of(attention__implementation="pallas_tpu" if facts.is_tpu else "pallas_gpu")
        made = time.model(config, mesh, facts, documents_of(config, imbalance=1.3))
        assert made.seconds == pytest.approx(sum(part.seconds for part in made.parts))
        assert made.low <= made.seconds <= made.high
        assert all(part.seconds >= 0 and part.hidden >= 0 and part.how for part in made.parts)
        peak = facts.peak_flops * mesh.devices.size
        needed = flops.train_flops(config.model, 0.9 * 8 * 8192, 8 * documents_of(config).pairs)
        assert made.mfu == pytest.approx(needed / made.seconds / peak)
        assert 0 < made.mfu < 1 and made.assumptions


def test_exchanges_of_the_layers_hide_behind_computation_and_no_further():
    links = Links(mesh_of(1, 8, 8, 1), H100)
    layer = Exchange("forward layer", "all-gather", ("fsdp",), 50e9, True)  # 1 s over the network
    waited = Exchange("forward attention", "all-gather", ("context",), 450e9, True)  # 1 s over NVLink
    synchronous = dataclasses.replace(layer, place="backward layer", is_overlapped=False)

    def parts(*found, beside):
        return {part.name: (part.seconds, part.hidden) for part in time.exchange_parts(found, links, beside)}

    assert parts(layer, beside=2.0) == {"forward layer: along fsdp": (0.0, 1.0)}
    assert parts(layer, beside=0.25) == {"forward layer: along fsdp": (0.75, 0.25)}
    found = parts(layer, waited, synchronous, beside=5.0)
    assert found["forward attention: along context"] == pytest.approx((1.0, 0.0))
    assert found["backward layer: along fsdp"] == (1.0, 0.0)
    twice = time.exchange_parts([layer, dataclasses.replace(layer, place="backward layer")], links, 1.5)
    assert sum(part.hidden for part in twice) == 1.5  # one second of computation hides one second of exchange
    activations = dataclasses.replace(layer, axes=("tensor", "fsdp"))
    assert parts(activations, beside=2.0)["forward layer: along tensor+fsdp"][1] == 0  # the next product waits for them


@settings(max_examples=40, deadline=None)
@given(
    st.floats(16, 136),
    st.floats(1, 4),
    st.floats(1, 3),
    st.floats(1, 4),
    st.sampled_from(["attention", "none", "full", "offload"]),
)
def test_more_work_never_takes_less_time(live, more, imbalance, wait, remat):
    config, mesh = config_of(model__remat=remat), mesh_of(1, 8, 2, 1)
    seconds = lambda **kwargs: time.model(config, mesh, H100, documents_of(config, **kwargs)).seconds  # noqa: E731
    base = seconds(live_tiles=live)
    assert seconds(live_tiles=min(136, live * more)) >= base
    waiting = seconds(live_tiles=live, imbalance=imbalance, batch_wait=wait)
    assert waiting >= base
    busy = seconds_of(time.model(config, mesh, H100, documents_of(config, live_tiles=live)), "attention kernels")
    assert waiting - base == pytest.approx(busy * (imbalance * wait - 1), abs=1e-9)  # attention alone waits
    slower = dataclasses.replace(
        H100, network_bytes_per_s=H100.network_bytes_per_s / more, peak_flops=H100.peak_flops / more
    )
    assert time.model(config, mesh, slower, documents_of(config, live_tiles=live)).seconds >= base


def test_ulysses_waits_for_no_shard():
    config = config_of(mesh__context_strategy="ulysses")
    made = time.model(config, mesh_of(1, 4, 2, 1), H100, documents_of(config, imbalance=3.0))
    assert seconds_of(made, "waiting") == 0


def test_offloaded_activations_are_copied_beside_the_layers_and_moments_are_waited_for():
    config = config_of(model__remat="offload", optimizer__moments_on="host")
    shape = {"data": 1, "fsdp": 8, "context": 1, "tensor": 1}
    moved = 2 * (1024 * 2 + 8 * (128 * 2 + 4)) * 8192 * 4  # the layer's input, the output and its log-sum-exp
    copied = work.host_copies(config, shape, H100, beside=1.0)
    assert copied[0].seconds == 0 and copied[0].hidden == pytest.approx(moved / 64e9)
    assert work.host_copies(config, shape, H100, beside=0.0)[0].seconds == pytest.approx(moved / 64e9)
    weights = (4 * (1024 * 128 * 24 + 3 * 1024 * 4096) + 2 * 32000 * 1024) / 8
    assert copied[1].seconds == pytest.approx(4 * 4 * weights / 64e9)


def test_a_ring_is_modelled_by_formula_as_its_loop_counts_once():
    config = config_of(mesh__context_strategy="ring")
    wanted = [
        one
        for one in exchanges.formula(config, {"data": 1, "fsdp": 4, "context": 2, "tensor": 1})
        if "attention" in one.place
    ]
    assert {one.kind for one in wanted} == {"collective-permute"}
    found = time.exchanges_of(config, mesh_of(1, 4, 2, 1), "ENTRY %main (p: f32[8]) -> f32[8] {\n}\n")
    assert list(found) == wanted


def test_cost_counts_chips_and_hours():
    spent = time.cost(2.0, 3600, 512, hardware.HARDWARE["tpu7x"], 1.5)
    assert (spent.hours, spent.chip_hours, spent.price) == (2.0, 512.0, 768.0)
    assert time.cost(2.0, 3600, 64, V5P).price is None
