"""Options of the compiler for the training step: collectives that run beside computation, by the kind of device.

    jax.jit(step, compiler_options=compiler_flags.options("auto", jax.devices()[0]))

Options of one `jit` need no environment variable, change no other program, and raise if the compiler does not know
one; an unknown flag in XLA_FLAGS aborts the process. `benchmarks/compiled/async_collectives.py` counts what each set
gives in a small model's step (docs/scaling.md). No set has been timed on the hardware.

Sources: MaxText, benchmarks/xla_flags_library.py (CF_FOR_ALL_GATHER); AXLearn, axlearn/common/compiler_options.py;
NVIDIA JAX-Toolbox, rosetta/docs/GPU_performance.md (pipelined collectives).
"""

import jax

from anchorjax.errors import ConfigError

# All-gathers are cut into parts that products run beside (MaxText: "continuation fusion").
_FUSED_ALL_GATHERS = {
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
    "xla_tpu_overlap_compute_collective_tc": True,
    "xla_enable_async_all_gather": True,
}

# By the beginning of `device_kind`; the first that fits.
FLAGS: dict[str, dict[str, bool]] = {
    "TPU v5 lite": {},  # fuses all-gathers by default; the set changes nothing
    "TPU v5": _FUSED_ALL_GATHERS,  # v5p
    "TPU v4": {"xla_enable_async_all_gather": True, "xla_enable_async_collective_permute": True},
    "TPU v6 lite": _FUSED_ALL_GATHERS,
    "TPU7x": {},  # its SparseCores run collectives by default; the set changes nothing
    # A layer's collectives start in the layer before. xla_gpu_enable_latency_hiding_scheduler changes nothing here.
    "NVIDIA": {
        "xla_gpu_enable_pipelined_all_gather": True,
        "xla_gpu_enable_pipelined_reduce_scatter": True,
        "xla_gpu_enable_pipelined_all_reduce": True,
    },
}


def options(choice: str, device: jax.Device | None = None) -> dict[str, bool]:
    """Options for `jax.jit(compiler_options=...)` of a step on devices of this kind; none for other kinds.

    Args:
      choice: `train.compiler_flags`, auto or none.
      device: default: the process's first.

    Raises:
      ConfigError: the process's compiler does not know an option.
    """
    kind = (device or jax.devices()[0]).device_kind
    found = dict(
        next((flags for name, flags in FLAGS.items() if kind.startswith(name)), {}) if choice == "auto" else {}
    )
    if found and device is None:
        try:
            jax.jit(lambda: 0, compiler_options=found).lower().compile()
        except jax.errors.JaxRuntimeError as error:
            refused = f"the compiler for {kind} refuses them ({str(error).splitlines()[0]}); none takes its defaults"
            raise ConfigError("train.compiler_flags", choice, refused) from error
    return found
