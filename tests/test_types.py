"""The files of a folder are the names of a choice."""

from anchorjax import types


def test_a_file_is_a_name_unless_it_is_private_or_a_package(tmp_path):
    for name in ("b.py", "a.py", "_shared.py", "__init__.py", "notes.md"):
        (tmp_path / name).write_text("raise AssertionError('nothing is imported')")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/__init__.py").touch()
    assert types._files(str(tmp_path)) == ("a", "b")
