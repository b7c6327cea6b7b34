"""Runs that start from a checkpoint: whose values count, that the weights arrive, that a run needs it only once."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tokenizers

from anchorjax.checkpoints import conversion
from anchorjax.checkpoints.huggingface import checkpoint as hf_checkpoint
from anchorjax.checkpoints.huggingface import config as hf_config
from anchorjax.checkpoints.huggingface.weights import Weights, write_files
from anchorjax.cli import convert
from anchorjax.config import SIZES
from anchorjax.data import load_tokenizer
from anchorjax.errors import ConfigError, WeightsError, WorkdirError
from anchorjax.inference import generation, language_model
from anchorjax.models.linear import named_leaves
from anchorjax.training.setup import Setup
from tests import tiny
from tests.training.making import make_mesh, make_state, make_steps

ROOT = pathlib.Path(__file__).parents[2]
LLAMA31 = {"theta": 5e5, "scaling": "llama3", "factor": 8.0, "original_length": 32}
OPEN_SIZES = {f"model__{name}": 0 for name in (*SIZES, "vocab_size", "norm_eps")} | {"model__family": ""}
OPEN_ROPE = {"rope__theta": 0.0, "rope__scaling": "auto"}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A Hugging Face directory with the tiny model, drawn from another seed than the runs', and with scaled RoPE."""
    directory = tmp_path_factory.mktemp("llama")
    steps = make_steps(tiny.config(seed=5, **{f"rope__{key}": value for key, value in LLAMA31.items()}))
    with jax.set_mesh(make_mesh(1, 1, 1, 1)):
        params = make_state(steps).params
        hf_checkpoint.save(params, steps.spec.model, steps.spec.lora, directory, "float32")
    fields = hf_config.write(steps.spec.model, steps.spec.rope, max_position=256, dtype="float32", source={})
    (directory / "config.json").write_text(json.dumps(fields))
    return directory


@pytest.fixture(scope="module")
def llama_with_tokenizer(llama, tmp_path_factory):
    """The same with a byte-level tokenizer of 258 tokens."""
    directory = tmp_path_factory.mktemp("with_tokenizer") / "llama"
    shutil.copytree(llama, directory)
    save_byte_tokenizer(directory, "<s>")
    return directory


def save_byte_tokenizer(directory, bos: str) -> None:
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    built = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    built.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = tokenizers.decoders.ByteLevel()
    built.add_special_tokens(
        [bos, "</s>", *(f"<unused{i}>" for i in range(100))]
    )  # the last lie behind the model's 320
    built.save(str(directory / "tokenizer.json"))
    specials = {"bos_token": bos, "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(specials))


def setup_of(directory, **overrides) -> Setup:
    return Setup.make(tiny.config(init_from=str(directory), data__batch_size=8, **overrides))


def assert_holds(params, directory) -> None:
    """The decoder's weights are those of the Hugging Face directory."""
    weights, leaves = Weights.open(directory), {name: np.asarray(leaf) for name, leaf in named_leaves(params).items()}
    model = setup_of(directory).config.model
    for name, place in hf_checkpoint.places(params, model).items():
        leaf = leaves[place.leaf] if place.layer is None else leaves[place.leaf][place.layer]
        np.testing.assert_array_equal(place.to_checkpoint(leaf), weights.read(name), err_msg=name)


def first_params(setup: Setup):
    with jax.set_mesh(setup.mesh):
        return setup.first_state().params


def test_what_is_left_open_is_the_checkpoint_s(llama):
    setup = setup_of(llama, **OPEN_SIZES, **OPEN_ROPE)
    assert setup.config.model == setup_of(llama).config.model
    assert dataclasses.asdict(setup.config.rope).items() >= LLAMA31.items()
    assert_holds(first_params(setup), llama)


def test_rope_may_be_changed_and_the_rest_stays(llama):
    rope = setup_of(llama, rope__theta=7e6, rope__scaling="auto").config.rope
    assert (rope.theta, rope.scaling, rope.factor) == (7e6, "llama3", 8.0)
    rope = setup_of(llama, rope__theta=0.0, rope__scaling="none").config.rope
    assert (rope.theta, rope.scaling, rope.factor) == (5e5, "none", 1.0)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"model__num_layers": 3}, r"model.num_layers=3 is not allowed: the checkpoint in init_from has 2"),
        ({"model__qk_norm": True}, r"model.qk_norm=True is not allowed: the checkpoint in init_from has False"),
        ({"model__family": "qwen2"}, r"model.family='qwen2' is not allowed: the checkpoint in init_from has 'llama'"),
        ({"data__tokenizer": "auto"}, r"data.tokenizer='auto' is not allowed: .* has no tokenizer.json"),
        ({"init_from": "/nowhere"}, r"init_from='/nowhere' is not allowed: there is no such directory$"),
        ({"init_from": "checkpoints/nothing"}, r"there is no such directory$"),
        ({"init_from": "org/name"}, r"there is no such directory; to download it: hf download org/name --local-dir "),
    ],
)
def test_faults_are_named(llama, overrides, words):
    with pytest.raises(ConfigError, match=words):
        Setup.make(tiny.config(**({"init_from": str(llama)} | overrides)))


def test_without_a_checkpoint_sizes_must_be_given():
    with pytest.raises(
        ConfigError, match=r"model.num_layers=0 is not allowed: it must be at least 1, unless init_from"
    ):
        tiny.config(model__num_layers=0)
    with pytest.raises(ConfigError, match=r"model.family='gpt' is not allowed: it must be one of gemma2, "):
        Setup.make(tiny.config(model__family="gpt"))


def test_a_directory_of_something_else_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"name": "me"}')
    with pytest.raises(WeightsError, match="neither a Hugging Face checkpoint's nor a run's"):
        Setup.make(tiny.config(init_from=str(tmp_path)))


@pytest.fixture(scope="module")
def converted(llama, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "ours"
    weights = Weights.open(llama)
    numbers = sum(weights.read(name).size for name in weights.tensors)
    assert conversion.from_hf(llama, out) == conversion.Imported(numbers, "float32")
    return out


def test_converting_there_and_back_changes_no_bit(llama, converted, tmp_path, capsys):
    made = conversion.to_hf(converted, tmp_path / "back")
    assert made == conversion.Exported("llama", 256, "float32", (), ())
    assert capsys.readouterr() == ("", "")
    there, back = Weights.open(llama), Weights.open(tmp_path / "back")
    assert there.tensors.keys() == back.tensors.keys()
    for name in there.tensors:
        np.testing.assert_array_equal(there.read(name), back.read(name), err_msg=name)
    assert hf_config.read(hf_config.load(tmp_path / "back")) == hf_config.read(hf_config.load(llama))


def test_runs_start_from_what_was_converted(llama, converted):
    setup = setup_of(converted, **OPEN_SIZES, **OPEN_ROPE)
    assert dataclasses.asdict(setup.config.rope).items() >= LLAMA31.items()
    assert_holds(first_params(setup), llama)
    adapted = setup_of(converted, lora__rank=2, model__compute_dtype="bfloat16")
    leaves = named_leaves(first_params(adapted))
    got = np.asarray(leaves["embed_VD"].astype("float32"))
    np.testing.assert_allclose(got, np.asarray(named_leaves(first_params(setup))["embed_VD"]), rtol=2**-8)
    assert {name for name in leaves if "_adapter." in name}


def test_the_command_prints_what_the_library_returns(llama, tmp_path, capsys):
    ours, back = tmp_path / "ours", tmp_path / "back"
    assert convert.main(["from-hf", str(llama), str(ours)]) == 0
    assert convert.main(["to-hf", str(ours), str(back), "--dtype=bfloat16"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"30,880 parameters written to {ours}, float32",
        f"llama, 256 positions, written to {back}, bfloat16",
        "note: RoPE's cosines and sines are bfloat16 in transformers, and float32 here",
    ]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["to-hf", "run"], "anchorjax convert to-hf: the following arguments are required: directory\n"),
        ([], "anchorjax convert: the following arguments are required: from-hf|to-hf|focus\n"),
    ],
)
def test_a_bad_command_line_is_told_in_one_line(capsys, arguments, line):
    with pytest.raises(SystemExit) as end:
        convert.main(arguments)
    assert end.value.code == 2 and capsys.readouterr().err == line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["from-hf", "{llama}", "{llama}"], "exists and is not empty"),
        (["from-hf", "{tmp}/none", "{tmp}/out"], "is not a directory"),
        (
            ["from-hf", "meta-llama/Llama-3.1-8B", "{tmp}/out"],
            "hf download meta-llama/Llama-3.1-8B --local-dir checkpoints/Llama-3.1-8B",
        ),
        (["from-hf", "{ours}", "{tmp}/out"], "is a run's, or what from-hf made, and not a Hugging Face directory"),
        (["to-hf", "{llama}", "{tmp}/out"], "is no run, and was not made by from-hf"),
        (["to-hf", "{tmp}", "{tmp}/out"], "there is no run in"),
    ],
)
def test_convert_refuses_in_one_line_and_writes_nothing(llama, converted, tmp_path, capsys, arguments, words):
    assert convert.main([text.format(llama=llama, ours=converted, tmp=tmp_path) for text in arguments]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_run_needs_its_checkpoint_only_once_and_is_exported(llama_with_tokenizer, jobs, tmp_path):
    """Stopped at once, the source moved away, resumed, evaluated, exported: with the source's tokenizer."""
    source, workdir, out = tmp_path / "source", tmp_path / "run", tmp_path / "out"
    shutil.copytree(llama_with_tokenizer, source)
    flags = [f"--config.init_from={source}", "--config.data.tokenizer=auto", "--config.model.dropout=0.0"]
    jobs.run(workdir, *flags, signal_at=("SIGTERM", "train", 4), expect=75)
    shutil.rmtree(source)
    jobs.run(workdir, *flags)
    assert json.loads((workdir / "config.json").read_text())["data"]["tokenizer"] == "auto"
    evaluation = [sys.executable, "eval/perplexity.py", f"--workdir={workdir}", "--rows=2"]
    evaluated = subprocess.run(evaluation, cwd=ROOT, env=jobs.env, capture_output=True, text=True, check=True)
    summary = json.loads((workdir / "summary.json").read_text())
    assert json.loads(evaluated.stdout.splitlines()[-1])["loss"] == pytest.approx(summary["validation_loss"], abs=1e-6)
    assert convert.main(["to-hf", str(workdir), str(out)]) == 0
    rules = [json.loads((folder / "tokenizer.json").read_text()) for folder in (out, llama_with_tokenizer)]
    assert rules[0].pop("post_processor")["single"][0]["SpecialToken"]["id"] == "<s>"  # the anchor, as in training
    assert rules[1].pop("post_processor") is None and rules[0] == rules[1]
    exported, model = Weights.open(out), setup_of(llama_with_tokenizer).config.model
    saved = ocp.PyTreeCheckpointer().restore(workdir / "checkpoints" / "00000024" / "state")
    leaves = {name.removeprefix("params."): np.asarray(x) for name, x in saved.items() if name.startswith("params.")}
    params = setup_of(llama_with_tokenizer).abstract_state().params
    for name, place in hf_checkpoint.places(params, model).items():
        leaf = leaves[place.leaf] if place.layer is None else leaves[place.leaf][place.layer]
        np.testing.assert_array_equal(place.to_checkpoint(leaf), exported.read(name), err_msg=name)
    embedding = Weights.open(llama_with_tokenizer).read("model.embed_tokens.weight")
    assert np.abs(exported.read("model.embed_tokens.weight") - embedding).max() > 0


def test_the_run_s_own_tokenizer_is_kept_and_exported(llama_with_tokenizer, tmp_path):
    """With its ids of specials, whatever those of the checkpoint are."""
    (tmp_path / "other").mkdir()
    save_byte_tokenizer(tmp_path / "other", "<start>")
    setup = setup_of(llama_with_tokenizer, data__tokenizer=str(tmp_path / "other"))
    setup.keep_source(tmp_path)
    source = tmp_path / "source"
    assert (source / "tokenizer.json").read_bytes() == (tmp_path / "other" / "tokenizer.json").read_bytes()
    fields = hf_config.load(source)
    assert (fields["bos_token_id"], fields["eos_token_id"]) == (256, 257)
    assert fields["torch_dtype"] == "float32"


def test_what_only_the_config_json_of_a_tokenizer_says_is_kept(llama_with_tokenizer, tmp_path):
    """A config.json of special ids alone: a run without a checkpoint has no other in its directory."""
    other = tmp_path / "other"
    other.mkdir()
    save_byte_tokenizer(other, "<start>")
    (other / "tokenizer_config.json").unlink()
    (other / "config.json").write_text('{"bos_token_id": 256, "eos_token_id": [257, 300]}')
    for name, init_from in (("alone", ""), ("begun", str(llama_with_tokenizer))):
        setup = Setup.make(tiny.config(init_from=init_from, data__tokenizer=str(other), data__batch_size=8))
        (tmp_path / name).mkdir()
        setup.keep_source(tmp_path / name)
        kept = load_tokenizer(dataclasses.replace(setup.config.data, tokenizer=str(tmp_path / name / "source")))
        wanted = setup.tokenizer
        assert (
            (kept.bos_id, kept.eos_id, kept.pad_id) == (wanted.bos_id, wanted.eos_id, wanted.pad_id) == (256, 257, 257)
        )
        assert kept.name == wanted.name
    assert hf_config.load(tmp_path / "begun" / "source")["eos_token_id"] == [257, 300]


@pytest.mark.parametrize(("given", "kept"), [(300, [300, 257]), ([300], [300, 257]), (257, 257), (None, 257)])
def test_ends_of_turns_of_the_run_s_own_tokenizer_are_kept(llama_with_tokenizer, tmp_path, given, kept):
    save_byte_tokenizer(tmp_path, "<start>")
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": given}))
    setup_of(llama_with_tokenizer, data__tokenizer=str(tmp_path)).keep_source(tmp_path)
    assert hf_config.load(tmp_path / "source")["eos_token_id"] == kept


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_ends_that_no_export_could_take_are_refused_before_the_run(llama_with_tokenizer, tmp_path, name):
    save_byte_tokenizer(tmp_path, "<start>")
    (tmp_path / name).write_text('{"eos_token_id": [257, "x"]}')
    with pytest.raises(WeightsError, match=rf"{tmp_path}/{name}: eos_token_id is \[257, 'x'\]; allowed: token ids"):
        setup_of(llama_with_tokenizer, data__tokenizer=str(tmp_path))


def test_specials_that_no_text_has_need_no_place_in_the_model(llama_with_tokenizer):
    assert setup_of(llama_with_tokenizer, data__tokenizer="auto").tokenizer.vocab_size == 258


def with_vocabulary_of(directory, out, size: int):
    """The tiny model cut to so many tokens, with its tokenizer and a [PAD] behind all of them."""
    shutil.copytree(directory, out)
    weights = Weights.open(directory)
    tensors = {name: weights.read(name) for name in weights.tensors}
    tensors |= {name: x[:size] for name, x in tensors.items() if x.shape[0] == 320}
    (out / "model.safetensors").unlink()
    write_files(out, tensors, tensors.__getitem__)
    fields = hf_config.load(out) | {"vocab_size": size}
    (out / "config.json").write_text(json.dumps(fields))
    named = json.loads((out / "tokenizer_config.json").read_text()) | {"pad_token": "[PAD]"}
    (out / "tokenizer_config.json").write_text(json.dumps(named))
    return out


def test_a_pad_that_the_checkpoint_does_not_know_is_not_needed(llama_with_tokenizer, tmp_path):
    """Llama 2 with a [PAD] that was added to its tokenizer alone: loads, and no id is out of the embedding."""
    directory = with_vocabulary_of(llama_with_tokenizer, tmp_path / "llama", 258)
    setup = setup_of(directory, data__tokenizer="auto", model__vocab_size=0)
    assert (setup.config.model.vocab_size, setup.tokenizer.vocab_size, setup.tokenizer.pad_id) == (258, 258, 257)
    described = language_model.describe(hf=directory)
    made = generation.Generator(language_model.load(described), batch_size=8)  # short prompts have pads in front
    prompts = [[256, 65, 66], [256]]
    one = [made.generate([prompt], 4)[0] for prompt in prompts]
    assert made.generate(prompts, 4) == one


def test_a_checkpoint_too_small_for_its_tokenizer_is_told_apart_from_a_size_that_was_given(
    llama_with_tokenizer, tmp_path
):
    """0 was given already, and helps nobody who starts from a checkpoint."""
    directory = with_vocabulary_of(llama_with_tokenizer, tmp_path / "llama", 257)
    with pytest.raises(ConfigError, match=r"data.tokenizer='\S+' is not allowed: it has ids up to \d+, and") as caught:
        setup_of(directory, data__tokenizer="auto", model__vocab_size=0)
    assert str(caught.value).endswith(f"the checkpoint {directory} knows 257 tokens") and "or 0" not in str(
        caught.value
    )
    with pytest.raises(ConfigError, match=r"model.vocab_size=200 .* at least the tokenizer's 259, or 0 to fit it"):
        Setup.make(tiny.config(model__vocab_size=200, data__batch_size=8))


def test_what_starts_from_a_run_of_bytes_is_of_bytes(converted, tmp_path):
    """Also at second hand; a run whose tokenizer is lost is none of bytes."""
    fields = json.loads((converted / "config.json").read_text())
    for name, init_from, tokenizer in [("first", "", "auto"), ("second", "first", "auto"), ("third", "", "bytes")]:
        run = fields | {"init_from": init_from, "data": {"tokenizer": tokenizer}}
        (tmp_path / name / "source").mkdir(parents=True)
        (tmp_path / name / "config.json").write_text(json.dumps(run))
        assert setup_of(tmp_path / name, data__tokenizer="auto").tokenizer.name == "bytes"
    (tmp_path / "second" / "source").rmdir()
    for directory in (converted, tmp_path / "second"):
        with pytest.raises(ConfigError, match=r"has no tokenizer\.json"):
            setup_of(directory, data__tokenizer="auto")


def test_a_run_may_start_from_a_run_and_lose_it(llama, converted, tmp_path):
    """Also where there is no tokenizer to keep."""
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(converted, first)
    shutil.rmtree(first / "source")
    second.mkdir()
    setup = setup_of(first)
    setup.keep_source(second)
    (second / "config.json").write_text(json.dumps(setup.saved.to_dict()))
    shutil.rmtree(first)
    again = Setup.make(tiny.config(init_from=str(first), data__batch_size=8), second)
    assert again.config.model == setup.config.model


def test_adapters_need_a_checkpoint_and_are_none(converted, tmp_path):
    with pytest.raises(ConfigError, match=r"lora.rank=4 is not allowed: adapters need a checkpoint"):
        Setup.make(tiny.config(lora__rank=4, data__batch_size=8))
    shutil.copytree(converted, tmp_path / "adapted")
    fields = json.loads((converted / "config.json").read_text())
    fields["lora"]["rank"] = 4
    (tmp_path / "adapted" / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ConfigError, match=r"it holds adapters; merge them with anchorjax convert to-hf"):
        setup_of(tmp_path / "adapted")


def test_numbers_that_a_dtype_cannot_hold_are_not_written(llama, tmp_path):
    params, config = first_params(setup_of(llama)), setup_of(llama).config
    params.final_norm_D.set_value(params.final_norm_D.get_value() * 1e5)
    with pytest.raises(WeightsError, match=r"model.norm.weight has values that are not finite in float16"):
        hf_checkpoint.save(params, config.model, config.lora, tmp_path, "float16")


def test_a_run_without_checkpoint_is_no_start(tmp_path):
    config = tiny.mapping()
    (tmp_path / "config.json").write_text(json.dumps(config))
    setup = setup_of(tmp_path)
    with pytest.raises(WorkdirError, match="there is no checkpoint in"):
        first_params(setup)
