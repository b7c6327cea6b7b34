"""What the planner knows of one JAX device of each target: memory, peaks, and what moves bytes between devices.

Numbers are the makers', and nothing here was measured. A TPU chip is one device, but a tpu7x chip is two that share
its links. Where a maker publishes nothing, the comment says what is assumed instead. The peaks are those of
`anchorjax.models.flops`, and memory and bandwidth of GPUs are those that `anchorjax.targets` compiles for.

Sources:
  pages   docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x} (specifications), and GKE's machine types (RAM of a VM)
  book    "How to Scale Your Model", jax-ml.github.io/scaling-book/tpus: links one way, PCIe, DCN of a v4 host
  libtpu  what it lets a program have, as it says when it refuses one ("exceeds available HBM (95.74G)")
  dgx     NVIDIA's data sheets and user guides of DGX A100 (640 GB), DGX H100 and DGX B200
"""

import dataclasses
import math
import re

from anchorjax import targets
from anchorjax.models.flops import PEAK_TFLOPS

GIB = 2**30
# GPU memory that a program may use. JAX allocates that part of it at the start: by default 0.75, or what
# XLA_PYTHON_CLIENT_MEM_FRACTION says. The rest holds CUDA's context, NCCL's buffers and loaded kernels (assumed: 8%).
GPU_MEM_FRACTION = 0.92


@dataclasses.dataclass(frozen=True)
class Hardware:
    """One JAX device of a target.

    Attributes:
      target: a key of `targets.TPUS` or `targets.GPUS`.
      device_kind: JAX's name for it.
      hbm_bytes: that a program may use.
      peak_flops: dense bf16 FLOP/s.
      hbm_bytes_per_s: bandwidth of its memory.
      link_bytes_per_s: one way, of one link to a neighbour of the torus (a device's share), or of NVLink.
      torus_axes: of a TPU slice; each has a link to either neighbour. 0 for GPUs: a switch joins all of a node.
      full_ring: an axis of the torus wraps around if its chips are a multiple of this number; 0 for GPUs.
      network_bytes_per_s: one way, a device's share of its host's network: DCN of TPU slices, InfiniBand of GPU nodes.
      host_bytes: a device's share of its host's memory.
      host_bytes_per_s: one way between a device and its host's memory.
      devices_per_chip: JAX devices of one chip.
      mem_fraction: that XLA_PYTHON_CLIENT_MEM_FRACTION must say for `hbm_bytes` to be usable; None on TPUs.
      source: where the numbers are from, in one line.
    """

    target: str
    device_kind: str
    hbm_bytes: float
    peak_flops: float
    hbm_bytes_per_s: float
    link_bytes_per_s: float
    torus_axes: int
    full_ring: int
    network_bytes_per_s: float
    host_bytes: float
    host_bytes_per_s: float
    devices_per_chip: int = 1
    mem_fraction: float | None = None
    source: str = ""

    @property
    def is_tpu(self) -> bool:
        return self.torus_axes > 0


def of(name: str) -> Hardware:
    """The device of a topology, as "v5p:4x4x4" or "h100:8". Raises ValueError, see `targets.Topology.parse`."""
    return HARDWARE[targets.Topology.parse(name).target]


def table() -> list[str]:
    """One line for each target: its named sizes with their chips, and memory and peak of one device."""
    lines = []
    for target, one in HARDWARE.items():
        sizes = [targets.TPUS[target].partition(":")[2], *targets.SLICES[target]] if one.is_tpu else ["1", "8", "64"]
        chips = [f"{size} ({chips_of(size)})" if one.is_tpu else size for size in sizes]
        each = "" if one.devices_per_chip == 1 else f"; {one.devices_per_chip} devices a chip"
        lines.append(
            f"{target:>5}  {one.hbm_bytes / 1e9:5.1f} GB, {one.peak_flops / 1e12:6.1f} bf16 TFLOP/s a device, "
            f"{'chips' if one.is_tpu else 'GPUs'}: {', '.join(chips)}{each}"
        )
    return lines


def chips_of(size: str) -> int:
    """Chips of a TPU slice, or GPUs, from "4x4x4" or "64"."""
    return math.prod(map(int, size.split("x")))


def _tpu(target: str, device_kind: str, hbm_gib: float, **numbers) -> Hardware:
    return Hardware(
        target,
        device_kind,
        hbm_gib * GIB,
        PEAK_TFLOPS[device_kind] * 1e12,
        source="Google's TPU pages, the scaling book, and libtpu for memory",
        **numbers,
    )


def _gpu(target: str, dgx: str, **numbers) -> Hardware:
    facts = targets.GPUS[target]
    device_kind = re.search(r'device_description_str: "(.*)"', facts)[1]
    memory, bandwidth = (int(re.search(rf"{name}: (\d+)", facts)[1]) for name in ("memory_size", "memory_bandwidth"))
    return Hardware(
        target,
        device_kind,
        GPU_MEM_FRACTION * memory,
        PEAK_TFLOPS[device_kind] * 1e12,
        bandwidth,
        torus_axes=0,
        full_ring=0,
        host_bytes=2e12 / targets.NODE,  # 2 TB of each DGX
        mem_fraction=GPU_MEM_FRACTION,
        source=f"NVIDIA's data sheets; host and network of a {dgx}",
        **numbers,
    )


HARDWARE = {
    hardware.target: hardware
    for hardware in (
        _tpu(
            "v4",
            "TPU v4",
            30.75,
            hbm_bytes_per_s=1200e9,  # pages
            link_bytes_per_s=45e9,  # book
            torus_axes=3,
            full_ring=4,  # book: optical switches close an axis that is a multiple of 4
            network_bytes_per_s=25e9 / 4,  # book: 25 GB/s of a host, four chips
            host_bytes=407e9 / 4,  # pages: ct4p-hightpu-4t
            host_bytes_per_s=16e9,  # book
        ),
        _tpu(
            "v5e",
            "TPU v5 lite",
            15.75,
            hbm_bytes_per_s=819e9,  # pages
            link_bytes_per_s=50e9,  # pages: 400 GB/s of four links, both ways
            torus_axes=2,
            full_ring=16,  # book
            network_bytes_per_s=200e9 / 8 / 8,  # pages: two of 100 Gb/s for eight chips
            host_bytes=192e9 / 4,  # pages: ct5lp-hightpu-4t
            host_bytes_per_s=15e9,  # book
        ),
        _tpu(
            "v5p",
            "TPU v5",
            95.74,
            hbm_bytes_per_s=2765e9,  # pages
            link_bytes_per_s=100e9,  # pages: 1200 GB/s of six links, both ways (the book's measured value is 90)
            torus_axes=3,
            full_ring=4,
            network_bytes_per_s=50e9 / 8,  # pages: 50 Gb/s a chip
            host_bytes=448e9 / 4,  # pages: four chips
            host_bytes_per_s=15e9,  # book
        ),
        _tpu(
            "v6e",
            "TPU v6 lite",
            31.25,
            hbm_bytes_per_s=1638e9,  # pages
            link_bytes_per_s=100e9,  # pages: 800 GB/s of four links, both ways
            torus_axes=2,
            full_ring=16,
            network_bytes_per_s=100e9 / 8,  # pages: 100 Gb/s a chip
            host_bytes=720e9 / 4,  # pages: ct6e-standard-4t
            host_bytes_per_s=32e9,  # book
        ),
        _tpu(
            "tpu7x",
            "TPU7x",
            94.75,
            hbm_bytes_per_s=7380e9 / 2,  # pages, of a chip
            link_bytes_per_s=100e9 / 2,  # pages: 1200 GB/s of six links, both ways, which two devices share
            torus_axes=3,
            full_ring=4,
            network_bytes_per_s=100e9 / 8 / 2,  # pages: 100 Gb/s a chip
            host_bytes=960e9 / 8,  # pages: four chips
            host_bytes_per_s=32e9 / 2,  # assumed as on v6e: nothing is published
            devices_per_chip=2,
        ),
        _gpu(
            "a100",
            "DGX A100",
            link_bytes_per_s=300e9,  # NVLink 3: 600 GB/s both ways
            network_bytes_per_s=200e9 / 8,  # dgx: InfiniBand of 200 Gb/s a GPU
            host_bytes_per_s=32e9,  # PCIe 4, 16 lanes
        ),
        _gpu(
            "h100",
            "DGX H100",
            link_bytes_per_s=450e9,  # NVLink 4: 900 GB/s both ways
            network_bytes_per_s=400e9 / 8,  # dgx: InfiniBand of 400 Gb/s a GPU
            host_bytes_per_s=64e9,  # PCIe 5, 16 lanes
        ),
        _gpu(
            "b200",
            "DGX B200",
            link_bytes_per_s=900e9,  # NVLink 5: 1800 GB/s both ways
            network_bytes_per_s=400e9 / 8,  # dgx: as H100
            host_bytes_per_s=64e9,  # PCIe 5, 16 lanes
        ),
    )
}
