"""Programs in the real sandbox: whatever they do ends with a named reason, and nothing else is harmed."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from awfulowl.errors import InputError, SandboxError
from awfulowl.jobs.sandbox import cgroups, command, confined
from awfulowl.jobs.sandbox.confined import Allowance, Outcome, Setting, run_confined
from awfulowl.limits import MIB
from tests.orders import needs_bubblewrap

SMALL = Allowance(memory_bytes=256 * MIB, processes=16, disk_bytes=16 * MIB, time_s=60.0)


def run(program: str, setting: Setting | None = None, *, stdin: bytes = b"") -> tuple[Outcome, str]:
    """Run a program of Python, small."""
    outcome, output = run_confined([sys.executable, "-c", program], setting or Setting(allowance=SMALL), stdin=stdin)
    return outcome, output.decode()


@pytest.fixture
def counted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Take control groups away, or not."""
    kernel = bool(request.param)
    if not kernel:
        monkeypatch.setattr(cgroups, "_parents", lambda *_: ())
    return kernel


ways = pytest.mark.parametrize("counted", [True, False], ids=["kernel", "watched"], indirect=True)
"""Where the kernel keeps bounds (it may not be able to, here), and where they are watched."""


@needs_bubblewrap
def test_a_program_runs_reads_and_writes() -> None:
    outcome, output = run("import sys; print(sys.stdin.read()[::-1])", stdin=b"abc")
    assert (outcome.reason, outcome.code, output) == ("ok", 0, "cba\n")


@needs_bubblewrap
def test_pytorch_runs_inside() -> None:
    program = "import torch; x = torch.ones(8, 8, requires_grad=True); (x @ x).sum().backward(); print(x.grad.sum())"
    outcome, output = run(program, Setting(allowance=replace(SMALL, memory_bytes=1024 * MIB)))
    assert (outcome.reason, output) == ("ok", "tensor(1024.)\n")


@needs_bubblewrap
def test_a_program_that_raises_fails_and_says_why_to_a_person() -> None:
    outcome, _ = run("raise ValueError('why')")
    assert (outcome.reason, outcome.code) == ("failed", 1)
    assert outcome.errors.endswith("ValueError: why\n")


@needs_bubblewrap
def test_what_it_says_is_kept_up_to_a_bound() -> None:
    outcome, _ = run("import sys\nfor _ in range(5000): sys.stderr.write('long line ' * 10)\nsys.stderr.write('end')")
    assert len(outcome.errors) == confined.ERROR_TAIL_BYTES
    assert outcome.errors.endswith("end")


@needs_bubblewrap
@pytest.mark.parametrize("program", ["while True: pass", "import time\ntime.sleep(1000)"])
def test_a_program_that_hangs_is_ended(program: str) -> None:
    outcome, _ = run(program, Setting(allowance=replace(SMALL, time_s=0.3)))
    assert outcome.reason == "time"


EATERS = {
    "one": "eaten = []\nwhile True: eaten.append(bytearray(b'x') * (8 << 20))",
    "many": "import os\nfor _ in range(7):\n    if os.fork() == 0: break\neaten = bytearray(b'x') * (60 << 20)\n"
    "import time\ntime.sleep(30)",
    "files in memory": "for place in ('/tmp/a', '/dev/shm/a'):\n    try:\n        with open(place, 'wb') as file:\n"
    "            while True: file.write(bytes(1 << 20))\n    except OSError: pass\n"
    "eaten = []\nwhile True: eaten.append(bytearray(b'x') * (8 << 20))",
}


@needs_bubblewrap
@ways
@pytest.mark.parametrize("eater", EATERS)
def test_a_program_that_eats_memory_is_ended(counted: bool, eater: str) -> None:
    outcome, _ = run(EATERS[eater], Setting(allowance=replace(SMALL, disk_bytes=64 * MIB)))
    assert outcome.reason == "memory"


FORKERS = {
    "forks": "import os\nwhile True: os.fork()",
    "forks and catches": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "threads": "import threading, time\nfor _ in range(99): threading.Thread(target=time.sleep, args=(30,)).start()",
    # Where nothing but watching bounds root's processes, an explosion would harm the machine that runs the tests.
    "forks slowly": "import os, time\nwhile os.fork(): time.sleep(0.01)\ntime.sleep(1000)",
}


def bounded_by_the_kernel() -> bool:
    """Whether the kernel bounds processes here: by a control group, or by a limit, which does not bind root."""
    groups = cgroups.Groups.make(1 << 30, 16)
    groups.close()
    return "pids" in groups.controllers or os.geteuid() != 0


@needs_bubblewrap
@pytest.mark.parametrize("forker", FORKERS)
def test_a_program_that_forks_without_end_is_ended(forker: str, tmp_path: Path) -> None:
    if forker != "forks slowly" and not bounded_by_the_kernel():
        pytest.skip("root without control groups of processes")
    outcome, _ = run(f"{FORKERS[forker]}\n# {tmp_path}")
    assert outcome.reason == "processes"
    assert [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in said(path)] == []


@needs_bubblewrap
@pytest.mark.parametrize("counted", [False], indirect=True)
@pytest.mark.parametrize("forker", ["threads", "forks slowly"])
def test_processes_are_watched_where_they_are_not_counted(counted: bool, forker: str, tmp_path: Path) -> None:
    outcome, _ = run(f"{FORKERS[forker]}\n# {tmp_path}")
    assert outcome.reason == "processes"
    assert [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in said(path)] == []


def said(path: Path) -> bytes:
    """The command line of a process; nothing of one that has ended."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


@needs_bubblewrap
@pytest.mark.parametrize("place", ["/tmp/a", "/dev/shm/a"])  # noqa: S108
def test_folders_in_memory_are_full_soon(place: str) -> None:
    outcome, _ = run(f"with open({place!r}, 'wb') as file:\n    while True: file.write(bytes(1 << 20))")
    assert outcome.reason == "failed"
    assert "No space left" in outcome.errors or "File too large" in outcome.errors


WRITERS = {
    "files": "import itertools\nfor number in itertools.count():\n    with open(f'{place}/{number}', 'wb') as file:\n"
    "        file.write(bytes(1 << 20))",
    "empty files": "import itertools\nfor number in itertools.count():\n    open(f'{place}/{number}', 'wb').close()",
    "folders": "import itertools, os\nfor number in itertools.count():\n    os.mkdir(f'{place}/{number}')",
    # For each of these the program waits: what is looked for is found, and not only what goes on.
    "files without a name": "import os, time\nheld = []\nfor number in range(6):\n"
    "    held.append(open(f'{place}/{number}', 'wb'))\n    os.unlink(f'{place}/{number}')\n"
    "    held[-1].write(bytes(4 << 20))\n    held[-1].flush()\ntime.sleep(50)",
    "files too deep for a path": "import os, time\nos.chdir(place)\nfor _ in range(25):\n    os.mkdir('a' * 200)\n"
    "    os.chdir('a' * 200)\nfor number in range(6):\n    open(str(number), 'wb').write(bytes(4 << 20))\n"
    "time.sleep(50)",
}


@needs_bubblewrap
@pytest.mark.parametrize("writer", WRITERS)
def test_a_program_that_fills_the_disk_is_ended(tmp_path: Path, writer: str) -> None:
    outcome, _ = run(f"place = {str(tmp_path)!r}\n{WRITERS[writer]}", Setting(allowance=SMALL, write=(tmp_path,)))
    assert outcome.reason == "disk"


@needs_bubblewrap
def test_no_file_is_larger_than_the_disk_may_hold(tmp_path: Path) -> None:
    program = f"with open({str(tmp_path / 'a')!r}, 'wb') as file:\n    while True: file.write(bytes(1 << 20))"
    outcome, _ = run(program, Setting(allowance=SMALL, write=(tmp_path,)))
    assert outcome.reason in {"failed", "disk"}
    assert (tmp_path / "a").stat().st_size <= SMALL.disk_bytes


@needs_bubblewrap
def test_there_is_no_network() -> None:
    program = (
        "import socket\n"
        "for family in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET):\n"
        "    try: socket.socket(family, socket.SOCK_DGRAM)\n"
        "    except OSError as error: print(error.errno)\n"
        "try: socket.getaddrinfo('localhost', 80)\n"
        "except OSError as error: print('no names')\n"
        "print(socket.socketpair() and 'local')\n"
    )
    assert run(program)[1].split("\n") == ["100", "100", "100", "100", *run(program)[1].split("\n")[4:]]
    assert run(program)[1].endswith("local\n")


@needs_bubblewrap
def test_an_abstract_socket_of_the_machine_is_not_there() -> None:
    import socket  # noqa: PLC0415  the other end is in the sandbox

    name = f"\0awfulowl-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        outcome, _ = run(f"import socket; socket.socket(socket.AF_UNIX).connect({name!r})")
    assert "refused" in outcome.errors


@needs_bubblewrap
def test_the_system_is_read_only_and_the_rest_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    program = (
        "import os\n"
        "SETTINGS = ['/proc/sysrq-trigger', '/proc/self/oom_score_adj', '/sys/devices/system/cpu/cpu0/online']\n"
        "SETTINGS += [os.path.join(top, name) for top, _, names in os.walk('/proc/sys') for name in names]\n"
        "print(len(SETTINGS) > 100)\n"
        "for place in ('/x', '/usr/x', '/dev/x', '/etc/x', os.__file__, *SETTINGS):\n"
        "    try: os.close(os.open(place, os.O_WRONLY | os.O_APPEND)); print('may be written', place)\n"
        "    except OSError: pass\n"
        f"for place in ('/home', '/etc/passwd', '/etc/shadow', '/var', {str(tmp_path)!r}, '/dev/sda', '/dev/kvm'):\n"
        "    if os.path.exists(place): print('there is', place)\n"
        "print(os.getuid(), os.getgid(), os.getgroups() in ([], [65534]), sorted(os.environ))\n"
    )
    _, output = run(program)
    assert output.startswith("True\n65534 65534 True [")
    assert {name for name in os.environ if "TOKEN" in name or "KEY" in name} & set(output.split("'")) == set()
    assert "PYTEST_CURRENT_TEST" not in output


@needs_bubblewrap
def test_no_right_is_left_and_none_can_be_gained() -> None:
    program = (
        "status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
        "print(*(int(status[name], 16) for name in ('CapPrm', 'CapEff', 'CapBnd', 'CapAmb')))\n"
        "print(status['NoNewPrivs'].strip(), status['Seccomp'].strip())\n"
    )
    assert run(program)[1] == "0 0 0 0\n1 2\n"


@needs_bubblewrap
def test_calls_of_the_filter_are_refused_by_the_kernel() -> None:
    program = (
        "import ctypes, os, platform\n"
        "call = ctypes.CDLL(None, use_errno=True).syscall\n"
        "numbers = {'x86_64': (272, 101, 321, 319, 425), 'aarch64': (97, 117, 280, 279, 425)}[platform.machine()]\n"
        "print(*((call(number, 0, 0, 0, 0, 0), ctypes.get_errno()) for number in (*numbers, 451)))\n"
    )
    assert run(program)[1] == "(-1, 1) (-1, 1) (-1, 1) (-1, 1) (-1, 1) (-1, 38)\n"


@needs_bubblewrap
def test_other_processes_are_neither_seen_nor_reached() -> None:
    program = (
        "import os, signal\n"
        "print(sorted(int(name) for name in os.listdir('/proc') if name.isdigit()))\n"
        f"for process in ({os.getpid()}, {os.getppid()}):\n"
        "    try: os.kill(process, signal.SIGKILL); print('reached')\n"
        "    except ProcessLookupError: pass\n"
    )
    assert run(program)[1] == "[1, 2]\n"


@needs_bubblewrap
def test_what_it_leaves_running_ends_with_it(tmp_path: Path) -> None:
    """A daemon: forked twice, in a session of its own, ignoring all signals that may be ignored."""
    program = (
        "import os, signal, time\n"
        "for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT): signal.signal(number, signal.SIG_IGN)\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        f"        while True: time.sleep(0.01); open({str(tmp_path / 'beat')!r}, 'a').write('x')\n"
        f"while not os.path.exists({str(tmp_path / 'beat')!r}): time.sleep(0.01)\n"
    )
    outcome, _ = run(program, Setting(allowance=SMALL, write=(tmp_path,)))
    assert outcome.reason == "ok"
    size = (tmp_path / "beat").stat().st_size
    threading.Event().wait(0.1)
    assert (tmp_path / "beat").stat().st_size == size


@needs_bubblewrap
def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    beat = tmp_path / "beat"
    inside = f"import time\nwhile True: time.sleep(0.01); open({str(beat)!r}, 'a').write('x')"
    outside = (
        "import pathlib, sys\nfrom awfulowl.jobs.sandbox.confined import *\n"
        f"run_confined([sys.executable, '-c', {inside!r}], Setting(write=(pathlib.Path({str(tmp_path)!r}),)))"
    )
    with subprocess.Popen([sys.executable, "-c", outside]) as parent:
        while not beat.exists():
            assert parent.poll() is None
            threading.Event().wait(0.01)
        parent.send_signal(signal.SIGKILL)
    size = -1
    while beat.stat().st_size != size:  # until it stands still; a test that hangs has failed
        size = beat.stat().st_size
        threading.Event().wait(0.2)


@needs_bubblewrap
@pytest.mark.parametrize("how", ["leaving", "stopping", "raising"])
def test_who_leaves_ends_it(tmp_path: Path, how: str) -> None:
    program = f"import time\nprint('here', flush=True)\ntime.sleep(1000)\n# {tmp_path}"
    with (
        contextlib.suppress(ZeroDivisionError),
        confined.confined([sys.executable, "-c", program], Setting(allowance=SMALL)) as running,
    ):
        assert running.stdout.readline() == b"here\n"
        if how == "stopping":
            running.stop()
            assert running.wait().reason == "killed"
        if how == "raising":
            raise ZeroDivisionError
    assert [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in said(path)] == []


@needs_bubblewrap
def test_no_group_is_left_behind() -> None:
    """Control groups are removed with what was in them."""
    ours = f"awfulowl-{os.getpid()}-*"
    with confined.confined(
        [sys.executable, "-c", "import time; time.sleep(1000)"], Setting(allowance=SMALL)
    ) as running:
        groups = running._groups
        found = [folder for folder, _ in groups._folders.values()]
        assert all(folder.match(ours) and folder.is_dir() for folder in found)
    assert [folder for folder in found if folder.exists()] == []


@needs_bubblewrap
def test_files_that_are_given_to_read_are_read_only(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("given")
    program = f"place = {str(tmp_path / 'a')!r}\nprint(open(place).read())\nopen(place, 'w')"
    outcome, output = run(program, Setting(allowance=SMALL, read=(tmp_path,)))
    assert output == "given\n"
    assert "Read-only file system" in outcome.errors
    assert (tmp_path / "a").read_text() == "given"


@needs_bubblewrap
def test_a_program_that_is_not_there_fails() -> None:
    with pytest.raises(SandboxError, match="/no/such/program"):
        run_confined(["/no/such/program"], Setting(allowance=SMALL))


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder"):
        run("pass", Setting(write=(tmp_path / "none",)))


@pytest.fixture
def no_bubblewrap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without it."""
    monkeypatch.setattr(command, "find_bubblewrap", lambda: None)


@pytest.mark.usefixtures("no_bubblewrap")
def test_without_bubblewrap_nothing_runs_unless_it_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match=r"apt install bubblewrap.*--unsafe"):
        run(f"open({str(tmp_path / 'x')!r}, 'w')")
    assert list(tmp_path.iterdir()) == []
    outcome, output = run("print('ran')", Setting(allowance=SMALL, unsafe=True))
    assert (outcome.reason, output) == ("ok", "ran\n")


@pytest.mark.usefixtures("no_bubblewrap")
@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("while True: pass", "time"),
        ("eaten = []\nwhile True: eaten.append(bytearray(b'x') * (8 << 20))", "memory"),
        ("raise ValueError", "failed"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "killed"),
    ],
)
def test_bounds_hold_without_walls_too(program: str, reason: str) -> None:
    bounds = replace(SMALL, time_s=0.5 if reason == "time" else 60.0)
    assert run(program, Setting(allowance=bounds, unsafe=True))[0].reason == reason


def test_an_old_bubblewrap_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "bwrap"
    for said in ("bubblewrap 0.6.2", "something else"):
        old.write_text(f"#!/bin/sh\necho {said}\n")
        old.chmod(0o755)
        monkeypatch.setattr(shutil, "which", lambda _: str(old))
        with pytest.raises(SandboxError, match="newer is needed"):
            command.find_bubblewrap()


def test_a_bubblewrap_that_cannot_make_a_sandbox_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(command, "find_bubblewrap", lambda: str(broken))
    with pytest.raises(SandboxError, match="No permissions to create new namespace"):
        run("print('never')")


def test_a_python_below_the_folder_in_memory_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_pythons", lambda: [Path(command.SCRATCH, "checkout/.venv")])
    words = command.bubblewrap(
        "bwrap", ["true"], threads=1, scratch_bytes=4096, read=[], write=[tmp_path], descriptors=(5, 6, 7)
    )
    pairs = list(pairwise(words))
    hidden, shown = pairs.index(("--tmpfs", command.SCRATCH)), words.index(f"{command.SCRATCH}/checkout/.venv")
    assert words[shown - 1] == "--ro-bind"
    assert hidden < shown < words.index("--bind"), "bubblewrap mounts in this order, and a later one hides an earlier"


@pytest.mark.parametrize("place", ["/", command.SCRATCH])
def test_a_python_that_would_show_too_much_is_refused(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", place)
    with pytest.raises(SandboxError, match=f"lies in {place} itself"):
        command.bubblewrap("bwrap", ["true"], threads=1, scratch_bytes=4096, read=[], write=[], descriptors=(5, 6, 7))


def test_the_command_line_forbids_all_that_it_can() -> None:
    words = command.bubblewrap(
        "bwrap", ["true"], threads=3, scratch_bytes=4096, read=[], write=[Path("/data")], descriptors=(5, 6, 7)
    )

    def after(word: str) -> Sequence[str]:
        return words[words.index(word) + 1 :]

    for word in ("--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--clearenv"):
        assert word in words
    assert after("--cap-drop")[0] == "ALL"
    assert (after("--uid")[0], after("--gid")[0]) == ("65534", "65534")
    assert after("--seccomp")[0] == "5"
    assert after("--")[:] == ["true"]
    assert "--share-net" not in words
    assert [words[place + 1 : place + 3] for place, word in enumerate(words) if word == "--bind"] == [
        ["/data", "/data"]
    ]
    assert after("OMP_NUM_THREADS")[0] == "3"
