"""Makes an exported tokenizer begin each text as in training, without truncation.

transformers 5, vLLM and lm-eval go by the post-processor of tokenizer.json, transformers 4 goes by `add_bos_token` for
Llama's own class, and lm-eval scores whole texts behind `bos_token`: all of them are set to the same token.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anchorjax.checkpoints.huggingface import config as hf_config
from anchorjax.data.text.special_tokens import content_of, named_specials, read_fields
from anchorjax.data.text.tokenizer import HuggingFaceTokenizer
from anchorjax.errors import WeightsError

FILE, CONFIG, MAP = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
GENERATION, TEMPLATE = "generation_config.json", "chat_template.jinja"

# The class that uses tokenizer.json unchanged in transformers 4 and 5. The families' own classes, the default, apply
# other rules: Llama's adds no space before a text that begins with one.
AS_IT_IS = ("PreTrainedTokenizerFast", "TokenizersBackend")


def open_exported(directory: Path) -> HuggingFaceTokenizer:
    """Raises WeightsError if the tokenizer in a run's directory cannot be used, or its EOS ids are invalid."""
    check_ends(directory)
    try:
        return HuggingFaceTokenizer.open(directory)
    except ValueError as error:
        raise WeightsError(str(error)) from error


def export(directory: Path, tokenizer: HuggingFaceTokenizer, positions: int, *, anchored: bool) -> list[str]:
    """Changes the copied files of a run's tokenizer to match the training.

    Args:
      directory: of the export; contains the run's files.
      positions: T, the longest text.
      anchored: whether documents attended to BOS. If not, the tokenizer's own beginning stays.

    Returns:
      A line for each change, and for each chat template that could not be checked.

    Raises:
      WeightsError: one of the files cannot be read, or has invalid ids.
    """
    try:
        changes = name_specials(directory, tokenizer, ("bos", "eos") if anchored else ("eos",))
        if anchored:
            changes += _put_in_front(directory, tokenizer) + _begin_chats(directory, spelling(tokenizer, "bos"))
        changes += _end_texts(directory, tokenizer.eos_id) + _allow(directory, positions)
        if read_fields(directory / CONFIG).get("tokenizer_class") not in AS_IT_IS:
            changes += _set(directory / CONFIG, {"tokenizer_class": AS_IT_IS[0]})
        return changes
    except ValueError as error:
        raise WeightsError(str(error)) from error


def spelling(tokenizer: HuggingFaceTokenizer, name: str) -> str:
    """Returns the text of "bos", "eos" or "pad"."""
    return tokenizer.rules.id_to_token(getattr(tokenizer, f"{name}_id"))


def name_specials(directory: Path, tokenizer: HuggingFaceTokenizer, names: Sequence[str]) -> list[str]:
    """Names special tokens in tokenizer_config.json that only config.json names, or that default to EOS."""
    found = named_specials(directory)
    wanted = {f"{name}_token": spelling(tokenizer, name) for name in names}
    wanted = {key: text for key, text in wanted.items() if content_of(found.get(key)) != text}
    changes = []
    if "added_tokens_decoder" not in found:  # then the map overrides it
        changes = _set(
            directory / MAP, {key: text for key, text in wanted.items() if key in read_fields(directory / MAP)}
        )
    return changes + _set(directory / CONFIG, wanted)


def _put_in_front(directory: Path, tokenizer: HuggingFaceTokenizer) -> list[str]:
    token, index = spelling(tokenizer, "bos"), tokenizer.bos_id
    changes = []
    if any(
        tokenizer.encode_with_specials(text, frame=True).tolist()
        != [index, *tokenizer.encode_with_specials(text).tolist()]
        for text in ("", "a")
    ):
        spec = read_fields(directory / FILE)
        spec["post_processor"] = _post_processor(spec.get("post_processor"), token, index)
        _write(directory / FILE, spec)
        changes = [f"{FILE} begins each text with {token!r} ({index})"]
    flags = {"add_bos_token": True, "add_eos_token": False}
    given = read_fields(directory / CONFIG)
    if not given.get("add_eos_token"):
        del flags["add_eos_token"]
    return changes + _set(directory / CONFIG, flags)


def _post_processor(given: Mapping[str, Any] | None, token: str, index: int) -> dict[str, Any]:
    """Returns a post-processor that adds the token, after steps that change offsets only; replaces other templates."""
    parts = given["processors"] if given and given["type"] == "Sequence" else [given] if given else []
    kept = [part for part in parts if part["type"] == "ByteLevel"]
    first, second = (
        [{"SpecialToken": {"id": token, "type_id": kind}}, {"Sequence": {"id": name, "type_id": kind}}]
        for kind, name in enumerate("AB")
    )
    template = {
        "type": "TemplateProcessing",
        "single": first,
        "pair": first + second,
        "special_tokens": {token: {"id": token, "ids": [index], "tokens": [token]}},
    }
    return {"type": "Sequence", "processors": [*kept, template]} if kept else template


def _begin_chats(directory: Path, token: str) -> list[str]:
    """Makes each chat template begin with the token: tools add nothing before a template's text."""
    texts = {name: content_of(text) for name, text in named_specials(directory).items()}
    named = {name: text for name, text in texts.items() if name.endswith("_token") and isinstance(text, str)}
    file, config = directory / TEMPLATE, read_fields(directory / CONFIG)
    if file.exists():
        try:
            given = file.read_bytes().decode()  # as it is: with the ends of its lines
        except ValueError as error:
            raise ValueError(f"{file} cannot be read: {error}") from error
        text = given.removeprefix("\ufeff")
        wanted, changes = _begun(text, named, token, TEMPLATE)
        if text != given:
            changes.append(f"{TEMPLATE} has no byte order mark (it had one)")
        if wanted != given:
            file.write_text(wanted, encoding="utf-8", newline="")
        return changes
    given, where = config.get("chat_template"), f"{CONFIG}: chat_template"
    if isinstance(given, list):  # several, by name
        wanted, changes = [], []
        for one in given:
            if isinstance(one, dict):
                source, said = _begun(one.get("template"), named, token, f"{where} {one.get('name')!r}")
                one, changes = one | {"template": source}, changes + said
            wanted.append(one)
    else:
        wanted, changes = _begun(given, named, token, where)
    if wanted != given:
        _write(directory / CONFIG, config | {"chat_template": wanted})
    return changes


def _begun(source: Any, named: Mapping[str, str], token: str, where: str) -> tuple[Any, list[str]]:
    """Returns the template, changed to begin with the token if needed, and lines about it."""
    if not isinstance(source, str):
        return source, []
    from anchorjax.data.text.chat import ChatTemplate  # with jinja2, which a machine that only trains may lack

    why = "is not valid"
    try:
        template = ChatTemplate.of(source, named)
        why = "takes no lone user message"
        text = template.render([{"role": "user", "content": "a"}])
    except ValueError:  # no prompt here is made with it
        unknown = f"whether its chats begin with {token!r} is not known"
        return source, [f"{where}: the chat template {why} and was not changed: {unknown}"]
    return (source, []) if text.startswith(token) else ("{{ bos_token }}" + source, [f"{where} begins with {token!r}"])


def ends(file: Path, eos_id: int) -> int | list[int]:
    """Returns `eos_token_id` of config.json or generation_config.json, with the EOS of the run's documents.

    Raises WeightsError as `end_ids` does.
    """
    given = end_ids(file)
    if eos_id in given:
        return read_fields(file)["eos_token_id"]  # unchanged, even a list of one
    return [*given, eos_id] if given else eos_id


def end_ids(file: Path) -> list[int]:
    """Returns the ids in `eos_token_id` of config.json or generation_config.json.

    Raises WeightsError if it is something else, or the file cannot be read.
    """
    try:
        given = read_fields(file).get("eos_token_id")
    except ValueError as error:
        raise WeightsError(str(error)) from error
    ids = [] if given is None else given if isinstance(given, list) else [given]
    if not all(type(index) is int and 0 <= index for index in ids):
        raise WeightsError(f"{file}: eos_token_id is {given!r}; allowed: token ids")
    return ids


def check_ends(directory: Path) -> None:
    """Raises WeightsError if the EOS ids would prevent the export of a run with this tokenizer."""
    for name in (hf_config.FILE, GENERATION):
        end_ids(directory / name)


def _end_texts(directory: Path, eos_id: int) -> list[str]:
    """Sets the EOS ids of generation_config.json, which override those of config.json."""
    file = directory / GENERATION
    return _set(file, {"eos_token_id": ends(file, eos_id)}) if file.exists() else []


def _allow(directory: Path, positions: int) -> list[str]:
    """Sets the lengths at which tools truncate a text or stop generating to the run's."""
    changes = _set(directory / CONFIG, {"model_max_length": positions})
    spec = read_fields(directory / FILE)
    if spec.get("truncation"):
        _write(directory / FILE, spec | {"truncation": None})
        changes.append(f"{FILE} truncates no text (it did at {spec['truncation'].get('max_length')} tokens)")
    most = read_fields(directory / GENERATION).get("max_length")
    if type(most) is int and most < positions:
        changes += _set(directory / GENERATION, {"max_length": positions})
    return changes


def _set(file: Path, wanted: Mapping[str, Any]) -> list[str]:
    """Changes fields of a JSON file, which is created if needed; returns a line for each change."""
    given = read_fields(file)
    new = {key: value for key, value in wanted.items() if key not in given or given[key] != value}
    if new:
        _write(file, given | new)
    was = {key: f" (was {given[key]!r})" if key in given else "" for key in new}
    return [f"{file.name}: {key} = {value!r}{was[key]}" for key, value in new.items()]


def _write(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
