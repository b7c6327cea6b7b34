"""Small weight directories."""

import ml_dtypes
import numpy as np
import pytest

from anchorjax.checkpoints.huggingface.directory import new_directory
from anchorjax.checkpoints.huggingface.weights import Weights, write_files
from anchorjax.errors import WeightsError

SHARDS = ["model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"]


def arrays() -> dict[str, np.ndarray]:
    """Every dtype, an odd number of bytes before wider ones, a scalar, an empty one, every bit pattern of 16 bits."""
    patterns = np.arange(2**16, dtype=np.uint16)
    return {
        "bf16": patterns.view(ml_dtypes.bfloat16).reshape(256, 256),
        "odd": np.array([1.5], np.float16),
        "f32": np.random.default_rng(0).integers(0, 2**32, (3, 5), np.uint32).view(np.float32),
        "f16": patterns.view(np.float16).reshape(16, 16, 256),
        "scalar": np.array(2.0, np.float32),
        "empty": np.zeros((0, 4), np.float32),
    }


def write(directory, tensors, read, **options):
    """A new directory that has these weights alone."""
    with new_directory(directory) as part:
        write_files(part, tensors, read, **options)


def save(directory, tensors=None, **options):
    tensors = arrays() if tensors is None else tensors
    write(directory, tensors, tensors.__getitem__, **options)
    return directory


def bits(array) -> tuple:
    return array.shape, array.dtype, array.tobytes()


def refusal(directory) -> str:
    with pytest.raises(WeightsError) as caught:
        Weights.open(directory)
    assert "\n" not in str(caught.value)
    return str(caught.value)
