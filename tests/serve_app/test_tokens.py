from __future__ import annotations

import hmac
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.settings import AuthSettings
from serve_app.tokens import (
    ANONYMOUS,
    MAX_HEADER_CHARACTERS,
    TokenBook,
    append_entry,
    entry_line,
    hash_of,
    new_token,
    parse_entries,
)
from split_inference.errors import ConfigError, UnauthorizedError
from split_inference.settings import read_settings


def book_of(**tokens):
    return TokenBook(parse_entries("".join(entry_line(name, token) for name, token in tokens.items()), where="test"))


def from_env(text, name="TOKENS"):
    return TokenBook.load(AuthSettings(mode="token", tokens_env=name), environ={"TOKENS": text})


def test_a_token_names_its_client_and_carries_its_limits():
    token, other = new_token(), new_token()
    book = from_env(entry_line("phones", token, rate_per_s=20, share=0.5) + entry_line("lab", other))
    phones = book.client_of(f"Bearer {token}")
    assert (phones.name, phones.share, phones.rate_per_s, phones.burst) == ("phones", 0.5, 20, 20)
    assert book.client_of(f"bearer  {other} ").name == "lab"


def test_tokens_are_long_random_and_not_in_the_entry():
    tokens = {new_token() for _ in range(50)}
    assert len(tokens) == 50
    assert all(token.startswith("si_") and len(token) == 46 for token in tokens)
    token = tokens.pop()
    assert token not in entry_line("phones", token)
    assert json.loads(entry_line("phones", token)[2:])["sha256"] == hash_of(token)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer nonsense",
        "Basic dXNlcjpwYXNz",
        "Bearer \udcff\udc00",
        "Bearer ключ",
        "Bearer " + "a" * MAX_HEADER_CHARACTERS,
        "x" * 100_000,
    ],
)
def test_whatever_is_wrong_with_a_credential_the_answer_is_the_same(header):
    with pytest.raises(UnauthorizedError) as refused:
        book_of(phones=new_token()).client_of(header)
    assert str(refused.value) == "a bearer token that is known here is needed in the header Authorization"


KNOWN = new_token()


@given(
    header=st.one_of(
        st.text(st.characters(codec=None, exclude_categories=()), max_size=600),
        st.text(max_size=60).map(lambda text: f"Bearer {text}"),
        st.tuples(st.integers(0, len(KNOWN) - 1), st.characters()).map(
            lambda change: f"Bearer {KNOWN[: change[0]]}{change[1]}{KNOWN[change[0] + 1 :]}"
        ),
        st.integers(0, len(KNOWN) - 1).map(lambda length: f"Bearer {KNOWN[:length]}"),
    ),
)
def test_no_text_but_the_token_itself_gets_in(header):
    try:
        client = book_of(phones=KNOWN).client_of(header)
    except UnauthorizedError:
        return
    assert (client.name, header.strip()) == ("phones", f"Bearer {KNOWN}")


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR"])
def test_the_scheme_has_no_case(scheme):
    assert book_of(phones=KNOWN).client_of(f"{scheme} {KNOWN}").name == "phones"


@pytest.mark.parametrize("position", range(3))
def test_every_hash_is_compared_wherever_the_right_one_is(monkeypatch, position):
    tokens = [new_token() for _ in range(3)]
    book, compared = book_of(**{f"c{index}": token for index, token in enumerate(tokens)}), []
    compare = hmac.compare_digest

    def counting(known, offered):
        compared.append(known)
        return compare(known, offered)

    monkeypatch.setattr(hmac, "compare_digest", counting)
    assert book.client_of(f"Bearer {tokens[position]}").name == f"c{position}"
    assert len(compared) == 3


@pytest.mark.parametrize("wrap", ["Token {}", "{}", "Bearer x{}", "Bearer {}x"])
def test_the_right_token_in_the_wrong_dress_is_refused(wrap):
    token = new_token()
    with pytest.raises(UnauthorizedError):
        book_of(phones=token).client_of(wrap.format(token))


def test_without_tokens_everybody_is_the_same_client():
    book = TokenBook.load(AuthSettings(), environ={})
    assert book.client_of(None) is book.client_of("Bearer anything") is ANONYMOUS


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not set"),
        ("[]", "has none"),
        ("{}", "has none"),
        ("- {", "neither YAML nor JSON"),
        ("- {name: phones}", r"\[0\].sha256: has to be 64 hex digits"),
        ("- {name: phones, sha256: si_secret}", r"\[0\].sha256: has to be 64 hex digits$"),
        (f"- {{name: phones, sha256: {'a' * 64}, share: 2}}", r"\[0\].share"),
        (f"- {{name: phones, sha256: {'a' * 64}, shares: 1}}", "did you mean share"),
        (f"- {{name: 'pho nes', sha256: {'a' * 64}}}", r"\[0\].name"),
        (f"- {{name: phones, sha256: {'a' * 64}, share: 0}}", r"\[0\].share"),
        (f"- {{name: phones, sha256: {'a' * 64}, rate_per_s: .inf}}", r"\[0\].rate_per_s"),
        (f"- {{name: phones, sha256: {'a' * 64}, rate_per_s: 2, burst: 0.5}}", r"\[0\].burst"),
        (f"- {{name: phones, sha256: {'a' * 64}, burst: 5}}", r"\[0\]: burst is of a rate"),
        (f"- {{name: phones, sha256: {'A' * 64}}}", r"\[0\].sha256: has to be 64 hex digits$"),
        (f"- {{name: phones, sha256: {'a' * 64}, share: si_secret}}", r"\[0\].share: Input should be"),
        (f"- {{name: phones, sha256: {'a' * 64}, si_secret: 1}}", r"\[0\]: unknown key"),
        (f"- {{name: si_secret of phones, sha256: {'a' * 64}}}", r"\[0\].name"),
        ("- si_secret", r"\[0\] has to be a client"),
        ("- {name: 2024-99-99}", "neither YAML nor JSON"),
        ("[" * 5000, "neither YAML nor JSON"),
        (f"- {{name: a, sha256: {'a' * 64}}}\n- {{name: a, sha256: {'b' * 64}}}", r"\[1\].name: an earlier"),
        (f"- {{name: a, sha256: {'a' * 64}}}\n- {{name: b, sha256: {'a' * 64}}}", r"\[1\].sha256: an earlier"),
    ],
)
def test_a_list_that_is_wrong_refuses_to_start_in_one_line_without_the_secret(text, reason):
    with pytest.raises(ConfigError, match=reason) as refused:
        from_env(text)
    assert "\n" not in str(refused.value)
    assert "si_secret" not in str(refused.value)


@pytest.mark.parametrize(
    "auth",
    [{"mode": "token"}, {"mode": "token", "tokens_file": "a", "tokens_env": "B"}, {"tokens_env": "B"}, {"mode": "yes"}],
)
def test_the_mode_is_explicit(auth):
    with pytest.raises(ConfigError, match="auth"):
        read_settings(AuthSettings, auth, root="auth")


def test_a_file_is_read_where_only_owner_and_group_may(tmp_path):
    file, token = tmp_path / "tokens.yaml", new_token()
    append_entry(file, entry_line("phones", token))
    append_entry(file, entry_line("lab", new_token()))
    assert file.stat().st_mode & 0o777 == 0o600
    settings = AuthSettings(mode="token", tokens_file=file)
    assert TokenBook.load(settings, environ={}).client_of(f"Bearer {token}").name == "phones"
    file.chmod(0o440)
    TokenBook.load(settings, environ={})
    for mode in (0o644, 0o604, 0o601, 0o620, 0o660):
        file.chmod(mode)
        with pytest.raises(ConfigError, match=f"has mode {mode:o}.*chmod 600"):
            TokenBook.load(settings, environ={})
    os.unlink(file)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        TokenBook.load(settings, environ={})


def test_what_is_no_readable_file_is_one_line(tmp_path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    (tmp_path / "bytes").chmod(0o600)
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "bytes", Path("~no-such-user/tokens"), Path("a\0b")):
        with pytest.raises(ConfigError, match="tokens_file: ") as refused:
            TokenBook.load(AuthSettings(mode="token", tokens_file=path), environ={})
        assert "\n" not in str(refused.value)


def test_a_json_list_is_read_but_gets_no_line(tmp_path):
    file, token = tmp_path / "tokens.json", new_token()
    file.touch(0o600)
    file.write_text(json.dumps([{"name": "phones", "sha256": hash_of(token)}]))
    book = TokenBook.load(AuthSettings(mode="token", tokens_file=file), environ={})
    assert book.client_of(f"Bearer {token}").name == "phones"
    before = file.read_text()
    with pytest.raises(ConfigError, match="JSON list"):
        append_entry(file, entry_line("lab", new_token()))
    assert file.read_text() == before


def test_a_client_is_not_added_twice(tmp_path):
    file = tmp_path / "tokens.yaml"
    append_entry(file, entry_line("phones", new_token()))
    before = file.read_text()
    with pytest.raises(ConfigError, match="an earlier client has the same"):
        append_entry(file, entry_line("phones", new_token()))
    assert file.read_text() == before
