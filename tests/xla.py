"""What tests ask of XLA: programs that compile fast, as most are compiled once and run once."""

import importlib.metadata

# Level 0 halves the time of compilation, of which these tests mostly consist; machine code in one part saves threads.
FAST = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # Fusions go straight to LLVM, not through MLIR: a training step compiles in 1.7 s instead of 4.4 s of CPU time.
    # Later versions do not know the flag. What users run goes through MLIR: tests/golden keeps the defaults.
    FAST += " --xla_cpu_use_fusion_emitters=false"


# XLA ends a process whose simulated devices wait 40 s for each other, as they may on two cores beside other work.
PATIENT = "--xla_cpu_collective_call_terminate_timeout_seconds=600"


def flags(num_devices: int = 1) -> str:
    """XLA_FLAGS for fast compilation and so many simulated devices."""
    return f"{FAST} {PATIENT} --xla_force_host_platform_device_count={num_devices}"
