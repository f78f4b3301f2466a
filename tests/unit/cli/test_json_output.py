"""JSON is written whole or not at all."""

import os
import stat
from pathlib import Path

import msgspec
import pytest

from awfulowl.cli import json_output
from awfulowl.errors import InputError


class Numbers(msgspec.Struct, frozen=True):
    one: int = 1
    pi: float = 3.25


EXPECTED = b'{\n  "one": 1,\n  "pi": 3.25\n}\n'


def test_nowhere_is_a_place_too(tmp_path: Path) -> None:
    json_output.check_target(None)
    json_output.write(Numbers(), None)
    assert list(tmp_path.joinpath("work").iterdir()) == []


def test_a_file_holds_all_and_nothing_else_is_left(tmp_path: Path) -> None:
    target = tmp_path / "work" / "numbers.json"
    json_output.check_target(target)
    json_output.write(Numbers(), target)
    assert target.read_bytes() == EXPECTED
    assert [path.name for path in target.parent.iterdir()] == ["numbers.json"]


def test_a_minus_is_standard_output(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    json_output.check_target(Path("-"))
    json_output.write(Numbers(), Path("-"))
    assert capsys.readouterr().out.encode() == EXPECTED
    assert not Path("-").exists()


def test_a_new_file_has_the_mode_that_the_user_wants(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        json_output.write(Numbers(), tmp_path / "a.json")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o640


def test_an_older_file_keeps_its_mode(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    target.write_text("old")
    target.chmod(0o604)
    json_output.write(Numbers(), target)
    assert target.read_bytes() == EXPECTED
    assert stat.S_IMODE(target.stat().st_mode) == 0o604


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to(tmp_path / "a.json")
    json_output.write(Numbers(), tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "a.json").read_bytes() == EXPECTED


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        json_output.write(Numbers(), tmp_path / "pipe")
        assert os.read(reader, 1000) == EXPECTED
    finally:
        os.close(reader)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_when_writing_fails_the_older_file_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    target = tmp_path / "work" / "a.json"
    target.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"a\.json cannot be written: No space left on device"):
        json_output.write(Numbers(), target)
    assert target.read_text() == "old"
    assert [path.name for path in target.parent.iterdir()] == ["a.json"]


def test_a_place_that_cannot_be_written_to_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="is a folder; name a file in it"):
        json_output.check_target(tmp_path)
    with pytest.raises(InputError, match="there is no folder"):
        json_output.check_target(tmp_path / "nowhere" / "a.json")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InputError, match="nothing may be written"):
        json_output.check_target(tmp_path / "a.json")
