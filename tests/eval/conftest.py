"""What several scripts are tried on."""

import pytest

from tests.checkpoints.huggingface import tiny
from tests.evaluation.making import write_tokenizer


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A tiny Hugging Face model."""
    directory = tmp_path_factory.mktemp("model")
    tiny.make("llama untied", directory)
    write_tokenizer(directory)
    return directory
