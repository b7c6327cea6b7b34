"""Eight simulated devices, a tiny configuration and its data, for every test."""

import gc
import os
import pathlib

os.environ["JAX_PLATFORMS"] = "cpu"
# Programs that tests start import this checkout, and not another one that happens to be installed.
os.environ["PYTHONPATH"] = os.pathsep.join([str(pathlib.Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])

import pytest

from tests import xla

os.environ["XLA_FLAGS"] = xla.flags(num_devices=8)
# Looking through all that jax, torch and their caches hold took 0.7 s each time, and 8% of these tests' time.
gc.set_threshold(50_000, 20, 100)


@pytest.fixture(scope="session")
def tiny_config():
    """`tiny_config(model__dropout=0.1)`: a resolved Config with overrides."""
    from tests import tiny

    return tiny.config


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> str:
    """Where the shipped corpus is prepared, once for all tests."""
    from anchorjax.data import sources

    directory = str(tmp_path_factory.mktemp("data"))
    sources.load("public_domain", "train", directory)
    return directory


@pytest.fixture(scope="session")
def corpus(data_dir, tiny_config):
    """`corpus(split, **overrides)`: (token store, tokenizer, data section) of the shipped texts."""
    from anchorjax import data

    stores = {}

    def load(split: str = "train", **overrides):
        config = tiny_config(data__data_dir=data_dir, **overrides)
        if split not in stores:
            tokenizer = data.load_tokenizer(config.data)
            stores[split] = data.load_store(config.data, split, tokenizer), tokenizer
        return *stores[split], config.data

    return load


@pytest.fixture(scope="session")
def jobs(tmp_path_factory, data_dir):
    """Starts whole runs as processes; they share compiled programs."""
    from tests.training.jobs import Jobs

    return Jobs(tmp_path_factory.mktemp("jobs"), data_dir)
