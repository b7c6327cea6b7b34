"""The special and added tokens in the files beside tokenizer.json, as transformers reads them."""

from collections.abc import Container
from pathlib import Path
from typing import Any

from anchorjax.files import read_json


def named_specials(directory: Path) -> dict[str, Any]:
    """Returns the fields of tokenizer_config.json, overridden as transformers does.

    special_tokens_map.json overrides it unless it lists an `added_tokens_decoder`; the names in `extra_special_tokens`
    override both. Raises ValueError if a file cannot be read."""
    named = read_fields(directory / "tokenizer_config.json")
    if "added_tokens_decoder" not in named:
        named |= read_fields(directory / "special_tokens_map.json")
    extra = named.get("extra_special_tokens")
    return named | extra if isinstance(extra, dict) else named


def content_of(token: Any) -> Any:
    """Returns the text of a special token, which these files write as a string or as an object."""
    return token.get("content") if isinstance(token, dict) else token


def tokens_to_add(directory: Path, rules) -> list[dict[str, Any]]:
    """Returns the fields of the `AddedToken`s that transformers finds beside tokenizer.json, in its order.

    Flags in `added_tokens_decoder` override those in tokenizer.json, so such a token is included.

    Args:
      rules: a `tokenizers.Tokenizer`, of tokenizer.json alone.

    Raises:
      ValueError: a file cannot be read, or contains an invalid token.
    """
    named, by_id = named_specials(directory), rules.get_added_tokens_decoder()
    known = {token.content: token for token in by_id.values()}
    of_names = {text for text in map(content_of, _tokens_by_name(named).values()) if isinstance(text, str)}
    new = {}
    for token in _listed_tokens(directory, named, taken=by_id):
        text = _valid(directory, token["content"])
        token["special"] |= text in of_names
        if text in known:
            token["special"] |= known[text].special  # which the library does not forget
        if text not in known or token != _flags(known[text]):
            new[text] = token
    # A padding token that is only a name may be new, as no text contains it. No model has seen a new BOS or EOS.
    by_name = [token for name, token in _tokens_by_name(named).items() if name not in ("bos_token", "eos_token")]
    for text in map(content_of, [*by_name, *_extra_tokens(named)]):
        if isinstance(text, str) and text and text not in new and rules.token_to_id(_valid(directory, text)) is None:
            new[text] = {"content": text, "special": True, "normalized": False}
    return list(new.values())


_ADDED = ("single_word", "lstrip", "rstrip", "normalized", "special")  # of AddedToken, all of them flags
_NAMES = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


def _flags(token) -> dict[str, Any]:
    return {"content": token.content, **{name: getattr(token, name) for name in _ADDED}}


def _valid(directory: Path, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{directory}: the token {text!r} is not valid Unicode") from error
    return text


def _tokens_by_name(named: dict[str, Any]) -> dict[str, Any]:
    """Returns named tokens in transformers' order: its own names, then a model's (`image_token`)."""
    extra = named.get("extra_special_tokens")
    others = [name for name in named if name.endswith("_token") or (isinstance(extra, dict) and name in extra)]
    return {name: named[name] for name in (*_NAMES, *others) if name in named}


def _extra_tokens(named: dict[str, Any]) -> list[Any]:
    """Returns special tokens without a name; the older field is used if the newer lists none."""
    extra = named.get("extra_special_tokens")
    extra = extra if extra and isinstance(extra, list) else named.get("additional_special_tokens")
    return extra if isinstance(extra, list) else []


def _listed_tokens(directory: Path, named: dict[str, Any], taken: Container[int]) -> list[dict[str, Any]]:
    """Returns tokens by id: from `added_tokens_decoder`, or else from added_tokens.json, which has ids only.

    Entries of the latter whose ids are `taken` are ignored: transformers uses tokenizer.json's tokens there.
    """
    texts = map(content_of, [*(named.get(name) for name in _NAMES), *_extra_tokens(named)])
    specials = {text for text in texts if isinstance(text, str)}
    if "added_tokens_decoder" in named:
        file, listed = directory / "tokenizer_config.json", named["added_tokens_decoder"]
    else:
        file = directory / "added_tokens.json"
        listed = {
            index: {"content": text, "special": text in specials, "normalized": text not in specials}
            for text, index in read_fields(file).items()
            if not (isinstance(index, int) and index in taken)
        }
    try:
        ordered = [token for _, token in sorted((int(index), token) for index, token in listed.items())]
        found = [{"normalized": not token.get("special"), **token} for token in ordered]
        found = [{"content": token["content"], **{name: bool(token.get(name)) for name in _ADDED}} for token in found]
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{file}: its added tokens must be objects with a content, by whole numbers") from error
    for token in found:
        if not isinstance(token["content"], str) or not token["content"]:
            raise ValueError(f"{file}: an added token is {token['content']!r}; it must be a text")
    return found


def read_fields(file: Path) -> dict[str, Any]:
    """Reads the object in a JSON file; an empty one if the file does not exist. Raises ValueError as `read_json`."""
    return read_json(file, ValueError) or {}
