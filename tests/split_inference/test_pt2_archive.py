"""Archives: honest ones load, and every way in which torch would run what they carry is refused first."""

import io
import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from split_inference.errors import ModelLoadError, UnsafeModelError
from split_inference.model_split import SplittableModel
from split_inference.pt2_archive import _is_harmless, load_pt2
from tests.split_inference.models import Branches, seeded


class WritesAFile:
    """What a malicious pickle does: here it leaves a file behind, so that a test sees whether it ran."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.fixture(scope="module")
def program():
    example = torch.zeros(2, 3, 8, 8)
    dynamic = ({0: torch.export.Dim("batch", min=1, max=16)},)
    return torch.export.export(seeded(Branches()), (example,), dynamic_shapes=dynamic)


@pytest.fixture
def honest(program, tmp_path):
    path = tmp_path / "honest.pt2"
    torch.export.save(program, path)
    return path


def rewritten(source: Path, change) -> Path:
    """The archive with each entry's bytes passed through change(name, bytes) -> bytes, or None to drop it."""
    target = source.with_name("changed.pt2")
    with zipfile.ZipFile(source) as before, zipfile.ZipFile(target, "w") as after:
        for info in before.infolist():
            content = change(info.filename, before.read(info))
            if content is not None:
                after.writestr(info.filename, content)
    return target


def edited_json(suffix: str, edit):
    def change(name, content):
        if not name.endswith(suffix):
            return content
        document = json.loads(content)
        edit(document)
        return json.dumps(document).encode()

    return change


def a_torch_pickle(value) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_an_honest_archive_gives_the_same_model(program, honest):
    loaded = load_pt2(honest)
    assert SplittableModel(loaded).digest == SplittableModel(program).digest
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.module()(x), program.module()(x))


def test_a_weight_flagged_as_pickle_is_refused_and_does_not_run(honest, tmp_path):
    mark = tmp_path / "ran"

    def flag(document):
        entry = next(iter(document["config"].values()))
        entry["use_pickle"] = True

    def change(name, content):
        if name.endswith("weights/weight_0"):
            return a_torch_pickle(WritesAFile(mark))
        return edited_json("model_weights_config.json", flag)(name, content)

    archive = rewritten(honest, change)
    with pytest.raises(UnsafeModelError, match="stored as a pickle"):
        load_pt2(archive)
    assert not mark.exists()


def test_torch_itself_would_have_run_it(honest, tmp_path):
    """The control: without the inspection, the same kind of archive runs its code."""
    mark = tmp_path / "ran"
    archive = rewritten(
        honest, lambda name, content: a_torch_pickle(WritesAFile(mark)) if "sample_inputs" in name else content
    )
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever torch says after it has run the code
        torch.export.load(archive)
    assert mark.exists()


def test_sample_inputs_that_need_a_pickle_are_refused_and_do_not_run(honest, tmp_path):
    mark = tmp_path / "ran"
    archive = rewritten(
        honest, lambda name, content: a_torch_pickle(WritesAFile(mark)) if "sample_inputs" in name else content
    )
    with pytest.raises(UnsafeModelError, match="sample inputs"):
        load_pt2(archive)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("entry", "content"),
    [
        ("data/constants/opaque_obj_0", pickle.dumps(1)),
        ("data/aotinductor/model/model.so", b"\x7fELF"),
        ("data/weights/model.pt", b"legacy"),
        ("extra/../../escape", b""),
    ],
)
def test_an_entry_that_an_exported_model_does_not_need_is_refused(honest, entry, content):
    with zipfile.ZipFile(honest) as archive:
        root = archive.namelist()[0].split("/")[0]
    with zipfile.ZipFile(honest, "a") as archive:
        archive.writestr(f"{root}/{entry}", content)
    with pytest.raises(UnsafeModelError, match="may run code"):
        load_pt2(honest)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("expr_str", "__import__('os').system('true')", "expr_str"),
        ("expr_str", "Symbol('s0').__class__", "expr_str"),
        ("expr_str", "Pow(Integer(9), Integer(9))", "expr_str"),
        ("expr_str", "9**9**9**9", "expr_str"),
        ("target", "torch.load", "target"),
        ("target", "torch.ops.aten.from_file.default", "target"),
        ("target", "_operator.methodcaller", "target"),
        ("in_spec", '[1, {"type": "evil.Type", "context": "null", "children_spec": []}]', "in_spec"),
    ],
)
def test_a_graph_that_names_code_is_refused(honest, key, value, reason):
    def edit(document):
        def walk(node):
            if isinstance(node, dict):
                for inner_key, inner in node.items():
                    is_node = key != "target" or "inputs" in node
                    if inner_key == key and isinstance(inner, str) and is_node:
                        node[inner_key] = value
                        return True
                    if walk(inner):
                        return True
            return isinstance(node, list) and any(walk(inner) for inner in node)

        assert walk(document)

    with pytest.raises(UnsafeModelError, match=reason):
        load_pt2(rewritten(honest, edited_json("models/model.json", edit)))


@pytest.mark.parametrize(
    "expression", ["2*s0 + 1", "Symbol('s99', positive=True, integer=True)", "Mul(Integer(4), s1)"]
)
def test_what_exports_say_of_sizes_is_let_through(expression):
    assert _is_harmless("expr_str", expression)


def test_guards_are_dropped_unread(honest, tmp_path):
    mark = tmp_path / "ran"

    def edit(document):
        document["guards_code"] = [f"__import__('pathlib').Path({str(mark)!r}).touch() or True"]

    loaded = load_pt2(rewritten(honest, edited_json("models/model.json", edit)))
    loaded.module()(torch.zeros(2, 3, 8, 8))
    assert not mark.exists()


def test_an_archive_with_one_name_twice_is_refused(honest):
    with zipfile.ZipFile(honest, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(archive.namelist()[0], b"other")
    with pytest.raises(UnsafeModelError, match="no name twice"):
        load_pt2(honest)


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 half a zip"])
def test_bytes_that_are_no_archive_are_refused_in_one_line(tmp_path, content):
    path = tmp_path / "bad.pt2"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"bad\.pt2 is no exported program") as caught:
        load_pt2(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ModelLoadError, match=r"no file .*none\.pt2"):
        load_pt2(tmp_path / "none.pt2")
