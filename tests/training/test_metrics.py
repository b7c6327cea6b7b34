"""What a run writes and prints of itself."""

import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboardX.proto import event_pb2

from anchorjax.models import flops
from anchorjax.training import metrics
from tests import tiny


@pytest.fixture
def clock(monkeypatch):
    """perf_counter that stands still unless moved: `clock[0] += seconds`."""
    now = [100.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    return now


def step_metrics(tokens=128.0, pairs=1000.0):
    return {"tokens": tokens, "live_pairs": pairs}


def test_rates_by_hand(clock):
    config = tiny.config(train__peak_tflops=1e-6)
    rates = metrics.Rates(config)
    assert rates.read() == {} and rates.totals() == {}
    clock[0] += 50  # compilation
    rates.add(step_metrics())
    assert rates.read() == {}
    for _ in range(4):
        clock[0] += 0.5
        rates.add(step_metrics())
    got = rates.read()
    live = flops.train_flops(config.model, 4 * 128, 4 * 1000) / 2
    causal = flops.train_flops(config.model, 4 * 128, 4 * 2 * 64 * 65 / 2) / 2
    assert got == pytest.approx(
        {
            "tokens_per_s": 4 * 128 / 2,
            "step_s": 0.5,
            "tflops": live / 1e12,
            "tflops_causal_equivalent": causal / 1e12,
            "mfu": live / 8e6,
            "mfu_causal_equivalent": causal / 8e6,
        }
    )


def test_mfu_is_left_out_where_the_peak_is_unknown(clock):
    rates = metrics.Rates(tiny.config())
    for _ in range(2):
        rates.add(step_metrics())
        clock[0] += 1
    assert not [name for name in rates.read() if "mfu" in name]


def test_pause_is_not_training_time_and_totals_add_up(clock):
    rates = metrics.Rates(tiny.config())
    rates.pause(1000)  # before the clock runs: no effect
    rates.add(step_metrics())
    for _ in range(2):
        clock[0] += 10
        rates.pause(9)
        rates.add(step_metrics())
        assert rates.read()["step_s"] == pytest.approx(1.0)
    clock[0] += 2
    rates.add(step_metrics(tokens=64.0))
    assert rates.read()["tokens_per_s"] == pytest.approx(32)
    totals = rates.totals()
    assert (totals["tokens"], totals["seconds"]) == (320, pytest.approx(4.0))
    assert totals["tokens_per_s"] == pytest.approx(80)


losses = st.floats(0, 100, width=32)


@given(st.lists(st.tuples(losses, st.integers(0, 2**24)), min_size=1, max_size=40), st.integers(1, 12), st.data())
def test_a_logged_loss_is_that_of_all_targets_of_its_steps(steps, log_every, draw):
    """Against exact fractions, after every step; resumed at a multiple of log_every, each later mean is the same."""
    unbroken, resumed = metrics.MeanLoss(log_every), metrics.MeanLoss(log_every)
    first = log_every * draw.draw(st.integers(0, (len(steps) - 1) // log_every))
    for step, (loss, targets) in enumerate(steps, 1):
        unbroken.add(step, {"loss": loss, "targets": float(targets)})
        own = steps[(step - 1) // log_every * log_every : step]
        nats, number = sum(Fraction(loss) * targets for loss, targets in own), sum(targets for _, targets in own)
        assert unbroken.read() == pytest.approx(float(nats / max(number, 1)), rel=1e-13)
        if len(own) == 1 and targets:
            assert unbroken.read() == loss
        if step > first:
            resumed.add(step, {"loss": loss, "targets": float(targets)})
            assert resumed.read() == unbroken.read()


def test_a_mean_after_resuming_between_two_lines_has_the_steps_since_then():
    mean = metrics.MeanLoss(log_every=10)
    for step, loss, targets in [(18, 9.0, 1.0), (19, 5.0, 3.0), (20, 2.0, 4.0)]:
        mean.add(step, {"loss": loss, "targets": targets})
    assert mean.read() == (9 + 15 + 8) / 8
    mean.add(21, {"loss": 7.0, "targets": 2.0})
    assert mean.read() == 7.0


def test_resumed_file_drops_what_will_be_repeated_and_what_was_cut_off(tmp_path):
    file = tmp_path / "metrics.jsonl"
    whole = [
        json.dumps({"step": step, "kind": kind, "loss": 0.1}) + "\n"
        for step, kind in [(1, "train"), (2, "train"), (2, "eval"), (3, "train"), (4, "train")]
    ]
    ruined = "\0\0\0\n[]\n{}\n"
    file.write_bytes(("".join(whole[:1]) + ruined + "".join(whole[1:]) + '{"step": 2, "kind": "tr').encode() + b"\xff")
    writer = metrics.Writer(tmp_path, 2, 10, tensorboard=False)
    assert file.read_text() == "".join(whole[:3])
    writer.write(3, "train", {"loss": 0.2})
    writer.close()
    assert [json.loads(line) for line in file.read_text().splitlines()][-1] == {
        "step": 3,
        "kind": "train",
        "loss": 0.2,
    }
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_last_evaluation_comes_again_until_the_run_is_finished(tmp_path):
    writer = metrics.Writer(tmp_path, 0, 4, tensorboard=False)
    for kind in ("train", "eval"):
        writer.write(4, kind, {"loss": 0.2})
    writer.close()
    metrics.Writer(tmp_path, 4, 4, tensorboard=False).close()
    assert [json.loads(line)["kind"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == ["train"]


def test_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
    writer = metrics.Writer(tmp_path, 0, 10, tensorboard=False)
    writer.write(1, "train", {"loss": 1.5})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "kind": "train", "loss": 1.5}
    writer.close()
    assert not (tmp_path / "tensorboard").exists()


def events(directory):
    """Every event of TensorBoard's record files: length (8), its crc (4), the event, its crc (4)."""
    for file in sorted(directory.glob("events.*")):
        content = file.read_bytes()
        while content:
            size = int.from_bytes(content[:8], "little")
            yield event_pb2.Event.FromString(content[12 : 12 + size])
            content = content[16 + size :]


def test_tensorboard_holds_the_same_figures(tmp_path):
    writer = metrics.Writer(tmp_path, 0, 10, tensorboard=True)
    writer.write(3, "train", {"loss": 1.5, "tokens": 7})
    writer.write(4, "eval", {"loss": 0.5, "by_position": {"0-64": 1.0}})
    writer.close()
    got = {(e.step, v.tag, v.simple_value) for e in events(tmp_path / "tensorboard") for v in e.summary.value}
    assert got == {(3, "train/loss", 1.5), (3, "train/tokens", 7.0), (4, "eval/loss", 0.5)}


def test_progress_is_plain_lines_where_there_is_no_terminal(capsys, clock):
    progress = metrics.Progress(steps=10, first_step=2)
    progress.step(3)
    progress.show(3, 5.43216, None)
    clock[0] += 30
    progress.step(4)
    progress.show(4, 4.0, 1234.5)
    progress.say("held out")
    progress.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "step 3/10  loss 5.4322  compiled",
        "step 4/10  loss 4.0000  1,234 tokens/s  ETA 3:00",
        "held out",
    ]
