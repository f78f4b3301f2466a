import contextlib
import gzip
import io
import lzma
import os
import tarfile
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from awfulowl.errors import InputError
from awfulowl.models.archives import ArchiveLimits, read_bounded, read_members
from tests.unit.models.pickled import folder, tar

FILES = {"top/": b"", "top/a.txt": b"alpha", "top/b.txt": b"beta" * 1000, "top/c.bin": b"gamma"}


def texts(name: PurePosixPath) -> str | None:
    return name.name if name.suffix == ".txt" else None


def everything(name: PurePosixPath) -> str | None:
    return name.name


@pytest.mark.parametrize("mode", ["w:gz", "w:xz"])
def test_wanted_files_of_an_archive(tmp_path: Path, mode: str) -> None:
    path = tar(tmp_path / "data", FILES, mode)
    assert read_members(path, texts) == {"a.txt": b"alpha", "b.txt": b"beta" * 1000}


def test_wanted_files_of_a_folder(tmp_path: Path) -> None:
    path = folder(tmp_path / "data", FILES)
    assert read_members(path, texts) == {"a.txt": b"alpha", "b.txt": b"beta" * 1000}


def test_names_are_relative_to_the_folder(tmp_path: Path) -> None:
    seen: list[str] = []
    read_members(folder(tmp_path / "data", FILES), lambda name: seen.append(str(name)))
    assert sorted(seen) == ["top", "top/a.txt", "top/b.txt", "top/c.bin"]


def test_nothing_is_written(tmp_path: Path) -> None:
    read_members(tar(tmp_path / "data.tar.gz", FILES), texts)
    assert [file.name for file in tmp_path.iterdir()] == ["data.tar.gz"]


def test_a_folder_that_is_wanted_by_name_gives_nothing(tmp_path: Path) -> None:
    files = {"x/a.txt/": b""}
    assert read_members(tar(tmp_path / "data", files), texts) == {}
    (tmp_path / "f" / "a.txt").mkdir(parents=True)
    assert read_members(tmp_path / "f", texts) == {}


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"never downloaded"):
        read_members(tmp_path / "none", texts)


@pytest.mark.parametrize("content", [b"", b"x", b"PK\x03\x04zip", b"text " * 100])
def test_no_archive(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data"
    path.write_bytes(content)
    with pytest.raises(InputError, match="neither a folder nor a tar archive"):
        read_members(path, texts)


def test_an_unpacked_tar_is_refused(tmp_path: Path) -> None:
    """Without a packer's checksum a truncated archive would look whole."""
    with pytest.raises(InputError, match="packed with gzip or xz"):
        read_members(tar(tmp_path / "data.tar", FILES, "w:"), texts)


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_packed_but_no_tar(tmp_path: Path, pack: object) -> None:
    path = tmp_path / "data"
    assert callable(pack)
    path.write_bytes(pack(b"no tar " * 1000))
    with pytest.raises(InputError, match="damaged"):
        read_members(path, texts)


@pytest.mark.parametrize("mode", ["w:gz", "w:xz"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
def test_truncated(tmp_path: Path, mode: str, share: float) -> None:
    files = {f"{number}.txt": os.urandom(2000) for number in range(10)}
    path = tar(tmp_path / "data", files, mode)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match="truncated or damaged"):
        read_members(path, texts)


@pytest.mark.parametrize("mode", ["w:gz", "w:xz"])
def test_the_checksum_at_the_end_is_verified(tmp_path: Path, mode: str) -> None:
    path = tar(tmp_path / "data", FILES, mode)
    whole = bytearray(path.read_bytes())
    whole[-6] ^= 1
    path.write_bytes(whole)
    with pytest.raises(InputError, match="damaged"):
        read_members(path, texts)


@pytest.mark.parametrize("name", ["../a.txt", "/etc/a.txt", "x/../../a.txt", "x/.."])
def test_names_that_lead_outside_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="leads outside the archive"):
        read_members(tar(tmp_path / "data", {name: b"x"}), texts)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "data"
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("a.txt")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(InputError, match="neither a file nor a folder"):
        read_members(path, texts)


def test_twice_the_same_name(tmp_path: Path) -> None:
    for path in (
        tar(tmp_path / "t", {"x/a.txt": b"1", "y/a.txt": b"2"}),
        folder(tmp_path / "f", {"x/a.txt": b"1", "y/a.txt": b"2"}),
    ):
        with pytest.raises(InputError, match=r"a\.txt is there twice"):
            read_members(path, texts)


def test_a_member_over_the_limit(tmp_path: Path) -> None:
    limits = ArchiveLimits(member_bytes=100)
    with pytest.raises(InputError, match="claims 101 bytes"):
        read_members(tar(tmp_path / "t", {"a.txt": b"x" * 101}), texts, limits)
    with pytest.raises(InputError, match="more than the 100 bytes"):
        read_members(folder(tmp_path / "f", {"a.txt": b"x" * 101}), texts, limits)
    assert read_members(folder(tmp_path / "g", {"a.txt": b"x" * 100}), texts, limits) == {"a.txt": b"x" * 100}


@pytest.mark.parametrize("mode", ["w:gz", "w:xz"])
def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, mode: str) -> None:
    """100 MB of zeros in 100 kB: refused after 1 MB, whether anybody wants the file or not."""
    path = tar(tmp_path / "t", {"a.bin": b"\0" * 100_000_000}, mode)
    with pytest.raises(InputError, match="unpacks to more than the 1000000 bytes"):
        read_members(path, texts, ArchiveLimits(total_bytes=1_000_000))


def test_a_bomb_in_a_long_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t"
    with tarfile.open(path, "w:gz", format=tarfile.GNU_FORMAT) as archive:
        member = tarfile.TarInfo("n" * 5_000_000)
        archive.addfile(member, io.BytesIO())
    with pytest.raises(InputError, match="unpacks to more"):
        read_members(path, texts, ArchiveLimits(total_bytes=1_000_000))


def test_too_many_files(tmp_path: Path) -> None:
    files = {f"{number}.bin": b"" for number in range(11)}
    for path in (tar(tmp_path / "t", files), folder(tmp_path / "f", files)):
        with pytest.raises(InputError, match=r"more than (the )?10 files"):
            read_members(path, texts, ArchiveLimits(members=10))


def test_a_folder_over_the_total(tmp_path: Path) -> None:
    path = folder(tmp_path / "f", {"a.txt": b"x" * 60, "b.txt": b"x" * 60})
    with pytest.raises(InputError, match="more than the 100 bytes"):
        read_members(path, texts, ArchiveLimits(total_bytes=100))


def test_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = tar(tmp_path / "t", FILES)
    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(InputError, match=r"unreadable.*Permission denied"):
        read_members(path, texts)


def test_read_bounded(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"12345")
    assert read_bounded(path, 5) == b"12345"
    with pytest.raises(InputError, match="more than the 4 bytes"):
        read_bounded(path, 4)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 2047), byte=st.integers(0, 255), more=st.binary(max_size=4))
def test_a_changed_tar_is_read_or_refused_and_nothing_else(tmp_path: Path, place: int, byte: int, more: bytes) -> None:
    """The headers are changed inside the packing, whose checksum is right."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for name in ("a.txt", "b.txt"):
            member = tarfile.TarInfo(name)
            member.size = 5
            archive.addfile(member, io.BytesIO(b"12345"))
    raw = bytearray(plain.getvalue())
    raw[place : place + 1 + len(more)] = bytes([byte]) + more
    path = tmp_path / "t"
    path.write_bytes(gzip.compress(bytes(raw), 1))
    with contextlib.suppress(InputError):
        read_members(path, everything)
