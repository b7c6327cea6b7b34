"""Models for the tasks of lm-eval: what it asks is answered as its own Hugging Face backend ("hf") answers.

    loglikelihood           how likely is a continuation of a context, and would greedy decoding write it?
    loglikelihood_rolling   how likely is a text, window by window?
    generate_until          what comes behind a prompt, up to a stop string?

How texts become tokens, contexts that are too long and long texts in windows follow lm-eval 0.4.13's
models/huggingface.py; so a Hugging Face directory has the scores that "hf" gives it. lm-eval is an optional
requirement (the extra `eval`): nothing here is imported from it before a model is made.
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
from anchorjax.evaluation import runner
from anchorjax.evaluation.record import Line, Record
from anchorjax.evaluation.task import Example
from anchorjax.inference import language_model
from anchorjax.inference.batching import check_ids
from anchorjax.inference.language_model import Description
from anchorjax.inference.sampling import Sampling

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


def adapter(model: Description, record: Record, **options) -> "Harness":
    """An lm_eval.api.model.LM; the arguments are those of `Harness`."""
    from lm_eval.api.model import TemplateLM

    class AnchorJax(Harness, TemplateLM):
        """Splits contexts from continuations with lm-eval's own code."""

    return AnchorJax(model, record, **options)


class Harness:
    """What lm-eval asks of a model, without lm-eval's base class (`adapter` adds it).

    The index of an answer in the record is a digest of the tokens asked about: it serves every task and any order; one
    to choices of one token, every task with the same choices.

    Attributes:
      cut: how many requests were longer than the context and lost their beginning.
      no_system: whether the chat template refused system messages, which were then left out.
    """

    def __init__(
        self,
        model: Description,
        record: Record,
        *,
        step: int | None = None,
        batch_size: int = 1,
        bos: bool = False,
        chat: ChatTemplate | None = None,
    ):
        """
        Args:
          step: of the run's checkpoint; the weights are loaded only if the record lacks an answer.
          bos: puts BOS before every text, once. Otherwise it is where "hf" has it: before
            a context if tokenizer.json says so, and before every rolling text, there twice if tokenizer.json says so.
        """
        super().__init__()
        self.model, self.record, self.cut, self.no_system = model, record, 0, False
        self._bos, self._chat, self._prefix = bos, chat, _prefix(model)
        self._engine = runner.Engine(model, step, batch_size, extra=1)  # see `_row`

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

        None adds BOS as the model's `bos` says, unless the text spells it.
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

        def ask(_, contexts: Sequence[_Ids]) -> list[dict[str, Any]]:
            found = self._engine.scorer().next(contexts)
            return [
                {"nats": [float(one.nats_V[token]) for token in choices[context]], "likeliest": one.likeliest}
                for one, context in zip(found, contexts, strict=True)
            ]

        asked = {self._id("choices", context, tokens): context for context, tokens in choices.items()}
        answers = self._fill("choices", asked, ask, self._engine.scorer, len, lambda one: -min(one["nats"]))
        return {
            (context, (token,)): (-nats, token == answers[id]["likeliest"])
            for id, context in asked.items()
            for token, nats in zip(choices[context], answers[id]["nats"], strict=True)
        }

    def _texts(self, texts: list[tuple[_Ids, _Ids]]) -> dict[tuple[_Ids, _Ids], tuple[float, bool]]:
        """By (context, continuation), of what is longer than one token."""

        def ask(_, some: Sequence[tuple[_Ids, _Ids]]) -> list[dict[str, Any]]:
            scores = self._engine.scorer().score([context + new for context, new in some], likeliest=True)
            return [
                {"nats": float(score.nats_t[-len(new) :].sum()), "greedy": bool(score.likeliest_t[-len(new) :].all())}
                for score, (_, new) in zip(scores, some, strict=True)
            ]

        def size(text: tuple[_Ids, _Ids]) -> int:
            return len(text[0]) + len(text[1])

        asked = {self._id("score", context + new, len(new)): (context, new) for context, new in texts}
        answers = self._fill("likelihoods", asked, ask, self._engine.scorer, size, lambda one: -one["nats"])
        return {text: (-answers[id]["nats"], answers[id]["greedy"]) for id, text in asked.items()}

    def _fill(self, task: str, asked: Mapping[str, Any], ask, ready, size, score, how: Any = None) -> dict[str, Line]:
        """The lines of requests, by their digests, which are their indices in the record.

        Args:
          score: of an output, log p; None for a text, which lm-eval scores.
        """
        examples = [
            Example(task, size(one), id, lambda id=id, one=one: (id, one), how, size(one)) for id, one in asked.items()
        ]
        way = runner.Way(
            lambda how, made: ask([id for id, _ in made], [one for _, one in made]),
            lambda: ready().batch_size,
            lambda made: size(made[1]),
            lambda how: None,
        )

        def line(_, made: Any, output: dict[str, Any]) -> Line:
            return {"score": score(output)} | output

        runner.fill(self.record, self._engine, examples, way, line, task)
        weights_id = self._engine.weights_id
        return {one.index: self.record.answers[weights_id, task, one.length, one.index] for one in examples}

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
        """Without what is too long in front; a run's BOS stays, as it is the anchor."""
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
        ids_of, copies = [], collections.Counter()
        for text, options in (request.args for request in requests):
            how = settings(options, self.model.files)
            prompt = self._prompt(text, how)
            id = self._id("generate", prompt, dataclasses.asdict(how))
            if how.sampling.temperature:  # the same request again is another draw
                copies[id] += 1
                id = self._id(id, copies[id])
            ids_of.append(id)
            asked.setdefault(how, {})[id] = prompt
        answers: dict[str, Line] = {}
        for how, some in asked.items():
            answers |= self._generate(how, some)
        return [answers[id]["text"] for id in ids_of]

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

    def _generate(self, how: Settings, prompts: dict[str, list[int]]) -> dict[str, Line]:
        tokenizer = self.model.tokenizer
        stop = (*how.stop, tokenizer.spell(tokenizer.eos_id)) if self.model.files else how.stop
        stop_ids = tuple(self._spelled(stop))

        def ask(ids: list[str], some: Sequence[list[int]]) -> list[dict[str, Any]]:
            numbers = [int(id[:7], 16) for id in ids]  # chance is the request's own, in any batch
            options = {"stop": stop, "stop_ids": stop_ids, "numbers": numbers}
            made = self._engine.generator().generate(some, how.max_new_tokens, how.sampling, **options)
            return [{"text": one.text, "tokens": len(one.tokens), "reason": one.reason} for one in made]

        return self._fill("texts", prompts, ask, self._engine.generator, len, lambda one: None, how)

    def _spelled(self, texts: Sequence[str]) -> Iterator[int]:
        """The special tokens among stop strings: decoded text does not have them."""
        for text in texts if self.model.files else ():
            ids = self.model.tokenizer.encode_with_specials(text)
            if len(ids) == 1 and not self.model.tokenizer.decode(ids):
                yield int(ids[0])

    def _id(self, *what: Any) -> str:
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]


def _prefix(model: Description) -> int:
    """The token behind which a text without context is scored: BOS.

    Where a Hugging Face tokenizer has none (Qwen), "hf" takes EOS, whatever config.json names.
    """
    if model.is_run or model.files is None:
        return model.tokenizer.bos_id
    try:
        named = named_specials(model.files)
    except ValueError as error:
        raise WeightsError(str(error)) from error
    return model.tokenizer.eos_id if named.get("bos_token") is None else model.tokenizer.bos_id
