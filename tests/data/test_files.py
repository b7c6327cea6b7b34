"""A path names each file once, however it is spelled; of what `datasets` saves, the data."""

import json
import os

import pyarrow
import pytest

from anchorjax.data import files
from anchorjax.data import sources as sources_lib
from anchorjax.errors import DataError, EvaluationError
from anchorjax.evaluation import texts as texts_lib
from anchorjax.evaluation.tasks.ruler import haystack
from tests.data import preparing
from tests.data.preparing import data_config

SUFFIXES = (".jsonl", ".txt")


def names(found, below) -> list[str]:
    return [str(file.relative_to(below)) for file in found]


def write(*places):
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps({"text": f"text of {place.name}"}) + "\n")


@pytest.mark.parametrize("path", ["", "**/*.jsonl", "**"])
def test_a_link_to_the_folder_itself_does_not_go_round(tmp_path, path):
    write(tmp_path / "shards" / "a.jsonl", tmp_path / "b.jsonl")
    (tmp_path / "latest").symlink_to(".")
    (tmp_path / "shards" / "up").symlink_to(tmp_path)
    found = files.find(os.path.join(tmp_path, path), SUFFIXES)
    assert names(found, tmp_path) == ["b.jsonl", "shards/a.jsonl"]


@pytest.mark.parametrize("path", ["", "**/*.jsonl", "*/*.jsonl"])
def test_a_file_of_several_names_counts_once(tmp_path, path):
    """Links to folders and files, hard ones too; the name kept is the one without links."""
    write(tmp_path / "v1" / "a.jsonl")
    (tmp_path / "latest").symlink_to("v1")
    (tmp_path / "v1" / "0.jsonl").symlink_to("a.jsonl")
    os.link(tmp_path / "v1" / "a.jsonl", tmp_path / "v1" / "hard.jsonl")
    assert names(files.find(os.path.join(tmp_path, path), SUFFIXES), tmp_path) == ["v1/a.jsonl"]


def test_links_out_of_a_folder_are_followed_and_broken_ones_left(tmp_path):
    write(tmp_path / "elsewhere" / "a.jsonl", tmp_path / "one.jsonl")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "folder").symlink_to("../elsewhere")
    (inside / "file.jsonl").symlink_to("../one.jsonl")
    (inside / "broken.jsonl").symlink_to("nowhere.jsonl")
    assert names(files.find(str(inside), SUFFIXES), inside) == ["file.jsonl", "folder/a.jsonl"]


@pytest.mark.parametrize(
    "pattern", ["*.jsonl", "**/*.jsonl", "d*/[a-b].jsonl", "**/deep/*", "*/../*.txt", ".hidden/*", ".h*/*", "dir/.h*"]
)
def test_patterns_find_what_glob_finds(tmp_path, pattern):
    import glob

    places = ["a.jsonl", "x.txt", "dir/a.jsonl", "dir/c.jsonl", "dir/deep/b.jsonl", ".hidden/h.jsonl", "dir/.h.jsonl"]
    write(*(tmp_path / place for place in places))
    expected = {os.path.realpath(name) for name in glob.glob(f"{tmp_path}/{pattern}", recursive=True)}
    found = {os.path.realpath(file) for file in files.find(f"{tmp_path}/{pattern}", SUFFIXES)}
    assert found == {name for name in expected if os.path.isfile(name)} and found


@pytest.mark.parametrize("other", ["{0}/../x/a.jsonl", "{0}/./a.jsonl", "{0}", "{0}/link.jsonl", "{0}/../x/*.jsonl"])
def test_a_file_that_two_sources_name_is_refused_whatever_the_spelling(tmp_path, other):
    folder = tmp_path / "x"
    write(folder / "a.jsonl", folder / "b.jsonl")
    (folder / "link.jsonl").symlink_to("a.jsonl")
    source = f"jsonl:{folder}/a.jsonl,2;jsonl:{other.format(folder)}"
    with pytest.raises(ValueError, match=r"the same file; name it once|is named 2 times; give it a weight instead"):
        sources_lib.shards(data_config(source=source))


def test_upper_case_suffixes_count(tmp_path):
    rows = [{"text": f"text {i}", "source": "a"} for i in range(3)]
    for name in ("plain.JSONL", "packed.Jsonl.GZ"):
        preparing.write_jsonl(tmp_path / name.lower(), rows).rename(tmp_path / name)
    preparing.write_parquet(tmp_path / "p.parquet", rows).rename(tmp_path / "P.PARQUET")
    preparing.write_arrow(tmp_path / "a.arrow", rows).rename(tmp_path / "A.ARROW")
    (tmp_path / "BOOK.TXT").write_text("a book")
    count = {}
    for kind in ("jsonl", "parquet", "text_folder"):
        shards = sources_lib.shards(data_config(source=f"{kind}:{tmp_path}"))
        count[kind] = sum(len(list(weighted.shard.rows())) for weighted in shards)
    assert count == {"jsonl": 6, "parquet": 6, "text_folder": 1}
    named = [
        weighted.shard.fields.default_source
        for weighted in sources_lib.shards(data_config(source=f"jsonl:{tmp_path}/plain.JSONL"))
    ]
    assert named == ["plain"]
    assert texts_lib.read(str(tmp_path / "P.PARQUET")) == [row["text"] for row in rows]
    assert haystack.open_essays(tmp_path).words == ("a", "book")


# --- Commas ---


def shards_of(source):
    return [
        (weighted.shard.files[0].name, weighted.weight) for weighted in sources_lib.shards(data_config(source=source))
    ]


def test_a_comma_in_a_path_is_no_weight(tmp_path):
    write(tmp_path / "a,b.jsonl", tmp_path / "v1,2" / "x.jsonl", tmp_path / "c.jsonl")
    assert shards_of(f"jsonl:{tmp_path}/a,b.jsonl") == [("a,b.jsonl", 1)]
    assert shards_of(f"jsonl:{tmp_path}/a,b.jsonl,0.5;jsonl:{tmp_path}/c.jsonl,2") == [
        ("a,b.jsonl", 0.5),
        ("c.jsonl", 2),
    ]
    assert shards_of(f"jsonl:{tmp_path}/a,*.jsonl") == [("a,b.jsonl", 1)]
    assert shards_of(f"jsonl:{tmp_path}/v1,2") == [("x.jsonl", 1)]
    write(tmp_path / "v1" / "y.jsonl")
    with pytest.raises(ValueError, match=r"can be the path '.*/v1,2', or '.*/v1' with the weight 2; write '.*/v1,2,1'"):
        shards_of(f"jsonl:{tmp_path}/v1,2")
    assert shards_of(f"jsonl:{tmp_path}/v1,2,1") == [("x.jsonl", 1)]
    assert shards_of(f"jsonl:{tmp_path}/v1,2.0") == [("y.jsonl", 2)]
    with pytest.raises(ValueError, match=r"the weight 'd.jsonl' is not a number, .* there is no file of that name"):
        shards_of(f"jsonl:{tmp_path}/c,d.jsonl")


# --- What `datasets` saves ---

TEXTS = [f"text {i} of the data set" for i in range(30)]


@pytest.fixture(scope="module")
def hub():
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    return datasets


@pytest.fixture
def saved(tmp_path, hub):
    """A saved data set that was worked with: mapped, filtered and shuffled in its own folder."""
    hub.Dataset.from_dict({"text": TEXTS}).save_to_disk(tmp_path / "saved", num_shards=2)
    worked = hub.load_from_disk(tmp_path / "saved")
    worked.map(lambda row: {"n": len(row["text"])}).filter(lambda row: row["n"] > 0).shuffle(seed=1)
    assert list((tmp_path / "saved").glob("cache-*.arrow"))
    return tmp_path / "saved"


def read(source, **changes):
    shards = [weighted.shard for weighted in sources_lib.shards(data_config(source=source, **changes))]
    return [(row.content, shard.split) for shard in shards for _, row in shard.rows()]


@pytest.mark.parametrize("path", ["{0}", "{0}/*.arrow", "{0}/**", "{0}/.."])
def test_the_files_that_state_json_names_are_the_data_set(saved, path):
    assert read(f"parquet:{path.format(saved)}") == [(text, None) for text in TEXTS]
    assert texts_lib.read(path.format(saved)) == TEXTS, "descriptions are no JSON lines"


def test_a_file_that_is_named_by_itself_is_read(saved):
    cached = next(file for file in saved.glob("cache-*.arrow") if "text" in read_names(file))
    assert read(f"parquet:{cached}") == [(text, None) for text in TEXTS]


def read_names(file):
    with pyarrow.memory_map(str(file)) as stream:
        return pyarrow.ipc.open_stream(stream).schema.names


def test_cached_results_of_a_downloaded_data_set_are_none_of_it(tmp_path):
    rows = [{"text": text} for text in TEXTS]
    preparing.write_arrow(tmp_path / "c4-train.arrow", rows)
    preparing.write_arrow(tmp_path / "cache-0123456789abcdef.arrow", rows)
    assert len(read(f"parquet:{tmp_path}")) == 60, "any two files"
    (tmp_path / "dataset_info.json").write_text("{}")
    assert read(f"parquet:{tmp_path}") == [(text, None) for text in TEXTS]


def test_splits_of_a_downloaded_data_set_stay_apart(tmp_path):
    names = ("c4-train-00000-of-00002", "c4-train-00001-of-00002", "c4-validation")
    for name in names:
        preparing.write_arrow(tmp_path / f"{name}.arrow", [{"text": name}])
    info = b'\xef\xbb\xbf{"splits": {"train": {}, "validation": {}, "test": {}}}'
    (tmp_path / "dataset_info.json").write_bytes(info)
    assert read(f"parquet:{tmp_path}") == list(zip(names, ("train", "train", "validation"), strict=True))
    assert read(f"parquet:{tmp_path}/c4-train*") == [(name, None) for name in names[:2]]
    preparing.write_arrow(tmp_path / "c4-test.arrow", [{"text": "test"}])
    such = rf"with the splits test, train, validation, .* such as {tmp_path}/c4-validation.arrow"
    with pytest.raises(DataError, match=such):
        read(f"parquet:{tmp_path}")
    (tmp_path / "c4-validation.arrow").unlink()
    with pytest.raises(DataError, match=rf"the splits test, train, .* such as {tmp_path}/c4-train-\*-of-00002.arrow"):
        texts_lib.read(f"parquet:{tmp_path}")


def test_splits_that_two_sources_name_stay_apart(tmp_path, hub):
    path = dictionary(hub, tmp_path / "dict", train=TEXTS[:2], validation=TEXTS[2:4], test=TEXTS[4:6])
    (tmp_path / "link").symlink_to(path)
    expected = [(text, "train") for text in TEXTS[:2]] + [(text, "validation") for text in TEXTS[2:4]]
    for other in (path, tmp_path / "link"):
        assert read(f"parquet:{path}/train,2;parquet:{other}/validation") == expected
    with pytest.raises(DataError, match=rf"{path} is a data set with the splits test, train, .* such as {path}/train"):
        read(f"parquet:{path}/train;parquet:{path}/test")


def test_essays_are_found_as_other_files_are(tmp_path):
    write(tmp_path / "e" / "a.txt", tmp_path / "e" / ".ipynb_checkpoints" / "b.txt", tmp_path / "other" / "c.txt")
    (tmp_path / "e" / "link").symlink_to(tmp_path / "other")
    assert [word for word in haystack.open_essays(tmp_path / "e").words if ".txt" in word] == ['a.txt"}', 'c.txt"}']
    (tmp_path / "none").mkdir()
    with pytest.raises(EvaluationError, match=r"essays=.*/none holds no file that ends in \.json, "):
        haystack.open_essays(tmp_path / "none")


def test_packed_rows_of_a_saved_data_set(tmp_path, hub):
    rows = {"input_ids": [[1, 2, 3]] * 4, "source": [[{"source": "a", "start": 0, "end": 3}]] * 4}
    hub.Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    hub.load_from_disk(tmp_path / "saved").map(lambda row: {"n": 1})
    (weighted,) = sources_lib.shards(data_config(source=f"anchor_context:{tmp_path / 'saved'}"))
    assert len(list(weighted.shard.rows())) == 4


def dictionary(hub, path, **splits):
    hub.DatasetDict({name: hub.Dataset.from_dict({"text": texts}) for name, texts in splits.items()}).save_to_disk(path)
    for name in splits:
        hub.load_from_disk(path / name).map(lambda row: {"n": 1})
    return path


def test_train_and_validation_of_a_dataset_dict_stay_apart(tmp_path, hub):
    path = dictionary(hub, tmp_path / "dict", train=TEXTS[:20], validation=TEXTS[20:])
    train, validation = preparing.prepare(tmp_path, f"parquet:{path}")
    assert (preparing.texts(train), preparing.texts(validation)) == (TEXTS[:20], TEXTS[20:])
    assert read(f"parquet:{path}/train") == [(text, None) for text in TEXTS[:20]], "held out in part"


def test_other_splits_of_a_dataset_dict_are_read_alone(tmp_path, hub):
    path = dictionary(hub, tmp_path / "dict", train=TEXTS[:20], test=TEXTS[20:])
    with pytest.raises(DataError, match=rf"{path} is a data set with the splits test, train, .* such as {path}/train"):
        read(f"parquet:{path}")
    assert read(f"parquet:{path}/test") == [(text, None) for text in TEXTS[20:]]
    only = dictionary(hub, tmp_path / "only", everything=TEXTS)
    assert read(f"parquet:{only}") == [(text, None) for text in TEXTS]


def test_state_json_that_cannot_be_followed_is_refused(saved):
    state = json.loads((saved / "state.json").read_text())
    (saved / "state.json").write_text(json.dumps(state | {"_indices_data_files": [{"filename": "indices.arrow"}]}))
    with pytest.raises(DataError, match=rf"{saved}/state.json has _indices_data_files: .* flatten_indices"):
        read(f"parquet:{saved}")
    (saved / "state.json").write_text(json.dumps(state | {"_indices_data_files": None}))
    assert len(read(f"parquet:{saved}")) == len(TEXTS)
    (saved / state["_data_files"][1]["filename"]).unlink()
    with pytest.raises(DataError, match=rf"{saved}/state.json names data-00001-of-00002.arrow, which does not exist"):
        read(f"parquet:{saved}")
    (saved / "state.json").write_text("{")
    with pytest.raises(DataError, match=rf"{saved}/state.json cannot be read"):
        read(f"parquet:{saved}")


def test_json_lines_that_are_called_state_json_are_documents(tmp_path):
    write(tmp_path / "state.json", tmp_path / "b.json")
    (tmp_path / "state.json").write_text('{"text": "one"}\n{"text": "two"}\n')
    assert [text for text, _ in read(f"jsonl:{tmp_path}")] == ["text of b.json", "one", "two"]
