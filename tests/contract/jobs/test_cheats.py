"""What every runner that cheats keeps: its share, its secret from all checks but re-execution, and its end there."""

import math
from pathlib import Path

import pytest

from awfulowl.errors import InputError
from awfulowl.jobs import proof
from awfulowl.jobs.challenge import answer
from awfulowl.jobs.cheats.base import Cheat, Elsewhere
from awfulowl.jobs.cheats.catalogue import CHEATS, catalogue
from awfulowl.jobs.checks.catalogue import SOUND
from awfulowl.jobs.loop import Work
from awfulowl.jobs.verify import verify
from tests.unit.jobs.small import STEPS, asked, everything, made, small_work

PHI = 0.3
WORK = small_work()
ELSEWHERE = Elsewhere(WORK)

each_cheat = pytest.mark.parametrize("name", CHEATS)


def cheat(name: str, phi: float = PHI, work: Work = WORK) -> Cheat:
    return CHEATS[name](work, phi, ELSEWHERE, 7)


@pytest.fixture(scope="module")
def proofs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("cheats")
    return {name: made(WORK, folder / name, cheat(name)) for name in CHEATS}


@each_cheat
@pytest.mark.parametrize("phi", [0.01, 0.1, 0.25, 0.5, 1.0])
def test_the_share_is_what_was_asked_for(name: str, phi: float) -> None:
    own = cheat(name, phi)
    assert len(own.faked) == min(STEPS - 1, max(1, math.ceil(phi * STEPS)))
    assert own.faked <= set(range(1, STEPS))  # everybody knows that step 0 is run again


@each_cheat
@pytest.mark.parametrize("phi", [0.0, -0.1, 1.1, math.nan])
def test_shares_that_are_none(name: str, phi: float) -> None:
    with pytest.raises(InputError, match="phi"):
        cheat(name, phi)


@each_cheat
def test_steps_that_are_not_faked_pass(name: str, proofs: dict[str, Path]) -> None:
    """Challenged where it was honest, the cheat is accepted: nothing else gives it away."""
    own, directory = cheat(name), proofs[name]
    honest = tuple(step for step in range(STEPS) if step not in own.faked)
    wanted = asked(WORK, directory, drawn=honest, largest=(), epochs=())
    found = verify(WORK, directory, wanted, answered=False)
    # To rebuild a state the verifier runs steps that may be faked; an answer has only those that were asked for.
    answer(WORK, directory, wanted, conduct=proven(name, directory))
    answered = verify(WORK, directory, wanted, answered=True)
    assert (answered.status, answered.reason) == ("accepted", None)
    assert found.caught_by in {None, "replay"}


def proven(name: str, directory: Path) -> Cheat:
    """The cheat as it was when it made its proof, with what it keeps for itself."""
    own = cheat(name)
    made(WORK, directory.with_name(f"{name}-again"), own)
    return own


@each_cheat
def test_every_faked_step_is_caught(name: str, proofs: dict[str, Path]) -> None:
    directory = proofs[name]
    faked = sorted(cheat(name).faked)
    own = proven(name, directory)
    for step in (faked[0], faked[len(faked) // 2], faked[-1]):
        wanted = asked(WORK, directory, drawn=(0, step), largest=(), epochs=())
        answer(WORK, directory, wanted, conduct=own)
        found = verify(WORK, directory, wanted, answered=True)
        assert (found.status, found.caught_by) == ("refused", "replay")
        assert f"step {step}" in (found.reason or "")


@each_cheat
def test_the_log_is_a_possible_one(name: str, proofs: dict[str, Path]) -> None:
    found = verify(WORK, proofs[name], everything(WORK, proofs[name]), answered=False, which="all", thorough=True)
    refused = {one.check for one in found.findings if one.reason}
    assert refused.isdisjoint({"start", "final", "log", "printed: N = E x I"})
    assert "replay" in refused
    assert refused <= {"replay", "epochs"} | {one.check for one in found.findings if one.printed}
    assert "epochs" not in refused or name == "fabricated-logs"  # all others tell true evaluations


@each_cheat
def test_the_whole_job_can_be_faked(name: str, tmp_path: Path) -> None:
    directory = made(WORK, tmp_path / "proof", cheat(name, 1.0))
    assert verify(WORK, directory, everything(WORK, directory), answered=False).caught_by == "replay"


@each_cheat
def test_equal_seeds_cheat_alike(name: str, proofs: dict[str, Path], tmp_path: Path) -> None:
    again = made(WORK, tmp_path / "again", cheat(name))
    assert proof.read_commitment(again, WORK.job).root == proof.read_commitment(proofs[name], WORK.job).root


@each_cheat
def test_a_cheat_says_what_it_does(name: str) -> None:
    assert CHEATS[name].name == name
    assert len(CHEATS[name].does.split()) >= 3


def test_names_are_used_once() -> None:
    kind = next(iter(CHEATS.values()))
    with pytest.raises(InputError, match="share a name"):
        catalogue(kind, kind)


def test_all_that_were_ordered_are_there() -> None:
    assert len(CHEATS) == 14
    assert [check.name for check in SOUND] == ["start", "final", "log", "replay", "epochs"]
