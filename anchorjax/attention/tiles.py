"""Default sizes of attention tiles, by implementation and hardware, and why.

Small tiles leave more of a packed row out; large ones spread the fixed work of a step over more scores. The sizes
that hardware asks for are here too, as this module costs nothing to import.
"""

LANES = 128  # of a TPU's vector register; its 8 sublanes are the other side
SMALLEST = 16  # side of a Triton matmul: of tiles and blocks on GPUs
SMALLEST_PLAIN = 8  # where no hardware asks for more: below, lists and loops cost more than what they skip
WIDEST = {"pallas_gpu": 256}  # width of a head; the other implementations take any

# For pallas_tpu by TPU generation: the least modelled cycles, forward and backward, on packed rows of 64K tokens
# (benchmarks/compiled/tpu_modelled.py), from compiled schedules (benchmarks/compiled/tpu_schedule.py). Cycles of a
# row in millions, on real documents of 2619 tokens in the mean / on drawn ones of 1060:
#          512 x 512     1024 x 512    512 x 1024    1024 x 1024
#   v5e    4.81 / 3.24   4.90 / 3.47   4.99 / 3.55   5.05 / 3.70   at the matrix units' bound at every tile
#   v5p    5.29 / 3.56   5.16 / 3.66   5.25 / 3.72   5.18 / 3.80   as v5e, with more work between steps
#   v6e    3.57 / 2.43   3.21 / 2.31   3.32 / 2.39   3.08 / 2.30   far from the bounds at 512 x 512, where filling and
#                                                                  draining the units takes half of a tile's bundles
# v4 and tpu7x are not modelled: they take what the generation whose matrix units they share takes.
_PALLAS_TPU = {
    "v4": (512, 512),
    "v5e": (512, 512),
    "v5p": (512, 512),
    "v6e": (1024, 1024),
    "tpu7x": (1024, 1024),
}
# Of pallas_gpu: the finest tile that all of its blocks divide (pallas_gpu/blocks.py), as a document's edge then costs
# least. The plan's lists grow with the square of the number of tiles, so longer rows take larger ones: both lists of
# a row are at most 8 MB up to 512K tokens, and 32 MB at 1M.
_PALLAS_GPU = (128, 256, 512)
_PALLAS_GPU_TILES = 1024  # along a side of one row, while there is a larger tile
TPU_KINDS = {  # what JAX and what people call a generation
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
}


def default_tiles(implementation: str, device_kind: str, seq_len: int = 0) -> tuple[int, int]:
    """(q_tile, kv_tile) in tokens.

    Args:
      implementation: a name from `types.IMPLEMENTATIONS`.
      device_kind: `jax.Device.device_kind`, or a name from `targets`. An unknown TPU takes v5e's tiles.
      seq_len: keys of a row, for GPUs: 128 up to 128K, 256 up to 256K, then 512.
    """
    if implementation == "pallas_tpu":
        return _PALLAS_TPU.get(TPU_KINDS.get(device_kind, device_kind), _PALLAS_TPU["v5e"])
    if implementation == "pallas_gpu":
        tile = next((size for size in _PALLAS_GPU if seq_len <= size * _PALLAS_GPU_TILES), _PALLAS_GPU[-1])
        return tile, tile
    return 256, 256  # of xla, on CPUs: benchmarks/attention/attention_tiles.py; the reference has no tiles


def check_tiles(implementation: str, q_tile: int, kv_tile: int) -> str | None:
    """None, or which tiles the implementation takes if not these."""
    tiles = q_tile, kv_tile
    if implementation == "pallas_tpu" and any(tile % LANES for tile in tiles):
        return f"multiples of {LANES}"
    if implementation == "pallas_gpu" and any(tile < SMALLEST or tile & (tile - 1) for tile in tiles):
        return f"powers of two from {SMALLEST} on"
    if min(tiles) < SMALLEST_PLAIN:
        return f"{SMALLEST_PLAIN} or more"
    return None
