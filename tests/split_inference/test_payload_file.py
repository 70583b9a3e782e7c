"""The file of prepared requests: written and read back, and nothing else is taken for one."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from split_inference import payload_file, wire
from split_inference.errors import DataError
from split_inference.payload_file import (
    PayloadFile,
    PayloadHeader,
    PayloadInput,
    PayloadModel,
    PayloadOption,
    PayloadTraffic,
    PayloadWriter,
)
from tests.patience import PATIENCE_S

MODEL = PayloadModel(name="tiny", uri="embedded:tiny", digest="ab" * 32, macs=1000)
CLASSES = st.integers(0, 2**32 - 1)


def option(sizes=(3,), *, expected=None, **changes):
    answers = (0,) * len(sizes) if expected is None else expected
    fields: dict[str, Any] = {
        "mode": "split",
        "split_point": "middle",
        "codec": "u4+lz4",
        "elements": 8,
        "media_type": wire.FRAME_MEDIA_TYPE,
        "reply_bytes": 100,
        "expected": answers,
        "answer": answers,
        "sizes": sizes,
    }
    return PayloadOption(**(fields | changes))


def server_only(sizes=(3,), **changes):
    own = {"mode": "server_only", "split_point": None, "codec": None, "elements": None, "media_type": "image/jpeg"}
    return option(sizes, **(own | changes))


def header(*options, **changes):
    inputs = tuple(PayloadInput(name=f"{i}.jpg", label=i) for i in range(len(options[0].sizes)))
    fields: dict[str, Any] = {"model": MODEL, "inputs": inputs, "options": options}
    return PayloadHeader(**(fields | changes))


def write(path, content, bodies):
    """`bodies` by option and input."""
    with PayloadWriter(path, options=len(bodies)) as writer:
        for number, own in enumerate(bodies):
            for body in own:
                writer.add(number, body)
        writer.finish(content)


@pytest.fixture
def small(tmp_path):
    """A file of two options and two inputs."""
    path = tmp_path / "small.payloads"
    content = header(option((3, 1)), server_only((2, 5)))
    write(path, content, [[b"abc", b"d"], [b"ef", b"ghijk"]])
    return path


def sealed(text: bytes, bodies: bytes, *, magic=b"SPLTLOAD", version=1, header_bytes=None) -> bytes:
    """A file made by hand, with the right checksum."""
    length = len(text) if header_bytes is None else header_bytes
    data = struct.pack("<8sII", magic, version, length) + text + bodies
    return data + hashlib.sha256(data).digest()


def parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and bodies of a file."""
    length = struct.unpack_from("<I", data, 12)[0]
    return json.loads(data[16 : 16 + length]), data[16 + length : -32]


def refused(path, data, *words):
    """Opening gives one line that names the file, what is wrong and what to do."""
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        PayloadFile.open(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(path), "make it again", *words):
        assert word in message, message


@st.composite
def contents(draw):
    count = draw(st.integers(1, 4))
    bodies = draw(st.lists(st.lists(st.binary(min_size=1, max_size=40), min_size=count, max_size=count), min_size=1))
    expected = tuple(draw(st.lists(CLASSES, min_size=count, max_size=count)))
    options = []
    for own in bodies:
        make = draw(st.sampled_from([option, server_only]))
        answer = tuple(draw(st.lists(CLASSES, min_size=count, max_size=count)))
        options.append(make(tuple(map(len, own)), expected=expected, answer=answer))
    names = draw(st.lists(st.text(min_size=1, max_size=20), min_size=count, max_size=count))
    inputs = tuple(PayloadInput(name=name, label=draw(st.none() | CLASSES)) for name in names)
    traffic = draw(st.sampled_from([(), (PayloadTraffic(option=0, share=1.0, rate_per_s=2.5),)]))
    return header(*options, inputs=inputs, traffic=traffic), bodies


@settings(max_examples=60)
@given(contents())
def test_what_was_written_is_read(content):
    expected, bodies = content
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.payloads"
        write(path, expected, bodies)
        with PayloadFile.open(path) as file:
            assert file.header == expected
            for number, own in enumerate(bodies):
                assert file.sizes(number) == [len(body) for body in own]
                assert [file.body(number, i) for i in range(len(own))] == own
        assert os.listdir(folder) == ["x.payloads"]


def test_options_may_take_turns_while_writing(tmp_path):
    path = tmp_path / "turns.payloads"
    with PayloadWriter(path, options=2) as writer:
        for body in (b"a", b"bb"):
            writer.add(0, body)
            writer.add(1, body * 2)
        writer.finish(header(option((1, 2)), server_only((2, 4))))
    with PayloadFile.open(path) as file:
        assert [file.body(o, i) for o in range(2) for i in range(2)] == [b"a", b"bb", b"aa", b"bbbb"]


def test_every_flipped_bit_is_refused(small):
    data = small.read_bytes()
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        refused(small, bytes(damaged))


def test_every_truncation_and_a_byte_too_many_are_refused(small):
    data = small.read_bytes()
    for length in range(len(data)):
        refused(small, data[:length])
    refused(small, data + b"\0")


def test_bodies_that_are_longer_or_shorter_than_the_header_says_are_refused(small):
    content, bodies = parts(small.read_bytes())
    text = json.dumps(content).encode()
    refused(small, sealed(text, bodies + b"x"), "holds 12 bytes of bodies, not 11")
    refused(small, sealed(text, bodies[:-1]), "holds 10 bytes of bodies, not 11")
    small.write_bytes(sealed(text, bodies))
    PayloadFile.open(small).close()


def test_a_length_beyond_the_file_or_the_limit_is_refused_before_anything_is_read(small, monkeypatch):
    refused(small, sealed(b"{}", b"", header_bytes=0xFFFF_FFFF), "header of 4294967295 bytes")
    refused(small, sealed(b"{}", b"", header_bytes=3), "header of 3 bytes")
    monkeypatch.setattr(payload_file, "MAX_HEADER_BYTES", 1)
    refused(small, sealed(b"{}", b""), "header of 2 bytes")
    monkeypatch.setattr(payload_file, "MAX_FILE_BYTES", 49)
    refused(small, sealed(b"{}", b""), "is 50 bytes")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda h: h | {"more": 1}, "more: Extra inputs are not permitted"),
        (lambda h: h | {"a\nb" * 1000: 1}, "Extra inputs"),
        (lambda h: {k: v for k, v in h.items() if k != "model"}, "model: Field required"),
        (lambda h: h["model"].update(digest="AB" * 32), "model.digest"),
        (lambda h: h["inputs"][0].update(label=-1), "inputs.0.label"),
        (lambda h: h["inputs"][0].update(label=True), "inputs.0.label"),
        (lambda h: h.update(inputs=[]), "inputs"),
        (lambda h: h.update(options=[]), "options"),
        (lambda h: h["options"][0].update(sizes=[0, 1]), "options.0.sizes.0"),
        (lambda h: h["options"][0].update(sizes=["3", 1]), "options.0.sizes.0"),
        (lambda h: h["options"][0].update(sizes=[2**25 + 1, 1]), "options.0.sizes.0"),
        (lambda h: h["options"][0].update(sizes=[4]), "one size, expected and answer for each input"),
        (lambda h: h["options"][1].update(expected=[0, 1]), "option 1 disagrees with the first"),
        (lambda h: h["options"][0].update(codec=None), "mode split needs"),
        (lambda h: h["options"][1].update(calibrated=True), "server_only has no"),
        (lambda h: h["options"][0].update(mode="device_only"), "options.0.mode"),
        (lambda h: h.update(traffic=[{"option": 2, "share": 1.0}]), "traffic for option 2"),
        (lambda h: h.update(traffic=[{"option": 0, "share": 0.5}]), "shares"),
        (lambda h: h.update(traffic=[{"option": 0, "share": 1.0, "rate_per_s": 0}]), "rate_per_s"),
    ],
)
def test_a_header_that_says_something_impossible_is_refused(small, change, words):
    content, bodies = parts(small.read_bytes())
    changed = change(content)
    refused(small, sealed(json.dumps(changed or content).encode(), bodies), words)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"model": NaN}'])
def test_a_header_that_is_no_object_is_refused(small, text):
    refused(small, sealed(text, b""), "wrong header")


def test_another_files_magic_and_a_later_version_are_named(small):
    refused(small, sealed(b"{}", b"", magic=b"SPLTfoo!"), "is no payload file")
    refused(small, sealed(b"{}", b"", version=2), "version 2")


@given(st.binary(max_size=300))
@settings(max_examples=300)
def test_noise_is_refused(data):
    with tempfile.TemporaryDirectory() as folder:
        refused(Path(folder) / "noise", data)


def test_a_file_that_is_missing_or_a_folder_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(DataError, match="no payload file"):
            PayloadFile.open(path)


def test_bodies_beyond_the_file_are_no_bodies(small):
    with PayloadFile.open(small) as file:
        for place in ((2, 0), (0, 2), (-1, 0), (0, -1)):
            with pytest.raises(IndexError):
                file.body(*place)


def test_a_file_that_shrinks_while_it_is_open_is_noticed(small):
    with PayloadFile.open(small) as file:
        os.truncate(small, 40)
        with pytest.raises(DataError, match="became shorter"):
            file.body(0, 0)


def test_a_writer_that_does_not_finish_leaves_nothing_and_the_old_file_alone(small):
    before = small.read_bytes()

    def interrupted():
        with PayloadWriter(small, options=1) as writer:
            writer.add(0, b"abc")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert small.read_bytes() == before
    assert os.listdir(small.parent) == [small.name]


def test_a_writer_that_fails_at_the_end_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with PayloadWriter(tmp_path / "x", options=1) as writer:
        writer.add(0, b"abc")
        with pytest.raises(DataError, match="No space left on device"):
            writer.finish(header(option()))
    assert os.listdir(tmp_path) == []


def test_the_writer_refuses_what_no_reader_would_take(tmp_path):
    with PayloadWriter(tmp_path / "x", options=1) as writer:
        for body in (b"", bytes(payload_file.MAX_BODY_BYTES + 1)):
            with pytest.raises(ValueError, match="a body of"):
                writer.add(0, body)
        writer.add(0, b"abc")
        with pytest.raises(ValueError, match="sizes"):
            writer.finish(header(option((4,))))
        with pytest.raises(ValueError, match="sizes"):
            writer.finish(header(option((3,)), option((3,))))
    with pytest.raises(ValueError, match="options"):
        PayloadWriter(tmp_path / "x", options=0)
    with pytest.raises(DataError, match="is a folder"):
        PayloadWriter(tmp_path, options=1)


def test_a_place_where_nothing_can_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        PayloadWriter(tmp_path / "file" / "x", options=1)


def test_titles_tell_options_apart():
    assert option().title == "middle, u4+lz4"
    assert option(calibrated=True).title == "middle, u4+lz4, calibrated"
    assert server_only().title == "server_only"
    with pytest.raises(ValidationError):
        option(mode="server_only")


def test_the_limit_of_a_body_is_the_wires():
    assert payload_file.MAX_BODY_BYTES == wire.MAX_FRAME_BYTES


def test_reading_needs_neither_torch_nor_numpy():
    code = "import sys, split_inference.payload_file; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    assert done.stdout.strip() == "[]"
