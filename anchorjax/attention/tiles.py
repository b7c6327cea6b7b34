"""Default sizes of attention tiles, by implementation and hardware, and why.

Small tiles leave more of a packed row out; large ones spread the fixed work of a step over more scores.
"""

# For pallas_tpu by TPU generation: the least modelled cycles of forward and backward passes on packed rows
# (benchmarks/tpu_modelled.py) among the tiles whose schedules were compiled (benchmarks/tpu_schedule.py). v4 and tpu7x
# are not modelled: they take what the generation nearest to them in matrix units takes.
_PALLAS_TPU = {
    "v4": (512, 512),
    "v5e": (512, 512),
    "v5p": (512, 512),
    "v6e": (1024, 512),
    "tpu7x": (1024, 512),
}
_TPU_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
}


def default_tiles(implementation: str, device_kind: str) -> tuple[int, int]:
    """(q_tile, kv_tile) in tokens.

    Args:
      implementation: a name from `types.IMPLEMENTATIONS`.
      device_kind: `jax.Device.device_kind`, or a name from `targets`. An unknown TPU takes v5e's tiles.
    """
    if implementation == "pallas_tpu":
        return _PALLAS_TPU[_TPU_KINDS.get(device_kind, device_kind if device_kind in _PALLAS_TPU else "v5e")]
    return 256, 256  # of xla, on CPUs: benchmarks/attention_tiles.py; the reference has no tiles
