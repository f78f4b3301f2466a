"""A statement is of one kind, of one signer, and whole."""

import json
from typing import Any

import msgspec
import pytest

from awfulowl.errors import ProofError
from awfulowl.jobs.signing import MOST_STATEMENT_BYTES, check, sign
from tests.unit.jobs.small import OTHERS, SIGNERS

KEY = SIGNERS.runner


class Statement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    number: int
    text: str


class Other(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    number: int
    text: str


def read(content: bytes, kind: Any = Statement) -> Any:
    return check(content, kind, KEY.public_key(), "it")


def test_what_is_signed_comes_back() -> None:
    assert read(sign(Statement(3, "x"), KEY)) == Statement(3, "x")


def test_spaces_do_not_matter_and_content_does() -> None:
    found = json.loads(sign(Statement(3, "x"), KEY))
    assert read(json.dumps(found).encode()) == Statement(3, "x")
    found["body"]["number"] = 4
    with pytest.raises(ProofError, match="not signed"):
        read(json.dumps(found).encode())


def test_other_kinds_and_other_signers() -> None:
    content = sign(Statement(3, "x"), KEY)
    with pytest.raises(ProofError, match="not signed"):
        read(content, Other)
    with pytest.raises(ProofError, match="not signed"):
        read(sign(Statement(3, "x"), OTHERS.runner))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"body": {"number": 3, "text": "x"}}',
        b'{"body": {"number": 3, "text": "x"}, "signature": "zz"}',
        b'{"body": {"number": 3, "text": "x"}, "signature": ""}',
        b'{"body": {"number": 3, "text": "x", "more": 1}, "signature": "00"}',
        b"[" * 5000,
        b"\xff" * 10,
        b" " * (MOST_STATEMENT_BYTES + 1),
    ],
)
def test_what_is_no_statement(content: bytes) -> None:
    with pytest.raises(ProofError):
        read(content)
