"""What a caller adds to a checkpoint: schedulers, generators, the order of data; whatever JSON gives back."""

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

import awfulowl as owl
from awfulowl.errors import InputError
from awfulowl.owner.saving import check_extra
from tests.simulated.training import Twins, training


@pytest.fixture(scope="module")
def pair() -> Iterator[Twins]:
    with training(2, momentum=0.9) as opened:
        yield opened


@pytest.mark.parametrize(
    "extra",
    [
        {"one": object()},
        {"one": torch.zeros(1)},
        {"one": math.inf},
        {"one": {1: 2}},
        lr_scheduler.MultiStepLR(torch.optim.SGD([torch.zeros(1)]), [1, 2]).state_dict(),
        lr_scheduler.ReduceLROnPlateau(torch.optim.SGD([torch.zeros(1)])).state_dict(),
    ],
    ids=["object", "tensor", "infinite", "key", "multistep", "plateau"],
)
def test_what_json_does_not_give_back_is_refused(pair: Twins, tmp_path: Path, extra: dict[str, Any]) -> None:
    """Numbers that are keys would come back as strings, and the infinite as nothing."""
    with pytest.raises(InputError, match="extra"):
        pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path, extra=extra)
    assert list(tmp_path.iterdir()) == []
    pair.step()
    pair.agree()


@pytest.mark.parametrize(
    ("extra", "where"),
    [
        ({"one": 1, "two": math.inf}, r"extra\['two'\]"),
        ({"a": {"b": {"c": {1: 2}, "d": 3}}}, r"extra\['a'\]\['b'\]\['c'\]"),
        ({"a": [1, {"b": -math.inf}]}, r"extra\['a'\]"),
        ({"a": {}, 3: 1}, "extra"),
        ({"s": {"milestones": Counter([1, 2])}}, r"extra\['s'\]\['milestones'\]"),
    ],
    ids=str,
)
def test_it_is_said_what_does_not_come_back(extra: dict[str, Any], where: str) -> None:
    with pytest.raises(InputError, match=rf"^{where} would come back"):
        check_extra(extra)


@pytest.mark.parametrize(
    ("make", "known"),
    [
        (lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [1, 3, 6], gamma=0.5), "milestones"),
        (lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=1, factor=0.5), "mode_worse"),
    ],
)
def test_schedulers_go_on_without_what_a_new_one_has(
    make: Callable[[Any], Any], known: str, pair: Twins, tmp_path: Path
) -> None:
    """As `Fleet.checkpoint` says."""

    def rates(scheduler: Any, turns: range) -> list[float]:
        found = []
        for turn in turns:
            scheduler.optimizer.step()
            scheduler.step(*([1.0 + (turn == 0)] if known == "mode_worse" else []))
            found.append(scheduler.get_last_lr()[0])
        return found

    optimizers = [torch.optim.SGD([torch.zeros(1)], lr=0.5) for _ in range(2)]
    scheduler, other = map(make, optimizers)
    rates(scheduler, range(3))
    state = {key: value for key, value in scheduler.state_dict().items() if key != known}
    pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path, extra={"scheduler": state}).result()
    optimizers[1].param_groups[0]["lr"] = optimizers[0].param_groups[0]["lr"]
    other.load_state_dict(owl.read_checkpoint(tmp_path).extra["scheduler"])
    wanted = rates(scheduler, range(3, 9))
    assert rates(other, range(3, 9)) == wanted
    assert len(set(wanted)) > 1


def test_the_random_state_is_that_of_pytorch_on_cpus_alone(pair: Twins, tmp_path: Path) -> None:
    """Others are the caller's, who puts them into `extra`."""
    with torch.random.fork_rng(devices=[]):
        version, numbers, gauss = random.getstate()
        extra = {"random": [version, numbers, gauss]}
        pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path, extra=extra).result()
        wanted = torch.rand(3), random.random()
        found = owl.read_checkpoint(tmp_path)
        found.restore_random_state()
        assert torch.equal(torch.rand(3), wanted[0])
        assert random.random() != wanted[1]
        version, numbers, gauss = found.extra["random"]
        random.setstate((version, tuple(numbers), gauss))
        assert random.random() == wanted[1]


def test_lists_and_tuples_are_one(pair: Twins, tmp_path: Path) -> None:
    pair.fleet.checkpoint(pair.scattered, pair.ours, tmp_path, extra={"one": (1, [2, (3,)])}).result()
    assert owl.read_checkpoint(tmp_path).extra == {"one": [1, [2, [3]]]}
