"""A model to evaluate: a run's newest checkpoint or a Hugging Face directory, on whatever devices there are."""

import contextlib
import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from anchorjax import accelerators, attention, processes, sharding
from anchorjax.checkpoints.focus_adapter import FocusAdapter
from anchorjax.checkpoints.huggingface import config as hf_config
from anchorjax.checkpoints.huggingface.tokenizer import GENERATION, end_ids
from anchorjax.checkpoints.orbax import Checkpoints, bytes_of_largest
from anchorjax.checkpoints.pretrained import Pretrained
from anchorjax.config import AttentionConfig, FocusConfig, LoraConfig, ModelConfig, RopeConfig, max_position
from anchorjax.data import Tokenizer
from anchorjax.data.text import tokenizer as tokenizer_lib
from anchorjax.data.text.special_tokens import read_fields
from anchorjax.errors import UsageError, WeightsError
from anchorjax.masks import anchors_of
from anchorjax.models.decoder import Decoder
from anchorjax.models.linear import named_leaves
from anchorjax.models.spec import Spec

DTYPES = ("auto", "float32", "bfloat16")
_CONTEXT = 2048  # what transformers takes where config.json names no max_position_embeddings


@dataclasses.dataclass(frozen=True)
class Description:
    """What is known of a model before its weights are loaded: enough to refuse what it cannot do.

    Attributes:
      pretrained: the directory, and what weights are in it.
      fields: config.json as it lies there; a run's has the section "data".
      context: tokens that the model takes: what the caller asked for, or a run's positions (data.max_position, or
        data.seq_len if that is 0), or max_position_embeddings.
      num_anchors: leading tokens that layers with a window see from everywhere; 0 for models trained elsewhere.
      eos_ids: tokens that end a text.
      files: where tokenizer.json lies; None for bytes.
      attention: the run's variant and scale of logits, which are part of the model. All else is this machine's own: the
        implementation and its tiles. A run's own change the order of sums alone.
      focus: with `focus.chunk` prompts are condensed (inference/focus.py).
      adapter: where the projections lie that a run does not have.
    """

    pretrained: Pretrained
    fields: dict[str, Any]
    model: ModelConfig
    rope: RopeConfig
    lora: LoraConfig
    tokenizer: Tokenizer
    context: int
    num_anchors: int
    eos_ids: tuple[int, ...]
    files: Path | None
    attention: AttentionConfig = AttentionConfig("auto", 0, 0)  # noqa: RUF009 - frozen
    focus: FocusConfig = FocusConfig()  # noqa: RUF009
    adapter: FocusAdapter | None = None

    @property
    def directory(self) -> Path:
        return self.pretrained.directory

    @property
    def is_run(self) -> bool:
        return "data" in self.fields

    @property
    def is_hugging_face(self) -> bool:
        return "model_type" in self.fields

    def steps(self) -> list[int | None]:
        """The steps of its checkpoints, oldest first; [None] for a Hugging Face directory, which has no steps."""
        if self.is_hugging_face:
            return [None]
        return list(Checkpoints(self.directory, keep=1, read_only=True).steps())

    def weights_id(self, step: int | None) -> str:
        """Identifies the weights of a checkpoint in the keys of answers.

        A Hugging Face directory has no steps: the request identifies its contents (`options.request`).
        """
        if step is None:
            return "-"
        return Checkpoints(self.directory, keep=1, read_only=True).weights_id(step)

    def check_scored(self) -> None:
        """Raises UsageError for a model with FocusLLM's memory, which whole rows do not have."""
        if self.focus.chunk:
            raise UsageError(f"{self.directory} has focus.chunk: FocusLLM only generates; rows cannot be scored")

    def spec(self, seq_len: int) -> Spec:
        """For rows of that many tokens, with the run's variant and this machine's implementation of attention."""
        chosen = attention.choose(self.attention, seq_len)
        return Spec(self.model, self.rope, self.lora, chosen, self.num_anchors, seq_len, focus=self.focus)


def describe(
    *,
    workdir: str | Path | None = None,
    hf: str | Path | None = None,
    dtype: str = "auto",
    context: int = 0,
    rope_theta: float = 0.0,
) -> Description:
    """Reads configuration and tokenizer, and no weights.

    Args:
      workdir, hf: exactly one of them: a directory of ours (a run's, or one that convert wrote), or Hugging Face's.
      dtype: of weights and activations. "auto" is a run's own compute_dtype; elsewhere bfloat16, and on CPUs
        float32, as bfloat16 is slower and less exact there.
      context: tokens to allow beyond what the model says, 0 for that.
      rope_theta: another RoPE base, 0 for the model's own.

    Raises:
      UsageError: both directories or none; another dtype.
      WeightsError: a directory that cannot be used.
      ConfigError: a run's attention variant does not exist.
    """
    if (workdir is None) == (hf is None):
        raise UsageError("give one of --workdir (a training run) and --hf (a Hugging Face directory)")
    if dtype not in DTYPES:
        raise UsageError(f"--dtype={dtype} is not allowed: it must be one of {', '.join(DTYPES)}")
    pretrained = Pretrained.open(hf if workdir is None else workdir)
    fields = hf_config.load(pretrained.directory)
    if (workdir is None) != ("model_type" in fields):
        one, other = ("--hf", "--workdir") if workdir is None else ("--workdir", "--hf")
        kind = "a Hugging Face directory" if workdir is not None else "a run's, or what anchorjax convert made"
        raise UsageError(f"{one}={pretrained.directory} is {kind}: write {other}={pretrained.directory}")
    data = fields.get("data", {})
    if dtype == "auto":
        on_device = "float32" if jax.default_backend() == "cpu" else "bfloat16"
        dtype = fields["model"]["compute_dtype"] if data else on_device
    tokenizer, files = _tokenizer(pretrained)
    tokenizer = tokenizer.within(pretrained.model["vocab_size"])
    theta = {"theta": rope_theta} if rope_theta else {}
    sections = fields if workdir is not None else {}
    stays = {"compute_dtype": dtype, "param_dtype": dtype, "remat": "none", "dropout": 0.0}
    return Description(
        pretrained,
        fields,
        ModelConfig(**pretrained.model, **stays),
        RopeConfig(**{"dtype": sections.get("rope", {}).get("dtype", "float32"), **pretrained.rope, **theta}),
        LoraConfig(**sections.get("lora", {"rank": 0, "alpha": 0.0, "targets": ()})),
        tokenizer,
        context or max_position(data) or pretrained.max_position_embeddings or _CONTEXT,
        anchors_of(data["mask"]) if data else 0,
        _eos_ids(tokenizer, files),
        files,
        AttentionConfig.of_model(sections.get("attention", {})),
        FocusConfig(**sections.get("focus", {})),
    )


def with_adapter(description: Description, directory: Path) -> Description:
    """The model with FocusLLM's projections beside it.

    Raises:
      UsageError: the model is a run's.
      WeightsError: the directory is no adapter, or one of a model of other sizes.
    """
    if not description.is_hugging_face:
        raise UsageError(f"--adapter={directory} stands beside a Hugging Face directory: write --hf")
    adapter = FocusAdapter.open(directory, description.model)
    return dataclasses.replace(description, focus=adapter.focus, adapter=adapter)


def _tokenizer(pretrained: Pretrained) -> tuple[Tokenizer, Path | None]:
    name = pretrained.tokenizer
    if name == "auto":
        where = pretrained.source or pretrained.directory
        raise WeightsError(f"{where} has no tokenizer.json; copy the files of the model's tokenizer there")
    try:
        return tokenizer_lib.load(name), None if name == "bytes" else Path(name).expanduser()
    except ValueError as error:
        raise WeightsError(str(error)) from error


def generation_config(files: Path | None) -> dict[str, Any]:
    """Fields of generation_config.json that are not null, if there is one. Raises WeightsError if it cannot be read."""
    try:
        found = read_fields(files / GENERATION) if files else {}
    except ValueError as error:
        raise WeightsError(str(error)) from error
    return {name: value for name, value in found.items() if value is not None}


def _eos_ids(tokenizer: Tokenizer, files: Path | None) -> tuple[int, ...]:
    """The tokenizer's, and the model's: chat models end a turn by another token than a text.

    As in transformers, those of config.json count where there is no generation_config.json, even one that names none.
    """
    if files is None:
        return (tokenizer.eos_id,)
    name = GENERATION if (files / GENERATION).exists() else hf_config.FILE
    return tuple(dict.fromkeys([tokenizer.eos_id, *end_ids(files / name)]))


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A described model with its weights on a mesh."""

    description: Description
    params: Decoder
    mesh: Mesh
    step: int | None  # of a run's checkpoint


def make_mesh(model: ModelConfig, devices: int | None = None) -> Mesh:
    """All devices: as many of a slice along `tensor` as divide heads, feed-forward and D; the others along `fsdp`.

    Rows of a batch lie along `fsdp`, and so do the weights, which may be more than a device holds. `context` is 1: one
    token at a time cannot be cut.
    """
    count = devices or jax.device_count()
    found = jax.devices()[:count]
    tensor = math.gcd(count // sharding.count_slices(found), model.num_kv_heads, model.d_ff, model.d_model)
    fsdp = math.gcd(count // tensor, model.d_model // tensor)
    shape = {"data": count // tensor // fsdp, "fsdp": fsdp, "context": 1, "tensor": tensor}
    return sharding.make_mesh(shape, found)


def load(description: Description, mesh: Mesh | None = None, step: int | None = None) -> LanguageModel:
    """Reads the weights onto the mesh. Warns on stderr, once a process, of a GPU or TPU that JAX does not use.

    Args:
      step: of a run's checkpoints; None takes the newest.

    Raises:
      WeightsError, WorkdirError, CheckpointError: they cannot be read, or are of another model.
    """
    accelerators.warn_if_unused()
    mesh = mesh or make_mesh(description.model)
    spec = description.spec(description.context)
    with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
        like = sharding.abstract(lambda: Decoder(jax.random.key(0), spec))
        stack.enter_context(processes.Watchdog.of_weights(like))
        if description.is_hugging_face:
            params = description.pretrained.load(sharding.zeros(lambda: Decoder(jax.random.key(0), spec)), spec)
            params = description.adapter.load(params) if description.adapter else params
            return LanguageModel(description, params, mesh, None)
        checkpoints = Checkpoints(description.directory, keep=1, read_only=True, host_bytes=bytes_of_largest(like))
        step = description.steps()[-1] if step is None else step
        weights = checkpoints.restore_weights(named_leaves(like), step)
        return LanguageModel(description, jax.tree.unflatten(jax.tree.structure(like), weights.values()), mesh, step)
