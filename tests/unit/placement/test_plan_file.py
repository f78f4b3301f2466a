"""The plan file: what comes back is what was saved, or a PlanError that says why and nothing secret."""

import os
import stat
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

from awfulowl.errors import PlanError
from awfulowl.placement import store
from awfulowl.placement.store import KEY_BYTES, MAGIC, fleet_key, load, save
from tests.unit.placement.fleets import chain, fleet, plan, small_plan, some

KEY = bytes(range(32))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.plan"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("plans") / "model.plan"
    save(small_plan(), where, KEY)
    return where


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_saved_comes_back(path: Path) -> None:
    save(small_plan(), path, KEY)
    assert load(path, KEY) == small_plan()
    assert load(path, KEY, small_plan().model) == small_plan()


def test_a_plan_file_is_for_the_owner_alone_and_alone(path: Path) -> None:
    before = os.umask(0)
    try:
        save(small_plan(), path, KEY)
    finally:
        os.umask(before)
    assert mode(path) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_nothing_of_the_plan_is_readable(saved: Path) -> None:
    content = saved.read_bytes()
    assert not any(panel.slice_handles[0] in content for panel in small_plan().panels)
    assert b"conv" not in content


def test_two_files_of_one_plan_differ(path: Path) -> None:
    save(small_plan(), path, KEY)
    first = path.read_bytes()
    save(small_plan(), path, KEY)
    assert path.read_bytes() != first
    assert load(path, KEY) == small_plan()


def test_the_format_is_what_the_docstring_says(saved: Path) -> None:
    content = saved.read_bytes()
    header, nonce, sealed = content[:16], content[16:28], content[28:]
    assert header == b"AWFULOWL PLAN\n\x00\x02"
    info = b"awfulowl plan file, ChaCha20-Poly1305"
    key = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(KEY)
    plain = ChaCha20Poly1305(key).decrypt(nonce, sealed, header)
    assert msgspec.msgpack.decode(plain)["model"] == b"m" * 32


def test_every_flipped_byte_is_found(saved: Path, path: Path) -> None:
    content = bytearray(saved.read_bytes())
    for position in [*range(48), *range(48, len(content), 97), *range(len(content) - 16, len(content))]:
        content[position] ^= 0x40
        path.write_bytes(content)
        with pytest.raises(PlanError):
            load(path, KEY)
        content[position] ^= 0x40
    path.write_bytes(content)
    assert load(path, KEY) == small_plan()


def test_every_truncation_is_found(saved: Path, path: Path) -> None:
    content = saved.read_bytes()
    for length in [*range(60), *range(60, len(content), 101), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(PlanError, match="truncated"):
            load(path, KEY)
    path.write_bytes(content + b"\x00")
    with pytest.raises(PlanError, match="tampered"):
        load(path, KEY)


@settings(some, max_examples=200)
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_a_plan_or_a_plan_error(saved: Path, junk: bytes, ours: bool) -> None:
    where = saved.with_name("junk.plan")
    where.write_bytes(MAGIC + b"\x00\x02" + junk if ours else junk)
    with pytest.raises(PlanError):
        load(where, KEY)


def sealed(plain: bytes) -> bytes:
    """A file that is authentic, whatever is in it."""
    key = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=b"awfulowl plan file, ChaCha20-Poly1305").derive(
        KEY
    )
    header = MAGIC + b"\x00\x02"
    return header + b"n" * 12 + ChaCha20Poly1305(key).encrypt(b"n" * 12, plain, header)


@pytest.mark.parametrize(
    "plain", [b"", b"\xc1", b"hunter2", msgspec.msgpack.encode({"model": "hunter2"}), b"\x91" * 100_000]
)
def test_what_is_authentic_but_no_plan_is_refused_unquoted(path: Path, plain: bytes) -> None:
    path.write_bytes(sealed(plain))
    with pytest.raises(PlanError, match="does not hold a plan") as caught:
        load(path, KEY)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_another_key_is_refused(saved: Path) -> None:
    with pytest.raises(PlanError, match="another key"):
        load(saved, b"k" * 32)


@pytest.mark.parametrize("key", [b"", b"short", b"k" * 33])
def test_keys_of_another_length_are_refused_without_showing_them(saved: Path, key: bytes) -> None:
    with pytest.raises(PlanError, match=f"has 32 bytes, this one {len(key)}") as caught:
        load(saved, key)
    assert "short" not in str(caught.value)


def test_another_version_is_named(saved: Path, path: Path) -> None:
    content = bytearray(saved.read_bytes())
    content[15] = 7
    path.write_bytes(content)
    with pytest.raises(PlanError, match="has version 7; this release reads version 2"):
        load(path, KEY)


def test_another_model_is_refused(saved: Path) -> None:
    with pytest.raises(PlanError, match=r"of another model.*6d6d6d6d.*78787878"):
        load(saved, KEY, b"x" * 32)


def test_an_oversized_file_is_not_read(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_PLAN_BYTES", 100)
    with pytest.raises(PlanError, match=r"larger than MAX_PLAN_BYTES \(100\)"):
        load(saved, KEY)


def test_an_oversized_plan_is_not_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_PLAN_BYTES", 100)
    with pytest.raises(PlanError, match=r"more than MAX_PLAN_BYTES \(100\); use larger blocks"):
        save(small_plan(), path, KEY)
    assert not path.exists()


def test_what_is_no_file_is_refused(path: Path) -> None:
    with pytest.raises(PlanError, match="cannot be read: No such file"):
        load(path, KEY)
    path.mkdir()
    with pytest.raises(PlanError, match=r"not a file|Is a directory"):
        load(path, KEY)
    with pytest.raises(PlanError, match="cannot be written"):
        save(small_plan(), path, KEY)


def test_a_pipe_is_refused_without_waiting(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(PlanError, match="is not a file"):
        load(path, KEY)


def test_a_failed_write_leaves_the_old_plan(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(small_plan(), path, KEY)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PlanError, match="cannot be written: No space left on device"):
        save(plan(chain(8, 8), fleet(2)), path, KEY)
    monkeypatch.undo()
    assert load(path, KEY) == small_plan()
    assert list(path.parent.iterdir()) == [path]


def test_no_error_shows_a_secret(saved: Path, path: Path) -> None:
    content = bytearray(saved.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    texts = []
    for where, key, model in ((path, KEY, None), (saved, b"k" * 32, None), (saved, KEY, b"x" * 32)):
        with pytest.raises(PlanError) as caught:
            load(where, key, model)
        texts.append(str(caught.value))
    assert not any(secret in text for text in texts for secret in (KEY.hex(), repr(KEY), "d0", "party0"))


def test_a_missing_directory_is_made_for_a_plan(tmp_path: Path) -> None:
    save(small_plan(), tmp_path / "new" / "model.plan", KEY)
    assert mode(tmp_path / "new") == 0o700


# The key file


def test_a_key_is_made_once_and_found_again(tmp_path: Path) -> None:
    where = tmp_path / "fleet" / "key"
    key = fleet_key(where)
    assert len(key) == KEY_BYTES
    assert fleet_key(where) == key
    assert mode(where) == 0o600
    assert mode(where.parent) == 0o700
    assert list(where.parent.iterdir()) == [where]
    assert fleet_key(tmp_path / "other" / "key") != key


@pytest.mark.parametrize("wrong", [0o644, 0o640, 0o602])
def test_a_key_that_others_can_reach_is_refused_with_the_command_to_run(tmp_path: Path, wrong: int) -> None:
    where = tmp_path / "fleet" / "key"
    fleet_key(where)
    where.chmod(wrong)
    with pytest.raises(PlanError, match=rf"mode 0{wrong:o}\); run: chmod 0600 {where}$"):
        fleet_key(where)


@pytest.mark.parametrize("wrong", [0o755, 0o710, 0o777])
def test_a_directory_that_others_can_reach_is_refused_with_the_command_to_run(tmp_path: Path, wrong: int) -> None:
    where = tmp_path / "fleet" / "key"
    where.parent.mkdir()
    where.parent.chmod(wrong)
    with pytest.raises(PlanError, match=rf"mode 0{wrong:o}\); run: chmod 0700 {where.parent}$"):
        fleet_key(where)
    assert not where.exists()


def test_the_folder_of_a_key_named_without_one_is_told_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PlanError, match=rf"^{tmp_path} is open to others.*chmod 0700 {tmp_path}$"):
        fleet_key(Path("fleet.key"))


@pytest.mark.parametrize("length", [0, 31, 33, 1000])
def test_a_key_of_another_length_is_refused(tmp_path: Path, length: int) -> None:
    where = tmp_path / "fleet" / "key"
    fleet_key(where)
    where.write_bytes(b"x" * length)
    with pytest.raises(PlanError, match=r"does not hold 32 bytes"):
        fleet_key(where)


def test_a_key_that_is_no_file_is_refused(tmp_path: Path) -> None:
    where = tmp_path / "fleet" / "key"
    fleet_key(where)
    where.unlink()
    os.mkfifo(where)
    where.chmod(0o600)
    with pytest.raises(PlanError, match=r"the key file .* is not a file"):
        fleet_key(where)


def test_a_key_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(PlanError, match="cannot be read or made"):
        fleet_key(tmp_path / "file" / "key")


def test_of_two_owners_that_start_at_once_the_first_key_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both saw no key; the other one was faster."""
    where = tmp_path / "fleet" / "key"
    link = os.link

    def slower(source: Path, target: Path) -> None:
        where.write_bytes(b"f" * 32)
        where.chmod(0o600)
        link(source, target)

    monkeypatch.setattr(os, "link", slower)
    assert fleet_key(where) == b"f" * 32
    assert list(where.parent.iterdir()) == [where]
