"""Time of the `xla` attention by tile size: the reason for its defaults in anchorjax/attention/xla.py.

    python -m benchmarks.attention.attention_tiles [--json]

One row of the shipped validation text packed behind the anchor, forward and backward, bf16. The tile sizes
alternate; reported is the median.
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp

from anchorjax import data
from anchorjax.attention import attention
from anchorjax.attention.plan import make_plan
from anchorjax.config import resolve
from anchorjax.masks import Mask
from configs import quickstart

TILES = ((128, 128), (128, 256), (256, 256), (256, 512), (512, 256), (512, 512), (1024, 1024))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=4096, help="tokens of the row")
    parser.add_argument("--repeats", type=int, default=7, help="timed calls of each tile size")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args()
    config = quickstart.get_config()
    config.data.tokenizer = "bytes"
    config.data.seq_len = arguments.length
    config = resolve(config.to_dict())
    calls = {tiles: prepare(config, *tiles) for tiles in TILES}
    times = {tiles: [] for tiles in TILES}
    for _ in range(arguments.repeats):
        for tiles, call in calls.items():
            started = time.perf_counter()
            jax.block_until_ready(call())
            times[tiles].append(time.perf_counter() - started)
    medians = {tiles: statistics.median(seconds) for tiles, seconds in times.items()}
    print(f"{'q_tile':>6}  {'kv_tile':>7}  {'seconds':>8}")
    for (q_tile, kv_tile), seconds in medians.items():
        print(f"{q_tile:>6}  {kv_tile:>7}  {seconds:>8.4f}")
    if arguments.json:
        print(json.dumps({f"{q_tile}x{kv_tile}": seconds for (q_tile, kv_tile), seconds in medians.items()}))


def prepare(config, q_tile: int, kv_tile: int):
    """A compiled call of attention's gradient with these tiles; the same arrays for all."""
    tokenizer = data.load_tokenizer(config.data)
    store = data.load_store(config.data, "validation", tokenizer)
    batch = next(data.eval_rows(store, tokenizer, config.data, 1))
    mask = Mask.from_segments(jnp.asarray(batch.segment_ids_BT), num_anchors=1)
    model, keys = config.model, jax.random.split(jax.random.key(0), 3)
    heads = (model.num_heads, model.num_kv_heads, model.num_kv_heads)
    shapes = [(1, config.data.seq_len, count, model.head_dim) for count in heads]
    qkv = [jax.random.normal(key, shape, jnp.bfloat16) for key, shape in zip(keys, shapes, strict=True)]

    @jax.jit
    def gradient(qkv, mask):
        plan = make_plan(mask, q_tile, kv_tile)

        def total(qkv):
            return jnp.sum(attention(*qkv, plan, implementation="xla").astype(jnp.float32))

        return jax.grad(total)(qkv)

    jax.block_until_ready(gradient(qkv, mask))
    return lambda: gradient(qkv, mask)


if __name__ == "__main__":
    main()
