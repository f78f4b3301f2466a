"""The outside of the sandbox, without one: what a failure is called, and who may do what."""

import os
import shutil
from pathlib import Path

import msgspec
import pytest

from awfulowl.errors import InputError, JobError, ProofError, SandboxError
from awfulowl.jobs import proof
from awfulowl.jobs.hosting import Host, _failure, allowance
from awfulowl.jobs.job import Bounds
from awfulowl.jobs.messages import Failed, Finished
from awfulowl.jobs.sandbox import command
from awfulowl.jobs.sandbox.confined import Allowance, Outcome
from awfulowl.jobs.verify import Verdict
from awfulowl.limits import GIB
from tests.orders import People, committed, ordered

PEOPLE = People()
OWN = ordered(PEOPLE)
BOUNDS = Allowance(memory_bytes=1000, processes=3, disk_bytes=2000, time_s=5.0)
OUTCOME = Outcome(reason="ok", code=0, seconds=1.0, peak_bytes=None, kept_by=(), errors="")


@pytest.mark.parametrize(
    ("said", "outcome", "reason", "text"),
    [
        (None, {"reason": "time", "code": -9}, "time", "took longer than its 5 s"),
        (None, {"reason": "memory", "code": -9}, "memory", "more memory than its 1000 bytes"),
        (None, {"reason": "processes", "code": -9}, "processes", "more than its 3 processes"),
        (None, {"reason": "disk", "code": -9}, "disk", "more to the disk than its 2000 bytes"),
        (Finished(b""), {"reason": "disk", "code": -9}, "disk", "disk"),
        (Failed("raised", "ValueError"), {"reason": "memory", "code": -9}, "memory", "memory"),
        (
            Failed("raised", "ValueError: why"),
            {"reason": "killed", "code": -9},
            "raised",
            "its code raised: ValueError: why",
        ),
        (Failed("network", "down"), {"reason": "killed", "code": -9}, "network", "network"),
        (None, {"reason": "killed", "code": -11}, "killed", "signal 11"),
        (None, {"reason": "failed", "code": 7, "errors": "a\nlast line\n"}, "ended", "exit code 7; last line"),
        (None, {"reason": "ok", "code": 0}, "ended", "exit code 0"),
    ],
)
def test_every_failure_has_a_name(
    said: Finished | Failed | None, outcome: dict[str, object], reason: str, text: str
) -> None:
    ended = Outcome(**{**{name: getattr(OUTCOME, name) for name in OUTCOME.__struct_fields__}, **outcome})
    error = _failure(OWN.job, said, ended, BOUNDS)
    assert error.reason == reason
    assert text in str(error)
    assert str(error).startswith("job small: ")


def test_no_job_gets_all_of_the_memory() -> None:
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert allowance(Bounds(memory_bytes=have * 4)).memory_bytes < have
    bounds = Bounds(memory_bytes=GIB // 4, processes=7, disk_bytes=9, time_s=11.0)
    assert allowance(bounds) == Allowance(memory_bytes=GIB // 4, processes=7, disk_bytes=9, time_s=11.0)


def test_only_those_whom_the_job_names_may_act(tmp_path: Path) -> None:
    for keys in (PEOPLE.client, PEOPLE.verifier, People().runner):
        with pytest.raises(InputError, match=r"\[keys.runner\]"):
            Host(OWN, keys).run(tmp_path / "proof")
    for keys in (PEOPLE.client, PEOPLE.runner, People().verifier):
        with pytest.raises(InputError, match=r"\[keys.verifier\]"):
            Host(OWN, keys).verify(tmp_path)
        with pytest.raises(InputError, match=r"\[keys.verifier\]"):
            Host(OWN, keys).draw(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_runs_where_there_is_no_sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_bubblewrap", lambda: None)
    for act in (
        lambda: Host(OWN, PEOPLE.client).preflight(),
        lambda: Host(OWN, PEOPLE.runner).run(tmp_path / "proof"),
        lambda: Host(OWN, PEOPLE.verifier).verify(tmp_path / "proof"),
    ):
        with pytest.raises(SandboxError, match="not installed"):
            act()


def test_a_folder_that_is_no_proof_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder"):
        Host(OWN, PEOPLE.verifier).verify(tmp_path / "none")
    (tmp_path / proof.COMMITMENT).write_text("{}")
    verdict = Host(OWN, PEOPLE.verifier).verify(tmp_path)
    assert (verdict.status, verdict.caught_by) == ("refused", "files")


def test_the_code_is_given_no_folder_that_is_not_its_job_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> bytes:
        raise AssertionError("the code was run")

    monkeypatch.setattr(Host, "_perform", never)
    (tmp_path / "diary").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        Host(OWN, PEOPLE.runner).run(tmp_path)
    assert Host(OWN, PEOPLE.verifier).verify(tmp_path).status == "refused"
    other = ordered(PEOPLE, seed=6)
    proof.claim(tmp_path / "other", other.job)
    with pytest.raises(InputError, match="another job"):
        Host(OWN, PEOPLE.runner).run(tmp_path / "other")
    assert Host(OWN, PEOPLE.verifier).verify(tmp_path / "other").status == "refused"


@pytest.mark.parametrize(
    "changes",
    [{}, {"job": "0" * 64}, {"commitment": "1" * 64}, {"model": "2" * 64}, {"status": "refused", "job": "3" * 64}],
)
def test_a_verdict_from_the_sandbox_has_to_be_on_this_proof(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str]
) -> None:
    """The client's code may say what it likes there; on other proofs it says nothing."""
    commitment = committed(tmp_path, PEOPLE, OWN)
    said = Verdict(
        status="accepted",
        caught_by=None,
        reason=None,
        findings=(),
        verification_cost=None,
        replayed_steps=0,
        evaluated_examples=0,
        steps=40,
        exact=True,
        job=OWN.job.digest.hex(),
        commitment=commitment.digest.hex(),
        model=commitment.final,
    )
    said = msgspec.convert(msgspec.to_builtins(said) | changes, Verdict)
    monkeypatch.setattr(Host, "_perform", lambda *_, **__: msgspec.msgpack.encode(said))
    here = Host(OWN, PEOPLE.verifier)
    if not changes:
        assert here.verify(tmp_path) == said
        return
    with pytest.raises(JobError, match="something else than this proof"):
        here.verify(tmp_path)


def test_a_challenge_is_bound_to_the_proof_that_it_was_drawn_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    performed: list[object] = []

    def perform(*words: object, **_: object) -> bytes:
        performed.append(words)
        return b""

    monkeypatch.setattr(Host, "_perform", perform)
    commitment = committed(tmp_path / "proof", PEOPLE, OWN)
    challenge = Host(OWN, PEOPLE.verifier).draw(tmp_path / "proof")
    assert challenge.commitment == commitment.digest.hex()
    assert len(challenge.drawn) in {33, 34}  # and step 0
    again = Host(OWN, PEOPLE.verifier).draw(tmp_path / "proof")
    assert again.drawn != challenge.drawn
    other = msgspec.structs.replace(challenge, commitment="c" * 64)
    for act in (
        lambda: Host(OWN, PEOPLE.runner).answer(tmp_path / "proof", other),
        lambda: Host(OWN, PEOPLE.verifier).verify(tmp_path / "proof", other),
    ):
        with pytest.raises(InputError, match="another commitment"):
            act()
    with pytest.raises(InputError, match=r"\[keys.runner\]"):
        Host(OWN, PEOPLE.verifier).answer(tmp_path / "proof", challenge)
    with pytest.raises(ProofError, match="missing"):
        Host(OWN, PEOPLE.runner).answer(tmp_path, challenge)
    assert performed == []
    Host(OWN, PEOPLE.runner).answer(tmp_path / "proof", challenge)
    assert len(performed) == 1


def test_bounds_that_no_system_knows_are_cut() -> None:
    assert allowance(Bounds(disk_bytes=(1 << 64) - 1)).disk_bytes == 1 << 62


def test_keys_code_and_data_are_in_no_repr() -> None:
    shown = repr(Host(OWN, PEOPLE.runner))
    assert "PrivateKeys" not in shown
    assert "import torch" not in shown
    assert repr(bytes(range(16)))[2:-1] not in shown


def test_no_job_gets_nearly_all_of_the_disk(tmp_path: Path) -> None:
    (tmp_path / "before").write_bytes(bytes(1 << 20))
    free = shutil.disk_usage(tmp_path).free
    greedy = allowance(Bounds(disk_bytes=1 << 62), tmp_path).disk_bytes
    assert 0.5 * free < greedy < 0.95 * free + (2 << 20)
    assert allowance(Bounds(disk_bytes=1 << 20), tmp_path).disk_bytes == 1 << 20
    assert allowance(Bounds(disk_bytes=1 << 63)).disk_bytes == 1 << 62
