"""The memory of one device that a compiled training step needs, by what takes it.

The compiler's own assignment of buffers has every byte (`buffers`); this file says what each is for:

    parameters, moments, other_arguments   arguments of the program, by their names
    gradients           what is live when the backward pass through the layers ends, and those of the loss
    saved_activations   what the forward pass makes and the backward pass through the layers needs
    collectives         results of collectives: gathered weights, keys and values, hidden states, ...
    temporaries         the rest: what else is live at the peak, gaps, constants and small outputs

The peak is the moment at which most bytes are live in the memory that values use one after another. A compiler
cannot fill all gaps between them: in the planned runs of docs/scaling.md they are 0 to 3.4% of this memory in 13 rows,
7% in Llama-2-7B's on v5p and 10% in Qwen1.5-1.8B's on v5p.
`Memory.total` is what a compiler allocates. XLA for GPUs takes the first layer of the backward pass out of its loop;
where the peak lies there, no stack of the layers' gradients exists yet.

That is what libtpu compares with a chip's memory. Limited by xla_tpu_max_hbm_size_mib to 10 MiB, it refuses a program
with 1.41 MiB of arguments, 0.78 of results and 187.80 of temporaries because it needs 189.99. It refuses Llama-3-8B on
v5e:8x8 because it needs 26.68 GiB, as in the assignment. `memory_analysis` has no such number. For Llama-3-8B on
v5p:4x4x4 with 28,000 MiB, the assignment has 28.79 GB, 12.05 of them arguments. temp_size_in_bytes is 22.25 GB there,
as it counts a chip's small memories and more. peak_memory_in_bytes, 28.73 GB, leaves out the gaps; it counts the host's
memory too, and is no more than the arguments on CPUs. For GPUs the sum of arguments, temporaries and results that are
no donated arguments is the assignment's, but for constants. XLA for GPUs refuses no program for its size.
"""

import collections
import dataclasses
import re
from collections.abc import Sequence

from anchorjax.plan.buffers import DEVICE_SPACE, HOST_SPACE, Allocation, Slot
from anchorjax.plan.program import RECEIVED

_BACKWARD = "transpose(jvp())"
# What the loss and the embedding make for themselves is not saved, nor are zeros that the backward pass fills.
_FORWARD = re.compile(r"jvp\(\)(?!/shard_map)(?!.*/broadcast_in_dim$)")
_LAYERS_BACKWARD = re.compile(r"transpose\(jvp\(\)\)/while(/body|$)")
_COLLECTIVE = re.compile(rf"({'|'.join(RECEIVED)})(-start)?")
# Scanned backward, layers give the gradients of their weights: the first ones make the stack, or write into zeros.
_STACK = re.compile(r"transpose\(jvp\(\)\)/while/body/(jit\(\w+\)/)?dynamic_update_slice$")
_LOSS = re.compile(r"jvp\(\)/shard_map/(while/body/.*(cv,cd->vd|cv,vd->cd|add)\b|convert_element_type$)")
_SUM = re.compile(r"jit\(\w+\)/while/body/(closed_call/)?add$")  # over micro-batches
_ARGUMENTS = "state.", "batch."
_EXCHANGING = re.compile(r"/(all_gather|all_to_all|ppermute|psum\w*|reduce_scatter|reshard)$")


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one JAX device.

    Attributes:
      parameters, moments: as they rest on the device.
      gradients, saved_activations, collectives: at the peak.
      temporaries: all else that the program allocates.
      other_arguments: the batch, the step's number, the key.
      host: in the memory of the device's host: moments and saved activations that rest there.
    """

    parameters: int
    moments: int
    gradients: int
    saved_activations: int
    collectives: int
    temporaries: int
    other_arguments: int
    host: int = 0

    @property
    def total(self) -> int:
        """Bytes in the device's own memory."""
        return sum(dataclasses.astuple(self)) - self.host


class TooLarge(Exception):
    """A compiler that found no room for a program in the memory of a device.

    Attributes:
      needed, available: bytes of a device, as the compiler's message rounds them.
      allocations: the assignment of buffers that it refused; () if it refused before it had made one.
    """

    def __init__(self, needed: int, available: int, allocations: Sequence[Allocation] = ()):
        super().__init__(f"the program needs {needed / 1e9:.1f} GB of a device, which has {available / 1e9:.1f} GB")
        self.needed, self.available, self.allocations = needed, available, tuple(allocations)


def refusal(message: str) -> tuple[int, int] | None:
    """(bytes needed, bytes available) from the error of a compiler that found no room; None for other errors."""
    size = r"([\d.]+)([KMGT]?)"
    for wording in (
        rf"memory required for HLO temporaries \({size}\) exceeds available HBM \({size}\)",
        rf"Ran out of memory in memory space hbm\. +Used {size} of {size} hbm",
    ):
        if match := re.search(wording, message):
            needed, available = zip(match.groups()[::2], match.groups()[1::2], strict=True)
            return _bytes(*needed), _bytes(*available)
    return None


def _bytes(number: str, unit: str) -> int:
    return round(float(number) * 1024 ** " KMGT".index(unit or " "))


def of(compiled) -> Memory:
    """The memory of a program.

    Args:
      compiled: a `step.Compiled`, or the `TooLarge` of a program that was refused.

    Raises:
      ValueError: a refusal that came before buffers were assigned.
    """
    if not compiled.allocations:
        raise ValueError("the compiler refused the program before it assigned buffers")
    kinds = collections.Counter()
    for allocation in on_device(compiled):
        kinds[kind_of_allocation(allocation)] += allocation.bytes
    for slot, kind in at_peak(compiled):
        kinds[kind] += slot.bytes
        kinds["temporaries"] -= slot.bytes
    host = sum(one.bytes for one in compiled.allocations if one.space == HOST_SPACE)
    names = (field.name for field in dataclasses.fields(Memory) if field.name != "host")
    return Memory(**{name: kinds[name] for name in names}, host=host)


def explained(compiled) -> float:
    """The live share, at the peak, of the memory that values use one after another; the rest are gaps."""
    whole = sum(one.bytes for one in on_device(compiled) if one.is_temporary)
    return sum(slot.bytes for slot, _ in at_peak(compiled)) / whole


def on_device(compiled) -> list[Allocation]:
    return [one for one in compiled.allocations if one.space == DEVICE_SPACE]


def kind_of_allocation(allocation: Allocation) -> str:
    """The kind of an argument, by the name that JAX gives it; "temporaries" for what is none."""
    if allocation.parameter is None:
        return "temporaries"
    path = next((value.path for value in allocation.values if value.opcode == "parameter" and value.path), "")
    kinds = {"state.params.": "parameters", "state.opt_state[": "moments"}
    return next((kind for start, kind in kinds.items() if path.startswith(start)), "other_arguments")


def at_peak(compiled) -> list[tuple[Slot, str]]:
    """What is live at the peak and shares memory with other values, each with its kind, the largest first."""
    slots = [slot for one in on_device(compiled) if one.is_temporary for slot in one.slots]
    changes = collections.Counter()
    for slot in slots:
        changes[slot.start] += slot.bytes
        changes[slot.end + 1] -= slot.bytes
    live, most, peak = 0, -1, 0
    for time in sorted(changes):
        live += changes[time]
        if live > most:
            most, peak = live, time
    backward = [v.start for slot in slots for v in slot.values if _LAYERS_BACKWARD.search(v.path)]
    begins, ends = (min(backward), max(backward)) if backward else (0, 0)
    found = [(slot, kind_of(slot, peak, begins, ends)) for slot in slots if slot.start <= peak <= slot.end]
    return sorted(found, key=lambda pair: -pair[0].bytes)


def kind_of(slot: Slot, peak: int, begins: int, ends: int) -> str:
    """The kind of what lies in a slot at the peak.

    Args:
      peak, begins, ends: the numbers of instructions: at the peak, and the first and the last one in the backward
        pass through the layers.
    """
    first, paths = slot.values[0], [value.path for value in slot.values]
    if first.path.startswith(_ARGUMENTS):  # copied for another layout
        return "temporaries"
    is_kept = slot.end > begins
    made = is_kept and any(_SUM.match(path) or _STACK.search(path) for path in paths)
    is_carried = any(value.opcode == "while" for value in slot.values)  # and no chunk's part of a sum
    made |= (is_kept or is_carried) and any(_LOSS.search(path) for path in paths)
    if first.shape.startswith(("bf", "f")) and (made or slot.start <= ends < slot.end):
        return "gradients"
    if is_kept and any(_FORWARD.search(path) and _BACKWARD not in path for path in paths):
        return "saved_activations"
    fused = any(value.name.startswith("async-collective") for value in slot.values)
    if fused or any(_COLLECTIVE.fullmatch(v.opcode) or _EXCHANGING.search(v.path) for v in slot.at(peak)):
        return "collectives"
    return "temporaries"
