import contextlib
import dataclasses
import itertools
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from anchorjax import data
from anchorjax.config import DataConfig
from anchorjax.data.rows.packing import RowPacker
from anchorjax.data.rows.row import stack
from anchorjax.data.store import tokens as store_lib
from anchorjax.data.text import tokenizer as tokenizer_lib

HERE = pathlib.Path(__file__).parent
TOKENIZER = tokenizer_lib.load("bytes")
# 39 documents of 2 to 78 tokens: 1560 tokens, 103.98 rows of 15.
STORE = store_lib.build([{"text": "x" * (2 * i + 1)} for i in range(39)], TOKENIZER)
SEED = 11


def config_of(**changes):
    config = DataConfig(
        source="public_domain",
        store="",
        tokenizer="bytes",
        data_dir="/nonexistent",
        text_key="text",
        source_key="source",
        held_out_share=0.01,
        bad_rows="raise",
        max_bad_share=0.0,
        max_row_bytes=2**24,
        seq_len=16,
        batch_size=4,
        mask="anchor",
        positions="continue",
        max_position=0,
        pose_chunks=2,
        boundary_targets=False,
        packing="concat_split",
        tags=False,
        interleave=0,
        upsample_long=False,
        prefetch=2,
        workers=0,
    )
    return dataclasses.replace(config, **changes)


def train(steps, *, start_step=0, rows=None, **changes):
    """The first batches from `start_step`, as a list."""
    batches = data.train_batches(
        STORE,
        TOKENIZER,
        config_of(**changes),
        seed=SEED,
        start_step=start_step,
        rows=rows,
    )
    try:
        return list(itertools.islice(batches, steps))
    finally:
        batches.close()


def assert_equal(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        for field in dataclasses.fields(one):
            np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


def packer(seed):
    options = {"mask": "anchor", "positions": "continue", "boundary_targets": False}
    return RowPacker(STORE, 16, seed, anchor_id=TOKENIZER.bos_id, pad_id=TOKENIZER.pad_id, **options)


def test_step_s_is_the_s_th_group_of_rows_through_several_epochs():
    rows = packer(SEED)
    steps = 3 * rows.rows_per_epoch // 4
    assert_equal(train(steps), [stack([rows.row(4 * s + i) for i in range(4)]) for s in range(steps)])


@pytest.mark.parametrize("start_step", [1, 13, 26, 27, 1_000_003])
def test_a_run_resumes_at_any_step(start_step):
    rows = packer(SEED)
    expected = [stack([rows.row(4 * s + i) for i in range(4)]) for s in range(start_step, start_step + 3)]
    assert_equal(train(3, start_step=start_step), expected)


@pytest.mark.parametrize("rows", [(0,), (2, 3), (1, 3), (0, 1, 2, 3)])
def test_a_process_reads_its_rows_of_every_batch(rows):
    for whole, part in zip(train(30), train(30, rows=rows), strict=True):
        for field in dataclasses.fields(whole):
            np.testing.assert_array_equal(getattr(part, field.name), getattr(whole, field.name)[list(rows)])


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_the_order(workers):
    assert_equal(train(7, start_step=24, workers=workers), train(7, start_step=24))


@pytest.mark.parametrize("prefetch", [0, 1])
def test_prefetching_does_not_change_the_order(prefetch):
    assert_equal(train(7, prefetch=prefetch), train(7))


def test_the_settings_reach_the_rows():
    changed = {"mask": "full", "positions": "reset", "boundary_targets": True, "seq_len": 128}
    (batch,) = train(1, **changed)
    assert batch.tokens_BT.shape == (4, 128)
    assert set(batch.segment_ids_BT.ravel()) == {0}
    assert np.any(batch.positions_BT[:, 2:] == 0)
    ends = np.argwhere(batch.tokens_BT[:, :-1] == TOKENIZER.eos_id)
    assert np.all(batch.is_target_BT[ends[:, 0], ends[:, 1]] == 1)


def test_evaluation_reads_every_row_once_in_document_order():
    rows = packer(None)
    batches = list(data.eval_rows(STORE, TOKENIZER, config_of(batch_size=5), max_rows=0))
    assert {batch.tokens_BT.shape for batch in batches} == {(5, 16)}
    assert rows.rows_per_epoch == 104 and len(batches) == 21
    expected = [*(rows.row(i) for i in range(104)), rows.empty_row()]
    assert_equal(batches, [stack(expected[i : i + 5]) for i in range(0, 105, 5)])
    inner = [batch.tokens_BT[batch.segment_ids_BT > 0] for batch in batches]
    np.testing.assert_array_equal(np.concatenate(inner), STORE.tokens)


def test_evaluation_stops_at_max_rows():
    batches = list(data.eval_rows(STORE, TOKENIZER, config_of(), max_rows=6))
    parts = list(data.eval_rows(STORE, TOKENIZER, config_of(), max_rows=6, rows=(1, 3)))
    assert_equal(parts, [jax.tree.map(lambda x: x[[1, 3]], batch) for batch in batches])
    whole = list(data.eval_rows(STORE, TOKENIZER, config_of(), max_rows=0))
    assert len(batches) == 2
    assert_equal(batches[:1], whole[:1])
    np.testing.assert_array_equal(batches[1].tokens_BT[:2], whole[1].tokens_BT[:2])
    assert batches[1].is_target_BT[2:].sum() == 0


def test_load_store_reads_the_shipped_corpus(tmp_path):
    config = config_of(data_dir=str(tmp_path))
    tokenizer = data.load_tokenizer(config)
    store = data.load_store(config, "validation", tokenizer)
    assert (tokenizer.name, store.num_documents) == ("bytes", 58)
    assert tokenizer.decode(store.document(0)).startswith("CHAPTER VII\n\n\nEmma's very good opinion")


def test_impossible_settings_fail_at_the_call():
    with pytest.raises(ValueError, match=r"rows are \(3, 4\); allowed: some of 0 to 3"):
        train(0, rows=(3, 4))
    with pytest.raises(ValueError, match="start_step is -1"):
        train(0, start_step=-1)


GROUP = """
import signal, time

if __name__ == "__main__":
    import test_loader
    from anchorjax import data

    batches = data.train_batches(
        test_loader.STORE, test_loader.TOKENIZER, test_loader.config_of(workers=1), seed=1, start_step=0
    )
    next(batches)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "grain took the trainer's signal"
    seen = []
    signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
    print("ready", flush=True)
    while not seen:
        time.sleep(0.01)
    for _ in range(20):
        next(batches)
    batches.close()
    print("done", flush=True)
"""


@pytest.fixture
def trainer(tmp_path):
    """A training process with one worker, in a process group of its own."""
    (tmp_path / "group.py").write_text(GROUP)  # a file, because workers start by importing the main module
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "group.py")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)])},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "ready\n"
    yield process
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def wait_for_the_end_of_the_group(group):
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError("workers stayed behind")


def test_workers_outlive_a_sigterm_to_the_process_group(trainer):
    os.killpg(trainer.pid, signal.SIGTERM)
    assert trainer.stdout.read() == "done\n"
    assert trainer.wait(timeout=30) == 0
    wait_for_the_end_of_the_group(trainer.pid)


def test_workers_do_not_outlive_a_killed_trainer(trainer):
    os.kill(trainer.pid, signal.SIGKILL)
    trainer.wait()
    wait_for_the_end_of_the_group(trainer.pid)
