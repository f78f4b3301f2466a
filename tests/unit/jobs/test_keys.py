"""Keys: private ones stay where they are, public ones say whose signature it is."""

import json
import stat
from pathlib import Path

import pytest

from awfulowl.errors import InputError
from awfulowl.jobs.keys import PrivateKeys, is_signed

KEYS = PrivateKeys(bytes(range(32)), bytes(range(32, 64)))


def test_what_is_saved_is_read_by_its_owner_alone(tmp_path: Path) -> None:
    KEYS.save(tmp_path / "a.key")
    assert PrivateKeys.load(tmp_path / "a.key") == KEYS
    assert stat.S_IMODE((tmp_path / "a.key").stat().st_mode) == 0o600
    (tmp_path / "a.key").chmod(0o644)
    with pytest.raises(InputError, match="open to others"):
        PrivateKeys.load(tmp_path / "a.key")


def test_keys_are_never_overwritten(tmp_path: Path) -> None:
    KEYS.save(tmp_path / "a.key")
    with pytest.raises(InputError, match="not overwritten"):
        PrivateKeys.generate().save(tmp_path / "a.key")
    (tmp_path / "link").symlink_to(tmp_path / "none")
    with pytest.raises(InputError, match="not overwritten"):
        KEYS.save(tmp_path / "link")
    assert PrivateKeys.load(tmp_path / "a.key") == KEYS


def test_no_secret_is_in_a_repr_or_an_error(tmp_path: Path) -> None:
    assert repr(KEYS) == "PrivateKeys()"
    KEYS.save(tmp_path / "a.key")
    stored = json.loads((tmp_path / "a.key").read_text())
    for field in stored:
        broken = tmp_path / f"{field}.key"
        value = stored[field]
        other = ("0" if value[0] != "0" else "1") + value[1:]
        for content in (
            json.dumps(stored | {field: other}),
            json.dumps(stored | {field: value * 2}),
            json.dumps(stored)[:-9],
        ):
            broken.write_text(content)
            broken.chmod(0o600)
            with pytest.raises(InputError) as caught:
                PrivateKeys.load(broken)
            assert stored["signing"][:8] not in str(caught.value)
            assert stored["sealing"][:8] not in str(caught.value)


def test_fresh_keys_are_fresh() -> None:
    assert PrivateKeys.generate().public != PrivateKeys.generate().public


def test_signatures_are_of_one_message_and_one_signer() -> None:
    signature = KEYS.signing_key.sign(b"message")
    assert is_signed(KEYS.public, b"message", signature)
    assert not is_signed(KEYS.public, b"massage", signature)
    assert not is_signed(PrivateKeys.generate().public, b"message", signature)
    assert not is_signed(KEYS.public, b"message", b"")


def test_both_sides_agree_on_a_secret_and_no_key_is_refused() -> None:
    other = PrivateKeys.generate()
    assert KEYS.agree(bytes.fromhex(other.public.sealing)) == other.agree(bytes.fromhex(KEYS.public.sealing))
    with pytest.raises(InputError, match="is none"):
        KEYS.agree(bytes(32))
