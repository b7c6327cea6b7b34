"""The corpus that ships with anchorjax: the chapters of Jane Austen's novels and of the King James Bible.

See `corpora/README.md`. TensorFlow Datasets prepares it once as array_record files, without TensorFlow or
network.
"""

import contextlib
import gzip
import io
import json
import pathlib
from collections.abc import Iterator

import tensorflow_datasets as tfds

from anchorjax.data.sources.tfds import Documents

CORPUS = pathlib.Path(__file__).parents[1] / "corpora" / "public_domain.jsonl.gz"
_HELD_OUT_EVERY = 25


class PublicDomain(tfds.core.GeneratorBasedBuilder):
    """Features text, source and title; every 25th document is held out, so that both sources are."""

    VERSION = tfds.core.Version("1.0.0")  # new version for a new corpus file: prepared copies are found by it

    def _info(self):
        features = {key: tfds.features.Text() for key in ("text", "source", "title")}
        # The packer shuffles. Without shuffling here, document i is document i in book order.
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing to download
        return {"train": self._generate_examples(False), "validation": self._generate_examples(True)}

    def _generate_examples(self, held_out: bool):
        return read(held_out)


def read(held_out: bool) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields (number in book order, document) of one split, directly from the shipped file."""
    with gzip.open(CORPUS, "rt", encoding="utf-8") as lines:
        for index, line in enumerate(lines):
            if (index % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1) == held_out:
                yield index, json.loads(line)


def make(split: str, data_dir: str) -> Documents:
    """Returns the documents of "train" (1400) or "validation" (58), prepared under `data_dir` on the first call."""
    builder = _builder(data_dir)
    if not builder.data_path.exists():
        _prepare(builder)
        builder = _builder(data_dir)
    return Documents(builder, split)


def _builder(data_dir: str) -> PublicDomain:
    return PublicDomain(data_dir=data_dir, file_format="array_record")


def _prepare(builder: PublicDomain) -> None:
    """Writes the array_record files atomically: TFDS fills another directory and renames it."""
    tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints two paragraphs about downloading
            builder.download_and_prepare(download_config=config)
    except OSError:
        # Of several processes that prepare at once, the first rename wins and the others fail on a full
        # directory.
        if not builder.data_path.exists():
            raise
