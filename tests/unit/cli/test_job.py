"""`owl job`: every command of it, as far as nothing has to run in a sandbox; tests/processes has the rest."""

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from awfulowl.cli import terminal
from awfulowl.cli.job import EXAMPLES
from awfulowl.cli.job_options import ROLES, listener
from awfulowl.errors import JobError
from awfulowl.jobs import certificate
from awfulowl.jobs.challenge import Challenge
from awfulowl.jobs.checks.catalogue import SOUND
from awfulowl.jobs.hosting import Host
from awfulowl.jobs.keys import PrivateKeys
from awfulowl.jobs.messages import Progress, Stage
from awfulowl.jobs.ordering import read_order
from awfulowl.jobs.package import open_package
from awfulowl.jobs.verify import Finding, Verdict
from tests.orders import LEARNER, POINTS, People, committed
from tests.unit.cli.conftest import Owl

COMMANDS = [command.__name__ for command in EXAMPLES]
VERDICT = Verdict(
    status="accepted",
    caught_by=None,
    reason=None,
    findings=tuple(Finding(check=one.name, printed=False, reason=None, seconds=0.1) for one in SOUND),
    verification_cost=0.01,
    replayed_steps=33,
    evaluated_examples=0,
    steps=40,
    exact=True,
    job="0" * 64,
    commitment="1" * 64,
    model="2" * 64,
)


@pytest.fixture
def people(owl: Owl, home: Path) -> People:
    """Three who made their keys, and an order that names them, with its code and data."""
    (home / "work" / "code").mkdir()
    (home / "work" / "code" / "learner.py").write_bytes(LEARNER)
    (home / "work" / "points.bin").write_bytes(POINTS)
    lines = [owl("job", "keys", role).out for role in ROLES]
    (home / "work" / "JOB.toml").write_text(
        'version = 1\nname = "small"\ntask = "learner:Learner"\ncode = "code"\ndata = ["points.bin"]\n'
        "[training]\nseed = 5\nbatch = 16\nsteps = 40\nlr = 0.5\n" + "".join(lines)
    )
    return People(*(PrivateKeys.load(home / "data" / "awfulowl" / f"job-{role}.key") for role in ROLES))


@pytest.fixture
def package(owl: Owl, people: People, home: Path) -> Path:
    """A package in the working directory."""
    assert owl("job", "pack", "JOB.toml", "--no-preflight").code == 0
    return home / "work" / "job.pkg"


def test_without_a_command_the_help_is_shown_and_that_is_bad_input(owl: Owl) -> None:
    code, out, _ = owl("job")
    assert code == 2
    assert all(name in out for name in COMMANDS)
    assert "Example: owl job " in out


@pytest.mark.parametrize("command", EXAMPLES)
def test_every_help_has_an_example_with_options_that_there_are(owl: Owl, command: Callable[..., None]) -> None:
    code, out, err = owl("job", command.__name__, "--help")
    assert (code, err) == (0, "")
    assert f"Example: owl job {command.__name__} " in out
    assert "--json" in out
    words = [word for word in EXAMPLES[command].replace(";", " ").split() if word.startswith("-")]
    assert [word for word in words if word not in out] == []


def test_help_does_not_wait_for_pytorch() -> None:
    code = "import sys\nfrom awfulowl.cli import main\nmain(['job', 'run', '--help'])\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0


def test_keys_are_made_shown_and_never_overwritten(owl: Owl, home: Path) -> None:
    code, out, _ = owl("job", "keys", "runner")
    assert code == 0
    file = home / "data" / "awfulowl" / "job-runner.key"
    public = PrivateKeys.load(file).public
    assert out == f'\n[keys.runner]\nsigning = "{public.signing}"\nsealing = "{public.sealing}"\n'
    assert owl("job", "keys", "runner", "--show", file).out == out
    assert owl("job", "keys", "runner", "--show", file, "--json", "-").json == msgspec.to_builtins(public)
    assert owl("job", "keys", "runner").code == 2
    assert PrivateKeys.load(file).public == public
    assert owl("job", "keys", "runner", "-o", "mine.key").code == 0
    assert (home / "work" / "mine.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("words", [["owner"], ["runner", "--show", "none.key"], ["runner", "--show", "a", "-o", "b"]])
def test_bad_words_make_no_keys(owl: Owl, words: list[str], home: Path) -> None:
    assert owl("job", "keys", *words).code == 2
    assert list(home.rglob("*.key")) == []


def test_a_job_is_packed_for_those_it_names(owl: Owl, people: People, home: Path) -> None:
    code, out, _ = owl("job", "pack", "JOB.toml", "-o", "a.pkg", "--no-preflight", "--json", "-")
    assert code == 0
    found = msgspec.json.decode(out)
    opened = open_package(home / "work" / "a.pkg", people.runner)
    assert found["job"] == opened.job.digest.hex()
    assert found["bytes"] == (home / "work" / "a.pkg").stat().st_size
    assert (found["code"], found["data"], found["steps"]) == (1, {"points.bin": 512}, None)


def test_the_preflight_of_a_bad_job_leaves_no_package(
    owl: Owl, people: People, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def preflight(_: Host) -> int:
        raise JobError("job small: its code raised: ValueError", "raised")

    monkeypatch.setattr(Host, "preflight", preflight)
    assert owl("job", "pack", "JOB.toml") == (1, "", "error: job small: its code raised: ValueError\n")
    assert not (home / "work" / "job.pkg").exists()


def test_somebody_else_packs_nothing(owl: Owl, people: People, home: Path) -> None:
    key = home / "data" / "awfulowl" / "job-runner.key"
    code, _, err = owl("job", "pack", "JOB.toml", "--no-preflight", "--key", key)
    assert code == 2
    assert "[keys.client]" in err


@pytest.mark.parametrize(
    "words",
    [
        ["pack", "none.toml"],
        ["run", "none.pkg"],
        ["run", "JOB.toml"],
        ["verify", "none"],
        ["verify", "code", "--challenge", "JOB.toml"],
        ["challenge", "none"],
        ["answer", "none", "JOB.toml"],
        ["certificate", "none"],
        ["verify", "code", "--checks", "some"],
        ["run", "job.pkg", "--json", "/none/x.json"],
    ],
)
def test_bad_input_is_refused_in_one_line(owl: Owl, package: Path, words: list[str], home: Path) -> None:
    before = {path.name for path in (home / "work").iterdir()}
    code, out, err = owl("job", *words)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: ")
    assert {path.name for path in (home / "work").iterdir()} == before


@pytest.mark.parametrize("words", [["run", "job.pkg"], ["verify", "code"], ["pack", "JOB.toml"]])
def test_who_has_no_keys_is_told_how_to_make_some(owl: Owl, home: Path, words: list[str]) -> None:
    code, _, err = owl("job", *words)
    assert code == 2
    assert "owl job keys" in err


def test_a_package_for_others_or_altered_is_refused(owl: Owl, package: Path, home: Path) -> None:
    owl("job", "keys", "runner", "-o", "other.key")
    code, _, err = owl("job", "run", "job.pkg", "--key", "other.key")
    assert code == 2
    assert "sealed to others" in err
    package.write_bytes(package.read_bytes()[:-1])
    code, _, err = owl("job", "run", "job.pkg")
    assert code == 2
    assert "cut short" in err
    assert not (home / "work" / "proof").exists()


def test_a_verdict_is_printed_written_and_the_exit_code(
    owl: Owl, package: Path, people: People, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = open_package(package, people.verifier).job.digest.hex()
    verdict = msgspec.structs.replace(VERDICT, job=job)
    monkeypatch.setattr(Host, "verify", lambda *_, **__: verdict)
    code, out, _ = owl("job", "verify", "code", "-o", "certificate.json", "--json", "v.json")
    assert code == 0
    assert "Accepted" in out
    assert msgspec.json.decode((home / "work" / "v.json").read_bytes())["verification_cost"] == 0.01
    refused = msgspec.structs.replace(verdict, status="refused", caught_by="replay", reason="step 7 came out otherwise")
    for verdict in (refused, msgspec.structs.replace(refused, status="unverified", caught_by=None)):
        (home / "work" / "certificate.json").unlink(missing_ok=True)
        code, out, _ = owl("job", "verify", "code", "-o", "certificate.json")
        assert code == 1
        assert verdict.status.capitalize() in out
        assert "step 7 came out otherwise" in out
        assert not (home / "work" / "certificate.json").exists()


def test_the_printed_checks_make_no_certificate(owl: Owl, package: Path, home: Path) -> None:
    code, _, err = owl("job", "verify", "code", "--package", str(package), "--checks", "printed", "-o", "c.json")
    assert code == 2
    assert "--checks printed" in err
    assert not (home / "work" / "c.json").exists()


def test_a_challenge_is_drawn_and_answered_as_files(
    owl: Owl, package: Path, people: People, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = read_order(home / "work" / "JOB.toml")
    commitment = committed(home / "work" / "proof", people, own)
    drawn = owl("job", "challenge", "proof", "-o", "c.json", "--json", "-")
    assert drawn.code == 0
    assert drawn.json["commitment"] == commitment.digest.hex()
    answered: list[tuple[Path, Challenge]] = []
    monkeypatch.setattr(Host, "answer", lambda _, *words: answered.append(words))
    found = owl("job", "answer", "proof", "c.json", "--json", "-")
    assert found.json == {
        "job": own.job.digest.hex(),
        "commitment": commitment.digest.hex(),
        "steps": len({*drawn.json["drawn"], *drawn.json["largest"]}),
    }
    assert [challenge.commitment for _, challenge in answered] == [commitment.digest.hex()]
    asked: list[object] = []

    def verify(_: Host, *words: object, **__: object) -> Verdict:
        asked.extend(words)
        return VERDICT

    monkeypatch.setattr(Host, "verify", verify)
    assert owl("job", "verify", "proof", "--challenge", "c.json").code == 0
    assert asked == [Path("proof"), answered[0][1]]
    spoilt = (home / "work" / "c.json").read_text().replace('"exact": true', '"exact": false')
    (home / "work" / "c.json").write_text(spoilt)
    for words in (["answer", "proof", "c.json"], ["verify", "proof", "--challenge", "c.json"]):
        code, _, err = owl("job", *words)
        assert code == 2
        assert "not signed by" in err
    assert len(answered) == 1


def test_a_run_says_what_it_left(
    owl: Owl, package: Path, people: People, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = read_order(home / "work" / "JOB.toml")
    commitment = committed(home / "work" / "proof", people, own)
    told: list[bool] = []

    def run(here: Host, directory: Path) -> None:
        here.listen(Stage("training"))
        here.listen(Progress(20, 40, 0.5))
        told.append(here.unsafe)

    monkeypatch.setattr(Host, "run", run)
    code, out, err = owl("job", "run", "job.pkg", "--json", "-")
    found = msgspec.json.decode(out)
    assert (code, told) == (0, [False])
    assert (found["steps"], found["state_bytes"], found["model"]) == (40, 8, "b" * 64)
    assert found["commitment"] == commitment.digest.hex()
    assert found["proof_bytes"] > 500
    assert "Ran to the end" in err
    (home / "work" / "proof" / "commitment.json").unlink()
    code, out, err = owl("job", "run", "job.pkg", "--unsafe")
    assert (code, told) == (0, [False, True])
    assert "a plain script" in out
    assert "warning: --unsafe" in err


def test_a_certificate_is_checked_offline(owl: Owl, package: Path, people: People, home: Path) -> None:
    here = Host(open_package(package, people.verifier), people.verifier)
    path = home / "work" / "certificate.json"
    path.write_bytes(here.certify(msgspec.structs.replace(VERDICT, job=here.job.digest.hex())))
    code, out, _ = owl("job", "certificate", "certificate.json")
    assert code == 0
    assert "is this the one that you trust?" in out
    found = owl("job", "certificate", "certificate.json", "--verifier", people.verifier.public.signing, "--json", "-")
    assert found.json["runner"] == people.runner.public.signing
    assert certificate.check(path.read_bytes()).steps == 40
    assert owl("job", "certificate", "certificate.json", "--verifier", "me").code == 2
    for words in (["--verifier", people.runner.public.signing], ["--model", "points.bin"]):
        code, out, _ = owl("job", "certificate", "certificate.json", *words)
        assert code == 1
        assert out.startswith("Refused: ")
    code, out, err = owl("job", "certificate", "JOB.toml")
    assert (code, out) == (2, "")
    assert "JOB.toml is no certificate" in err
    content = bytearray(path.read_bytes())
    for place in range(0, len(content), 31):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert owl("job", "certificate", "certificate.json").code in {1, 2}  # 2: it can no longer be read as one
    path.write_bytes(content.replace(b'"steps": 40', b'"steps": 41'))
    assert owl("job", "certificate", "certificate.json").code == 1


def test_certificates_of_other_clients_are_refused_where_one_is_expected(
    owl: Owl, package: Path, people: People, home: Path
) -> None:
    here = Host(open_package(package, people.verifier), people.verifier)
    content = here.certify(msgspec.structs.replace(VERDICT, job=here.job.digest.hex()))
    (home / "work" / "certificate.json").write_bytes(content)
    code, out, _ = owl("job", "certificate", "certificate.json", "--client", people.client.public.signing)
    assert code == 0
    assert here.job.digest.hex() in out
    code, out, _ = owl("job", "certificate", "certificate.json", "--client", people.runner.public.signing)
    assert code == 1
    assert "of another client's order" in out
    assert owl("job", "certificate", "certificate.json", "--client", "me").code == 2


@pytest.mark.parametrize(
    "words", [["run", "job.pkg"], ["verify", "code"], ["challenge", "code"], ["answer", "code", "JOB.toml"]]
)
def test_packages_of_other_clients_are_refused_where_one_is_expected(
    owl: Owl, package: Path, people: People, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    for act in ("run", "verify", "draw", "answer"):
        monkeypatch.setattr(Host, act, lambda *_, **__: pytest.fail("the package was used"))
    code, out, err = owl("job", *words, "--client", people.runner.public.signing)
    assert (code, out) == (2, "")
    assert f"signed by {people.client.public.signing}" in err
    code, _, err = owl("job", *words, "--client", "me")
    assert code == 2
    assert "64 hex digits" in err


@pytest.mark.parametrize(
    "words", [["run", "job.pkg"], ["verify", "code"], ["challenge", "code"], ["answer", "code", "JOB.toml"]]
)
def test_no_keys_are_read_for_a_client_that_is_no_key(owl: Owl, words: list[str], home: Path) -> None:
    code, _, err = owl("job", *words, "--client", "me", "--key", "missing.key")
    assert code == 2
    assert "--client" in err
    assert "missing.key" not in err


def test_a_verdict_says_on_whose_order_it_is_and_why_it_was_dear(
    owl: Owl, package: Path, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = open_package(package, people.verifier).job.digest.hex()
    client = people.client.public.signing
    for cost, said in (
        (0.98, "which is short"),
        (0.01, "1.0 % of the processor time of the whole training "),
        (None, "no step was run"),
    ):
        verdict = msgspec.structs.replace(VERDICT, job=job, verification_cost=cost)
        monkeypatch.setattr(Host, "verify", lambda *_, verdict=verdict, **__: verdict)
        code, out, _ = owl("job", "verify", "code", "--client", client)
        assert code == 0
        assert job in out
        assert client in out
        assert said in out


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("text", ["\x1b]0;owned\x07\x1b[2J", "[/nope] [bold]", "\u202eback", "long " * 800])
def test_words_from_the_sandbox_neither_act_on_a_terminal_nor_end_the_command(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    screen = Screen()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr("sys.stderr", screen)
    with terminal.Stages() as stages, stages.stage("running", 1) as advance:
        heard = listener(stages, advance)
        heard(Stage(text))
        for progress in (Progress(-5, 3, float("nan")), Progress(1 << 62, 1, 1.0), Progress(1, 0, 0.0)):
            heard(progress)
        heard(Stage(text))
    assert not any(one in screen.getvalue() for one in ("\x1b]", "\x07", "\x1b[2J", "\u202e"))
    assert "running" in screen.getvalue() or text[:4] in screen.getvalue()
