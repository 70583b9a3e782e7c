from __future__ import annotations

import pytest

from split_inference.errors import ConfigError
from split_inference.yaml_lines import read_yaml


def read(tmp_path, text):
    path = tmp_path / "file.yaml"
    path.write_text(text)
    return read_yaml(path)


def test_keys_and_items_know_their_lines(tmp_path):
    file = read(tmp_path, "a:\n  b: 1\nc:\n  - x\n  - d: 2\n")
    assert file.data == {"a": {"b": 1}, "c": ["x", {"d": 2}]}
    assert [file.line_of(place) for place in [("a",), ("a", "b"), ("c", 1, "d")]] == [1, 2, 5]


def test_what_the_file_does_not_mention_has_the_line_of_what_is_above_it(tmp_path):
    file = read(tmp_path, "a:\n  b: 1\n")
    assert (file.line_of(("a", "z", 3)), file.line_of(("y",))) == (1, 1)


def test_steps_that_lead_out_of_the_file_are_cut_off(tmp_path):
    file = read(tmp_path, "a:\n  - b: 1\n")
    assert file.known_part(("a", 0, "b", "int")) == ("a", 0, "b")
    assert file.known_part(("a", "x")) == ("a",)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the file is empty"),
        ("# nothing\n", "the file is empty"),
        ("a: [", ":1: not YAML"),
        ("a: 1\na: 2\n", ":2: a stands twice, first on line 1"),
        ("a: &x\n  b: *x\n", ":1: an alias refers to what it stands in"),
        ("a: !!python/object:os.system {}\n", ":1: not YAML: could not determine a constructor"),
        ("a: 1\n---\nb: 2\n", "not YAML: but found another document"),
        ("a: 1\nb:\n  - x\n  - 2026-13-01\n", ":4: a value cannot be read: month must be in 1..12"),
        ("a:\n  - 1\n  - !!int ''\n", ":3: a value cannot be read: it is not what its tag says"),
        ("a: 1\nb: !!bool maybe\n", ":2: a value cannot be read: it is not what its tag says"),
        ("a: !!timestamp today\n", ":1: a value cannot be read: it is not what its tag says"),
        ("? !!int ''\n: 1\n", ":1: a value cannot be read: it is not what its tag says"),
        ("a: 1" + 5000 * "0" + "\n", ":1: a value cannot be read: Exceeds the limit"),
        ("a: '\x07'\n", "not YAML: unacceptable character #x0007"),
        ("a: " + 5000 * "[" + "\n", "nested too deeply"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_its_place(tmp_path, text, reason):
    with pytest.raises(ConfigError) as refusal:
        read(tmp_path, text)
    assert reason in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_folder_and_bytes_that_are_no_text_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path / "binary")
