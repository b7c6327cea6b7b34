"""Where a forward pass rounds on its way to attention logits, and how wrong tables of cosines are for it.

A precision is said by four choices, and nothing else differs between two passes:

    phases     position * theta^(-2i/H): float64 on the host (this project), or fp32 as most code has it: frequencies
               rounded to fp32, and their products with positions rounded again
    tables     what cosines and sines are rounded to before anything is turned
    rotation   the arithmetic in which pairs of queries and keys are turned
    compute    matrices, activations, and turned queries and keys as they go into the product QK'

QK', its softmax and the sum over values are fp32 in all of them, as accelerators add up bfloat16 products in fp32.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from anchorjax import processes, sharding
from anchorjax.config import RopeConfig
from anchorjax.models import rope

LAST = 4096  # positions before a length in which the worst cosine is looked for


@dataclasses.dataclass(frozen=True)
class Precision:
    """Each choice is the name of a dtype."""

    compute: str
    phases: str = "float64"
    tables: str = "float32"
    rotation: str = "float32"


PRECISIONS = {
    "fp32": Precision("float32"),
    "fp32-phases32": Precision("float32", phases="float32"),
    "bf16": Precision("bfloat16"),  # the paper's: turned in fp32, and only QK' in bfloat16
    "bf16-phases32": Precision("bfloat16", phases="float32"),
    "bf16-tables": Precision("bfloat16", tables="bfloat16"),
    "bf16-rotation": Precision("bfloat16", tables="bfloat16", rotation="bfloat16"),  # models of transformers in bf16
}


def tables(
    positions_BT: jax.Array, length: int, head_dim: int, config: RopeConfig, precision: Precision, local: bool
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines [B, T, h] in fp32 storage, rounded as `precision` says. Not for use under jit.

    Args:
      positions_BT: int32, in [0, length).
      length, head_dim, config, local: as of `rope.frequencies`.
    """
    if precision.phases == "float64":
        pair = rope.tables(positions_BT, length, head_dim, config, local)
    else:
        place = sharding.with_whole_axis(positions_BT.sharding.spec)
        rounded = with_float32_phases(processes.to_host(positions_BT), length, head_dim, config, local)
        pair = tuple(sharding.put(x, place) for x in rounded)
    return tuple(x.astype(precision.tables).astype(jnp.float32) for x in pair)


def with_float32_phases(
    positions: np.ndarray, length: int, head_dim: int, config: RopeConfig, local: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """fp32 [..., h]. Of the phases, rounded twice, cosines and sines are exact: what libraries add is not counted."""
    frequency_h, factor = rope.frequencies(config, head_dim, length, local)
    phases = positions.astype(np.float32)[..., None] * frequency_h.astype(np.float32)
    assert phases.dtype == np.float32
    return tuple((factor * f(phases.astype(np.float64))).astype(np.float32) for f in (np.cos, np.sin))


def table_errors(config: RopeConfig, head_dim: int, lengths: Sequence[int]) -> dict[str, list[float]]:
    """max |cos - exact cos| over all pairs and the LAST positions before each length.

    Returns:
      "float64 phases" (`rope.tables`), "float32 phases", and "bfloat16 tables" of exact phases.
    """
    found: dict[str, list[float]] = {"float64 phases": [], "float32 phases": [], "bfloat16 tables": []}
    mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])
    for length in lengths:
        positions = np.arange(max(0, length - LAST), length, dtype=np.int32)
        frequency_h, factor = rope.frequencies(config, head_dim, length)
        exact = factor * np.cos(positions.astype(np.float64)[:, None] * frequency_h)
        with jax.set_mesh(mesh):
            ours = rope.tables(jnp.asarray(positions)[None], length, head_dim, config)[0][0]
        cosines = {
            "float64 phases": ours,
            "float32 phases": with_float32_phases(positions, length, head_dim, config)[0],
            "bfloat16 tables": exact.astype(ml_dtypes.bfloat16),
        }
        for name, cosine in cosines.items():
            found[name].append(float(np.abs(np.asarray(cosine, np.float64) - exact).max()))
    return found
