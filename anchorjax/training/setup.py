"""What training and evaluation both need before the first step, made from a Config."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh

from anchorjax import attention, compiler_flags, sharding
from anchorjax.attention.parallel import STRATEGIES
from anchorjax.attention.plan import MAX_TILES
from anchorjax.checkpoints.huggingface.tokenizer import check_ends
from anchorjax.checkpoints.pretrained import Pretrained, keep_source
from anchorjax.checkpoints.pretrained import find as find_pretrained
from anchorjax.config import Config
from anchorjax.data import Tokenizer, load_tokenizer
from anchorjax.data.rows.balance import Layout
from anchorjax.errors import ConfigError
from anchorjax.masks import anchors_of
from anchorjax.models import families, focus
from anchorjax.models.decoder import kinds_of_layers, layers_of_kinds
from anchorjax.training import trainable
from anchorjax.training.optimizer import make_optimizer, make_schedule
from anchorjax.training.state import TrainState, init_state
from anchorjax.training.step import Steps

VOCAB_MULTIPLE = 64  # what a tokenizer's vocabulary is rounded up to: it shards, and fills vector registers


@dataclasses.dataclass(frozen=True)
class Setup:
    """A run that fits this machine; `config` has its final vocabulary size."""

    config: Config
    saved: Config  # the same for config.json: a tokenizer that was left to the checkpoint is left to it
    store_tokenizer: Tokenizer  # as it was loaded: what makes and names a token store
    tokenizer: Tokenizer  # the same within the model's vocabulary
    mesh: Mesh
    steps: Steps
    pretrained: Pretrained | None  # where the weights come from, if the run starts from a checkpoint
    compiler_options: Mapping[str, bool]  # for jit of the training step

    @classmethod
    def make(cls, config: Config, workdir: Path | None = None) -> "Setup":
        """Compiles nothing and writes nothing.

        Args:
          workdir: a run's directory, which may hold all that it needs of its checkpoint.

        Raises:
          ConfigError: a checkpoint or tokenizer that cannot be used, shapes that do not fit them or the devices.
          WeightsError: a checkpoint's configuration that is not supported.
        """
        pretrained = find_pretrained(config, workdir)
        if config.lora.rank and not pretrained:
            raise ConfigError("lora.rank", config.lora.rank, "adapters need a checkpoint in init_from to stand beside")
        given, config = config.data.tokenizer, complete(config, pretrained)
        tokenizer = store_tokenizer = load_tokenizer(config.data)
        if pretrained:
            tokenizer = tokenizer.within(config.model.vocab_size)
            check_ends(Path(config.data.tokenizer).expanduser())  # now, and not at the export
        config = with_vocabulary(config, tokenizer, pretrained)
        if config.focus.chunk:
            check_focus(config)
        mesh_shape = config.check_devices(jax.device_count())
        check_slices(config, jax.devices())
        check_attention(config, mesh_shape)
        check_host_memory(config)
        mesh = sharding.make_mesh(mesh_shape)
        optimizer = make_optimizer(config.optimizer, config.train.steps)
        schedule = make_schedule(config.optimizer, config.train.steps)
        steps = Steps(config, anchors_of(config.data.mask), optimizer, schedule)
        saved = dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer=given))
        compiler_options = compiler_flags.options(config.train.compiler_flags)
        return cls(config, saved, store_tokenizer, tokenizer, mesh, steps, pretrained, compiler_options)

    @functools.cached_property
    def make_state(self):
        """() -> TrainState, for jit or eval_shape inside the mesh."""
        return functools.partial(init_state, self.config.seed, self.steps.spec, self.steps.optimizer)

    def first_state(self) -> TrainState:
        """Fresh weights and moments, or a checkpoint's weights; call it inside the mesh.

        Raises:
          WeightsError, WorkdirError, CheckpointError: the checkpoint's weights cannot be read, or are of another model.
        """
        if self.pretrained is None:
            return jax.jit(self.make_state)()

        def without_base():
            state = self.make_state()
            return dataclasses.replace(state, params=trainable.added(state.params))

        state = jax.jit(without_base)()  # what the checkpoint brings is not drawn
        params = trainable.put_back(state.params, sharding.zeros(lambda: self.make_state().params))
        params = self.pretrained.load(params, self.steps.spec)
        if self.config.focus.chunk:
            params = focus.copied(params)
        return dataclasses.replace(state, params=params)

    def keep_source(self, workdir: Path) -> None:
        """Makes the run's directory hold all that it needs of its checkpoint."""
        directory = Path(self.config.data.tokenizer).expanduser()
        own = directory if directory.is_dir() else None
        keep_source(workdir, self.pretrained, self.tokenizer, own)

    @property
    def layout(self) -> Layout:
        return layout(dataclasses.replace(self.config, attention=self.steps.spec.attention), self.mesh.shape)

    def abstract_state(self) -> TrainState:
        with jax.set_mesh(self.mesh):
            return sharding.abstract(self.make_state)


def layout(config: Config, mesh_shape: Mapping[str, int]) -> Layout:
    """How rows and their tokens lie on the mesh, so that the devices have equal work.

    Args:
      config: with attention's tiles, as `attention.choose` gives them.
    """
    context = mesh_shape["context"]
    queries, _ = STRATEGIES[config.mesh.context_strategy].tokens(config.data.seq_len, context)
    return Layout(
        name=config.mesh.context_layout,
        # Where each device attends from all queries of a row, it has the same work in any order.
        shards=1 if queries == config.data.seq_len else context,
        tile=math.lcm(config.attention.q_tile, config.attention.kv_tile),
        windows=tuple(zip(kinds_of_layers(config.model), layers_of_kinds(config.model), strict=True)),
        groups=mesh_shape["data"] * mesh_shape["fsdp"],
        parts=config.train.grad_accum_steps,
    )


def complete(config: Config, pretrained: Pretrained | None) -> Config:
    """With what is left open filled in. Raises ConfigError for a family that does not exist or another model."""
    if pretrained:
        return pretrained.complete(config)
    if config.data.tokenizer == "auto":
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer="bytes"))
    config = config.completed()
    if config.model.family not in families.available():
        raise ConfigError("model.family", config.model.family, f"it must be one of {', '.join(families.available())}")
    return config


def check_focus(config: Config) -> None:
    """Raises ConfigError for a checkpoint that focus.chunk cannot stand beside."""
    if config.model.sliding_window:
        allowed = f"it must be 0, as layers of {config.model.family} have a sliding window"
        raise ConfigError("focus.chunk", config.focus.chunk, allowed)
    if config.rope.depends_on_length:
        allowed = f"it must be 0, as rope.scaling={config.rope.scaling!r} depends on the length of a row"
        raise ConfigError("focus.chunk", config.focus.chunk, allowed)


def check_slices(config: Config, devices: Sequence[jax.Device]) -> None:
    """Raises ConfigError if the devices are in another number of slices than the configuration says."""
    found = sharding.count_slices(devices)
    if config.mesh.slices != found:
        raise ConfigError("mesh.slices", config.mesh.slices, f"the number of slices that JAX found is {found}")


def check_attention(config: Config, mesh_shape: Mapping[str, int], device: jax.Device | None = None) -> None:
    """Raises ConfigError for an implementation, tiles, heads or a layout that the device (default: any) refuses."""
    device = device or jax.devices()[0]
    chosen, found = attention.choose(config.attention, config.data.seq_len, device), device.platform
    name = chosen.implementation
    module = attention.MODULES[name]
    needed = module.BACKEND or found
    if needed != found:
        raise ConfigError(
            "attention.implementation", name, f"it needs {needed.upper()}s, and JAX found {found} devices"
        )
    model = config.model
    refused = module.supports(chosen.q_tile, chosen.kv_tile, model.head_dim, model.compute_dtype)
    if refused:  # `choose` has refused tiles already
        key, allowed = {"head_dim": "head_dim", "dtype": "compute_dtype"}[refused[0]], refused[1]
        raise ConfigError(f"model.{key}", getattr(model, key), f"attention.implementation={name!r} takes {allowed}")
    # Evaluation takes all rows of a batch at once, of which a training step with accumulation takes a part.
    rows = config.data.batch_size // (mesh_shape["data"] * mesh_shape["fsdp"])
    strategy = STRATEGIES[config.mesh.context_strategy]
    strategy.check(config.model, config.mesh, mesh_shape)
    seq_len, context = config.data.seq_len, mesh_shape["context"]
    on_device = strategy.tokens(seq_len, context)
    is_laid_out = on_device[0] < seq_len  # see `layout`
    if config.mesh.context_layout == "zigzag" and is_laid_out and seq_len % (2 * context):
        allowed = f"mesh.context_layout='zigzag' takes a multiple of 2 * mesh.context = {2 * context}"
        raise ConfigError("data.seq_len", seq_len, allowed)
    for key, tokens in zip(("q_tile", "kv_tile"), on_device, strict=True):
        tile = getattr(chosen, key)
        tiles = rows * -(-tokens // tile)
        if tiles > MAX_TILES:
            allowed = f"{rows} rows of {tokens} tokens on a device may be {MAX_TILES} tiles at most, and are {tiles}"
            raise ConfigError(f"attention.{key}", tile, allowed)


def check_host_memory(config: Config) -> None:
    """Raises ConfigError for what is to lie in the host's memory, where these devices cannot reach it."""
    device = jax.local_devices()[0]
    reached = sharding.HOST in {memory.kind for memory in device.addressable_memories()}
    for name, value, host in (
        ("model.remat", config.model.remat, "offload"),
        ("optimizer.moments_on", config.optimizer.moments_on, "host"),
    ):
        if value == host and not reached:
            allowed = f"{device.device_kind} has no memory {sharding.HOST!r} that arrays can lie in"
            raise ConfigError(name, value, allowed)


def with_vocabulary(config: Config, tokenizer: Tokenizer, pretrained: Pretrained | None) -> Config:
    """Fills in model.vocab_size. Raises ConfigError if it, or the checkpoint's, is too small for the tokenizer."""
    needed = tokenizer.vocab_size
    size = config.model.vocab_size or -(-needed // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    if size < needed and pretrained:
        allowed = f"it has ids up to {needed - 1:,}, and the checkpoint {pretrained.directory} knows {size:,} tokens"
        raise ConfigError("data.tokenizer", config.data.tokenizer, allowed)
    if size < needed:
        raise ConfigError("model.vocab_size", size, f"it must be at least the tokenizer's {needed}, or 0 to fit it")
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=size))
