"""Files that only their owner may read."""

import os
import stat
from pathlib import Path

import pytest

from awfulowl.errors import InputError
from awfulowl.fabric.private_files import read_private, write_private


def test_what_was_written_is_read_and_is_nobody_elses(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    write_private(file, b"content")
    assert read_private(file, 7) == b"content"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


def test_writing_again_replaces_the_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    write_private(file, b"a long old content")
    with file.open("rb") as reader:
        write_private(file, b"new")
        assert reader.read() == b"a long old content"
    assert read_private(file, 100) == b"new"


def test_a_loose_umask_does_not_open_the_file(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_private(tmp_path / "secret", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


def test_a_link_in_the_place_of_the_file_is_replaced_not_followed(tmp_path: Path) -> None:
    victim, file = tmp_path / "victim", tmp_path / "secret"
    victim.write_bytes(b"untouched")
    file.symlink_to(victim)
    write_private(file, b"content")
    assert victim.read_bytes() == b"untouched"
    assert read_private(file, 100) == b"content"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o660, 0o777])
def test_a_file_that_others_may_touch_is_refused_with_advice(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "secret"
    write_private(file, b"content")
    file.chmod(mode)
    with pytest.raises(InputError, match=f"chmod 600 {file}"):
        read_private(file, 100)


def test_what_is_no_plain_file_is_refused(tmp_path: Path) -> None:
    write_private(tmp_path / "real", b"content")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "folder").mkdir(0o700)
    for name in ["link", "pipe", "folder", "missing"]:
        with pytest.raises(InputError, match=name):
            read_private(tmp_path / name, 100)


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    write_private(tmp_path / "secret", b"12345678")
    assert len(read_private(tmp_path / "secret", 8)) == 8
    with pytest.raises(InputError, match="larger than 7 bytes"):
        read_private(tmp_path / "secret", 7)


def test_a_place_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        write_private(tmp_path / "missing" / "secret", b"content")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        write_private(tmp_path / "folder", b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
