"""What training and evaluation both need before the first step, made from a Config."""

import dataclasses
import functools
from collections.abc import Mapping

import jax
from jax.sharding import Mesh

from anchorjax import attention, sharding
from anchorjax.attention.plan import MAX_TILES
from anchorjax.attention.tiles import WIDEST
from anchorjax.config import Config
from anchorjax.data import num_anchors
from anchorjax.data.tokenizer import ByteTokenizer
from anchorjax.data.tokenizer import load as load_tokenizer
from anchorjax.errors import ConfigError
from anchorjax.training.optimizer import make_optimizer, make_schedule
from anchorjax.training.state import TrainState, init_state
from anchorjax.training.step import Steps

VOCAB_MULTIPLE = 64  # what a tokenizer's vocabulary is rounded up to: it shards, and fills vector registers


@dataclasses.dataclass(frozen=True)
class Setup:
    """A run that fits this machine; `config` has its final vocabulary size."""

    config: Config
    tokenizer: ByteTokenizer
    mesh: Mesh
    steps: Steps

    @classmethod
    def make(cls, config: Config) -> "Setup":
        """Raises ConfigError for shapes that do not fit the devices or the tokenizer. Compiles nothing."""
        tokenizer = load_tokenizer(config.data.tokenizer)
        config = with_vocabulary(config, tokenizer.vocab_size)
        mesh_shape = config.check_devices(jax.device_count())
        check_attention(config, mesh_shape)
        mesh = sharding.make_mesh(mesh_shape)
        optimizer = make_optimizer(config.optimizer, config.train.steps)
        schedule = make_schedule(config.optimizer, config.train.steps)
        return cls(config, tokenizer, mesh, Steps(config, num_anchors(config.data.mask), optimizer, schedule))

    @functools.cached_property
    def make_state(self):
        """() -> TrainState, for jit or eval_shape inside the mesh."""
        return functools.partial(init_state, self.config.seed, self.config.model, self.steps.optimizer)

    def abstract_state(self) -> TrainState:
        with jax.set_mesh(self.mesh):
            return sharding.abstract(self.make_state)


def check_attention(config: Config, mesh_shape: Mapping[str, int]) -> None:
    """Raises ConfigError for an implementation, tiles or heads that this process's devices do not run."""
    chosen, found = attention.choose(config.attention, config.data.row_length), jax.default_backend()
    name = chosen.implementation
    needed = attention.BACKENDS.get(name, found)
    if needed != found:
        raise ConfigError(
            "attention.implementation", name, f"it needs {needed.upper()}s, and JAX found {found} devices"
        )
    width, widest = config.model.head_width, WIDEST.get(name, config.model.head_width)
    if width > widest:
        raise ConfigError("model.head_width", width, f"attention.implementation={name!r} takes heads of up to {widest}")
    # Evaluation takes all rows of a batch at once, of which a training step with accumulation takes a part.
    rows = config.data.batch_rows // (mesh_shape["data"] * mesh_shape["fsdp"])
    for key, parts in (("q_tile", mesh_shape["context"]), ("kv_tile", 1)):
        tokens, tile = config.data.row_length // parts, getattr(chosen, key)
        tiles = rows * -(-tokens // tile)
        if tiles > MAX_TILES:
            allowed = f"{rows} rows of {tokens} tokens on a device may be {MAX_TILES} tiles at most, and are {tiles}"
            raise ConfigError(f"attention.{key}", tile, allowed)


def with_vocabulary(config: Config, needed: int) -> Config:
    """Fills in model.vocab_size. Raises ConfigError if it is too small for the tokenizer."""
    size = config.model.vocab_size or -(-needed // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    if size < needed:
        raise ConfigError("model.vocab_size", size, f"it must be at least the tokenizer's {needed}, or 0 to fit it")
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=size))
