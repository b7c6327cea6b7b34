"""A tiny model twice, behind lm-eval's own Hugging Face backend and behind ours; and tasks of local files."""

import dataclasses
import functools
import json
from pathlib import Path

import transformers

from anchorjax.evaluation.record import Record
from anchorjax.evaluation.tasks import lm_eval_model as harness
from anchorjax.inference import generation, language_model, scoring
from anchorjax.inference.language_model import Description
from tests.checkpoints.huggingface import tiny
from tests.evaluation.making import write_tokenizer

# As Gemma's does, it takes no system message; as Llama 3's does, it strips what is said.
TEMPLATE = (
    "<s>{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "[{{ message['role'] }}] {{ message['content'] | trim }} [end]\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
WORDS = ["time", "year", "way", "day", "man", "thing", "life", "child", "world", "school", "state", "group", "hand"]


@dataclasses.dataclass(frozen=True)
class Pair:
    """Attributes: theirs: an HFLM; directory and description: of the same weights; with_bos: see `pair`."""

    theirs: object
    directory: Path
    description: Description
    with_bos: bool

    def ours(self, out: Path, **options) -> harness.Harness:
        return harness.adapter(self.description, Record(out, {}), batch_size=4, **options)


def compile_little(monkeypatch) -> None:
    """One device and two lengths: others give the same (test_scoring.py, test_generation.py), but take minutes."""
    monkeypatch.setattr(language_model, "make_mesh", functools.partial(language_model.make_mesh, devices=1))
    for module in (scoring, generation):
        monkeypatch.setattr(module, "bucket", lambda size: 320 if size <= 320 else 640)


def pair(family: str, directory: Path, with_bos: bool, context: int = 0, batch_size: int = 8) -> Pair:
    """`with_bos`: tokenizer.json puts <s> before a text; `context`: other than the tiny model's; rows are theirs."""
    model = tiny.make(family, directory)
    if context:
        model.config.max_position_embeddings = context
        model.config.save_pretrained(directory)
    write_tokenizer(directory)
    config = json.loads((directory / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    if with_bos:
        rules = json.loads((directory / "tokenizer.json").read_text())
        rules["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
        }
        (directory / "tokenizer.json").write_text(json.dumps(rules))
    return opened(directory, with_bos, batch_size)


def opened(directory: Path, with_bos: bool, batch_size: int = 8) -> Pair:
    """The model that lies there, in both."""
    from lm_eval.models.huggingface import HFLM

    model = transformers.AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager")
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    return Pair(theirs, directory, language_model.describe(hf=directory), with_bos)


def write_tasks(directory: Path) -> Path:
    """choose (multiple choice, one example), finish (generates) and read (whole texts): all_of_them."""
    sentences = [" ".join(WORDS[(i + j) % 13] for j in range(6)) for i in range(4)]
    documents = [
        {
            "question": f"What comes after {sentence}?",
            "choices": [WORDS[(i + 6) % 13], WORDS[(i + 3) % 13], f"the {WORDS[i]}"],
            "answer": i % 3,
            "text": ". ".join(sentences[: i + 1]),
        }
        for i, sentence in enumerate(sentences)
    ]
    (directory / "documents.jsonl").write_text("".join(json.dumps(one) + "\n" for one in documents))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": str(directory / "documents.jsonl"), "cache_dir": str(directory / "cache")},
        "test_split": "train",
        "fewshot_split": "train",
        "metadata": {"version": 1.0},
    }
    choose = common | {
        "output_type": "multiple_choice",
        "description": "Choose well.",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "num_fewshot": 1,
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    finish = common | {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{text}}",
        "gen_prefix": "It is ",
        "generation_kwargs": {"until": ["\n", "e"], "max_gen_toks": 8, "do_sample": False},
        "metric_list": [{"metric": "ter"}, {"metric": "chrf"}],
    }
    read = common | {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    }
    tasks = {"choose": choose, "finish": finish, "read": read}
    for name, task in tasks.items():  # JSON is YAML
        (directory / f"{name}.yaml").write_text(json.dumps({"task": name} | task))
    (directory / "all.yaml").write_text(json.dumps({"group": "all_of_them", "task": list(tasks)}))
    return directory
