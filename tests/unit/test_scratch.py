"""Folders that go with their process, those of killed processes included."""

import gc
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from awfulowl.fabric.broker import Broker
from awfulowl.fabric.identity import Identity
from awfulowl.files import Scratch, remove_orphans
from awfulowl.owner.states import Vault
from tests.loops import run

MARK = ".held"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files are."""
    path = tmp_path / "place"
    path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


OWNER = """
import sys, tempfile
tempfile.tempdir = sys.argv[1]
from awfulowl.files import Scratch
scratch = Scratch("test")
(scratch.path / "panel-0.safetensors").write_text("momentum")
(scratch.path / "folder").mkdir()
(scratch.path / "folder" / "key").write_text("key")
print(scratch.path, flush=True)
sys.stdin.read()
"""


@contextmanager
def another_process(place: Path) -> Iterator[tuple["subprocess.Popen[str]", Path]]:
    """A process that has a folder there, and that folder."""
    words = [sys.executable, "-c", OWNER, str(place)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


def names(place: Path) -> set[str]:
    return {path.name for path in place.iterdir()}


def orphan(place: Path, name: str = "awfulowl-states-dead") -> Path:
    """What a killed process left."""
    path = place / name
    path.mkdir(mode=0o700)
    (path / MARK).touch(mode=0o600)
    (path / "panel-0.safetensors").write_text("momentum")
    return path


def test_what_a_killed_process_left_is_removed(place: Path) -> None:
    with another_process(place) as (process, left):
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (left / "folder" / "key").read_text() == "key"
        scratch = Scratch("test")
        assert names(place) == {scratch.path.name}


def test_what_a_living_process_has_stays(place: Path) -> None:
    with another_process(place) as (process, left):
        mine = Scratch("test")
        remove_orphans()
        assert names(place) == {left.name, mine.path.name}
        assert (left / "panel-0.safetensors").read_text() == "momentum"
        assert (left / "folder" / "key").read_text() == "key"
        process.communicate("")
        assert process.returncode == 0
        assert names(place) == {mine.path.name}


def test_those_of_one_process_do_not_remove_each_other(place: Path) -> None:
    scratches = [Scratch("test") for _ in range(3)]
    remove_orphans()
    assert names(place) == {scratch.path.name for scratch in scratches}
    assert {stat.S_IMODE(scratch.path.stat().st_mode) for scratch in scratches} == {0o700}
    assert {stat.S_IMODE((scratch.path / MARK).stat().st_mode) for scratch in scratches} == {0o600}


def test_it_goes_with_its_object(place: Path) -> None:
    scratch = Scratch("test")
    (scratch.path / "file").write_text("content")
    scratch.remove()
    scratch.remove()
    assert names(place) == set()
    scratch = Scratch("test")
    del scratch
    gc.collect()
    assert names(place) == set()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
@pytest.mark.parametrize("how", ["sys.exit()", "scratch.remove()", "del scratch"])
def test_it_stays_when_a_forked_child_ends(place: Path, how: str) -> None:
    """Of a training it holds weights and momentum, of a fleet the keys of its devices."""
    code = f"""
import os, sys
from awfulowl.files import Scratch
scratch = Scratch("test")
(scratch.path / "file").write_text("content")
path, child = scratch.path, os.fork()
if not child:
    {how}
    sys.exit()
assert os.waitpid(child, 0)[1] == 0
assert (path / "file").read_text() == "content"
"""
    environment = {**os.environ, "TMPDIR": str(place)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert names(place) == set()


def test_descriptors_are_given_back(place: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(5):
        orphan(place, f"awfulowl-states-{number}")
        Scratch("test").remove()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert names(place) == set()


class TestOthers:
    """What is not a folder that `Scratch` made, or not certainly: it stays as it is."""

    def a_folder_without_a_mark(self, place: Path) -> None:
        (orphan(place) / MARK).unlink()

    def one_that_others_may_enter(self, place: Path) -> None:
        orphan(place).chmod(0o750)

    def one_of_another_name(self, place: Path) -> None:
        orphan(place, "owl-states-dead")

    def a_mark_that_is_a_link(self, place: Path) -> None:
        path = orphan(place)
        (place / "elsewhere").touch()
        (path / MARK).unlink()
        (path / MARK).symlink_to(place / "elsewhere")

    def a_mark_that_is_a_folder(self, place: Path) -> None:
        path = orphan(place)
        (path / MARK).unlink()
        (path / MARK).mkdir()

    def a_link_to_a_folder(self, place: Path) -> None:
        orphan(place, "mine")
        (place / "awfulowl-states-link").symlink_to(place / "mine")

    def a_file(self, place: Path) -> None:
        (place / "awfulowl-notes").write_text("notes")

    def a_mark_that_is_not_locked_yet(self, place: Path) -> None:
        path = orphan(place)
        (path / MARK).rename(path / f"{MARK}.new")

    @pytest.mark.parametrize(
        "make",
        [
            a_folder_without_a_mark,
            one_that_others_may_enter,
            one_of_another_name,
            a_mark_that_is_a_link,
            a_mark_that_is_a_folder,
            a_link_to_a_folder,
            a_file,
            a_mark_that_is_not_locked_yet,
        ],
    )
    def test_stays(self, place: Path, make: Callable[[object, Path], None]) -> None:
        make(self, place)
        before = {path: path.lstat() for path in place.rglob("*")}
        remove_orphans()
        assert {path: path.lstat() for path in place.rglob("*")}.keys() == before.keys()

    def test_stays_if_it_is_of_another_user(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = orphan(place)
        with monkeypatch.context() as patch:
            patch.setattr(os, "geteuid", lambda: os.getuid() + 1)
            remove_orphans()
        assert path.exists()
        remove_orphans()
        assert not path.exists()

    @pytest.mark.parametrize("folder", [False, True])
    def test_links_in_a_folder_are_not_followed(self, place: Path, tmp_path: Path, folder: bool) -> None:
        other = tmp_path / "other"
        other.mkdir()
        (other / "file").write_text("mine")
        path = orphan(place)
        (path / "link").symlink_to(other if folder else other / "file")
        remove_orphans()
        assert names(place) == set()
        assert (other / "file").read_text() == "mine"


def test_who_is_killed_while_removing_leaves_an_orphan(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = orphan(place)
    (path / "folder").mkdir()

    class Killed(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(Killed):
            remove_orphans()
    assert (path / MARK).exists()
    remove_orphans()
    assert names(place) == set()


def test_without_locks_it_is_never_an_orphan(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no locks here")

    with monkeypatch.context() as patch:
        patch.setattr("fcntl.flock", refuse)
        scratch = Scratch("test")
    remove_orphans()
    assert names(place) == {scratch.path.name}
    scratch.remove()
    assert names(place) == set()


def test_states_are_in_such_a_folder(place: Path) -> None:
    orphan(place, "awfulowl-fleet-dead")
    vault = Vault()
    (path,) = place.iterdir()
    assert (path / MARK).exists()
    del vault
    gc.collect()
    assert names(place) == set()


def test_brokers_are_in_such_a_folder(place: Path, needs_broker: None) -> None:
    orphan(place, "awfulowl-broker-dead")
    broker = Broker(Identity.generate("owner").enrolment.nkey_public)

    async def held() -> list[set[str]]:
        async with broker:
            return list(map(names, place.iterdir()))  # noqa: ASYNC240  there are no others in this loop

    (found,) = run(held())
    assert found >= {MARK, "broker.json"}
    assert names(place) == set()
