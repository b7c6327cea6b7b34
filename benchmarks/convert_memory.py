"""Host memory of conversion: what `anchorjax.convert` holds beyond the weights themselves.

    python benchmarks/convert_memory.py [--gigabytes=2] [--json]

A Llama checkpoint of random bfloat16 weights is made in a temporary directory, in shards of 0.5 GB, and converted
there and back. Each conversion is a process of its own, whose anonymous memory is read every 5 ms. On a CPU the
weights' own bytes are the devices' shards; subtracted too is what an interpreter holds that has imported the same
modules and used its devices. The rest should be no more than the largest tensor and one shard: the largest file that
is read or written.

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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from anywhere, without installing

import ml_dtypes
import numpy as np

from anchorjax.huggingface import config as hf_config
from anchorjax.huggingface.weights import TensorInfo, Weights, write_files

ROOT = Path(__file__).resolve().parents[1]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SHARD_BYTES = 5 * 10**8  # of the checkpoint that is read
IDLE = "import jax, anchorjax.convert; jax.block_until_ready(jax.numpy.ones(8) + 1)"
CONFIG = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "torch_dtype": "bfloat16",
}


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
        source = Path(home) / "source"
        layers = make_checkpoint(source, arguments.gigabytes)
        for devices in map(int, arguments.devices.split(",")):
            results += measure(source, layers, devices, Path(home) / str(devices))
    if arguments.json:
        print(json.dumps(results))


def tensors(layers: int) -> dict[str, TensorInfo]:
    D, F, V = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["vocab_size"]
    KH = CONFIG["num_key_value_heads"] * D // CONFIG["num_attention_heads"]
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


def num_bytes(layers: int) -> int:
    return sum(2 * math.prod(info.shape) for info in tensors(layers).values())


def make_checkpoint(directory: Path, gigabytes: float) -> int:
    """Returns its number of layers."""
    layers = max(1, math.ceil((gigabytes * 1e9 - num_bytes(0)) / (num_bytes(1) - num_bytes(0))))
    infos, generator = tensors(layers), np.random.default_rng(0)

    def draw(name: str) -> np.ndarray:
        bits = generator.integers(0, 2**16, infos[name].shape, np.uint16)
        return (bits & 0xBFFF).view(BFLOAT16)  # no infinities and no NaNs: exponents below their largest

    directory.mkdir()
    write_files(directory, infos, draw, shard_bytes=SHARD_BYTES)
    (directory / hf_config.FILE).write_text(json.dumps(CONFIG | {"num_hidden_layers": layers}))
    return layers


def measure(source: Path, layers: int, devices: int, home: Path) -> list[dict[str, object]]:
    """Figures, in bytes, of both conversions; their files are removed."""
    ours, theirs = home / "ours", home / "theirs"
    convert = [sys.executable, "-m", "anchorjax.convert"]
    idle = peak([sys.executable, "-c", IDLE], devices)
    from_hf = peak([*convert, "from-hf", str(source), str(ours)], devices)
    to_hf = peak([*convert, "to-hf", str(ours), str(theirs)], devices)
    check(source, theirs)
    sizes = {name: 2 * math.prod(info.shape) for name, info in tensors(layers).items()}
    shards = [max(file.stat().st_size for file in place.glob("*.safetensors")) for place in (source, theirs)]
    shutil.rmtree(home)
    rows = []
    for command, used, shard in zip(("from-hf", "to-hf"), (from_hf, to_hf), shards, strict=True):
        row = {"devices": devices, "peak": used, "idle": idle, "weights": sum(sizes.values())}
        row |= {"rest": used - idle - row["weights"], "largest_tensor": max(sizes.values()), "shard": shard}
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
