"""A training step of SmolLM2-135M: ours with the full and with the anchor mask against transformers', fp32 on the CPU.

    python -m benchmarks.training.vs_transformers [--weights=checkpoints/SmolLM2-135M-Instruct] [--json]

One packed row of documents of about 1024 tokens (lengths uniform in 512..1536). A step is forward, backward, gradient
clip and AdamW. No side does the product of a weight twice; ours does norms and activation functions again, where torch
keeps them (`model.remat`, none). The three take turns on the same threads:

    full           the project's training step, every token attends to all before it
    anchor         the same step with AnchorAttention
    transformers   LlamaForCausalLM with scaled_dot_product_attention, causal over the whole row, and torch.optim.AdamW,
                   fused or foreach, whichever is faster here

Without `--weights` each side draws its own; with it both load the checkpoint, and the losses of the first step of
`full` and of `transformers` are equal: the same work (to rounding). Needs torch and transformers.

Speed-ups are ratios of the medians of seconds; `cpu_speedup_*` are those of CPU seconds of the process, which other
work on the machine disturbs less.
"""

import argparse
import functools
import json
import os
import statistics
import time

import jax
import numpy as np
import torch
import transformers
from ml_collections import ConfigDict

from anchorjax import data
from anchorjax.config import resolve
from anchorjax.data.store import tokens as store
from anchorjax.data.text.tokenizer import ByteTokenizer
from anchorjax.models import families
from anchorjax.sharding import shard_batch
from anchorjax.training.setup import Setup
from anchorjax.types import Batch
from benchmarks.attention.cpu_attention import document_lengths
from configs import common

LENGTHS = (2048, 4096)
MASKS = ("full", "anchor")
SIZE = "smollm2_135m"
LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 1e-5, 0.1, 1.0
NO_TARGET = -100  # as torch's cross-entropy has it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)), help="row lengths, comma separated")
    parser.add_argument("--repeats", type=int, default=3, help="timed steps of each")
    parser.add_argument("--weights", default="", help="a Hugging Face directory of the model; without it, random ones")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args()
    print(f"{'row':>6}  {'full s':>8}  {'anchor s':>8}  {'transformers s':>14}  {'full':>6}  {'anchor':>6}")
    results = {}
    for length in map(int, arguments.lengths.split(",")):
        results[str(length)] = row = measure(length, arguments.repeats, arguments.weights)
        print(
            f"{length:>6}  {row['full_s']:>8.2f}  {row['anchor_s']:>8.2f}  {row['transformers_s']:>14.2f}  "
            f"{row['speedup_full']:>5.2f}x  {row['speedup_anchor']:>5.2f}x  {row['torch_optimizer']}",
            flush=True,
        )
    if arguments.json:
        print(json.dumps(results))


def measure(length: int, repeats: int, weights: str) -> dict[str, float | str]:
    ours = Ours(length, weights)
    theirs = Theirs(ours.packed["full"], weights)
    steps = {mask: functools.partial(ours.step, mask) for mask in MASKS} | {"transformers": theirs.step}
    losses = {name: step() for name, step in steps.items()}  # compiles
    clocks = {"": time.perf_counter, "cpu_": time.process_time}
    seconds = {(clock, name): [] for clock in clocks for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            started = {clock: now() for clock, now in clocks.items()}
            step()
            for clock, now in clocks.items():
                seconds[clock, name].append(now() - started[clock])
    medians = {key: statistics.median(times) for key, times in seconds.items()}
    return {
        **{f"{name}_{clock}s": value for (clock, name), value in medians.items()},
        **{
            f"{clock}speedup_{mask}": medians[clock, "transformers"] / medians[clock, mask]
            for clock in clocks
            for mask in MASKS
        },
        **{f"{name}_first_loss": value for name, value in losses.items()},
        "torch_optimizer": theirs.optimizer_kind,
    }


class Ours:
    """One model's training steps under both masks, and their batches."""

    def __init__(self, length: int, weights: str, layers: int = 0):
        self.layers = layers  # 0: all that the model has
        self.packed, self.train_steps = {}, {}
        for mask in MASKS:
            config = config_of(mask, length, weights)
            config.model.num_layers = layers or config.model.num_layers
            setup = Setup.make(resolve(config.to_dict()))
            self.packed[mask] = next(data.eval_rows(documents(length), ByteTokenizer(), setup.config.data, 1))
            self.train_steps[mask] = jax.jit(setup.steps.train, donate_argnums=0)
        self.mesh = setup.mesh
        with jax.set_mesh(self.mesh):
            self.state = setup.first_state()
            self.batches = {mask: shard_batch(packed, self.mesh) for mask, packed in self.packed.items()}

    def step(self, mask: str) -> float:
        """One step; returns the loss before it."""
        with jax.set_mesh(self.mesh):
            self.state, metrics = self.train_steps[mask](self.state, self.batches[mask])
            jax.block_until_ready(self.state)
        return float(metrics["loss"])


def config_of(mask: str, length: int, weights: str) -> ConfigDict:
    config = common.base()
    model, rope = families.published(SIZE)
    config.model.update(model)
    config.rope.update(rope)
    config.init_from = weights
    config.model.compute_dtype, config.model.remat = "float32", "none"
    config.data.update({"seq_len": length, "mask": mask, "tokenizer": "bytes"})
    config.optimizer.update({"learning_rate": LEARNING_RATE, "schedule": "constant", "warmup_steps": 0})
    config.optimizer.update({"weight_decay": WEIGHT_DECAY, "clip_norm": CLIP_NORM})
    return config


class Theirs:
    """The same row in transformers."""

    def __init__(self, packed: Batch, weights: str, layers: int = 0):
        torch.set_num_threads(os.cpu_count())
        if weights:
            self.model = transformers.LlamaForCausalLM.from_pretrained(
                weights, dtype=torch.float32, attn_implementation="sdpa"
            )
        else:
            self.model = transformers.LlamaForCausalLM(llama_config(layers))
        self.model.train()
        self.tokens = torch.tensor(packed.tokens_BT).long()
        self.targets = torch.tensor(np.where(packed.is_target_BT > 0, packed.targets_BT, NO_TARGET)).long()
        self.optimizer_kind, self.optimizer = "", None
        kinds = {kind: self._optimizer_seconds(kind) for kind in ("fused", "foreach")}
        self.optimizer_kind = min(kinds, key=kinds.get)
        self.optimizer = self._make_optimizer(self.optimizer_kind)

    def _make_optimizer(self, kind: str) -> torch.optim.Optimizer:
        settings = {"lr": LEARNING_RATE, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": WEIGHT_DECAY}
        return torch.optim.AdamW(self.model.parameters(), **settings, **{kind: True})

    def _optimizer_seconds(self, kind: str) -> float:
        """Seconds of the second step with gradients of zero, which change nothing but the decay of the weights."""
        optimizer = self._make_optimizer(kind)
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.0
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        started = time.perf_counter()
        optimizer.step()
        seconds = time.perf_counter() - started
        self.model.zero_grad(set_to_none=True)
        return seconds

    def step(self) -> float:
        outputs = self.model(input_ids=self.tokens, labels=self.targets, shift_labels=self.targets, use_cache=False)
        outputs.loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(outputs.loss.detach())


def llama_config(layers: int = 0) -> transformers.LlamaConfig:
    model, rope = families.published(SIZE)
    return transformers.LlamaConfig(
        vocab_size=model["vocab_size"],
        hidden_size=model["d_model"],
        intermediate_size=model["d_ff"],
        num_hidden_layers=layers or model["num_layers"],
        num_attention_heads=model["num_heads"],
        num_key_value_heads=model["num_kv_heads"],
        rms_norm_eps=model["norm_eps"],
        tie_word_embeddings=model["tie_embeddings"],
        rope_parameters={"rope_type": "default", "rope_theta": rope["theta"]},
        attn_implementation="sdpa",
    )


def documents(length: int) -> store.TokenStore:
    """One row's worth of documents of random printable bytes, whose ids are tokens of the model too."""
    rng = np.random.default_rng(0)
    texts = ["".join(map(chr, rng.integers(32, 127, size))) for size in document_lengths(rng, length + 2)]
    return store.build([{"text": text} for text in texts], ByteTokenizer())


if __name__ == "__main__":
    main()
