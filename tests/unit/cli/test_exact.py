"""What the command line says of exact integers and of shares."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from rich.console import Console
from torch import nn

from awfulowl.cli import comparison, tables
from awfulowl.cli.comparison import MODES, Mode, compare
from awfulowl.cli.plan_report import PlanReport
from awfulowl.cli.terminal import Stages
from awfulowl.models.data import Labelled
from awfulowl.placement import store
from awfulowl.placement.exposure import Coalition, expose
from awfulowl.placement.request import plan
from tests.simulated.memory_fleet import memory_fleet
from tests.unit.cli.conftest import Owl

PARTIES = "d1@a,d2@b,d3@c,d4@a,d5@b,d6@c"


def test_the_error_of_every_layer_is_shown(owl: Owl) -> None:
    report = msgspec.json.decode(owl("inspect", "digits", "--arithmetic", "int8", "--json", "-").out, type=PlanReport)
    assert report.plan.arithmetic == "int8"
    assert all(panel.arithmetic == "int8" for panel in report.plan.panels)
    assert all(panel.error is not None and 0 < panel.error < 0.05 for panel in report.plan.panels)
    out = owl("inspect", "digits", "--arithmetic", "int8").out
    assert "error" in out
    assert "int8" in out


def test_the_limit_of_auto_is_part_of_its_name(owl: Owl) -> None:
    chosen = [
        {
            panel["arithmetic"]
            for panel in owl("inspect", "digits", "--arithmetic", word, "--json", "-").json["plan"]["panels"]
        }
        for word in ("auto:0.5", "auto:1e-9")
    ]
    assert chosen == [{"int8"}, {"int16"}]


@pytest.mark.parametrize("command", ["inspect", "plan"])
def test_a_limit_that_is_not_kept_is_said(owl: Owl, command: str) -> None:
    said = "no integers are within the error budget of 1e-09 for layers.0 (int16, error "
    for word, is_said in (("auto:1e-9", True), ("auto:0.5", False), ("int8", False)):
        arguments = (command, "mlp:32-16-8", "--arithmetic", word)
        notes = owl(*arguments, "--json", "-").json["plan"]["notes"]
        assert any(note.startswith(said) for note in notes) == is_said
        assert (said in owl(*arguments).out) == is_said


def test_integers_take_fewer_bytes_than_floats(owl: Owl) -> None:
    traffic = [
        owl("inspect", "digits", "--arithmetic", arithmetic, "--json", "-").json["bytes_per_sample"]
        for arithmetic in ("int8", "float32", "int16")
    ]
    assert traffic == sorted(traffic)


def test_seen_and_held_shares_of_coalitions_are_shown(owl: Owl) -> None:
    command = ("plan", "mlp:32-16-8", "--devices", PARTIES, "--arithmetic", "int8", "--sharing")
    inputs = msgspec.json.decode(owl(*command, "inputs:2", "--json", "-").out, type=PlanReport).exposure
    both = msgspec.json.decode(owl(*command, "replicated", "--json", "-").out, type=PlanReport).exposure
    one_of_three, two_of_three = inputs.model[1], inputs.model[2]
    assert one_of_three.seen == 0 < one_of_three.held
    assert 0 < two_of_three.seen < two_of_three.held == pytest.approx(1)
    assert [(one.seen, one.held) for one in both.model] == [(0, 0), (0, 0), (1, 1)]
    out = owl(*command, "replicated").out
    assert "inputs seen, and below weights held" in out
    assert "they hold the same shares" not in out
    assert "Shares protect from whoever has too few of them" in out


def test_without_shares_a_coalition_holds_what_it_sees(owl: Owl) -> None:
    command = ("plan", "mlp:32-16-8", "--devices", PARTIES)
    found = msgspec.json.decode(owl(*command, "--json", "-").out, type=PlanReport).exposure
    coalitions = [one for panel in found.panels for one in panel.coalitions]
    assert all((one.seen, one.projected) == (one.held, one.held_projected) for one in coalitions)
    assert "Of the weights they hold the same shares, where devices hold whole columns" in owl(*command).out


def test_a_shared_plan_is_kept_and_read_again(owl: Owl, home: Path) -> None:
    options = ("--devices", PARTIES, "--arithmetic", "int16", "--sharing", "replicated")
    assert owl("plan", "mlp:32-16-8", *options, "-o", "plan.owl").code == 0
    kept = store.load(Path("plan.owl"), store.fleet_key(home / "data" / "awfulowl" / "fleet.key"))
    assert (kept.arithmetic, kept.sharing) == ("int16", "replicated")
    assert owl("plan", "--show", "plan.owl", "--json", "-").json["plan"]["sharing"] == "replicated"


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--arithmetic", "int4"), 2, "float32, int8, int16"),
        (("--sharing", "inputs:2"), 2, "needs exact integers"),
        (("--arithmetic", "int8", "--sharing", "inputs:1"), 2, "between 2 and 8"),
        (("--arithmetic", "int8", "--sharing", "shamir"), 2, "is none of inputs:2 to inputs:8"),
        (("--arithmetic", "int8", "--sharing", "inputs:2"), 2, "needs 2 domains"),
        (("--arithmetic", "auto:0"), 2, "error budget"),
        (("--arithmetic", "auto:x"), 2, "error budget"),
    ],
)
def test_what_cannot_be_is_said(owl: Owl, options: tuple[str, ...], code: int, words: str) -> None:
    found = owl("inspect", "mlp:32-16-8", *options)
    assert found.code == code
    assert words in found.err


def test_a_layer_that_fits_no_integers_is_refused_by_name(owl: Owl, model_file: Callable[[str], str]) -> None:
    model = model_file("return nn.Sequential(nn.Linear(133145, 1)), torch.zeros(1, 133145)")
    found = owl("inspect", model, "--arithmetic", "int8")
    assert found.code != 0
    assert "0 adds up 133145 products" in found.err
    assert "int16" in found.err
    assert owl("inspect", model, "--arithmetic", "auto").code == 0


def test_every_mode_is_served_and_compared() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    images = torch.rand(20, 1, 8, 8)
    with torch.no_grad():
        labels = model(images).argmax(1)
    with memory_fleet(6) as fleet, Stages() as stages:
        modes = compare(fleet, model, Labelled(images, labels), 8, stages)
        assert fleet.held_blocks == 0
    assert [(mode.arithmetic, mode.sharing) for mode in modes] == list(MODES)
    assert [mode.equal_to_twin for mode in modes] == [None, True, True, True]
    assert modes[0].accuracy == 1
    assert all(mode.images_per_s > 0 and mode.bytes_per_image > 0 for mode in modes)
    smallest = [mode.coalitions[0] for mode in modes]
    assert [one.seen > 0 for one in smallest] == [True, True, False, False]
    assert [one.held > 0 for one in smallest] == [True, True, True, False]


def test_modes_are_shown_side_by_side() -> None:
    coalition = Coalition(0.3, 3, 8, 0.1, 0.2, 0.25, 0.35)
    modes = [
        Mode("float32", None, 0.99, 1234.5, 2000.0, None, (coalition,)),
        Mode("int8", "replicated", 0.98, 20.0, 3000.0, equal_to_twin=True, coalitions=(coalition,)),
        Mode("int8", "inputs:2", 0.98, 20.0, 3000.0, equal_to_twin=False, coalitions=(coalition,)),
    ]
    console = Console(width=200, record=True)
    comparison.show(modes, console)
    lines = console.export_text()
    for words in ("float32, nothing", "1,234", "10 / 25", "equal", "DIFFERS", "30 %: 3 of 8", "98.0 %"):
        assert words in lines


def test_exposure_of_unshared_plans_looks_as_before() -> None:
    console = Console(width=200, record=True)
    tables.exposure(console, expose(plan(nn.Linear(64, 8), devices=4)))
    text = console.export_text()
    assert "by single devices" in text
    assert "least" in text
    assert "held" not in text
