"""A byte-level BPE tokenizer of the style of Llama 3's, trained on the shipped text, as a Hugging Face directory."""

import functools
import gzip
import json
import tempfile
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from anchorjax.data.sources.public_domain import CORPUS
from anchorjax.data.text.tokenizer import HuggingFaceTokenizer

SPECIALS = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}\n"
    "<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def write(directory: Path, template: str | None = TEMPLATE, specials: list[str] = SPECIALS) -> Path:
    built = tokenizers.Tokenizer(models.BPE())
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    built.pre_tokenizer = pre_tokenizers.Sequence(split)
    built.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=3000,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with gzip.open(CORPUS, "rt", encoding="utf-8") as lines:
        built.train_from_iterator([json.loads(next(lines))["text"] for _ in range(20)], trainer)
    built.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    if template is not None:
        config["chat_template"] = template
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@functools.cache
def directory() -> Path:
    return write(Path(tempfile.mkdtemp(prefix="anchorjax-bpe-")))


@functools.cache
def tokenizer() -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer.open(directory())
