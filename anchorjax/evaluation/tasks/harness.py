"""Models for the tasks of lm-eval: what it asks is answered as its own Hugging Face backend ("hf") answers.

    loglikelihood           how likely is a continuation of a context, and would greedy decoding write it?
    loglikelihood_rolling   how likely is a text, window by window?
    generate_until          what comes behind a prompt, up to a stop string?

How texts become tokens, contexts that are too long and long texts in windows follow lm-eval 0.4.13's
models/huggingface.py; so a Hugging Face directory has the scores that "hf" gives it. lm-eval is an optional
requirement (requirements-eval.txt): nothing here is imported from it before a model is made.
"""

import collections
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from anchorjax.data.text.chat import ChatTemplate
from anchorjax.data.text.tokenizer import named_specials
from anchorjax.errors import EvaluationError, WeightsError
from anchorjax.evaluation.answering import fill
from anchorjax.evaluation.results import Results
from anchorjax.inference import language_model
from anchorjax.inference.batching import check_ids
from anchorjax.inference.generation import Generator
from anchorjax.inference.language_model import Description
from anchorjax.inference.sampling import Sampling
from anchorjax.inference.scoring import Scorer

MAX_NEW_TOKENS = 256  # where a task does not say
TOP_K = 50  # of transformers, where neither a task nor generation_config.json says
CHANGES = {"num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}  # not done here; what asks for nothing
_Ids = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How an answer is generated."""

    stop: tuple[str, ...]
    max_new_tokens: int
    sampling: Sampling


def settings(options: Mapping[str, Any], files: Path | None) -> Settings:
    """A task's generation_kwargs, read as "hf" reads them.

    Args:
      files: where generation_config.json may lie, whose top_k and top_p hold where the task draws and gives none.

    Raises:
      EvaluationError: an option that is not known here, or a value that cannot be.
      WeightsError: generation_config.json cannot be read.
    """
    from lm_eval.models.utils import normalize_gen_kwargs

    rest = dict(normalize_gen_kwargs(dict(options), MAX_NEW_TOKENS))
    stop, most, draws = tuple(rest.pop("until")), rest.pop("max_gen_toks"), rest.pop("do_sample")
    temperature, top_k, top_p = (rest.pop(name, None) for name in ("temperature", "top_k", "top_p"))
    for name, value in rest.items():
        if CHANGES.get(name) != value:
            raise EvaluationError(f"generation_kwargs: {name}={value!r} is not known here")
    if not all(isinstance(text, str) and text for text in stop) or most < 1:
        raise EvaluationError(f"generation_kwargs: until={list(stop)}, max_gen_toks={most} is not allowed")
    if not draws:
        return Settings(stop, most, Sampling())
    if not temperature:
        raise EvaluationError("generation_kwargs: do_sample=True needs a temperature above 0")
    usual = language_model.generation_config(files)
    top_k = usual.get("top_k", TOP_K) if top_k is None else top_k
    top_p = usual.get("top_p", 1.0) if top_p is None else top_p
    return Settings(stop, most, Sampling(float(temperature), int(top_k), float(top_p)))


def not_applied(files: Path | None) -> str:
    """What generation_config.json asks for and "hf" would do even where a task takes the likeliest token."""
    usual = language_model.generation_config(files)
    asked = [f"{name}={usual[name]}" for name, idle in CHANGES.items() if usual.get(name, idle) != idle]
    return ", ".join(asked)


def adapter(model: Description, results: Results, **options) -> "Harness":
    """An lm_eval.api.model.LM; the arguments are those of `Harness`."""
    from lm_eval.api.model import TemplateLM

    class AnchorJax(Harness, TemplateLM):
        """Splits contexts from continuations with lm-eval's own code."""

    return AnchorJax(model, results, **options)


class Harness:
    """What lm-eval asks of a model, without lm-eval's base class (`adapter` adds it).

    Answers are kept in `results` under a hash of the tokens asked about: they serve every task and any order;
    those to choices of one token, every task with the same choices.

    Attributes:
      cut: how many requests were longer than the context and lost their beginning.
      mark: of the weights, in the keys of answers.
      no_system: whether the chat template refused system messages, which were then left out.
    """

    def __init__(
        self,
        model: Description,
        results: Results,
        *,
        step: int | None = None,
        batch_size: int = 1,
        bos: bool = False,
        chat: ChatTemplate | None = None,
    ):
        """
        Args:
          step: of the run's checkpoint; the weights are loaded only if `results` lacks an answer.
          bos: puts the beginning of sequence before every text, once. Otherwise it stands where "hf" has it: before
            a context if tokenizer.json says so, and before every rolling text, there twice if tokenizer.json says so.
        """
        super().__init__()
        self.model, self.results, self.cut, self.no_system = model, results, 0, False
        self._step, self._batch_size, self._bos, self._chat = step, batch_size, bos, chat
        self.mark = model.mark(step)
        self._prefix = _prefix(model)
        self._ready: Scorer | Generator | None = None

    @property
    def max_length(self) -> int:
        return self.model.context

    @property
    def eot_token_id(self) -> int:
        return self.model.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        return self._prefix

    @property
    def tokenizer_name(self) -> str:
        return self.model.tokenizer.name

    def chat_template(self, chat_template: bool | str = False) -> str:
        return self._chat.source if self._chat and chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Without system messages, as "hf" does it, if the template does not take them."""
        begun = not add_generation_prompt
        try:
            try:
                return self._chat.render(chat_history, begun)
            except ValueError:
                others = [message for message in chat_history if message["role"] != "system"]
                if len(others) == len(chat_history):
                    raise
                self.no_system = True
                return self._chat.render(others, begun)
        except ValueError as error:
            raise EvaluationError(str(error)) from error

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        """Ids of a text in which special tokens are spelled to be themselves.

        None adds the beginning of sequence as the model's `bos` says, unless the text spells it.
        """
        tokenizer = self.model.tokenizer
        if self.model.files is None:  # bytes, which spell nothing
            ids = tokenizer.encode(string).tolist()
            return [self._prefix, *ids] if self._bos and add_special_tokens is None else ids
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(tokenizer.spell(self._prefix))
        ids = tokenizer.encode_with_specials(string, frame=add_special_tokens and not self._bos).tolist()
        return [self._prefix, *ids] if self._bos and add_special_tokens else ids

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """(log p of the continuation, whether it is greedy) of (anything, context, continuation).

        One pass over a context answers for all its continuations of one token (MMLU's "A" to "D").
        """
        asked = [self._row(context, continuation) for _, context, continuation in requests]
        choices, texts = collections.defaultdict(set), []
        for context, continuation in asked:
            if len(continuation) == 1:
                choices[context].add(continuation[0])
            else:
                texts.append((context, continuation))
        found = self._choices({context: sorted(tokens) for context, tokens in choices.items()}) | self._texts(texts)
        return [found[pair] for pair in asked]

    def _choices(self, choices: dict[_Ids, list[int]]) -> dict[tuple[_Ids, _Ids], tuple[float, bool]]:
        """By (context, (token,))."""

        def find(some: list[_Ids]) -> list[dict[str, Any]]:
            return [
                {"nats": [float(one.nats_V[token]) for token in choices[context]], "likeliest": one.likeliest}
                for one, context in zip(self._scorer().next(some), some, strict=True)
            ]

        contexts = sorted(choices, key=len, reverse=True)
        questions = {self._key("choices", context, choices[context]): context for context in contexts}
        fill(self.results, questions, find, lambda: self._scorer().batch_size, "choices")
        return {
            (context, (token,)): (-nats, token == self.results.answers[key]["likeliest"])
            for key, context in questions.items()
            for token, nats in zip(choices[context], self.results.answers[key]["nats"], strict=True)
        }

    def _texts(self, texts: list[tuple[_Ids, _Ids]]) -> dict[tuple[_Ids, _Ids], tuple[float, bool]]:
        """By (context, continuation), of what is longer than one token."""

        def find(some: list[tuple[_Ids, _Ids]]) -> list[dict[str, Any]]:
            scores = self._scorer().score([context + new for context, new in some], likeliest=True)
            return [
                {"nats": float(score.nats_t[-len(new) :].sum()), "greedy": bool(score.likeliest_t[-len(new) :].all())}
                for score, (_, new) in zip(scores, some, strict=True)
            ]

        texts = sorted(texts, key=lambda text: -len(text[0]) - len(text[1]))
        questions = {self._key("score", context + new, len(new)): (context, new) for context, new in texts}
        fill(self.results, questions, find, lambda: self._scorer().batch_size, "likelihoods")
        answers = self.results.answers
        return {text: (-answers[key]["nats"], answers[key]["greedy"]) for key, text in questions.items()}

    def _row(self, context: list[int], continuation: list[int]) -> tuple[_Ids, _Ids]:
        """Without what of the context is too long. The last token is not read, so one more than the context fits."""
        new, most = len(continuation), self.max_length
        if not context:
            raise EvaluationError("a continuation without a context of at least one token cannot be scored")
        if not 0 < new <= most:
            raise EvaluationError(f"a continuation of {new:,} tokens cannot be scored: 1 to {most:,} are allowed")
        check_ids([continuation], self.model)
        row = context + continuation
        self.cut += len(row) > most + 1
        row = tuple(self._last(row, most + 1))
        return row[:-new], row[-new:]

    def _last(self, ids: list[int], size: int) -> list[int]:
        """Without what is too long in front; a run's beginning of sequence stays, as it is the anchor."""
        kept = ids[: int(self._bos)]
        return ids if len(ids) <= size else [*kept, *ids[len(ids) - size + len(kept) :]]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        by_text = [self._windows(*request.args) for request in requests]
        scores = iter(self._loglikelihood_tokens([(None, *pair) for windows in by_text for pair in windows]))
        return [sum(score for score, _ in itertools.islice(scores, len(windows))) for windows in by_text]

    def _windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        """(context, continuation) by windows that score each token once."""
        from lm_eval import utils

        ids = self.tok_encode(text, add_special_tokens=False if self._bos else None)
        front = [self._prefix] if self._bos else []  # of every window, where it is an anchor
        size = self.max_length - len(front)
        windows = utils.get_rolling_token_windows(ids, self._prefix, size, context_len=1)
        pairs = map(utils.make_disjoint_window, windows)
        return [(context if context == front else front + context, new) for context, new in pairs]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        asked: dict[Settings, dict[str, list[int]]] = {}
        keys, copies = [], collections.Counter()
        for text, options in (request.args for request in requests):
            how = settings(options, self.model.files)
            ids = self._prompt(text, how)
            key = self._key("generate", ids, dataclasses.asdict(how))
            if how.sampling.temperature:  # the same request again is another draw
                copies[key] += 1
                key = self._key(key, copies[key])
            keys.append(key)
            asked.setdefault(how, {})[key] = ids
        for how, some in asked.items():
            self._generate(how, dict(sorted(some.items(), key=lambda pair: -len(pair[1]))))
        return [self.results.answers[key]["text"] for key in keys]

    def _prompt(self, text: str, how: Settings) -> list[int]:
        room = self.max_length - how.max_new_tokens
        if room < 1:
            raise EvaluationError(
                f"generation_kwargs: max_gen_toks={how.max_new_tokens} leaves no room for a prompt in the model's "
                f"context of {self.max_length:,}; --context=N allows more"
            )
        ids = self.tok_encode(text)
        self.cut += len(ids) > room
        return self._last(ids, room)

    def _generate(self, how: Settings, prompts: dict[str, list[int]]) -> None:
        tokenizer = self.model.tokenizer
        stop = (*how.stop, tokenizer.spell(tokenizer.eos_id)) if self.model.files else how.stop
        stop_ids = tuple(self._spelled(stop))

        def find(some: list[tuple[str, list[int]]]) -> list[dict[str, Any]]:
            made = self._generator().generate(
                [ids for _, ids in some],
                how.max_new_tokens,
                how.sampling,
                stop=stop,
                stop_ids=stop_ids,
                numbers=[int(key[:7], 16) for key, _ in some],  # chance is the request's own, in any batch
            )
            return [{"text": one.text, "tokens": len(one.tokens), "reason": one.reason} for one in made]

        questions = {key: (key, ids) for key, ids in prompts.items()}
        fill(self.results, questions, find, lambda: self._generator().batch_size, "answers")

    def _spelled(self, texts: Sequence[str]) -> Iterator[int]:
        """The special tokens among stop strings: decoded text does not have them."""
        for text in texts if self.model.files else ():
            ids = self.model.tokenizer.encode_with_specials(text)
            if len(ids) == 1 and not self.model.tokenizer.decode(ids):
                yield int(ids[0])

    def _key(self, *what: Any) -> str:
        return hashlib.sha256(json.dumps([self.mark, *what]).encode()).hexdigest()[:32]

    def _scorer(self) -> Scorer:
        if not isinstance(self._ready, Scorer):
            self._ready = None  # a generator keeps the weights in another layout: never both
            loaded = language_model.load(self.model, step=self._step)
            wider = dataclasses.replace(self.model, context=self.max_length + 1)  # see `_row`
            self._ready = Scorer(dataclasses.replace(loaded, description=wider), self._batch_size)
        return self._ready

    def _generator(self) -> Generator:
        if not isinstance(self._ready, Generator):
            self._ready = None
            self._ready = Generator(language_model.load(self.model, step=self._step), self._batch_size)
        return self._ready


def _prefix(model: Description) -> int:
    """The token behind which a text without context is scored: the beginning of sequence.

    Where a Hugging Face tokenizer has none (Qwen), "hf" takes the end of sequence, whatever config.json names.
    """
    if model.is_run or model.files is None:
        return model.tokenizer.bos_id
    try:
        named = named_specials(model.files)
    except ValueError as error:
        raise WeightsError(str(error)) from error
    return model.tokenizer.eos_id if named.get("bos_token") is None else model.tokenizer.bos_id
