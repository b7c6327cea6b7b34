"""How far rounding moves attention on the device's own bf16 units, and how fast it generates.

    deviation   Eq. 4 and 5 of "When Precision Meets Position" (arXiv 2411.13476), as eval/rope_precision.py measures
                them: a random-init baseline of SmolLM2-135M and a row of random tokens at shifted positions against
                shift 16. The CPU of the same machine does the first shift too, with the same weights.
    prefill     a prompt of 8192 tokens and one new token: tokens of the prompt a second
    decode      a prompt of 16 tokens and 128 new ones: new tokens a second, of all rows

Generation is greedy, bf16, of random weights of SmolLM2-135M's sizes: its time does not depend on them.
"""

import dataclasses
import statistics
import time

import jax
import numpy as np

from anchorjax import sharding
from anchorjax.config import LoraConfig
from anchorjax.data.text.tokenizer import ByteTokenizer
from anchorjax.experiments.rope_precision import deviation, random_init
from anchorjax.experiments.rope_precision.deviation import GROUPS, Row
from anchorjax.experiments.rope_precision.rotation import PRECISIONS
from anchorjax.inference.generation import Generator
from anchorjax.inference.language_model import Description
from benchmarks.gpu_parts.part import Part
from benchmarks.gpu_parts.training_step import config_of

REFERENCE = 16
SHIFTS, LENGTHS = (0, 2**16, 2**20), (128, 1024)
VARIANTS, MORE_VARIANTS = ("bf16", "fp32"), ("bf16-tables", "bf16-rotation")  # of PRECISIONS
TASKS = {"decode": (16, 128), "prefill": (8192, 1)}  # tokens of the prompt, new ones
BATCHES, ROUNDS = (1, 8), 3


def main(part: Part) -> None:
    model = "tiny" if part.dry_run else "smollm2_135m"
    lengths = (64, 128) if part.dry_run else LENGTHS
    variants, more = (VARIANTS[:1], ()) if part.dry_run else (VARIANTS, MORE_VARIANTS)
    shifts = SHIFTS[:2] if part.dry_run else SHIFTS
    described = describe(model, "float32", max(shifts) + lengths[-1])
    here = random_init.draw(described)

    def deviate_here(variants):
        for variant in variants:
            with part.guard("deviation", variant=variant, on=jax.default_backend()):
                deviate(part, here, variant, shifts, lengths, jax.default_backend())

    deviate_here(variants)
    for task, (prompt, new) in TASKS.items():
        for batch in BATCHES[:1] if part.dry_run else BATCHES:
            with part.guard(task, batch=batch):
                prompt, new = (min(prompt, 32), min(new, 4)) if part.dry_run else (prompt, new)
                generate(part, model, task, prompt, new, batch)
    deviate_here(more)
    with part.guard("deviation", variant=variants[0], on="cpu"):
        (cpu, *_) = jax.devices("cpu")
        with jax.default_device(cpu):
            mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), [cpu])
            deviate(part, random_init.draw(described, mesh), variants[0], shifts[:1], lengths, "cpu")


def describe(model: str, dtype: str, context: int) -> Description:
    """A model of random weights: it comes from no directory."""
    config = config_of(model, 256, "full")
    sizes = dataclasses.replace(config.model, compute_dtype=dtype, param_dtype=dtype, remat="none")
    return Description(
        pretrained=None,
        fields={},
        model=sizes,
        rope=config.rope,
        lora=LoraConfig(0, 0.0, ()),
        tokenizer=ByteTokenizer(),
        context=context,
        num_anchors=0,
        eos_ids=(),  # all texts get as many tokens
        files=None,
    )


def deviate(part: Part, model, variant: str, shifts, lengths, where: str) -> None:
    """One record for each shift and length."""
    T = lengths[-1]
    tokens_T = np.random.default_rng(0).integers(0, 256, T, np.int32)
    positions_PT = np.arange(T, dtype=np.int32) + np.array([REFERENCE, *shifts], np.int32)[:, None]
    row = Row(tokens_T, np.zeros(T, np.int32), 0, positions_PT)
    started = time.perf_counter()
    found = deviation.measure(model, row, PRECISIONS[variant], lengths, max(*shifts, REFERENCE) + T)
    took_s = time.perf_counter() - started
    attention_pgM, logit_pM = found.attention_pgML.sum(-1), found.logit_pML.sum(-1)
    for p, shift in enumerate(shifts):
        for m, length in enumerate(lengths):
            whole = float(attention_pgM[p, :, m].sum())
            first = float(attention_pgM[p, GROUPS.index("first"), m])
            part.add(
                "deviation",
                variant=variant,
                on=where,
                shift=shift,
                length=length,
                attention=whole,
                first_key=first / whole if whole else None,
                logit=float(logit_pM[p, m]),
                first_s=took_s,
            )


def generate(part: Part, model: str, task: str, prompt: int, new: int, batch: int) -> None:
    described = describe(model, "bfloat16", prompt + new)
    generator = Generator(random_init.draw(described), batch_size=batch)
    prompts = np.random.default_rng(0).integers(0, 256, (batch, prompt)).tolist()
    times = []
    for _ in range(1 + (1 if part.dry_run else ROUNDS)):
        started = time.perf_counter()
        generator.generate(prompts, new)
        times.append(time.perf_counter() - started)
    first_s, *times = times
    count = batch * (prompt if task == "prefill" else new)
    rate = count / statistics.median(times)
    part.add(task, batch=batch, prompt=prompt, new=new, tokens_per_s=rate, first_s=first_s, seconds=times)


if __name__ == "__main__":
    main(Part.asked("evaluation"))
