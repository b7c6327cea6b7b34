"""A directory belongs to one configuration and one job."""

import errno
import json
import os
import subprocess
import sys

import pytest

from anchorjax.config import KEYS, load_config
from anchorjax.errors import WorkdirError
from anchorjax.training.workdir import Workdir, differences, load_commands
from tests import tiny


def test_config_json_holds_the_resolved_configuration(tmp_path):
    config = tiny.config()
    with Workdir(tmp_path / "a" / "b").open(config).begin() as workdir:
        assert json.loads((workdir.path / "config.json").read_text()) == config.to_dict()
        assert load_config(workdir.path) == config.to_dict()


def trained(path, config=None) -> None:
    """A directory as a run leaves it at its first save, but for what is in its checkpoint."""
    Workdir(path).open(config or tiny.config()).begin().close()
    (path / "checkpoints" / "00000004").mkdir(parents=True)


def test_other_configuration_is_refused_with_all_differences(tmp_path):
    trained(tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    other = tiny.config(seed=5, model__num_layers=3, mesh__tensor=2)
    with pytest.raises(WorkdirError) as caught:
        Workdir(tmp_path).open(other)
    assert "model.num_layers: 2 -> 3; seed: 0 -> 5" in str(caught.value)
    assert "mesh" not in str(caught.value) and "\n" not in str(caught.value)
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_configuration_that_trained_nothing_may_be_corrected(tmp_path):
    wrong, right = tiny.config(seed=1), tiny.config()
    Workdir(tmp_path).open(wrong).begin("a wrong command").close()
    (tmp_path / "metrics.jsonl").touch()  # as before the first line
    (tmp_path / "checkpoints").mkdir()
    Workdir(tmp_path).open(right).begin("the right one").close()
    assert load_config(tmp_path) == right.to_dict() and load_commands(tmp_path) == ["the right one"]


@pytest.mark.parametrize("kept", ["metrics.jsonl", "checkpoints/unreadable-00000004-1"])
def test_whatever_a_run_has_left_keeps_its_configuration(tmp_path, kept):
    Workdir(tmp_path).open(tiny.config()).begin().close()
    (tmp_path / kept).parent.mkdir(exist_ok=True)
    (tmp_path / kept).write_text("{}\n")
    with pytest.raises(WorkdirError, match="seed: 0 -> 1"):
        Workdir(tmp_path).open(tiny.config(seed=1))


def test_a_copied_source_keeps_the_checkpoint_that_it_is_of(tmp_path):
    Workdir(tmp_path).open(tiny.config(init_from="a")).begin().close()
    (tmp_path / "source").mkdir()
    with pytest.raises(WorkdirError, match="init_from: 'a' -> 'b'"):
        Workdir(tmp_path).open(tiny.config(init_from="b"))
    Workdir(tmp_path).open(tiny.config(init_from="a", data__batch_size=4)).close()


def test_a_directory_of_something_else_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(WorkdirError, match="holds a run of another configuration"):
        Workdir(tmp_path).open(tiny.config())
    assert json.loads((tmp_path / "config.json").read_text()) == {"model_type": "llama"}


CHANGES = {"str": "elsewhere", "bool": True, "int": 3, "float": 0.25}
CHOICES = {"implementation": "reference", "bad_rows": "skip", "context_strategy": "ulysses", "remat": "full"}
CHOICES |= {"context_layout": "zigzag", "moments_on": "host"}
CHOICES |= {"compiler_flags": "none", "shard_weights_over": "fsdp_context", "gradient_dtype": "float32"}
NEEDS = {"ulysses_head_chunks": {"mesh__context_strategy": "ulysses"}}


def free_keys() -> list[str]:
    return [name for name, key in KEYS.items() if key.resume == "free"]


def test_free_keys_are_those_of_where_and_how():
    assert set(free_keys()) == {
        *(
            "mesh.data",
            "mesh.fsdp",
            "mesh.context",
            "mesh.tensor",
            "mesh.slices",
            *("mesh.context_strategy", "mesh.context_layout", "mesh.ulysses_head_chunks"),
            *("mesh.shard_weights_over", "mesh.gradient_dtype"),
            "train.timeout_s",
            "train.compiler_flags",
            "eval.every",
            "eval.rows",
            "eval.final_rows",
        ),
        *("checkpoint.every", "checkpoint.keep", "train.log_every", "train.tensorboard", "train.peak_tflops"),
        *("data.prefetch", "data.workers", "data.data_dir", "data.tokenizer", "data.store", "data.text_key"),
        "data.messages_key",
        *("data.source_key", "data.held_out_share", "data.bad_rows", "data.max_bad_share", "data.max_row_bytes"),
        *("attention.implementation", "attention.q_tile", "attention.kv_tile"),
        *("model.remat", "model.ffn_chunk", "optimizer.moments_on"),
    }


@pytest.mark.parametrize("key", free_keys())
def test_free_key_may_change(tmp_path, key):
    trained(tmp_path)
    section, name = key.split(".")
    old = tiny.mapping()[section][name]
    new = CHOICES.get(name, CHANGES[type(old).__name__])
    changed = tiny.config(**{f"{section}__{name}": new}, **NEEDS.get(name, {}))
    assert changed != tiny.config()
    Workdir(tmp_path).open(changed).begin().close()
    assert load_config(tmp_path) == changed.to_dict()


OTHER_ROWS = {
    "seq_len": 128,
    "mask": "full",
    "positions": "reset",
    "boundary_targets": True,
    "packing": "best_fit",
    "tags": True,
    "interleave": 3,
    "upsample_long": True,
}


@pytest.mark.parametrize("key", OTHER_ROWS)
def test_what_changes_the_rows_of_a_run_is_refused(tmp_path, key):
    trained(tmp_path)
    with pytest.raises(WorkdirError, match=f"data.{key}: .* -> {OTHER_ROWS[key]!r}"):
        Workdir(tmp_path).open(tiny.config(**{f"data__{key}": OTHER_ROWS[key]}))


def test_commands_are_kept_in_turn_and_once(tmp_path):
    assert load_commands(tmp_path) == []
    trained(tmp_path)
    for command in ("", "python train.py a", "python train.py a", "python train.py b"):
        Workdir(tmp_path).open(tiny.config()).begin(command).close()
    assert load_commands(tmp_path) == ["python train.py a", "python train.py b"]
    (tmp_path / "summary.json").write_text("{}")  # of a finished run, which is left as it is
    Workdir(tmp_path).open(tiny.config()).begin("python train.py c").close()
    assert len(load_commands(tmp_path)) == 2


def test_lock_refuses_another_process_and_is_free_after_close(tmp_path):
    code = "import sys; from tests import tiny; from anchorjax.training.workdir import Workdir\n"
    code += "try: Workdir(sys.argv[1]).open(tiny.config())\nexcept Exception as error: sys.exit(str(error))"

    def another():
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        command = [sys.executable, "-c", code, str(tmp_path)]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)

    with Workdir(tmp_path).open(tiny.config()):
        refused = another()
    assert refused.returncode == 1 and "another process" in refused.stderr and str(tmp_path) in refused.stderr
    assert another().returncode == 0


def test_json_is_replaced_in_one_move(tmp_path, monkeypatch):
    with Workdir(tmp_path).open(tiny.config()) as workdir:
        workdir.write_json("summary.json", {"step": 1})
        monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            workdir.write_json("summary.json", {"step": 2})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"step": 1}


def test_directory_without_a_run(tmp_path):
    with pytest.raises(WorkdirError, match="there is no run"):
        load_config(tmp_path)


@pytest.mark.parametrize("content", ["", '{"seed": 0, ', "[]", "\udcff"])
def test_config_json_that_cannot_be_read_is_named_and_kept(tmp_path, content):
    file = tmp_path / "config.json"
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    for read in (lambda: Workdir(tmp_path).open(tiny.config()), lambda: load_config(tmp_path)):
        with pytest.raises(WorkdirError, match=r"config\.json cannot be read") as caught:
            read()
        assert "\n" not in str(caught.value)
    assert file.read_bytes() == content.encode("utf-8", "surrogateescape")


def test_lock_that_cannot_be_opened_is_an_error_of_the_directory(tmp_path):
    (tmp_path / "run.lock").mkdir()
    with pytest.raises(WorkdirError, match="cannot be used"):
        Workdir(tmp_path).open(tiny.config())


def test_a_file_system_without_locks_is_an_error_of_the_directory(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(WorkdirError, match="cannot be used: its file system refuses to lock") as caught:
        Workdir(tmp_path).open(tiny.config())
    assert "\n" not in str(caught.value)


def test_the_lock_is_free_after_any_error(tmp_path, monkeypatch):
    first, second = Workdir(tmp_path), Workdir(tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(first, "_refuse_other_config", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            first.open(tiny.config())
    second.open(tiny.config()).close()


def test_differences_lists_leaves_by_key():
    old = {"a": 1, "b": {"c": 2, "d": "x"}, "e": None}
    new = {"a": 1, "b": {"c": 3, "d": "x"}, "e": 7, "f": 0.5}
    assert differences(old, new) == {"b.c": (2, 3), "e": (None, 7), "f": (None, 0.5)}
    assert list(differences(old, new)) == ["b.c", "e", "f"]
    assert differences(old, old) == {}
