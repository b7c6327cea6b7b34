"""Hardware to compile for without having it: what a kernel or a step needs there is known on a laptop.

The real compilers come as packages (requirements-compilers.txt); they need no accelerator and run none.

    targets.prepare()                            # before JAX is first used
    device = targets.device("v5p")
    x = jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(device))
    with jax.default_device(device):  # outside of a mesh, jax 0.12 lowers GPU kernels for it
        jax.jit(f).lower(x).compile().memory_analysis()

Nothing may run eagerly on such a device. A topology has more of them, as its name says:

    v5p:4x4x4      64 chips of one TPU slice
    2xv5e:8x8      two such slices, which only a network joins
    h100:64        64 GPUs, eight in a node
    v5p, h100      four of the target, of one host
    cpu:8, cpu     eight simulated devices of this machine, or one: these do run what is compiled for them
"""

import contextlib
import dataclasses
import importlib.util
import os
import re
import sys
from pathlib import Path

import jax
from jax.experimental import topologies

from anchorjax.errors import MissingCompiler

# The smallest slice of each TPU generation: four chips.
TPUS = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}

# Slices of 64 to 512 chips: cubes of 4 x 4 x 4 joined to a torus, or parts of a 16 x 16 torus and all of it. JAX has
# one device a chip, but two on tpu7x.
_TORUS_3D, _TORUS_2D = ("4x4x4", "4x4x8", "4x8x8", "8x8x8"), ("8x8", "8x16", "16x16")
SLICES = {"v4": _TORUS_3D, "v5e": _TORUS_2D, "v5p": _TORUS_3D, "v6e": _TORUS_2D, "tpu7x": _TORUS_3D}
NODE = 8  # GPUs of a node, which NVLink joins
CPU = "cpu"

# What XLA wants to know of a GPU (GpuTargetConfigProto); from the vendor's data sheets and cudaGetDeviceProperties.
_GPU = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: {shared_per_core} shared_memory_per_block_optin: {shared_per_block}
  threads_per_core_limit: 2048 core_count: {cores} fpus_per_core: {fpus}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth} l2_cache_size: {l2} clock_rate_ghz: {clock} device_memory_size: {memory}
  cuda_compute_capability {{ major: {major} minor: 0 }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "{name}"
"""
GPUS = {
    "a100": _GPU.format(
        name="NVIDIA A100-SXM4-80GB",
        major=8,
        cores=108,
        fpus=64,
        clock=1.41,
        shared_per_core=167936,
        shared_per_block=166912,
        bandwidth=2039000000000,
        l2=41943040,
        memory=85198045184,
    ),
    "h100": _GPU.format(
        name="NVIDIA H100 80GB HBM3",
        major=9,
        cores=132,
        fpus=128,
        clock=1.98,
        shared_per_core=233472,
        shared_per_block=232448,
        bandwidth=3352320000000,
        l2=52428800,
        memory=84978434048,
    ),
    "b200": _GPU.format(
        name="NVIDIA B200",
        major=10,
        cores=148,
        fpus=128,
        clock=1.965,
        shared_per_core=233472,
        shared_per_block=232448,
        bandwidth=7672000000000,
        l2=132120576,
        memory=191503138816,
    ),
}


def prepare(dump_to: str | Path | None = None) -> None:
    """Makes the compilers findable and JAX's default device the CPU. Call it before JAX is first used.

    JAX's cache of compilations is not used: JAX cannot read back what was compiled for hardware that is not here.

    Args:
      dump_to: directory for the compilers' outputs: final schedules of TPU kernels, PTX of GPU kernels.
    """
    sys.path.append(str(Path(sys.prefix) / "compilers"))
    jax.config.update("jax_platforms", CPU)
    jax.config.update("jax_enable_compilation_cache", False)
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",  # no metadata server to ask on a machine without TPUs
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nobody's TPU is taken by compiling
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",  # the plugin would ask for drivers
    }
    # libtpu asks which host of which slice this is, and warns on stderr without an answer, which changes nothing.
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    # XLA for GPUs warns of sorts that it has no GPU to time; "1" is JAX's own setting.
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    if dump_to is not None:
        os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={dump_to} --xla_jf_dump_llo_text=true"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={dump_to}"


@dataclasses.dataclass(frozen=True)
class Topology:
    """Hardware by its name.

    Attributes:
      target: a key of TPUS or GPUS, or CPU.
      size: chips of a TPU slice, as in "4x4x4", or the number of GPUs or simulated devices; "" for four of the target,
        or one of the CPU.
      slices: TPU slices of that size.
    """

    target: str
    size: str = ""
    slices: int = 1

    @classmethod
    def parse(cls, name: str) -> "Topology":
        """Raises ValueError for an unknown target, or a size that is none of its kind."""
        slices, target, size = re.fullmatch(r"(?:(\d+)x)?([^:]*):?(.*)", name).groups()
        if target not in (*TPUS, *GPUS, CPU):
            raise ValueError(f"target {name!r} is unknown; there are {', '.join([*TPUS, *GPUS, CPU])}")
        example = TPUS.get(target, f"{target}:64")
        if target in TPUS:
            fits = re.fullmatch("x".join([r"\d+"] * (example.count("x", len(target)) + 1)), size)
        else:
            fits = size.isdigit() and not slices and int(size)
            fits = fits and (target == CPU or int(size) < NODE or int(size) % NODE == 0)
        if (size or slices) and not (fits and int(slices or 1)):
            raise ValueError(f"topology {name!r} is no size of {target}; an example is {example}")
        return cls(target, size, int(slices or 1))

    def devices(self) -> list[jax.Device]:
        """Devices to compile for; see `devices`."""
        if self.target == CPU:
            return _simulated(int(self.size or 1))
        if not has_compiler(self.target):
            raise MissingCompiler(self.target)
        if self.target in GPUS:
            nodes, each = divmod(int(self.size or 4), NODE)
            topology = f"1x{nodes or 1}x{NODE if nodes else each}"
            found = topologies.get_topology_desc("", "cuda", target_config=GPUS[self.target], topology=topology)
        else:
            name = f"{self.target}:{self.size}" if self.size else TPUS[self.target]
            options = {"num_slices": self.slices} if self.slices > 1 else {}
            if self.target == "v4":
                options["chip_config_name"] = "megacore"  # one device a chip, as JAX has them on a v4
            found = topologies.get_topology_desc(name, "tpu", **options)
        return list(found.devices if self.size else found.devices[:4])


def _simulated(count: int) -> list[jax.Device]:
    with contextlib.suppress(RuntimeError):  # JAX has been used, and has as many as it was given
        jax.config.update("jax_num_cpu_devices", count)
    found = jax.devices(CPU)
    if len(found) < count:
        raise ValueError(f"topology '{CPU}:{count}' is more than the {len(found)} devices that this process has")
    return found[:count]


def has_compiler(target: str) -> bool:
    """Is the compiler for this target installed? Call `prepare` first."""
    if target == CPU:
        return True
    if target in TPUS:
        return importlib.util.find_spec("libtpu") is not None
    try:
        return importlib.util.find_spec("jax_plugins.xla_cuda13") is not None
    except ModuleNotFoundError:  # where no plugin is installed, the package around it is missing too
        return False


def devices(name: str) -> list[jax.Device]:
    """Devices of a topology, or four of a target, of one host; compile-only ones, unless they are the CPU's.

    Raises:
      ValueError: the name is unknown, or this process has fewer simulated devices.
      MissingCompiler: the target's compiler is not installed.
    """
    return Topology.parse(name).devices()


def device(name: str) -> jax.Device:
    """One of `devices`."""
    return devices(name)[0]
