"""What several scripts are tried on."""

import pytest

from anchorjax.pages import figures
from tests.checkpoints.huggingface import tiny
from tests.evaluation.making import write_tokenizer


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A tiny Hugging Face model."""
    directory = tmp_path_factory.mktemp("model")
    tiny.make("llama untied", directory)
    write_tokenizer(directory)
    return directory


@pytest.fixture(scope="module", autouse=True)
def drawn():
    """`drawn(file)`: the matplotlib axes behind a PNG file that one of the module's scripts wrote in this process."""
    figures_by_png, encode = {}, figures.png

    def png(figure):
        content = encode(figure)
        figures_by_png[content] = figure
        return content

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "png", png)
        yield lambda file: figures_by_png[file.read_bytes()].axes[0]
