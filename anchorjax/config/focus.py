"""The section of FocusLLM (arXiv 2408.11745): a memory in chunks, each condensed by trained projections."""

import dataclasses
from typing import TYPE_CHECKING

from anchorjax.config.keys import Section, key
from anchorjax.errors import ConfigError

if TYPE_CHECKING:
    from anchorjax.config.run import Config


@dataclasses.dataclass(frozen=True)
class FocusConfig(Section):
    """Rows are [anchor, memory of whole chunks, local part]: data.seq_len = 1 + chunks * chunk + local."""

    NAME = "focus"
    chunk: int = key(
        0, "c: tokens of a chunk of memory, which becomes one key and value a layer (FocusLLM); 0: off", low=0
    )
    local: int = key(0, "n: tokens of the local part, which ends a row", low=0)
    prompt: int = key(64, "m: local tokens that stand behind each chunk (at most 512 in the paper)", low=1)
    targets: int = key(
        0,
        "local tokens with a target, the last of the row; 0: all from the prompt's last on, which is the most, as the "
        "memory has seen the prompt; 1: as in the published code",
        low=0,
    )
    reconstruction: float = key(
        0.5, "share of training rows whose local part repeats a span of memory; the others continue it", low=0, high=1
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.chunk:
            for each in self.declared():
                self.require(getattr(self, each.field) == each.default, each.field, "only focus.chunk uses it")
            return
        self.require(self.local > 0, "local", "with focus.chunk it must be at least 1")
        self.require(self.prompt <= self.local, "prompt", f"it must be at most focus.local={self.local}")
        most = self.local - self.prompt + 1
        given = f"with focus.local={self.local} and focus.prompt={self.prompt} it must be at most {most}"
        self.require(self.targets <= most, "targets", f"{given}: chunks have seen the tokens before")

    @property
    def num_targets(self) -> int:
        return self.targets or self.local - self.prompt + 1

    @property
    def prompt_end(self) -> int:
        """Where the prompt of the chunks ends in the local part: its last token is the first with a target."""
        return self.local - self.num_targets + 1

    def chunks(self, seq_len: int) -> int:
        """Whole chunks in the memory of a row, or of a prompt with BOS: before its last `local` tokens."""
        return max(0, seq_len - 1 - self.local) // self.chunk if self.chunk else 0

    def columns(self, length: int) -> int:
        """Positions that a prompt takes, with one for each chunk of its memory."""
        return length - self.chunks(length) * (self.chunk - 1)


def check(config: "Config") -> None:
    """Raises ConfigError for keys that do not go with focus.chunk."""
    focus, T = config.focus, config.data.seq_len
    k = focus.chunks(T)
    if k < 1 or T != 1 + k * focus.chunk + focus.local:
        rule = f"1 + chunks * focus.chunk={focus.chunk} + focus.local={focus.local}, of one chunk or more"
        raise ConfigError("data.seq_len", T, f"with focus.chunk it must be {rule}")
    if focus.reconstruction and k * focus.chunk <= focus.local:
        allowed = f"it must be 0, as a memory of {k * focus.chunk} tokens has no span of focus.local + 1 tokens"
        raise ConfigError("focus.reconstruction", focus.reconstruction, allowed)
    if not config.init_from:
        raise ConfigError("focus.chunk", focus.chunk, "it needs a checkpoint in init_from, which stays frozen")
    needed = {
        "lora.rank": 0,
        "model.dropout": 0.0,
        "data.mask": "anchor",
        "data.positions": "continue",
        "data.packing": "concat_split",
        "data.messages_key": "",
        "data.window_schedule": "none",
        "data.interleave": 0,
        "data.tags": False,
        "data.boundary_targets": False,
        "train.objective": "mean",
        "attention.logit_scale": "none",
        "mesh.context": 1,
        "mesh.context_strategy": "all_gather",
    }
    for name, value in needed.items():
        section, _, field = name.partition(".")
        given = getattr(getattr(config, section), field)
        if given != value:
            raise ConfigError(name, given, f"with focus.chunk it must be {value!r}")
