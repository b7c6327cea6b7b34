"""The tokenizer beside exported weights: that other tools put in front of a text what training did, and cut none off.

transformers 5, vLLM and lm-eval go by the post-processor of tokenizer.json, transformers 4 goes by `add_bos_token` for
Llama's own class, and lm-eval scores whole texts behind `bos_token`: all of them are made to say the same.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anchorjax.data.chat import ChatTemplate
from anchorjax.data.tokenizer import HuggingFaceTokenizer, content_of, named_specials, read_json
from anchorjax.errors import WeightsError

FILE, CONFIG, MAP = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
GENERATION, TEMPLATE = "generation_config.json", "chat_template.jinja"

# Of transformers 4 and 5: what takes tokenizer.json as it is. The families' own classes, taken if none is named, have
# rules of their own: Llama's puts no space before a text that begins with one.
AS_IT_IS = ("PreTrainedTokenizerFast", "TokenizersBackend")


def open_exported(directory: Path) -> HuggingFaceTokenizer:
    """Raises WeightsError if the tokenizer in a run's directory cannot be used."""
    try:
        return HuggingFaceTokenizer.open(directory)
    except ValueError as error:
        raise WeightsError(str(error)) from error


def export(directory: Path, tokenizer: HuggingFaceTokenizer, positions: int, *, anchored: bool) -> list[str]:
    """Changes the copied files of a run's tokenizer where they say other than what the run was trained on.

    Args:
      directory: of the export; holds the files as the run had them.
      positions: T, tokens of a row: what a text may have.
      anchored: whether documents saw the beginning of sequence. Else what is put in front of a text stays as it was.

    Returns:
      What was changed, a line each.

    Raises:
      WeightsError: one of the files cannot be read.
    """
    try:
        changes = name_specials(directory, tokenizer, ("bos", "eos") if anchored else ("eos",))
        if anchored:
            changes += _put_in_front(directory, tokenizer) + _begin_chats(directory, spelling(tokenizer, "bos"))
        changes += _end_texts(directory, tokenizer.eos_id) + _allow(directory, positions)
        if read_json(directory / CONFIG).get("tokenizer_class") not in AS_IT_IS:
            changes += _set(directory / CONFIG, {"tokenizer_class": AS_IT_IS[0]})
        return changes
    except ValueError as error:
        raise WeightsError(str(error)) from error


def spelling(tokenizer: HuggingFaceTokenizer, name: str) -> str:
    """The text of "bos", "eos" or "pad"."""
    return tokenizer.rules.id_to_token(getattr(tokenizer, f"{name}_id"))


def name_specials(directory: Path, tokenizer: HuggingFaceTokenizer, names: Sequence[str]) -> list[str]:
    """Names special tokens in tokenizer_config.json that it leaves to config.json, or to the end of sequence."""
    found = named_specials(directory)
    wanted = {f"{name}_token": spelling(tokenizer, name) for name in names}
    wanted = {key: text for key, text in wanted.items() if content_of(found.get(key)) != text}
    if "added_tokens_decoder" not in found:  # there the map counts more
        _set(directory / MAP, {key: text for key, text in wanted.items() if key in read_json(directory / MAP)})
    return _set(directory / CONFIG, wanted)


def _put_in_front(directory: Path, tokenizer: HuggingFaceTokenizer) -> list[str]:
    token, index = spelling(tokenizer, "bos"), tokenizer.bos_id
    changes = []
    if any(
        tokenizer.encode_with_specials(text, frame=True).tolist()
        != [index, *tokenizer.encode_with_specials(text).tolist()]
        for text in ("", "a")
    ):
        spec = read_json(directory / FILE)
        spec["post_processor"] = _post_processor(spec.get("post_processor"), token, index)
        _write(directory / FILE, spec)
        changes = [f"{FILE} puts {token!r} ({index}) in front of a text"]
    flags = {"add_bos_token": True, "add_eos_token": False}
    given = read_json(directory / CONFIG)
    if not given.get("add_eos_token"):
        del flags["add_eos_token"]
    return changes + _set(directory / CONFIG, flags)


def _post_processor(given: Mapping[str, Any] | None, token: str, index: int) -> dict[str, Any]:
    """A template of the token and the text, behind what only moves offsets; other templates are replaced."""
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
    """Makes a chat begin with the token too, as a prompt does here: tools put nothing before what a template writes."""
    texts = {name: content_of(text) for name, text in named_specials(directory).items()}
    named = {name: text for name, text in texts.items() if name.endswith("_token") and isinstance(text, str)}

    def begun(source: Any) -> Any:
        try:
            text = ChatTemplate.of(source, named).render([{"role": "user", "content": "a"}])
        except (ValueError, TypeError):
            return source  # no template, or for other messages than these: no prompt here is made with it
        return source if text.startswith(token) else "{{ bos_token }}" + source

    file, config = directory / TEMPLATE, read_json(directory / CONFIG)
    if file.exists():
        try:
            given = file.read_text(encoding="utf-8")
        except ValueError as error:
            raise ValueError(f"{file} cannot be read: {error}") from error
        file.write_text(begun(given), encoding="utf-8")
        return [f"{TEMPLATE} begins with {token!r}"] if begun(given) != given else []
    given = config.get("chat_template")
    if isinstance(given, list):  # several, by name
        wanted = [one | {"template": begun(one.get("template"))} if isinstance(one, dict) else one for one in given]
    else:
        wanted = begun(given)
    if wanted == given:
        return []
    _write(directory / CONFIG, config | {"chat_template": wanted})
    return [f"{CONFIG}: chat_template begins with {token!r}"]


def ends(fields: Mapping[str, Any], eos_id: int) -> int | list[int]:
    """`eos_token_id` of config.json or generation_config.json, and among them what closed the run's documents."""
    given = fields.get("eos_token_id")
    if given is None or given == eos_id:
        return eos_id
    given = given if isinstance(given, list) else [given]
    return given if eos_id in given else [*given, eos_id]


def _end_texts(directory: Path, eos_id: int) -> list[str]:
    """Where generation_config.json is, config.json's ends do not count."""
    file = directory / GENERATION
    return _set(file, {"eos_token_id": ends(read_json(file), eos_id)}) if file.exists() else []


def _allow(directory: Path, positions: int) -> list[str]:
    """Lengths at which tools cut a text, or stop generating, become the run's."""
    changes = _set(directory / CONFIG, {"model_max_length": positions})
    spec = read_json(directory / FILE)
    if spec.get("truncation"):
        _write(directory / FILE, spec | {"truncation": None})
        changes.append(f"{FILE} cuts no text (it did at {spec['truncation'].get('max_length')} tokens)")
    most = read_json(directory / GENERATION).get("max_length")
    if type(most) is int and most < positions:
        changes += _set(directory / GENERATION, {"max_length": positions})
    return changes


def _set(file: Path, wanted: Mapping[str, Any]) -> list[str]:
    """Changes fields of a JSON file, which is made if need be; says which were others."""
    given = read_json(file)
    new = {key: value for key, value in wanted.items() if key not in given or given[key] != value}
    if new:
        _write(file, given | new)
    was = {key: f" (was {given[key]!r})" if key in given else "" for key in new}
    return [f"{file.name}: {key} = {value!r}{was[key]}" for key, value in new.items()]


def _write(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
