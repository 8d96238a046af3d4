"""A file is whole or not there."""

import pytest

from trimtab.lab.files import fingerprint, read_json, read_lines, replacing, write_json, write_lines


def test_what_is_written_comes_back(tmp_path):
    write_json(tmp_path / "new/a.json", {"ü": [1, None]})
    write_lines(tmp_path / "new/a.jsonl", [{"a": 1}, {"a": "é\n"}])
    assert read_json(tmp_path / "new/a.json") == {"ü": [1, None]}
    assert read_lines(tmp_path / "new/a.jsonl") == [{"a": 1}, {"a": "é\n"}]


def write_half(file):
    with replacing(file) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt


def write_to_a_full_disk(file):
    """/dev/full takes no byte, and says what a full disk says."""
    with replacing(file) as temporary:
        temporary.symlink_to("/dev/full")
        temporary.write_text("x" * 100_000)


@pytest.mark.parametrize(("write", "error"), [(write_half, KeyboardInterrupt), (write_to_a_full_disk, OSError)])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, write, error):
    file = tmp_path / "a.json"
    write_json(file, 1)
    with pytest.raises(error):
        write(file)
    assert read_json(file) == 1
    assert list(tmp_path.iterdir()) == [file]


def test_a_fingerprint_knows_values_not_their_order():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 1, "b": 3})
