"""A run as other tools load it: the same text from the same strings, with transformers' own tokenizer and generate."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from anchorjax.cli import convert
from anchorjax.data.text.chat import ChatTemplate, frame
from anchorjax.data.text.tokenizer import HuggingFaceTokenizer
from anchorjax.evaluation.record import Record
from anchorjax.evaluation.tasks import lm_eval_model as harness
from anchorjax.inference import generation, language_model
from tests.checkpoints.huggingface import tiny
from tests.data.test_tokenizer import LINES, byte_level, sentencepiece

NEW, ROW = 10, 512  # tokens of an answer, and of the run's rows: twice what its checkpoint took
TEXTS = ["It is a truth", " In 1811:\n\tcafé — “quoted”", "a", ""]
MESSAGES = [{"role": "user", "content": "Is it?"}]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WITH_BOS = "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}{% endfor %}"
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
OFFSETS = processors.ByteLevel(trim_offsets=True)


def template(single: str) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(single, special_tokens=[("<s>", 1), ("</s>", 2)])


def ended_by(rules: tokenizers.Tokenizer, *processor) -> tokenizers.Tokenizer:
    rules.post_processor = processors.Sequence(list(processor)) if processor else None
    return rules


def qwen() -> tokenizers.Tokenizer:
    """Without BOS, and with the words that Qwen's own class cuts."""
    built = tokenizers.Tokenizer(models.BPE())
    built.normalizer, built.decoder = normalizers.NFC(), decoders.ByteLevel()
    split = pre_tokenizers.Split(tokenizers.Regex(PRETOKENIZE_REGEX), "isolated")
    built.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    alphabet, specials = pre_tokenizers.ByteLevel.alphabet(), ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    built.train_from_iterator(LINES, trainer)
    return built


@dataclasses.dataclass(frozen=True)
class Style:
    """A family's tiny model and a tokenizer in its style; `puts`: what it put in front of a text before a run."""

    family: str
    rules: tokenizers.Tokenizer
    config: dict[str, Any]
    puts: tuple[int, ...] = ()
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    mask: str = "anchor"
    special_tokens_map: dict[str, Any] | None = None


@functools.cache
def styles() -> dict[str, Style]:
    llama = SPECIALS | {"model_max_length": 128}
    named = {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": False, "add_eos_token": True}
    gemma = {"tokenizer_class": "GemmaTokenizer", "unk_token": "<unk>"}
    qwens = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": CHATML}
    qwens |= {"tokenizer_class": "Qwen2Tokenizer", "model_max_length": 1 << 40}
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    sequence = ended_by(byte_level(), OFFSETS, template("<s> $A"))
    return {
        "llama 3": Style("llama untied", sequence, llama | {"chat_template": WITH_BOS}, (1,)),
        "llama with an EOS behind": Style("llama", ended_by(byte_level(), template("<s> $A </s>")), SPECIALS, (1, 2)),
        "smollm2": Style("llama", ended_by(byte_level()), SPECIALS | {"tokenizer_class": "GPT2Tokenizer"}),
        "llama with offsets": Style("llama", ended_by(byte_level(), OFFSETS), llama | {"chat_template": CHATML}),
        "llama of no class": Style("llama yarn", ended_by(byte_level()), {}, model=ids | {"bos_token_id": 1}),
        "llama 2": Style("llama untied", ended_by(sentencepiece(prepend=True)), SPECIALS | named),
        "mistral": Style("mistral without window", ended_by(sentencepiece(prepend=True)), SPECIALS),
        "gemma2": Style("gemma2", ended_by(sentencepiece(prepend=False)), SPECIALS | gemma, mask="full"),
        "gemma3": Style("gemma3", ended_by(sentencepiece(prepend=False)), SPECIALS | gemma, mask="full"),
        "qwen2": Style("qwen2", ended_by(qwen(), OFFSETS), qwens, model=ids),
        "qwen3": Style("qwen3", ended_by(qwen(), OFFSETS), qwens, model=ids),
        "qwen3 of a map": Style(
            *("qwen3", ended_by(qwen()), {"tokenizer_class": "Qwen2Tokenizer"}),
            model=ids,
            special_tokens_map={"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        ),
    }


@dataclasses.dataclass(frozen=True)
class Exported:
    style: Style
    source: Path
    run: Path
    out: Path
    said: str


def export(style: Style, directory: Path, mask: str, capsys=None) -> Exported:
    """A checkpoint, a run of it on longer rows that has learned nothing, and what `to-hf` makes of that."""
    source, run, out = (directory / name for name in ("source", "run", "out"))
    tiny.make(style.family, source, vocab_size=style.rules.get_vocab_size(), **style.model)
    style.rules.save(str(source / "tokenizer.json"))
    (source / "tokenizer_config.json").write_text(json.dumps(style.config))
    if style.special_tokens_map:
        (source / "special_tokens_map.json").write_text(json.dumps(style.special_tokens_map))
    assert convert.main(["from-hf", str(source), str(run)]) == 0
    fields = json.loads((run / "config.json").read_text())
    fields |= {"init_from": str(source), "data": {"mask": mask, "seq_len": ROW, "tokenizer": "auto"}}
    (run / "config.json").write_text(json.dumps(fields))
    if capsys:
        capsys.readouterr()
    assert convert.main(["to-hf", str(run), str(out)]) == 0
    return Exported(style, source, run, out, capsys.readouterr().out if capsys else "")


@pytest.fixture(scope="module", params=styles())
def exported(request, tmp_path_factory):
    style = styles()[request.param]
    return export(style, tmp_path_factory.mktemp("model"), style.mask)


def test_a_text_begins_as_in_training(exported):
    ours = HuggingFaceTokenizer.open(exported.run / "source")
    before, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (exported.source, exported.out))
    assert before("").input_ids == list(exported.style.puts)
    for text in TEXTS:
        assert theirs(text).input_ids == [ours.bos_id, *ours.encode(text).tolist()], text
    assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.bos_id, ours.eos_id)
    assert theirs("a b", return_offsets_mapping=True).offset_mapping[0] == (0, 0)
    again = HuggingFaceTokenizer.open(exported.out)
    assert (again.bos_id, again.eos_id, again.pad_id) == (ours.bos_id, ours.eos_id, ours.pad_id)


def test_greedy_text_of_strings_is_that_of_transformers(exported):
    theirs = AutoModelForCausalLM.from_pretrained(exported.out, attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(exported.out)
    described = language_model.describe(workdir=exported.run)
    loaded = language_model.load(described, language_model.make_mesh(described.model, 1))
    prompts = [frame(text, "", described.tokenizer, None)[1].tolist() for text in TEXTS]
    made = generation.Generator(loaded, batch_size=4).generate(prompts, NEW)
    for text, one in zip(TEXTS, made, strict=True):
        inputs = tokenizer(text, return_tensors="pt")
        out = theirs.generate(**inputs, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
        new = out[0, inputs.input_ids.shape[1] :].tolist()
        ended = [place for place, token in enumerate(new) if token in described.eos_ids]
        assert list(one.tokens) == new[: ended[0] if ended else NEW], text
        assert one.reason == ("stop" if ended else "length")
        assert one.text == described.tokenizer.decode(new[: len(one.tokens)])


def test_a_chat_begins_as_here_and_once(exported):
    if "chat_template" not in exported.style.config:
        pytest.skip("has no chat template")
    theirs, ours = AutoTokenizer.from_pretrained(exported.out), HuggingFaceTokenizer.open(exported.run / "source")
    asked = theirs.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    expected = frame("Is it?", "", ours, ChatTemplate.open(exported.run / "source"))[1].tolist()
    assert asked == expected
    assert asked.count(ours.bos_id) == 1 and asked[0] == ours.bos_id


def test_lengths_are_the_run_s(exported):
    theirs = AutoTokenizer.from_pretrained(exported.out)
    config = json.loads((exported.out / "config.json").read_text())
    assert theirs.model_max_length == config["max_position_embeddings"] == ROW
    assert len(theirs("qz" * ROW, truncation=True).input_ids) == ROW


@pytest.mark.parametrize("name", ["smollm2", "qwen2"])
def test_lm_eval_asks_the_export_as_it_is_asked_here(name, tmp_path, monkeypatch):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    exported = export(styles()[name], tmp_path, "anchor")
    described = language_model.describe(workdir=exported.run)
    monkeypatch.setattr(language_model, "make_mesh", functools.partial(language_model.make_mesh, devices=1))
    ours = harness.adapter(described, Record(tmp_path / "results", {}), step=0, bos=True)
    model = AutoModelForCausalLM.from_pretrained(exported.out, attn_implementation="eager")
    theirs = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(exported.out), batch_size=1)
    assert theirs.prefix_token_id == ours.prefix_token_id == described.tokenizer.bos_id
    for text in TEXTS:
        assert theirs.tok_encode(text) == ours.tok_encode(text), text
    pairs = [("It is", " a truth"), ("", "universally"), ("x", "y")]
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    expected, made = theirs.loglikelihood(requests), ours.loglikelihood(requests)
    np.testing.assert_allclose([score for score, _ in made], [score for score, _ in expected], rtol=1e-5, atol=1e-4)


def test_what_was_changed_is_said(tmp_path, capsys):
    said = export(styles()["qwen2"], tmp_path, "anchor", capsys).said.splitlines()
    assert [line.removeprefix("tokenizer: ") for line in said if line.startswith("tokenizer: ")] == [
        "tokenizer_config.json: bos_token = '<|endoftext|>' (was None)",
        "tokenizer.json begins each text with '<|endoftext|>' (0)",
        "tokenizer_config.json: add_bos_token = True",
        "tokenizer_config.json: chat_template begins with '<|endoftext|>'",
        "generation_config.json: eos_token_id = [0, 2] (was 0)",
        f"tokenizer_config.json: model_max_length = {ROW} (was {1 << 40})",
        "tokenizer_config.json: tokenizer_class = 'PreTrainedTokenizerFast' (was 'Qwen2Tokenizer')",
    ]
    spec = json.loads((tmp_path / "out/tokenizer.json").read_text())
    assert [part["type"] for part in spec["post_processor"]["processors"]] == ["ByteLevel", "TemplateProcessing"]
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs("a", "b").input_ids == [0, *theirs("a").input_ids[1:], 0, *theirs("b").input_ids[1:]]


def test_what_needs_no_change_stays(tmp_path, capsys):
    config = SPECIALS | {"model_max_length": ROW, "add_bos_token": True, "tokenizer_class": "PreTrainedTokenizerFast"}
    rules = ended_by(byte_level(), OFFSETS, template("<s> $A"))
    style = Style("llama", rules, config | {"chat_template": WITH_BOS}, model={"eos_token_id": 2})
    exported = export(style, tmp_path, "anchor", capsys)
    assert "tokenizer: " not in exported.said
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (exported.out / name).read_bytes() == (exported.source / name).read_bytes()


def test_lengths_that_would_cut_are_raised(tmp_path, capsys):
    rules = ended_by(byte_level())
    rules.enable_truncation(20)
    exported = export(Style("llama", rules, SPECIALS), tmp_path, "anchor", capsys)
    assert "tokenizer: tokenizer.json truncates no text (it did at 20 tokens)" in exported.said
    assert len(tokenizers.Tokenizer.from_file(str(exported.out / "tokenizer.json")).encode("a" * 99).ids) > 20
    (exported.run / "source/generation_config.json").write_text(json.dumps({"max_length": 256, "eos_token_id": [2]}))
    assert convert.main(["to-hf", str(exported.run), str(tmp_path / "again")]) == 0
    assert json.loads((tmp_path / "again/generation_config.json").read_text()) == {
        "max_length": ROW,
        "eos_token_id": [2],
    }


@pytest.mark.parametrize("name", ["llama 3", "smollm2", "qwen2"])
def test_a_run_whose_documents_saw_no_beginning_changes_no_beginning(name, tmp_path, capsys):
    exported = export(styles()[name], tmp_path, "intra_doc", capsys)
    assert (exported.out / "tokenizer.json").read_bytes() == (exported.source / "tokenizer.json").read_bytes()
    theirs = AutoTokenizer.from_pretrained(exported.out)
    assert theirs("").input_ids == list(exported.style.puts) and theirs.model_max_length == ROW
    puts = "<s>" if exported.style.puts else "nothing"
    assert (
        f"note: documents of a run with mask=intra_doc have nothing in front; the tokenizer puts {puts}"
        in exported.said
    )


def test_what_from_hf_read_keeps_its_tokenizer(tmp_path):
    """No run has said that it was trained otherwise."""
    exported = export(styles()["qwen2"], tmp_path, "anchor")
    fields = json.loads((exported.run / "config.json").read_text())
    del fields["data"]
    (exported.run / "config.json").write_text(json.dumps(fields))
    assert convert.main(["to-hf", str(exported.run), str(tmp_path / "again")]) == 0
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (exported.source / name).read_bytes()


def test_roundings_of_others_are_said(tmp_path, capsys):
    exported = export(styles()["smollm2"], tmp_path, "anchor", capsys)
    assert "note:" not in exported.said
    assert convert.main(["to-hf", str(exported.run), str(tmp_path / "again"), "--dtype=bfloat16"]) == 0
    note = "note: RoPE's cosines and sines are bfloat16 in transformers, and float32 here"
    assert note in capsys.readouterr().out
    with torch.no_grad():  # and it does
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype=torch.bfloat16).model.rotary_emb
        assert theirs(torch.zeros(1, 1, 1, dtype=torch.bfloat16), torch.tensor([[300]]))[0].dtype == torch.bfloat16
    fields = json.loads((exported.run / "config.json").read_text())
    fields["rope"]["dtype"] = "bfloat16"
    (exported.run / "config.json").write_text(json.dumps(fields))
    for dtype, said in (("bfloat16", False), ("float32", True)):
        assert convert.main(["to-hf", str(exported.run), str(tmp_path / dtype), f"--dtype={dtype}"]) == 0
        note = "note: RoPE's cosines and sines are float32 in transformers, and bfloat16 here"
        out = capsys.readouterr().out
        assert (note in out) == ("note:" in out) == said


def test_another_attention_variant_is_said(tmp_path, capsys):
    """A run that does not name its variant is plain."""
    exported = export(styles()["smollm2"], tmp_path, "anchor")
    fields = json.loads((exported.run / "config.json").read_text())
    for variant in ("plain", "scaled"):
        fields["attention"] = {"variant": variant}
        (exported.run / "config.json").write_text(json.dumps(fields))
        assert convert.main(["to-hf", str(exported.run), str(tmp_path / variant)]) == 0
        note = "note: layers attend by attention.variant=scaled here; other tools compute plain attention"
        assert (note in capsys.readouterr().out) == (variant == "scaled")


def test_a_run_of_bytes_takes_no_tokenizer_of_its_checkpoint_along(tmp_path, capsys):
    exported = export(styles()["smollm2"], tmp_path, "anchor")
    fields = json.loads((exported.run / "config.json").read_text())
    fields["data"]["tokenizer"] = "bytes"
    (exported.run / "config.json").write_text(json.dumps(fields))
    assert convert.main(["to-hf", str(exported.run), str(tmp_path / "again")]) == 0
    assert "note: the run is of bytes, or its tokenizer is lost" in capsys.readouterr().out
    assert sorted(file.name for file in (tmp_path / "again").iterdir()) == ["config.json", "model.safetensors"]
    written = json.loads((tmp_path / "again/config.json").read_text())
    assert [written[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [256, 257, 258]


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json", "chat_template.jinja"])
def test_a_file_that_cannot_be_read_is_named_and_nothing_is_written(name, tmp_path, capsys):
    exported = export(styles()["smollm2"], tmp_path, "anchor")
    (exported.run / "source" / name).write_bytes(b'{"\xff')
    capsys.readouterr()
    assert convert.main(["to-hf", str(exported.run), str(tmp_path / "again")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and name in err
    assert not (tmp_path / "again").exists()
