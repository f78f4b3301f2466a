"""Files that are there whole or not at all."""

import os
import stat
from contextlib import nullcontext
from pathlib import Path

import pytest

from awfulowl.files import flush_directory, write_whole


def test_a_file_is_written_for_its_owner_unless_said_otherwise(tmp_path: Path) -> None:
    write_whole(tmp_path / "one", b"whole")
    write_whole(tmp_path / "two", b"whole", 0o644)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"one": 0o600, "two": 0o644}
    assert (tmp_path / "two").read_bytes() == b"whole"


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"other")
    (tmp_path / "file").symlink_to(tmp_path / "other")
    write_whole(tmp_path / "file", b"new")
    assert (tmp_path / "other").read_bytes() == b"other"
    assert not (tmp_path / "file").is_symlink()


def test_nothing_is_left_behind_where_it_cannot_be_put(tmp_path: Path) -> None:
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(OSError, match="folder"):
        write_whole(tmp_path / "folder", b"content")
    with pytest.raises(OSError, match="No such file"):
        write_whole(tmp_path / "nowhere" / "file", b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_directory_is_flushed_itself_and_closed_whatever_comes_of_it(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[tuple[int, int]] = []

    def fsync(descriptor: int) -> None:
        flushed.append((descriptor, os.fstat(descriptor).st_ino))
        if fails:
            raise OSError("broken")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="broken") if fails else nullcontext():
        flush_directory(tmp_path)
    ((descriptor, inode),) = flushed
    assert inode == tmp_path.stat().st_ino
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
