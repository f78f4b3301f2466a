"""What processes and folders use, as /proc and the file system say."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

from awfulowl.jobs.sandbox.watching import disk_bytes, family, unlinked_bytes, use

SLEEP = "import sys; sys.stdout.write('x'); sys.stdout.flush(); sys.stdin.read()"


def test_a_family_is_a_process_and_all_below_it() -> None:
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEP!r}])"
    with subprocess.Popen([sys.executable, "-c", nested], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        found = family(process.pid)
        assert process.pid in found
        assert len(found) == 2
        assert found < family(os.getpid())
        assert use(found).tasks >= 2
        process.communicate(b"")
    assert family(process.pid) == {process.pid}
    assert use([process.pid]) == (0, 0)


FILL = f"""
import mmap, sys
sys.stdout.write("x"); sys.stdout.flush(); sys.stdin.read(1)
shared = mmap.mmap(-1, {64 << 20}); shared.write(bytes({64 << 20})); mine = bytearray(b"x") * {64 << 20}
sys.stdout.write("x"); sys.stdout.flush(); sys.stdin.read()
"""


def test_memory_counts_what_is_written_to_anonymous_and_shared_alike() -> None:
    # A process of its own: this one may have room left from other tests.
    with subprocess.Popen([sys.executable, "-c", FILL], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.read(1)
        before = use([process.pid]).memory_bytes
        process.stdin.write(b"x")
        process.stdin.flush()
        process.stdout.read(1)
        assert use([process.pid]).memory_bytes - before > 1.8 * (64 << 20)
        process.communicate(b"")


def test_threads_are_tasks() -> None:
    over = threading.Event()
    before = use([os.getpid()]).tasks
    threads = [threading.Thread(target=over.wait) for _ in range(5)]
    for thread in threads:
        thread.start()
    assert use([os.getpid()]).tasks >= before + 5
    over.set()
    for thread in threads:
        thread.join()


def test_disk_is_what_is_stored_and_every_entry_costs(tmp_path: Path) -> None:
    assert disk_bytes([tmp_path], 1 << 30) == 0
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "file").write_bytes(bytes(range(256)) * 4096)
    (tmp_path / "empty").touch()
    (tmp_path / "link").symlink_to("/")
    assert (1 << 20) + 4 * 4096 <= disk_bytes([tmp_path], 1 << 30) < (1 << 20) + 8 * 4096
    assert disk_bytes([tmp_path], 4096) > 4096
    assert disk_bytes([tmp_path / "none"], 4096) == 0


def test_files_without_a_name_are_counted_once_while_they_are_held(tmp_path: Path) -> None:
    assert unlinked_bytes([os.getpid()], [tmp_path]) == 0
    place = tmp_path / "file"
    with place.open("wb") as file, place.open("rb"):
        file.write(bytes(range(256)) * 4096)
        file.flush()
        assert unlinked_bytes([os.getpid()], [tmp_path]) == 0
        place.unlink()
        assert 1 << 20 <= unlinked_bytes([os.getpid(), os.getpid(), 1 << 30], [tmp_path]) < 2 << 20
        assert unlinked_bytes([os.getpid()], [Path("/proc")]) == 0
    assert unlinked_bytes([os.getpid()], [tmp_path]) == 0


def test_what_is_too_deep_to_be_counted_is_more_than_enough(tmp_path: Path) -> None:
    here = Path.cwd()
    os.chdir(tmp_path)
    try:
        for _ in range(25):
            Path("a" * 200).mkdir()
            os.chdir("a" * 200)
    finally:
        os.chdir(here)
    assert disk_bytes([tmp_path], 1 << 30) == (1 << 30) + 1
    shutil.rmtree(tmp_path / ("a" * 200), ignore_errors=True)
