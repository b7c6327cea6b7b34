"""Training steps of one model under one mask, for the part `training`: prepared and timed when asked."""

import time
from typing import Any

import jax
import numpy as np

from anchorjax import sharding
from anchorjax.config import Config, resolve
from anchorjax.masks import anchors_of
from anchorjax.models import families
from anchorjax.models.flops import train_flops
from anchorjax.sharding import shard_batch
from anchorjax.training.optimizer import make_optimizer, make_schedule
from anchorjax.training.state import init_state
from anchorjax.training.step import Steps
from anchorjax.types import Batch
from benchmarks.gpu_parts import rows
from benchmarks.gpu_parts.workers import enough_calls, seconds, serve
from configs import common

# The most telling ones first: (model, tokens of the row).
MODELS = (("smollm2_135m", 16384), ("llama32_1b", 32768), ("smollm2_135m", 65536), ("quickstart", 4096))
DRY_MODELS = (("tiny", 256),)
# The quickstart's sizes stand in configs/quickstart.py, whose ConfigDict a bare machine lacks; a test compares them.
QUICKSTART = {"num_layers": 4, "d_model": 128, "d_ff": 512, "num_heads": 2, "num_kv_heads": 1}
QUICKSTART |= {"head_dim": 32, "vocab_size": 320, "remat": "none"}
TINY = QUICKSTART | {"num_layers": 2, "d_model": 32, "d_ff": 64, "head_dim": 16}


def config_of(model: str, length: int, mask: str) -> Config:
    """The project's defaults, at a model's sizes; remat is the default, `attention`, but for the quickstart."""
    values: dict[str, Any] = {
        name: dict(value) if isinstance(value, dict) else value for name, value in common.defaults().items()
    }
    own = {"quickstart": QUICKSTART, "tiny": TINY}
    sizes, rope = (own[model], {}) if model in own else families.published(model)
    values["model"] |= sizes
    values["rope"] |= rope
    values["data"] |= {"seq_len": length, "mask": mask, "tokenizer": "bytes"}
    values["train"]["loss_chunk"] = min(length, values["train"]["loss_chunk"])
    return resolve(values).completed()


def make_steps(config: Config) -> Steps:
    optimizer, schedule = (make(config.optimizer, config.train.steps) for make in (make_optimizer, make_schedule))
    return Steps(config, anchors_of(config.data.mask), optimizer, schedule)


def make_batch(config: Config) -> Batch:
    """A row of real document lengths behind its anchor, of random tokens; each but a document's last has a target."""
    length, mask = config.data.seq_len, config.data.mask
    lengths = rows.document_lengths("linux", length)
    segments = rows.segment_ids(lengths)
    tokens, targets = np.random.default_rng(0).integers(0, config.model.vocab_size, (2, 1, length), np.int32)
    is_target = np.ones((1, length), bool)
    is_target[0, [0, *np.cumsum(lengths)]] = False
    positions = np.arange(length, dtype=np.int32)[None]
    segments = np.zeros_like(segments) if mask == "full" else segments
    visible = np.ones_like(positions)  # which the mean of targets does not read
    return Batch(tokens, targets, is_target, positions, segments, visible, positions)


class Trainer:
    """A state and a compiled step."""

    def prepare(self, model: str, length: int, mask: str) -> dict:
        """Compiles, takes a first step, and tells what a step is."""
        config = config_of(model, length, mask)
        steps, batch = make_steps(config), make_batch(config)
        self._mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])
        with jax.set_mesh(self._mesh):
            self._batch = shard_batch(batch, self._mesh)
            self._state = jax.jit(lambda: init_state(config.seed, steps.spec, steps.optimizer))()
            started = time.perf_counter()
            self._step = jax.jit(steps.train, donate_argnums=0).lower(self._state, self._batch).compile()
            compile_s = time.perf_counter() - started
            metrics = self._take()
            planned = self._step.memory_analysis()
            self._calls = enough_calls(seconds(self._take, jax.block_until_ready, 1))
        pairs = float(metrics["live_pairs"])
        return {
            "device": jax.devices()[0].device_kind,
            "attention": steps.spec.attention.implementation,
            "remat": config.model.remat,
            "parameters": sum(x.size for x in jax.tree.leaves(self._state.params)),
            "tokens": length,
            "live_pairs": pairs,
            "flops": train_flops(config.model, length, pairs),
            "loss": float(metrics["loss"]),
            "compile_s": compile_s,
            "planned_gb": (planned.argument_size_in_bytes + planned.temp_size_in_bytes) / 1e9,
        }

    def _take(self) -> dict:
        self._state, metrics = self._step(self._state, self._batch)
        return metrics

    def step_s(self) -> float:
        with jax.set_mesh(self._mesh):
            return seconds(self._take, lambda metrics: jax.block_until_ready((self._state, metrics)), self._calls)

    @staticmethod
    def memory() -> dict:
        """As the device counted; CPUs do not."""
        stats = jax.devices()[0].memory_stats() or {}
        return {"peak_gb": stats["peak_bytes_in_use"] / 1e9 if "peak_bytes_in_use" in stats else None}


def main() -> None:
    trainer = Trainer()

    def answer(prepare: bool = False, memory: bool = False, **request):
        if prepare:
            return trainer.prepare(**request)
        return trainer.memory() if memory else trainer.step_s()

    serve(answer)


if __name__ == "__main__":
    main()
