"""A JSON file is read alike everywhere, whatever the machine's locale, and its errors are one line."""

import pathlib
import subprocess
import sys

import pytest

from anchorjax.errors import DataError, WeightsError
from anchorjax.files import read_json, write_atomically

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_an_object_in_utf8_is_read_under_any_locale(tmp_path, mark):
    file = tmp_path / "x.json"
    file.write_bytes(mark + '{"name": "Müller"}'.encode())
    code = f"""
import pathlib
from anchorjax.files import read_json
assert read_json(pathlib.Path({str(file)!r}), ValueError) == {{"name": "M\\u00fcller"}}
"""
    no_utf8 = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-X", "utf8=0", "-c", code], cwd=ROOT, env=no_utf8, capture_output=True)
    assert done.returncode == 0, done.stderr.decode(errors="replace")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff", b"[" * 10**5])
@pytest.mark.parametrize("fault", [DataError, WeightsError, ValueError])
def test_anything_else_is_the_caller_s_error(tmp_path, content, fault):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(fault, match=rf"^{tmp_path}/x.json cannot be read: ") as caught:
        read_json(tmp_path / "x.json", fault)
    assert type(caught.value) is fault and "\n" not in str(caught.value)


def test_no_file_is_none_and_a_folder_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    assert read_json(tmp_path / "none.json", ValueError) is None
    assert read_json(tmp_path / "file/none.json", ValueError) is None
    with pytest.raises(DataError, match="cannot be read"):
        read_json(tmp_path, DataError)


def test_what_was_written_is_read_back(tmp_path):
    write_atomically(tmp_path / "x.json", '{"name": "Müller"}')
    assert read_json(tmp_path / "x.json", ValueError) == {"name": "Müller"}
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]
