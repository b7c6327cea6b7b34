"""Text from a model: prompts taken in by chunks, then token by token, batch by batch.

Shapes come from a few buckets (rows, chunk, columns of the cache), so that neither a prompt's length nor a token ever
compiles anything new. The device works on token n + 1 while the host reads token n and looks for the end.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import reshard

from anchorjax import processes, sharding
from anchorjax.data import Tokenizer
from anchorjax.errors import UsageError
from anchorjax.inference.batching import batches, bucket, check_ids
from anchorjax.inference.cached import Cache, DecodeParams, advance
from anchorjax.inference.focus import remember, shortened
from anchorjax.inference.language_model import Description, LanguageModel
from anchorjax.inference.sampling import Draw, Sampling, next_tokens
from anchorjax.models.spec import Spec
from anchorjax.sharding import BATCH, REPLICATED

CHUNK = 4096  # tokens of a prompt taken in at once, at most: bounds activations


@dataclasses.dataclass(frozen=True)
class Generation:
    """What a model wrote after one prompt.

    Attributes:
      tokens: ids, without the one that ended the text.
      text: up to the stop string, if one came.
      reason: "stop" (a token that ends a text, or a stop string) or "length".
    """

    tokens: tuple[int, ...]
    text: str
    reason: str


class Generator:
    """A model that is ready to generate. `LanguageModel.params` is used up."""

    def __init__(self, model: LanguageModel, batch_size: int = 1, chunk: int = CHUNK):
        """
        Args:
          batch_size: prompts at once; rounded up to what the mesh's rows ask for.
          chunk: tokens of a prompt at once, at most.
        """
        self.description, self.mesh = model.description, model.mesh
        shards = model.mesh.shape["data"] * model.mesh.shape["fsdp"]
        self.batch_size, self.chunk = -(-batch_size // shards) * shards, chunk
        with jax.set_mesh(self.mesh):
            self.params = DecodeParams.of(model.params, self.description.spec(self.description.context))

    def check(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        """Raises UserError for prompts that are empty, too long for the context with their answer, or of other ids."""
        check_context(prompts, max_new_tokens, self.description)
        if not all(map(len, prompts)):
            raise UsageError("a prompt is empty: it needs at least BOS")
        check_ids(prompts, self.description)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        *,
        stop: Sequence[str] = (),
        stop_ids: Sequence[int] = (),
        numbers: Sequence[int] | None = None,
        show: Callable[[int, str], None] | None = None,
    ) -> list[Generation]:
        """In the order of the prompts.

        Args:
          prompts: ids, BOS included.
          stop: strings before which a text ends.
          stop_ids: tokens that end a text beside the model's own.
          numbers: of the prompts, int32, on which chance depends; default: 0, 1, 2, ...
          show: called with (prompt, new text) as text comes, for streaming.

        Raises:
          UserError: see `check`.
        """
        self.check(prompts, max_new_tokens)
        numbers, ends = numbers or range(len(prompts)), (*self.description.eos_ids, *stop_ids)
        texts: dict[int, _Text] = {}
        kind = self.kind(max_new_tokens)
        for places in batches(range(len(prompts)), self.batch_size, lambda i: len(prompts[i]), kind):
            some = {i: _Text(i, self.description.tokenizer, ends, stop, show) for i in places}
            chosen = [numbers[i] for i in places]
            self._batch([prompts[i] for i in places], chosen, list(some.values()), max_new_tokens, sampling)
            texts |= some
        return [texts[i].finish() for i in range(len(prompts))]

    def _batch(
        self, prompts, numbers: list[int], texts: list["_Text"], max_new_tokens: int, sampling: Sampling
    ) -> None:
        with jax.set_mesh(self.mesh), processes.Watchdog(processes.STUCK_S) as watchdog:
            for tokens_B in watchdog.each(self._tokens(prompts, numbers, max_new_tokens, sampling)):
                for text, token in zip(texts, np.asarray(tokens_B).tolist(), strict=False):
                    text.add(token)
                if all(text.reason for text in texts):
                    return

    def _tokens(self, prompts, numbers: list[int], max_new_tokens: int, sampling: Sampling) -> Iterator[jax.Array]:
        """Arrays [B] of new tokens, each asked of the device one ahead of being handed out."""
        focus, pad_id = self.description.focus, self.description.tokenizer.pad_id
        whole, prompts = prompts, [shortened(prompt, focus, pad_id) for prompt in prompts] if focus.chunk else prompts
        chunk, columns = self._columns(max(map(len, prompts)))
        tokens_BP, start_B = self._laid_out(prompts, columns)
        spec = self.description.spec(bucket(columns + max_new_tokens))
        prompt_B = np.resize(np.asarray(numbers, np.int32), self.batch_size)
        cache = _empty_cache(start_B, spec)
        step = functools.partial(_step, spec=spec)
        draw = sampling.traced()
        memory = remember(self.params, whole, self.batch_size, spec) if focus.chunk else None
        for first in range(0, columns, chunk):
            tokens_BT = sharding.put(tokens_BP[:, first : first + chunk], BATCH)
            tokens_B, cache = step(self.params, cache, tokens_BT, draw, prompt_B, np.int32(0), memory)
        for place in range(1, max_new_tokens):
            ready_B = tokens_B
            tokens_B, cache = step(self.params, cache, tokens_B[:, None], draw, prompt_B, np.int32(place))
            yield ready_B
        yield tokens_B

    def kind(self, max_new_tokens: int) -> Callable[[int], int] | None:
        """For `batches`: where RoPE depends on the cache's columns, an answer must not depend on what is beside it."""
        if not self.description.rope.depends_on_length:
            return None
        return lambda length: bucket(self._columns(length)[1] + max_new_tokens)

    def _columns(self, longest: int) -> tuple[int, int]:
        """(tokens of a chunk, columns of the prompts)."""
        chunks = -(-longest // self.chunk)
        chunk = min(self.chunk, bucket(-(-longest // chunks)))  # alike in size: little padding
        return chunk, chunks * chunk

    def _laid_out(self, prompts, columns: int) -> tuple[np.ndarray, np.ndarray]:
        """Prompts with padding in front [B, columns], and where each begins [B]. Excess rows repeat the last prompt."""
        tokenizer = self.description.tokenizer
        tokens_BP = np.full((self.batch_size, columns), tokenizer.pad_id, np.int32)
        start_B = np.zeros(self.batch_size, np.int32)
        for row in range(self.batch_size):
            prompt = prompts[min(row, len(prompts) - 1)]
            start_B[row] = columns - len(prompt)
            tokens_BP[row, start_B[row] :] = prompt
        return tokens_BP, start_B


def check_context(prompts: Sequence[Sequence[int]], answer: int, model: Description) -> None:
    """Raises UsageError if a prompt and so many tokens of answer are more than the model's context."""
    context, prompt = model.context, max(model.focus.columns(len(prompt)) for prompt in prompts)
    if answer < 1:
        raise UsageError(f"--max-new-tokens={answer} is not allowed: it must be at least 1")
    what = "columns" if model.focus.chunk else "tokens"
    if prompt + answer > context:
        raise UsageError(
            f"a prompt of {prompt:,} {what} and {answer:,} new ones are more than the model's context of {context:,}; "
            "--context=N allows more"
        )


@functools.partial(jax.jit, static_argnames="spec")
def _empty_cache(start_B, spec: Spec) -> Cache:
    return Cache.empty(start_B, spec.max_position, spec)


@functools.partial(jax.jit, static_argnames="spec", donate_argnames="cache")
def _step(params: DecodeParams, cache: Cache, tokens_BT, draw: Draw, prompt_B, place, memory=None, *, spec: Spec):
    logits_BV, cache = advance(params, cache, reshard(tokens_BT, BATCH), spec, memory)
    return next_tokens(reshard(logits_BV, REPLICATED), draw, prompt_B, place), cache  # whole on each process


class _Text:
    """One prompt's text as it grows."""

    def __init__(self, number: int, tokenizer: Tokenizer, end_ids: Sequence[int], stop: Sequence[str], show):
        self.number, self.reason = number, ""
        self._tokenizer, self._end_ids, self._stop, self._show = tokenizer, end_ids, stop, show
        self._tokens: list[int] = []
        self._text, self._shown = "", 0

    def add(self, token: int) -> None:
        if self.reason:
            return
        if token in self._end_ids:
            self.reason = "stop"
        else:
            self._tokens.append(token)
            if self._stop or self._show:
                self._read()
        if self.reason:
            self._stream(len(self._text))

    def _read(self) -> None:
        self._text = self._tokenizer.decode(self._tokens)
        found = [at for at in map(self._text.find, self._stop) if at >= 0]
        if found:
            self.reason, self._text = "stop", self._text[: min(found)]
            return
        # Held back: half a character, and what may become a stop string.
        safe = len(self._text.rstrip("\N{REPLACEMENT CHARACTER}")) - max(map(len, self._stop), default=1) + 1
        self._stream(safe)

    def _stream(self, end: int) -> None:
        if self._show and end > self._shown:
            self._show(self.number, self._text[self._shown : end])
            self._shown = end

    def finish(self) -> Generation:
        if not (self._stop or self._show):
            self._text = self._tokenizer.decode(self._tokens)
        self._stream(len(self._text))
        return Generation(tuple(self._tokens), self._text, self.reason or "length")
