"""Host memory of conversion: what `anchorjax convert` holds beyond the weights themselves.

    python -m benchmarks.training.convert_memory [--gigabytes=2] [--json]

A Llama checkpoint of random bfloat16 weights is made in a temporary directory, in shards of 0.5 GB, and converted
there and back. Each conversion is a process of its own, whose anonymous memory is read every 5 ms. On a CPU the
weights' own bytes are the devices' shards; subtracted too is what the same conversion of a tiny model takes, which is
the interpreter. The rest should be no more than the largest tensor and one shard: the largest array of ours, as
whole ones are written, or the largest file of theirs.

Arrays below 32 MB, as the simulated devices' parts are, are kept by the C library when they are freed. Here it is
told to give back all above 1 MB, so that what is measured is what is held.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from anchorjax.checkpoints.huggingface import config as hf_config
from anchorjax.checkpoints.huggingface.weights import TensorInfo, Weights, write_files

ROOT = Path(__file__).resolve().parents[2]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SHARD_BYTES = 5 * 10**8  # of the checkpoint that is read
CONFIG = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "torch_dtype": "bfloat16",
}
TINY = CONFIG | {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 8}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.0, help="of weights, at least")
    parser.add_argument("--devices", default="1,8", help="simulated devices, comma separated")
    parser.add_argument("--directory", help="where the temporary directory is made; it takes three times the weights")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args()
    results = []
    print(
        f"{'MB':<8}"
        + "".join(f"{name:>9}" for name in ("devices", "peak", "idle", "weights", "rest", "tensor", "shard"))
    )
    with tempfile.TemporaryDirectory(dir=arguments.directory) as home:
        source, tiny = Path(home) / "source", Path(home) / "tiny"
        layers = make_checkpoint(source, CONFIG, arguments.gigabytes)
        make_checkpoint(tiny, TINY, gigabytes=0)
        for devices in map(int, arguments.devices.split(",")):
            idle = convert(tiny, devices)[0]
            results += summary(layers, devices, idle, *convert(source, devices))
    if arguments.json:
        print(json.dumps(results))


def tensors(config: dict[str, object], layers: int) -> dict[str, TensorInfo]:
    D, F, V = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    KH = config["num_key_value_heads"] * D // config["num_attention_heads"]
    block = {
        "self_attn.q_proj": (D, D),
        "self_attn.k_proj": (KH, D),
        "self_attn.v_proj": (KH, D),
        "self_attn.o_proj": (D, D),
        "mlp.gate_proj": (F, D),
        "mlp.up_proj": (F, D),
        "mlp.down_proj": (D, F),
        "input_layernorm": (D,),
        "post_attention_layernorm": (D,),
    }
    shapes = {"model.embed_tokens": (V, D), "lm_head": (V, D), "model.norm": (D,)}
    shapes |= {f"model.layers.{n}.{name}": shape for n in range(layers) for name, shape in block.items()}
    return {f"{name}.weight": TensorInfo(shape, BFLOAT16, Path()) for name, shape in shapes.items()}


def num_bytes(config: dict[str, object], layers: int) -> list[int]:
    """Bytes of each tensor, in bfloat16."""
    return [2 * math.prod(info.shape) for info in tensors(config, layers).values()]


def make_checkpoint(directory: Path, config: dict[str, object], gigabytes: float) -> int:
    """Returns its number of layers."""
    none, one = (sum(num_bytes(config, layers)) for layers in (0, 1))
    layers = max(1, math.ceil((gigabytes * 1e9 - none) / (one - none)))
    infos, generator = tensors(config, layers), np.random.default_rng(0)

    def draw(name: str) -> np.ndarray:
        bits = generator.integers(0, 2**16, infos[name].shape, np.uint16)
        return (bits & 0xBFFF).view(BFLOAT16)  # no infinities and no NaNs: exponents below their largest

    directory.mkdir()
    write_files(directory, infos, draw, shard_bytes=SHARD_BYTES)
    (directory / hf_config.FILE).write_text(json.dumps(config | {"num_hidden_layers": layers}))
    return layers


def convert(source: Path, devices: int) -> tuple[list[int], int]:
    """Peaks of from-hf and to-hf, and the largest file that the latter writes; all files are removed."""
    ours, theirs = source.with_name("ours"), source.with_name("theirs")
    steps = (("from-hf", source, ours), ("to-hf", ours, theirs))
    peaks = [peak([sys.executable, "-m", "anchorjax", "convert", *map(str, step)], devices) for step in steps]
    check(source, theirs)
    file = max(file.stat().st_size for file in theirs.glob("*.safetensors"))
    shutil.rmtree(ours)
    shutil.rmtree(theirs)
    return peaks, file


def summary(layers: int, devices: int, idle: list[int], peaks: list[int], file: int) -> list[dict[str, object]]:
    """Figures in bytes."""
    sizes, rows = num_bytes(CONFIG, layers), []
    array = max(max(sizes), layers * 2 * CONFIG["hidden_size"] * CONFIG["intermediate_size"])
    for command, idle_peak, most, shard in zip(("from-hf", "to-hf"), idle, peaks, (array, file), strict=True):
        row = {"devices": devices, "peak": most, "idle": idle_peak, "weights": sum(sizes)}
        row |= {"rest": most - idle_peak - sum(sizes), "largest_tensor": max(sizes), "shard": shard}
        shown = [devices, *(value // 10**6 for value in list(row.values())[1:])]
        print(f"{command:<8}" + "".join(f"{value:>9}" for value in shown), flush=True)
        rows.append({"command": command, **row, "within": row["rest"] <= row["largest_tensor"] + shard})
    return rows


def check(source: Path, theirs: Path) -> None:
    before, after = Weights.open(source), Weights.open(theirs)
    assert before.tensors.keys() == after.tensors.keys()
    for name in before.tensors:
        assert np.array_equal(before.read(name).view(np.uint16), after.read(name).view(np.uint16)), name


def peak(command: Sequence[str], devices: int) -> int:
    """The most bytes of anonymous memory that the process held."""
    environment = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "MALLOC_MMAP_THRESHOLD_": "1000000",
    }
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.DEVNULL)
    status, most = Path(f"/proc/{process.pid}/status"), 0
    while process.poll() is None:
        lines = [line for line in status.read_text().splitlines() if line.startswith("RssAnon")]
        most = max(most, *(1024 * int(line.split()[1]) for line in lines), 0)
        time.sleep(0.005)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return most


if __name__ == "__main__":
    main()
