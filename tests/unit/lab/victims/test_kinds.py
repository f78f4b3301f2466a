"""Victims: trained once, kept, and refused where nothing could be said of them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from awfulowl.errors import InputError, ModelError
from awfulowl.lab.scenes.grading import share_right
from awfulowl.lab.victims.data import read_split
from awfulowl.lab.victims.kinds import KINDS, check_fits, find_kind, train_victim
from tests.scenes import TINY, digits, tiny_victim

OWN = """
import torch
from torch import nn

def trained():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    {more}
    return model
"""


def own(tmp_path: Path, more: str = "") -> str:
    path = tmp_path / "mine.py"
    path.write_text(OWN.format(more=more))
    return f"{path}:trained"


def test_a_victim_learns_and_equal_seeds_give_equal_weights() -> None:
    victim = tiny_victim()
    assert share_right(victim.model, digits().test) > 0.8
    again = train_victim(TINY, 0, digits()).model.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in victim.model.state_dict().items())
    other = tiny_victim(1).model.state_dict()
    assert not torch.equal(other["hidden.weight"], again["hidden.weight"])
    assert not victim.model.training


def test_training_costs_three_passes_an_image() -> None:
    victim = tiny_victim()
    assert victim.training_flops == 3 * victim.forward_flops * len(digits().train.labels) * TINY.schedule.epochs


def test_a_trained_victim_is_kept_and_a_damaged_one_is_trained_anew(tmp_path: Path) -> None:
    epochs: list[int] = []

    def train() -> dict[str, torch.Tensor]:
        return train_victim(
            TINY, 5, digits(), cache=tmp_path, on_epoch=lambda done, _: epochs.append(done)
        ).model.state_dict()

    first, again = train(), train()
    assert epochs == list(range(1, TINY.schedule.epochs + 1))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    kept = next((tmp_path / "victims").iterdir())
    kept.write_bytes(kept.read_bytes()[:-100])
    third = train()
    assert len(epochs) == 2 * TINY.schedule.epochs
    assert torch.equal(third["hidden.weight"], first["hidden.weight"])


@pytest.mark.parametrize("damage", ["nan", "inf", "shape", "type", "name"])
def test_kept_weights_that_are_none_are_trained_anew(tmp_path: Path, damage: str) -> None:
    victim = tiny_victim()
    first = train_victim(TINY, 0, digits(), cache=tmp_path).model.state_dict()
    (kept,) = (tmp_path / "victims").iterdir()
    sound = kept.read_bytes()
    state = load(sound)
    own = state.pop("head.weight")  # the last one: what comes before it must not be taken either
    state["hidden.weight"] = torch.zeros_like(state["hidden.weight"])
    worse = {"nan": own * float("nan"), "inf": own / 0, "shape": own[:5].clone(), "type": own.double(), "name": own}
    kept.write_bytes(save({**state, "nose" if damage == "name" else "head.weight": worse[damage]}))
    again = train_victim(TINY, 0, digits(), cache=tmp_path).model.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert torch.equal(again["hidden.weight"], victim.model.state_dict()["hidden.weight"])
    assert kept.read_bytes() == sound


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "victims").write_text("a file where the folder should be")
    with pytest.raises(InputError, match="cannot be written"):
        train_victim(TINY, 0, digits(), cache=tmp_path)


def test_known_victims_and_their_networks() -> None:
    assert list(KINDS) == ["digits", "cifar", "vgg16"]
    for kind in KINDS.values():
        if kind.accelerated:
            continue  # half a gigabyte of weights
        model = kind.build(0)
        assert kind.layer is None or isinstance(model.get_submodule(kind.layer), nn.Linear)
        assert all(torch.equal(*pair) for pair in zip(model.parameters(), kind.build(0).parameters(), strict=True))
    with pytest.raises(InputError, match="no victim 'frob'; there are digits, cifar, vgg16, and"):
        find_kind("frob")


def test_a_user_s_own_model_is_the_victim_and_others_get_fresh_weights(tmp_path: Path) -> None:
    kind = find_kind(own(tmp_path, "nn.init.constant_(model[1].weight, 0.01)"))
    victim = train_victim(kind, 0, digits())
    assert victim.model.get_submodule("1").get_parameter("weight").eq(0.01).all()
    foreign = kind.build(1)
    assert not foreign.get_submodule("1").get_parameter("weight").eq(0.01).any()


@pytest.mark.parametrize("value", ["float('nan')", "float('inf')"])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: str) -> None:
    kind = find_kind(own(tmp_path, f"nn.init.constant_(model[1].weight, {value})"))
    with pytest.raises(ModelError, match=r"'1\.weight' holds numbers that are not finite"):
        train_victim(kind, 0, digits())


def test_parts_that_cannot_be_made_fresh_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.py"
    path.write_text(
        "import torch\nfrom torch import nn\n"
        "class Odd(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.w = nn.Parameter(torch.ones(64, 10))\n"
        "    def forward(self, x):\n        return x.flatten(1) @ self.w\n"
    )
    kind = find_kind(f"{path}:Odd")
    with pytest.raises(ModelError, match="without reset_parameters"):
        kind.build(1)


def test_data_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"images of shape \(1, 8, 8\); cifar takes \(3, 32, 32\)"):
        check_fits(KINDS["cifar"], read_split("digits"))
    narrow = tmp_path / "narrow.py"
    narrow.write_text("from torch import nn\ndef make():\n    return nn.Linear(64, 10)\n")
    with pytest.raises(InputError, match="does not take images of shape"):
        check_fits(find_kind(f"{narrow}:make"), digits())
    few = tmp_path / "few.py"
    few.write_text("from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))\n")
    with pytest.raises(InputError, match=r"answers with \(1, 4\)"):
        check_fits(find_kind(f"{few}:make"), digits())
