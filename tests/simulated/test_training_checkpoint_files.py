"""Checkpoints on disk: whole or not there at all, and read with distrust."""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import pytest
import torch
from safetensors.torch import save

import awfulowl as owl
from awfulowl.errors import CheckpointError
from awfulowl.owner import checkpoint
from awfulowl.owner.checkpoint import FACTS, MODEL, TRAINING, VERSION, Facts, newest_checkpoint, read_checkpoint
from tests.simulated.training import Twins, perceptron, training


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, to be copied and damaged."""
    with training(2, momentum=0.9) as pair:
        pair.step(2)
        return pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path_factory.mktemp("good")).result()


@pytest.fixture
def copied(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / written.name))


@pytest.fixture(scope="module")
def pair() -> Iterator[Twins]:
    with training(2, momentum=0.9) as opened:
        yield opened


def save_again(pair: Twins, directory: Path) -> Path:
    return pair.fleet.checkpoint(pair.scattered, pair.ours, directory).result()


def edited(path: Path, change: Callable[[dict[str, Any]], Any], *, sealed: bool = True) -> None:
    """Change the facts, and if `sealed` their digest too, as somebody would who may write there."""
    file = msgspec.json.decode((path / FACTS).read_bytes())
    change(file["facts"])
    if sealed:
        file["sha256"] = hashlib.sha256(msgspec.json.encode(file["facts"])).hexdigest()
    (path / FACTS).write_bytes(msgspec.json.encode(file))


def refused(path: Path, match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        owl.read_checkpoint(path)


class TestDamage:
    """Every way in which a file may not be what was written."""

    @pytest.mark.parametrize("name", [FACTS, MODEL, TRAINING])
    @pytest.mark.parametrize("left", [0, 1, 0.5, -1])
    def test_cut_short(self, copied: Path, name: str, left: Any) -> None:
        content = (copied / name).read_bytes()
        end = int(left * len(content)) if isinstance(left, float) else left
        (copied / name).write_bytes(content[:end])
        refused(copied, "damaged|changed|cut short")

    @pytest.mark.parametrize("name", [MODEL, TRAINING])
    @pytest.mark.parametrize("place", [0, 8, 0.5, -1])
    def test_one_bit_of_tensors(self, copied: Path, name: str, place: Any) -> None:
        content = bytearray((copied / name).read_bytes())
        content[int(place * len(content)) if isinstance(place, float) else place] ^= 4
        (copied / name).write_bytes(bytes(content))
        refused(copied, "not what was written")

    @pytest.mark.parametrize("name", [FACTS, MODEL, TRAINING])
    def test_a_missing_file(self, copied: Path, name: str) -> None:
        (copied / name).unlink()
        refused(copied, "no checkpoint")

    @pytest.mark.parametrize("name", [FACTS, MODEL, TRAINING])
    def test_a_folder_in_the_place_of_a_file(self, copied: Path, name: str) -> None:
        (copied / name).unlink()
        (copied / name).mkdir()
        refused(copied, "no checkpoint")

    def test_files_of_another_checkpoint(self, copied: Path, pair: Twins, tmp_path: Path) -> None:
        pair.step()
        other = save_again(pair, tmp_path / "other")
        shutil.copy(other / MODEL, copied / MODEL)
        refused(copied, "not what was written")

    def test_files_in_the_place_of_each_other(self, copied: Path) -> None:
        (copied / MODEL).write_bytes((copied / TRAINING).read_bytes())
        refused(copied, "not what was written")

    @pytest.mark.parametrize(
        "change",
        [
            {"drift": {"0": -1e-9}},
            {"drift": {"0": "much"}},
            {"step": -1},
            {"step": 1.5},
            {"model": 3},
            {"has_momentum": "0"},
            {"groups": {}},
            {"random": [1]},
            {"extra": []},
            {"sha256": {}},
            {"sha256": {MODEL: "0" * 64, TRAINING: "0" * 64}},
            {"other": 1},
        ],
        ids=str,
    )
    def test_facts_that_were_edited_with_care(self, copied: Path, change: dict[str, Any]) -> None:
        edited(copied, lambda facts: facts.update(change))
        refused(copied, "damaged|not what was written")

    @pytest.mark.parametrize(
        "change",
        [
            {"step": 7},
            {"has_momentum": []},
            {"adapted": {"0": 3}},
            {"drift": {}},
            {"groups": [{"lr": 0.2}]},
            {"groups": [{"lr": "much"}]},
            {"groups": [3]},
            {"groups": []},
            {"random": ""},
            {"extra": {"scheduler": {}}},
        ],
        ids=str,
    )
    def test_facts_that_were_edited(self, copied: Path, change: dict[str, Any]) -> None:
        """What reads well, and would stop a training much later or let it go on wrongly."""
        edited(copied, lambda facts: facts.update(change), sealed=False)
        refused(copied, "not what was written")

    @pytest.mark.parametrize("every", [97])
    def test_one_byte_of_facts(self, copied: Path, every: int) -> None:
        content = (copied / FACTS).read_bytes()
        for place in range(0, len(content), every):
            wrong = bytearray(content)
            wrong[place] ^= 1
            (copied / FACTS).write_bytes(bytes(wrong))
            refused(copied, "of version|damaged|not what was written")
        (copied / FACTS).write_bytes(content)
        owl.read_checkpoint(copied)

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"version": VERSION + 1}, f"of version {VERSION + 1}"),
            ({"version": 1, "sha256": {}}, "of version 1"),  # of which this was the digest of tensors
            ({"version": "2"}, "damaged"),
            ({"sha256": None}, "damaged"),
            ({"facts": None}, "not what was written"),
            ({"other": 1}, "damaged"),
        ],
        ids=str,
    )
    def test_what_is_around_facts(self, copied: Path, change: dict[str, Any], match: str) -> None:
        file = msgspec.json.decode((copied / FACTS).read_bytes())
        (copied / FACTS).write_bytes(msgspec.json.encode(file | change))
        refused(copied, match)

    @pytest.mark.parametrize("field", ["version", "sha256", "facts"])
    def test_nothing_around_facts(self, copied: Path, field: str) -> None:
        file = msgspec.json.decode((copied / FACTS).read_bytes())
        del file[field]
        (copied / FACTS).write_bytes(msgspec.json.encode(file))
        refused(copied, "damaged")

    @pytest.mark.parametrize("change", [lambda random: b"", lambda random: random[:-1], lambda random: random + b"0"])
    def test_a_random_state_of_another_length(self, copied: Path, change: Callable[[bytes], bytes]) -> None:
        found = owl.read_checkpoint(copied)
        facts = msgspec.structs.replace(found.facts, random=change(found.facts.random))
        before = torch.get_rng_state()
        with pytest.raises(CheckpointError, match="random state is of"):
            msgspec.structs.replace(found, facts=facts).restore_random_state()
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_random_state_of_another_generator(self, copied: Path) -> None:
        found = owl.read_checkpoint(copied)
        facts = msgspec.structs.replace(found.facts, random=b"\xff" * len(found.facts.random))
        before = torch.get_rng_state()
        with pytest.raises(CheckpointError, match="none of this PyTorch"):
            msgspec.structs.replace(found, facts=facts).restore_random_state()
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("field", Facts.__struct_fields__)
    def test_facts_without(self, copied: Path, field: str) -> None:
        edited(copied, lambda facts: facts.pop(field))
        refused(copied, "damaged")

    @pytest.mark.parametrize("content", [b"", b"[]", b"null", b"\xff\xfe", b"{", b"[" * 100_000, b"{}"])
    def test_facts_that_are_something_else(self, copied: Path, content: bytes) -> None:
        (copied / FACTS).write_bytes(content)
        refused(copied, "damaged")

    def test_facts_larger_than_any_can_be(self, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(checkpoint, "_MOST_FACTS_BYTES", 1000)
        edited(copied, lambda facts: facts.update(extra={"much": "x" * 2000}))
        refused(copied, "larger than 1000 bytes")

    def test_tensors_that_are_none(self, copied: Path) -> None:
        """Right by their digest, and no tensors."""
        self.replace(copied, MODEL, b"\xff" * 64)
        refused(copied, "damaged")

    def replace(self, path: Path, name: str, content: bytes) -> None:
        """Put a file in place of another and correct its digest, as somebody would who may write there."""
        (path / name).write_bytes(content)
        edited(path, lambda facts: facts["sha256"].update({name: hashlib.sha256(content).hexdigest()}))

    @pytest.mark.parametrize("state", [{}, {"weight/0": torch.zeros(2)}, {"weight/0": torch.zeros(8, 12).double()}])
    def test_states_that_do_not_fit(self, copied: Path, pair: Twins, state: dict[str, torch.Tensor]) -> None:
        self.replace(copied, TRAINING, save(state))
        found = owl.read_checkpoint(copied)
        model = perceptron()
        plan = owl.plan(model, devices=pair.fleet)
        with pytest.raises(CheckpointError, match="no state of"):
            pair.fleet.scatter(model, plan, train=True, checkpoint=found)


@pytest.mark.parametrize("path", ["nowhere", "."])
def test_no_checkpoint_at_all(tmp_path: Path, path: str) -> None:
    refused(tmp_path / path, "no checkpoint")
    assert newest_checkpoint(tmp_path / path) is None


def test_the_newest_in_a_directory_is_read(written: Path) -> None:
    assert owl.read_checkpoint(written.parent).facts == owl.read_checkpoint(written).facts


class Crash(BaseException):
    """The end of the process, as far as a test can have it."""


def crash(*_: Any, **__: Any) -> NoReturn:
    raise Crash


def full(*_: Any, **__: Any) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write_next(written: Path, directory: Path) -> Path:
    """Write a checkpoint of the step after one that exists."""
    found = read_checkpoint(written)
    facts = msgspec.structs.replace(found.facts, step=found.facts.step + 1)
    return checkpoint.write_checkpoint(directory, facts, found.model, found.training)


AT: dict[str, Callable[[pytest.MonkeyPatch, Any], None]] = {
    "making the folder": lambda patch, fail: patch.setattr(Path, "mkdir", fail),
    "opening a file": lambda patch, fail: patch.setattr(checkpoint, "_write", fail),
    "writing": lambda patch, fail: patch.setattr(os, "fdopen", fail),
    "flushing": lambda patch, fail: patch.setattr(os, "fsync", fail),
    "the last file": lambda patch, fail: patch.setattr(msgspec.json, "encode", fail),
    "renaming": lambda patch, fail: patch.setattr(Path, "rename", fail),
}


@pytest.mark.parametrize("at", AT)
def test_a_crash_leaves_the_checkpoint_before(at: str, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {file.name: file.read_bytes() for file in copied.iterdir()}
    with monkeypatch.context() as patch:
        AT[at](patch, crash)
        with pytest.raises(Crash):
            write_next(copied, copied.parent)
    assert newest_checkpoint(copied.parent) == copied
    assert {file.name: file.read_bytes() for file in copied.iterdir()} == before
    assert write_next(copied, copied.parent) == newest_checkpoint(copied.parent)
    checkpoint.prune_checkpoints(copied.parent, 2)
    assert len(list(copied.parent.iterdir())) == 2


@pytest.mark.parametrize("at", [name for name in AT if name != "the last file"])
def test_a_full_disk_costs_the_checkpoint_and_nothing_else(
    at: str, pair: Twins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.step()
    save_again(pair, tmp_path)
    steps = pair.ours.steps
    pair.step()
    with monkeypatch.context() as patch:
        AT[at](patch, full)
        writing = pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path)
        with pytest.raises(CheckpointError, match="No space left"):
            writing.result()
    assert [path.name for path in tmp_path.iterdir()] == [f"step-{steps:010d}"]
    pair.step()
    save_again(pair, tmp_path)
    assert owl.read_checkpoint(tmp_path).facts.step == steps + 2
    pair.agree()


def test_facts_nested_too_deep(copied: Path) -> None:
    edited(copied, lambda facts: facts.update(extra={"deep": 1}))
    content = (copied / FACTS).read_bytes()
    (copied / FACTS).write_bytes(content.replace(b'"deep":1', b'"deep":' + b"[" * 100_000 + b"]" * 100_000))
    try:
        refused(copied, "damaged|nested")
    except RecursionError:
        found = True  # pytest cannot print its trace
    else:
        found = False
    assert not found


def test_a_crash_while_a_step_is_written_again_leaves_one(
    pair: Twins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_again(pair, tmp_path)
    with monkeypatch.context() as patch:
        AT["renaming"](patch, full)
        with pytest.raises(CheckpointError):
            save_again(pair, tmp_path)
    assert owl.read_checkpoint(path).facts.step == pair.ours.steps
