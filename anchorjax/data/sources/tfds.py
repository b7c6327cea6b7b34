"""Any data set that TensorFlow Datasets has prepared on disk in array_record format; needs no TensorFlow."""

from collections.abc import Sequence

from tensorflow_datasets.core import read_only_builder, registered


class Documents(Sequence):
    """A TFDS data source as documents: random access, bytes decoded as UTF-8."""

    def __init__(self, builder, split: str):
        if split not in builder.info.splits:
            raise ValueError(f"unknown split {split!r} of {builder.name}; allowed: {', '.join(builder.info.splits)}")
        if "text" not in builder.info.features:
            raise ValueError(f'{builder.name} has no feature "text", only {", ".join(builder.info.features)}')
        try:
            self._records = builder.as_data_source(split)
        except NotImplementedError as error:
            raise ValueError(f"{builder.name} is not prepared as array_record, which has random access") from error

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, str]:
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        record = self._records[index]
        return {key: value.decode("utf-8") for key, value in record.items() if isinstance(value, bytes)}


def make(split: str, data_dir: str, name: str) -> Documents:
    """Returns the documents of `name` ("name", "name/config", "name:version"), prepared earlier under `data_dir`."""
    try:
        # tfds.data_source would search the network for an unknown name.
        builder = read_only_builder.builder_from_files(name, data_dir=data_dir)
    except registered.DatasetNotFoundError as error:
        raise ValueError(f"no prepared TFDS data set {name!r} in {data_dir}") from error
    return Documents(builder, split)
