"""Control groups in both versions, in folders that look like those of the kernel."""

import os
from pathlib import Path

import pytest

from awfulowl.jobs.sandbox.cgroups import Groups, Places


@pytest.fixture
def second(tmp_path: Path) -> Places:
    """Version 2: our group holds processes, its parent passes controllers on."""
    top = tmp_path / "fs"
    (top / "user.slice" / "ours").mkdir(parents=True)
    (top / "cgroup.subtree_control").write_text("memory pids\n")
    (top / "user.slice" / "cgroup.subtree_control").write_text("memory pids\n")
    (top / "user.slice" / "ours" / "cgroup.subtree_control").write_text("\n")
    (tmp_path / "own").write_text("0::/user.slice/ours\n")
    (tmp_path / "mounts").write_text(f"31 23 0:28 / {top} rw - cgroup2 cgroup2 rw\n24 1 0:1 / / rw - ext4 /dev/a rw\n")
    return Places(tmp_path / "mounts", tmp_path / "own")


@pytest.fixture
def first(tmp_path: Path) -> Places:
    """Version 1: a hierarchy for each controller."""
    lines = []
    for name in ("memory", "pids", "cpu"):
        (tmp_path / name / "ours").mkdir(parents=True)
        lines.append(f"35 31 0:32 / {tmp_path / name} rw,relatime - cgroup cgroup rw,{name}")
    (tmp_path / "own").write_text("9:name=systemd:/\n4:memory:/ours\n3:cpu:/\n2:pids:/\n0::/\n")
    (tmp_path / "mounts").write_text("\n".join(lines))
    return Places(tmp_path / "mounts", tmp_path / "own")


def made(folder: Path) -> Path:
    """The one group that was made below a folder."""
    (found,) = folder.glob("awfulowl-*")
    return found


def test_version_2_is_made_where_controllers_are_passed_on(second: Places, tmp_path: Path) -> None:
    groups = Groups.make(1 << 30, 12, second)
    folder = made(tmp_path / "fs" / "user.slice")
    assert groups.controllers == {"memory", "pids"}
    assert (folder / "memory.max").read_text() == str(1 << 30)
    assert (folder / "memory.swap.max").read_text() == "0"
    assert (folder / "pids.max").read_text() == "12"
    groups.add(1234)
    assert (folder / "cgroup.procs").read_text() == "1234"


def test_version_2_without_the_controller_makes_nothing(second: Places, tmp_path: Path) -> None:
    for folder in (tmp_path / "fs", tmp_path / "fs" / "user.slice"):
        (folder / "cgroup.subtree_control").write_text("cpu\n")
    assert Groups.make(1 << 30, 12, second).controllers == frozenset()
    assert list(tmp_path.rglob("awfulowl-*")) == []


def test_version_1_is_made_below_our_own_groups(first: Places, tmp_path: Path) -> None:
    groups = Groups.make(1 << 30, 12, first)
    memory, pids = made(tmp_path / "memory" / "ours"), made(tmp_path / "pids")
    assert (memory / "memory.limit_in_bytes").read_text() == str(1 << 30)
    assert (memory / "memory.memsw.limit_in_bytes").read_text() == str(1 << 30)
    assert (pids / "pids.max").read_text() == "12"
    assert groups.controllers == {"memory", "pids"}


@pytest.mark.parametrize("version", ["first", "second"])
def test_bounds_that_were_reached_are_told(version: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    groups = Groups.make(1 << 30, 12, request.getfixturevalue(version))
    assert groups.exceeded() is None
    for folder in tmp_path.rglob("awfulowl-*"):
        (folder / "pids.events").write_text("max 3\n")
    assert groups.exceeded() == "pids"
    for folder in tmp_path.rglob("awfulowl-*"):
        (folder / "memory.events").write_text("low 0\noom 1\noom_kill 1\noom_group_kill 0\n")
        (folder / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    assert groups.exceeded() == "memory"


def test_the_peak_is_read_where_there_is_one(second: Places, tmp_path: Path) -> None:
    groups = Groups.make(1 << 30, 12, second)
    assert groups.peak_bytes() is None
    (made(tmp_path / "fs" / "user.slice") / "memory.peak").write_text("4096\n")
    assert groups.peak_bytes() == 4096


def test_without_control_groups_nothing_is_kept(tmp_path: Path) -> None:
    groups = Groups.make(1 << 30, 12, Places(tmp_path / "none", tmp_path / "none"))
    assert groups.controllers == frozenset()
    assert groups.exceeded() is None
    assert groups.peak_bytes() is None
    groups.add(os.getpid())
    groups.kill()
    groups.close()


def test_groups_of_processes_that_are_gone_are_swept(first: Places, tmp_path: Path) -> None:
    """Only empty ones, only ours, and never those of a process that lives."""
    gone, alive = tmp_path / "pids" / "awfulowl-4194305-ab", tmp_path / "pids" / f"awfulowl-{os.getpid()}-ab"
    other = tmp_path / "pids" / "awfulowl-other"
    for folder in (gone, alive, other):
        folder.mkdir()
    Groups.make(1 << 30, 12, first)
    assert not gone.exists()
    assert alive.exists()
    assert other.exists()


def test_a_place_that_may_not_be_written_to_is_passed_over(first: Places, tmp_path: Path) -> None:
    (tmp_path / "memory" / "ours").rmdir()
    (tmp_path / "memory" / "ours").write_text("no folder")
    assert Groups.make(1 << 30, 12, first).controllers == {"pids"}
