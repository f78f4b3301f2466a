"""Jobs in the real sandbox: run, killed, verified; bad code, forged proofs and wrong keys end with a clear word."""

import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from awfulowl.errors import InputError, JobError
from awfulowl.jobs import certificate, proof
from awfulowl.jobs import challenge as challenges
from awfulowl.jobs.hosting import Host, Own
from awfulowl.jobs.job import Bounds
from awfulowl.jobs.keys import PrivateKeys
from awfulowl.jobs.package import open_package
from awfulowl.jobs.verify import UNREADABLE
from awfulowl.limits import MIB
from tests.orders import BOUNDS, LEARNER, SCRIPT, People, needs_bubblewrap, opened, ordered, packed

pytestmark = [needs_bubblewrap, pytest.mark.timeout(600)]

PEOPLE = People()
OWL = [sys.executable, "-c", "import sys; from awfulowl.cli import main; sys.exit(main())"]
LIMIT_S = 200.0
REPOSITORY = Path(__file__).parents[2]


def preflight(own: Own) -> int:
    """Run the first steps of a job twice, as its client does before packing it."""
    return Host(own, PEOPLE.client).preflight()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package, and the proof of an honest run."""
    folder = tmp_path_factory.mktemp("run")
    Host(opened(folder, PEOPLE, ordered(PEOPLE)), PEOPLE.runner).run(folder / "proof")
    return folder


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    shutil.copytree(run, tmp_path / "copy")
    return tmp_path / "copy"


def verifier(folder: Path) -> Host:
    """The verifier whom the client named."""
    return Host(open_package(folder / "job.pkg", PEOPLE.verifier), PEOPLE.verifier)


def documented(section: str) -> list[str]:
    """The commands of a section of the user's guide, up to the next heading."""
    text = (REPOSITORY / "docs" / "jobs.md").read_text(encoding="utf-8").split(section, 1)[1].split("\n##", 1)[0]
    blocks = text.split("```console\n")[1:]
    return [line for block in blocks for line in block.split("```", 1)[0].splitlines()]


def test_a_newcomer_comes_through_by_the_guide_alone(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name, words in (("owl", OWL), ("python", [sys.executable])):
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")
    mine = {name: value for name, value in os.environ.items() if not name.startswith("AWFULOWL_")}
    mine |= {"XDG_DATA_HOME": str(tmp_path / "data"), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    mine["PATH"] = f"{tmp_path / 'bin'}:{mine['PATH']}"
    commands = documented("## The whole flow")
    assert len(commands) >= 9
    done = subprocess.run(
        ["/bin/sh", "-euc", "\n".join(commands)], cwd=tmp_path, env=mine, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Accepted" in done.stdout
    assert "proof/states/0000000560.safetensors is it" in done.stdout
    code = (REPOSITORY / "examples" / "job" / "code" / "digits.py").read_text(encoding="utf-8")
    assert code[code.index("import torch") :] in (REPOSITORY / "docs" / "jobs.md").read_text(encoding="utf-8")


def test_an_honest_run_is_accepted_and_each_challenge_costs_one_step(copy: Path) -> None:
    here, there = verifier(copy), Host(open_package(copy / "job.pkg", PEOPLE.runner), PEOPLE.runner)
    challenge = here.draw(copy / "proof")
    there.answer(copy / "proof", challenge)
    # The verifier needs neither the stored states nor the list of digests.
    shutil.rmtree(copy / "proof" / proof.STATES)
    (copy / "proof" / proof.DIGESTS).unlink()
    verdict = here.verify(copy / "proof", challenge)
    assert (verdict.status, verdict.caught_by, verdict.steps) == ("accepted", None, 40)
    found = certificate.check(here.certify(verdict), here.job.keys.verifier.verifying_key())
    assert found.model == verdict.model
    assert verdict.replayed_steps == len(challenges.challenged(challenge))
    again = here.verify(copy / "proof", here.draw(copy / "proof"))
    assert (again.status, again.caught_by) == ("refused", UNREADABLE)
    assert "another challenge" in (again.reason or "")


BAD = {
    "raised": (b"raise ValueError('no luck')", "ValueError: no luck \\(in learner.py, line 1\\)"),
    "refused": (b"class Other: pass", "has no 'Learner'"),
    "network": (b"import socket\nsocket.create_connection(('192.0.2.1', 80), 5)", "network"),
    "memory": (b"eaten = []\nwhile True: eaten.append(bytearray(b'x') * (64 << 20))", "more memory"),
    "processes": (b"import os, time\nwhile os.fork(): time.sleep(0.01)\ntime.sleep(1000)", "processes"),
    "disk": (b"with open('/tmp/a', 'wb') as file:\n    while True: file.write(bytes(1 << 20))", "more than it may"),
    "ended": (b"import os\nos._exit(0)", "ended by itself"),
    "killed": (b"import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "signal"),
}


@pytest.mark.parametrize("reason", BAD)
def test_bad_code_ends_with_its_reason(reason: str) -> None:
    code, match = BAD[reason]
    with pytest.raises(JobError, match=match) as caught:
        preflight(ordered(PEOPLE, code))
    assert caught.value.reason == reason
    assert caught.value.exit_code == 1


def test_code_that_hangs_is_ended() -> None:
    limits = msgspec.structs.replace(BOUNDS, time_s=3.0)
    with pytest.raises(JobError, match="took longer than its 3 s") as caught:
        preflight(ordered(PEOPLE, b"while True: pass", limits=limits))
    assert caught.value.reason == "time"


def test_code_that_fills_the_folder_of_the_proof_is_ended(tmp_path: Path) -> None:
    code = LEARNER + (
        b"\n    def rate(self, step, steps):\n"
        b"        import itertools\n"
        b"        places = [line.split()[1] for line in open('/proc/mounts')]\n"
        b"        for place in [place for place in places if place.endswith('/proof')]:\n"
        b"            for number in itertools.count():\n"
        b"                with open(f'{place}/{number}', 'wb') as file: file.write(bytes(1 << 20))\n"
        b"        return 1.0\n"
    )
    with pytest.raises(JobError) as caught:
        Host(opened(tmp_path, PEOPLE, ordered(PEOPLE, code)), PEOPLE.runner).run(tmp_path / "proof")
    assert caught.value.reason == "disk"


def test_code_that_speaks_in_the_place_of_the_platform_proves_nothing(tmp_path: Path) -> None:
    """It finds the pipe and says that it has finished: there is no proof, and none is signed."""
    code = (
        b"import os, msgspec\n"
        b"said = msgspec.msgpack.encode({'type': 'Finished', 'result': b''})\n"
        b"for pipe in range(3, 64):\n"
        b"    try: os.write(pipe, len(said).to_bytes(4, 'big') + said)\n"
        b"    except OSError: pass\n"
        b"os._exit(0)\n"
    )
    Host(opened(tmp_path, PEOPLE, ordered(PEOPLE, code)), PEOPLE.runner).run(tmp_path / "proof")
    assert {path.name for path in (tmp_path / "proof").iterdir()} == {proof.JOB, proof.STATES}
    with pytest.raises(JobError, match="no result"):
        verifier(tmp_path).verify(tmp_path / "proof")


def test_a_job_that_is_not_repeatable_is_refused() -> None:
    code = LEARNER.replace(b"import torch\n", b"import torch, os\n", 1).replace(
        b"model(points), labels)", b"model(points), labels) * (1 + os.urandom(1)[0])"
    )
    with pytest.raises(JobError, match="otherwise the second time") as caught:
        preflight(ordered(PEOPLE, code))
    assert caught.value.reason == "refused"


def test_nothing_of_the_code_is_left_on_the_disk(run: Path) -> None:
    for path in run.rglob("*"):
        assert not path.is_file() or b"cross_entropy" not in path.read_bytes()


def flipped(path: Path) -> None:
    """Change one byte in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def shortened(path: Path) -> None:
    """Cut the end off."""
    path.write_bytes(path.read_bytes()[:-9])


SPOILT: dict[str, Callable[[Path], None]] = {
    "log flipped": lambda folder: flipped(folder / proof.LOG),
    "log cut": lambda folder: shortened(folder / proof.LOG),
    "log gone": lambda folder: (folder / proof.LOG).unlink(),
    "commitment flipped": lambda folder: flipped(folder / proof.COMMITMENT),
    "commitment cut": lambda folder: shortened(folder / proof.COMMITMENT),
    "commitment a link": lambda folder: linked(folder / proof.COMMITMENT),
    "commitment gone": lambda folder: (folder / proof.COMMITMENT).unlink(),
}


def linked(path: Path) -> None:
    """Put a link in the place of a file."""
    path.rename(path.with_suffix(".other"))
    path.symlink_to(path.with_suffix(".other"))


@pytest.mark.parametrize("how", SPOILT)
def test_a_proof_that_is_spoilt_is_refused(copy: Path, how: str) -> None:
    SPOILT[how](copy / "proof")
    verdict = verifier(copy).verify(copy / "proof")
    assert (verdict.status, verdict.caught_by) == ("refused", UNREADABLE)


def test_what_is_behind_the_commitment_is_checked_too(copy: Path) -> None:
    flipped(copy / "proof" / proof.STATES / "0000000040.safetensors")
    assert verifier(copy).verify(copy / "proof").status == "refused"


def test_the_proof_of_another_job_is_refused(copy: Path) -> None:
    """The same order once more, with another seed: what was proven for the one is nothing for the other."""
    (copy / "again").mkdir()
    package = packed(copy / "again", PEOPLE, ordered(PEOPLE, seed=6))
    here = Host(open_package(package, PEOPLE.verifier), PEOPLE.verifier)
    verdict = here.verify(copy / "proof")
    assert (verdict.status, verdict.caught_by) == ("refused", UNREADABLE)
    assert "another job" in (verdict.reason or "")
    with pytest.raises(InputError, match="another job"):
        Host(open_package(package, PEOPLE.runner), PEOPLE.runner).run(copy / "proof")


def test_only_those_whom_the_job_names_may_act(copy: Path) -> None:
    package = open_package(copy / "job.pkg", PEOPLE.runner)
    for keys in (PEOPLE.verifier, PEOPLE.client, PrivateKeys.generate()):
        with pytest.raises(InputError, match=r"\[keys.runner\]"):
            Host(package, keys).run(copy / "other")
    for keys in (PEOPLE.runner, PrivateKeys.generate()):
        with pytest.raises(InputError, match=r"\[keys.verifier\]"):
            Host(package, keys).verify(copy / "proof")
    assert not (copy / "other").exists()


def test_a_plain_script_is_run_and_never_accepted(tmp_path: Path) -> None:
    own = ordered(PEOPLE, SCRIPT)
    Host(opened(tmp_path, PEOPLE, own), PEOPLE.runner).run(tmp_path / "proof")
    here = verifier(tmp_path)
    verdict = here.verify(tmp_path / "proof")
    assert (verdict.status, verdict.steps) == ("unverified", 20)
    with pytest.raises(InputError, match="unverified"):
        here.certify(verdict)
    flipped(tmp_path / "proof" / proof.LOG)
    assert here.verify(tmp_path / "proof").status == "refused"


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """The environment of a user whose keys are these."""
    (tmp_path / "data" / "awfulowl").mkdir(parents=True, mode=0o700)
    for role in ("client", "runner", "verifier"):
        getattr(PEOPLE, role).save(tmp_path / "data" / "awfulowl" / f"job-{role}.key")
    mine = {name: value for name, value in os.environ.items() if not name.startswith("AWFULOWL_")}
    return mine | {"XDG_DATA_HOME": str(tmp_path / "data"), "XDG_CONFIG_HOME": str(tmp_path / "config")}


@pytest.fixture
def running(tmp_path: Path, home: dict[str, str]) -> Iterator[Callable[[], "subprocess.Popen[bytes]"]]:
    """Start `owl job run` on a job of many steps; what is left of it is ended."""
    packed(tmp_path, PEOPLE, ordered(PEOPLE, steps=600, limits=BOUNDS))
    started: list[subprocess.Popen[bytes]] = []

    def begin() -> "subprocess.Popen[bytes]":
        words = [*OWL, "job", "run", "job.pkg", "-o", "proof"]
        started.append(subprocess.Popen(words, cwd=tmp_path, env=home, start_new_session=True, stderr=subprocess.PIPE))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()


def test_a_runner_that_is_killed_goes_on_and_its_proof_is_accepted(
    tmp_path: Path, running: Callable[[], "subprocess.Popen[bytes]"]
) -> None:
    choose = random.Random(time.time_ns())
    states = tmp_path / "proof" / proof.STATES
    for least, end in ((1, signal.SIGKILL), (5, signal.SIGINT)):
        process = running()
        until = time.monotonic() + LIMIT_S
        while len(list(states.glob("*.safetensors"))) < least:
            assert process.poll() is None, process.communicate()[1].decode()
            assert time.monotonic() < until, "no states were stored"
            time.sleep(0.005)
        time.sleep(choose.uniform(0, 0.1))
        process.send_signal(end)
        process.communicate()
    process = running()
    assert "error" not in process.communicate()[1].decode()
    assert process.returncode == 0
    assert verifier(tmp_path).verify(tmp_path / "proof").status == "accepted"


def test_bounds_of_a_job_are_kept_at_the_verifier_too(tmp_path: Path) -> None:
    """The verifier runs the client's code: a client cannot use it to harm the verifier either."""
    limits = Bounds(memory_bytes=512 * MIB, processes=8, disk_bytes=MIB, time_s=60.0)
    own = ordered(PEOPLE, BAD["processes"][0], limits=limits)
    here = Host(open_package(packed(tmp_path, PEOPLE, own), PEOPLE.verifier), PEOPLE.verifier)
    proof.claim(tmp_path / "proof", own.job)
    with pytest.raises(JobError) as caught:
        here.verify(tmp_path / "proof")
    assert caught.value.reason == "processes"
