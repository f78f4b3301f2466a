"""The keys of owners and devices."""

import base64
from pathlib import Path

import msgspec
import nkeys
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from awfulowl.errors import InputError
from awfulowl.fabric.identity import Enrolment, Identity, check_nkey


def test_every_identity_has_keys_of_its_own() -> None:
    identities = [Identity.generate("a") for _ in range(20)]
    assert len({identity.nkey_seed for identity in identities}) == 20
    assert len({identity.seal_private for identity in identities}) == 20
    assert len({identity.enrolment.nkey_public for identity in identities}) == 20


def test_the_public_part_belongs_to_the_private_one() -> None:
    identity = Identity.generate("a")
    signature = nkeys.from_seed(bytearray(identity.nkey_seed.encode())).sign(b"nonce")
    raw = base64.b32decode(identity.enrolment.nkey_public)[1:33]
    public = nkeys.nacl.signing.VerifyKey(raw)
    assert public.verify(b"nonce", signature) == b"nonce"

    other = X25519PrivateKey.generate()
    private = X25519PrivateKey.from_private_bytes(identity.seal_private)
    there = other.exchange(X25519PublicKey.from_public_bytes(identity.enrolment.seal_public))
    assert private.exchange(other.public_key()) == there


def test_an_enrolment_survives_the_wire_and_foreign_ones_do_not() -> None:
    enrolment = Identity.generate("a").enrolment
    encoded = msgspec.json.encode(enrolment)
    assert msgspec.json.decode(encoded, type=Enrolment) == enrolment
    good = msgspec.json.decode(encoded)
    for field, value in [
        ("name", "a.b"),
        ("nkey_public", "S" + enrolment.nkey_public[1:]),
        ("nkey_public", enrolment.nkey_public + "\n"),
        ("seal_public", "AAAA"),
        ("extra", 1),
    ]:
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(good | {field: value}, Enrolment)


def test_an_identity_is_the_same_after_saving(tmp_path: Path) -> None:
    identity = Identity.generate("device-1")
    identity.save(tmp_path / "identity")
    assert Identity.load(tmp_path / "identity") == identity


def test_an_identity_is_never_overwritten(tmp_path: Path) -> None:
    first = Identity.generate("a")
    first.save(tmp_path / "identity")
    with pytest.raises(InputError, match="not overwritten"):
        Identity.generate("a").save(tmp_path / "identity")
    assert Identity.load(tmp_path / "identity") == first
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="not overwritten"):
        first.save(tmp_path / "dangling")


def test_secrets_stay_out_of_texts() -> None:
    identity = Identity.generate("a")
    for text in [repr(identity), str(identity), f"{identity!r:>20}", repr(identity.enrolment)]:
        assert identity.nkey_seed not in text
        assert repr(identity.seal_private)[2:-1] not in text


@given(st.data())
def test_a_file_cut_short_or_altered_is_refused_without_quoting_it(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("identity")
    identity = Identity.generate("a")
    identity.save(folder / "identity")
    content = bytearray((folder / "identity").read_bytes())
    seed_at = content.index(identity.nkey_seed.encode())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        place = data.draw(st.integers(seed_at, seed_at + len(identity.nkey_seed) - 1))
        content[place] = data.draw(st.integers(0, 255).filter(lambda value: value != content[place]))
    (folder / "identity").write_bytes(content)
    with pytest.raises(InputError) as caught:
        Identity.load(folder / "identity")
    error: BaseException | None = caught.value
    assert error is not None
    assert identity.nkey_seed[8:20] not in str(error)
    assert error.__suppress_context__ or error.__context__ is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"null",
        b"\xff\xfe",
        b'{"format":"awfulowl identity 2"}',
        b'{"format":"awfulowl identity 1","name":"a"}',
        b"-----BEGIN USER NKEY SEED-----",
        b"x" * 5000,
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "identity").write_bytes(content)
    (tmp_path / "identity").chmod(0o600)
    with pytest.raises(InputError, match="identity"):
        Identity.load(tmp_path / "identity")


def test_a_file_open_to_others_is_refused(tmp_path: Path) -> None:
    Identity.generate("a").save(tmp_path / "identity")
    (tmp_path / "identity").chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        Identity.load(tmp_path / "identity")


def test_a_name_that_is_none_gets_no_keys() -> None:
    with pytest.raises(InputError):
        Identity.generate("a.b")


def test_a_mistyped_public_key_is_noticed() -> None:
    public = Identity.generate("a").enrolment.nkey_public
    assert check_nkey(public) == public
    wrong = public[:20] + ("A" if public[20] != "A" else "B") + public[21:]
    with pytest.raises(InputError, match="check sum"):
        check_nkey(wrong)
    for text in ["", public[:-1], public + "A", public.lower(), "X" + public[1:], public[:-1] + "1"]:
        with pytest.raises(InputError, match="55 capital letters"):
            check_nkey(text)
