"""Code as an archive: every file comes back, and nothing that could be anything else gets in."""

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from awfulowl.errors import InputError
from awfulowl.jobs.archive import check_name, pack, read_folder, unpack
from awfulowl.models.archives import ArchiveLimits

SMALL = ArchiveLimits(member_bytes=1000, total_bytes=2000, members=3)

parts = st.text("abcXYZ019_-+@", min_size=1, max_size=8)
names = st.lists(parts, min_size=1, max_size=4).map("/".join)


def tar(change: Callable[[tarfile.TarInfo], None], content: bytes = b"x = 1\n", name: str = "a.py") -> bytes:
    """An archive as others write it, with one member."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    change(member)
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as made:
        made.addfile(member, io.BytesIO(content))
    return file.getvalue()[: 512 + -(-len(content) // 512) * 512] + bytes(1024)


@given(st.dictionaries(names, st.binary(max_size=1500), max_size=6))
def test_what_is_packed_comes_back(files: dict[str, bytes]) -> None:
    folders = {name.rsplit("/", depth)[0] for name in files for depth in range(1, name.count("/") + 1)}
    if folders & files.keys():
        with pytest.raises(InputError, match="also a file"):
            pack(files)
        return
    archive = pack(files)
    assert unpack(archive) == files
    with tarfile.open(fileobj=io.BytesIO(archive)) as read:
        assert read.getnames() == sorted(files)


def test_one_set_of_files_has_one_archive() -> None:
    assert pack({"b": b"2", "a": b"1"}) == pack({"a": b"1", "b": b"2"})


@given(st.data())
def test_an_archive_that_is_altered_anywhere_is_refused_or_holds_other_content(data: st.DataObject) -> None:
    files = {"a.py": b"x = 1\n", "b/c.py": b"y" * 600}
    archive = bytearray(pack(files))
    place = data.draw(st.integers(0, len(archive) - 1))
    archive[place] ^= data.draw(st.integers(1, 255))
    try:
        found = unpack(bytes(archive))
    except InputError:
        return
    assert found != files


@given(st.binary(max_size=3000))
def test_any_bytes_are_refused_or_read(content: bytes) -> None:
    try:
        files = unpack(content)
    except InputError:
        return
    assert pack(files) == content


@given(st.integers(0, 3071))
def test_an_archive_that_is_cut_short_is_refused(length: int) -> None:
    archive = pack({"a.py": b"x" * 700, "b.py": b""})
    assert len(archive) == 3072
    with pytest.raises(InputError):
        unpack(archive[:length])


KINDS = {
    "a hard link": tarfile.LNKTYPE,
    "a symbolic link": tarfile.SYMTYPE,
    "a device": tarfile.CHRTYPE,
    "a pipe": tarfile.FIFOTYPE,
    "a folder": tarfile.DIRTYPE,
}


@pytest.mark.parametrize("what", KINDS)
def test_only_plain_files_are_taken(what: str) -> None:
    def change(member: tarfile.TarInfo) -> None:
        member.type, member.linkname = KINDS[what], "/etc/passwd"

    with pytest.raises(InputError, match=what):
        unpack(tar(change, b""))


@pytest.mark.parametrize("kind", [tarfile.CONTTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE])
def test_other_forms_of_tar_are_refused(kind: bytes) -> None:
    with pytest.raises(InputError):
        unpack(tar(lambda member: setattr(member, "type", kind), b""))


@pytest.mark.parametrize(
    "name",
    ["../a.py", "a/../../b", "/etc/passwd", "a//b", "./a", "a/.", ".", "..", "", "a\\b", "a\0b", "é", ".git/config"],
)
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="is no name for a file of code"):
        check_name(name)
    with pytest.raises(InputError):
        pack({name: b""})


@pytest.mark.parametrize("name", ["a" * 101, "/".join("a" * 17), "C:evil", "a\nb", "-   /"])
def test_names_that_are_too_long_or_strange_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="is no name for a file of code"):
        check_name(name)


@pytest.mark.parametrize("name", ["../a.py", "/etc/passwd", "a/../b"])
def test_such_names_are_refused_in_archives_of_others(name: str) -> None:
    with pytest.raises(InputError, match="is no name"):
        unpack(tar(lambda _: None, name=name))


@pytest.mark.parametrize("field", ["mode", "uid", "mtime", "uname"])
def test_headers_that_say_more_are_refused(field: str) -> None:
    with pytest.raises(InputError, match="altered"):
        unpack(tar(lambda member: setattr(member, field, "root" if field == "uname" else 0o777)))


def test_a_file_that_is_there_twice_is_refused() -> None:
    one = pack({"a.py": b"x"})[:-1024]
    with pytest.raises(InputError, match="twice"):
        unpack(one + pack({"a.py": b"y"}))


def test_files_out_of_order_are_refused() -> None:
    with pytest.raises(InputError, match="out of order"):
        unpack(pack({"b.py": b"x"})[:-1024] + pack({"a.py": b"y"}))


def test_a_bomb_is_refused_by_what_it_claims() -> None:
    archive = bytearray(pack({"a.py": b"x"}))
    archive[124:136] = b"%011o\0" % (4 << 30)
    archive[148:156] = b" " * 8
    archive[148:156] = b"%06o\0 " % sum(archive[:512])
    with pytest.raises(InputError, match="4294967296 bytes"):
        unpack(bytes(archive))


def test_too_much_is_refused_when_packing_and_when_unpacking() -> None:
    for files, match in (
        ({str(number): b"" for number in range(4)}, "more than 3 files"),
        ({"a": bytes(1001)}, "a file may have 1000"),
        ({"a": bytes(900), "b": bytes(900), "c": bytes(900)}, "2000 bytes together"),
    ):
        with pytest.raises(InputError, match=match):
            pack(files, SMALL)
        with pytest.raises(InputError, match=match):
            unpack(pack(files), SMALL)


def test_something_hidden_in_the_padding_or_behind_the_end_is_refused() -> None:
    archive = pack({"a.py": b"x"})
    with pytest.raises(InputError, match="hidden behind"):
        unpack(archive[:600] + b"!" + archive[601:])
    with pytest.raises(InputError, match="behind the end"):
        unpack(archive + bytes(512))


def test_a_folder_is_read_without_what_is_hidden(tmp_path: Path) -> None:
    for name in ("a.py", "sub/b.py", "sub/__pycache__/b.pyc", ".git/config", ".env"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(name)
    assert read_folder(tmp_path) == {"a.py": b"a.py", "sub/b.py": b"sub/b.py"}


def test_links_and_devices_in_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link.py").symlink_to("/etc/passwd")
    with pytest.raises(InputError, match="link or a device"):
        read_folder(tmp_path)
    (tmp_path / "link.py").unlink()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="link or a device"):
        read_folder(tmp_path)


def test_a_folder_with_too_many_files_or_none_at_all_is_refused(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / str(number)).touch()
    with pytest.raises(InputError, match="more than 3 files"):
        read_folder(tmp_path, SMALL)
    with pytest.raises(InputError, match="cannot be read"):
        read_folder(tmp_path / "none")
