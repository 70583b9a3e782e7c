"""Folders of inputs: labels are found where they are, samples follow the seed, wrong folders get one line."""

import io

import numpy as np
import pytest
from PIL import Image

from split_inference.errors import DataError
from split_inference.inputs import read_inputs


def jpeg(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    for i in range(6):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(i))
    (tmp_path / "labels.csv").write_text("file,label,note\n" + "".join(f"{i}.jpg,{i % 3},x\n" for i in range(5)))
    return tmp_path


def test_labels_come_from_the_table_and_may_be_missing(folder):
    assert [item.label for item in read_inputs(folder)] == [0, 1, 2, 0, 1, None]


def test_labels_come_from_folders_named_like_the_models_labels(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "a.png").write_bytes(jpeg(1))
    items = read_inputs(tmp_path, labels=("dog", "cat"))
    assert [(item.name, item.label) for item in items] == [("cat/a.png", 1), ("dog/a.png", 0)]


def test_a_sample_follows_the_seed(folder):
    names = [[item.name for item in read_inputs(folder, limit=3, seed=seed)] for seed in (0, 0, 1, 2)]
    assert names[0] == names[1]
    assert len({tuple(n) for n in names}) > 1
    assert all(n == sorted(n) and len(n) == 3 for n in names)


def archive(path, **changed):
    """Two images of two bytes each."""
    parts = {"jpeg_prefix": np.zeros(3, np.uint8), "jpeg_body": np.zeros(4, np.uint8)}
    parts |= {"offsets": np.array([0, 2, 4], np.uint32), "labels": np.array([1, 0], np.uint8)}
    np.savez_compressed(path, **(parts | changed))
    return path


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"labels": np.array(["cat", "dog"])}, "is no archive.*one whole number each is needed, got <U3"),
        ({"labels": np.array([[1], [0]])}, "one whole number each is needed"),
        ({"labels": np.array(1)}, "one whole number each is needed"),
        ({"labels": np.array([np.nan, 1])}, "one whole number each is needed, got float64"),
        ({"labels": np.array([1, -1])}, "a label must be the index of an output, got -1"),
        ({"offsets": np.array(4)}, "one whole number each is needed"),
        ({"offsets": np.array([0, 2.5, 4])}, "one whole number each is needed"),
        ({"offsets": np.array([0, 9, 4])}, "offsets do not fit 2 images of 4 bytes"),
        ({"offsets": np.array([-2, 2, 4])}, "offsets do not fit"),
        ({"offsets": np.array([0]), "labels": np.array([], np.uint8)}, "holds no images"),
    ],
)
def test_an_archive_that_does_not_fit_is_refused(tmp_path, changed, reason):
    with pytest.raises(DataError, match=reason):
        read_inputs(archive(tmp_path / "test.npz", **changed))


def test_a_damaged_archive_is_refused_in_one_line_or_read(tmp_path, rng):
    path = archive(tmp_path / "test.npz")
    whole = path.read_bytes()
    damaged = [whole[:end] for end in range(0, len(whole), 50)]
    for _ in range(500):
        other = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            other[place] = rng.integers(256)
        damaged.append(bytes(other))
    np.save(tmp_path / "array.npy", np.zeros(3))
    damaged.append((tmp_path / "array.npy").read_bytes())
    refusals = []
    for data in damaged:
        path.write_bytes(data)
        try:
            read_inputs(path)
        except DataError as error:
            refusals.append(str(error))
    assert len(refusals) > 100
    assert not [refusal for refusal in refusals if "\n" in refusal]


def test_an_archive_of_jpegs_gives_whole_files(tmp_path):
    prefix, bodies = b"HEAD", [b"one", b"three", b""]
    np.savez(
        tmp_path / "test.npz",
        jpeg_prefix=np.frombuffer(prefix, np.uint8),
        jpeg_body=np.frombuffer(b"".join(bodies), np.uint8),
        offsets=np.array([0, 3, 8, 8], np.uint32),
        labels=np.array([2, 0, 1], np.uint8),
    )
    items = read_inputs(tmp_path)
    assert [item.data for item in items] == [prefix + body for body in bodies]
    assert [item.label for item in items] == [2, 0, 1]
    assert {item.header_bytes for item in items} == {4}


def test_the_real_photographs_have_labels(data_folder):
    items = read_inputs(data_folder / "imagenet")
    assert len(items) == 200
    assert all(item.label is not None and 0 <= item.label < 1000 for item in items)


def test_wrong_paths_are_refused_in_one_line(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "bad.npz").write_bytes(b"x")
    for path, reason in (
        (tmp_path / "none", "no file or folder"),
        (tmp_path / "a.txt", "is no image or sound"),
        (tmp_path / "bad.npz", "is no archive"),
        (tmp_path, "holds no images or sounds"),
    ):
        with pytest.raises(DataError, match=reason):
            read_inputs(path)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("name,label\n", "needs columns"),
        ("file,label\n0.jpg,cat\n", "line 2"),
        ("file,label\n0.jpg\n", "line 2"),
        ("file,label\n0.jpg,1\n1.jpg,\u00b2\n", "line 3"),
        ("file,label\n0.jpg," + "9" * 5000 + "\n", "line 2"),
        ("file,label\n" + "x" * 200_000 + ",1\n", "line 2: field larger than"),
        ("label,file\n1\n", "line 2: no file stands beside the label"),
        ("file,label\nk\u00e4se.jpg,1\n".encode("latin-1"), "labels.csv: cannot be read"),
    ],
)
def test_a_wrong_table_names_its_line(folder, table, reason):
    (folder / "labels.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
    with pytest.raises(DataError, match=reason):
        read_inputs(folder)
