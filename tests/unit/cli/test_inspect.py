"""`owl inspect`: what it says of models."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from awfulowl.cli.plan_report import PlanReport
from tests.unit.cli.conftest import Owl


def test_the_report_in_numbers(owl: Owl) -> None:
    code, out, err = owl("inspect", "digits", "--devices", "8", "--json", "-")
    assert code == 0
    report = msgspec.json.decode(out, type=PlanReport)
    assert report.model == "digits"
    assert (report.scattered_parameters, report.parameters) == (151_072, 151_306)
    assert report.scattered_parameter_share == 151_072 / 151_306
    assert (report.outsourced_flops, report.outsourced_flop_share) == (report.flops, 1.0)
    assert [panel.name for panel in report.plan.panels] == ["conv1", "conv2", "hidden", "head"]
    assert report.blocks == sum(panel.blocks for panel in report.plan.panels)
    assert sum(device.blocks for device in report.plan.devices) == report.plan.rules.replicas * report.blocks
    assert [coalition.members for coalition in report.exposure.model] == [1, 3, 4]
    assert all(one.seen <= one.projected <= 1 for one in report.exposure.model)
    assert "of 151,306" in err


def test_the_report_in_words(owl: Owl) -> None:
    code, out, err = owl("inspect", "digits")
    assert (code, err) == (0, "")
    for words in ("parameters on devices", "99.8 %", "traffic a sample", "hidden", "d8", "10 %: 1 of 8", "relaxed"):
        assert words in out
    assert "Positions alone protect nothing" in out
    assert "\x1b" not in out


def test_what_is_kept_is_named_with_its_reason(owl: Owl, model_file: Callable[[str], str]) -> None:
    model = model_file(
        "return nn.Sequential(nn.Embedding(9, 8), nn.LayerNorm(8), nn.Linear(8, 8)), torch.tensor([[1]])"
    )
    out = owl("inspect", model, "--devices", "2").out
    kept = out[out.index("Kept at the owner") :]
    assert "  - 0: " in kept
    assert "  - 1: " in kept


def test_layers_can_be_kept_by_request(owl: Owl) -> None:
    found = owl("inspect", "mlp:16-12-8", "--keep", "layers.0", "--json", "-").json
    assert found["plan"]["kept"] == [["layers.0", "kept by request"]]
    assert found["scattered_parameters"] == 12 * 8


def test_exceptions_to_the_rules_are_said(owl: Owl, model_file: Callable[[str], str]) -> None:
    model = model_file("return nn.Linear(1, 8), torch.ones(1, 1)")
    found = owl("inspect", model, "--devices", "4", "--json", "-")
    assert found.json["exceptions"] != []
    assert found.json["exceptions"][0] in found.err


def test_the_alarm_is_said(owl: Owl) -> None:
    code, out, _ = owl("inspect", "mlp:16-8", "--devices", "1")
    assert code == 0
    assert "ALARM" in out
    assert "100%" in out


def test_domains_are_what_coalitions_are_made_of(owl: Owl) -> None:
    found = owl("inspect", "mlp:32-8", "--devices", "a@x,b@x,c@y,d@z", "--json", "-").json
    assert found["exposure"]["units"] == "domains"
    assert found["exposure"]["model"][0]["of"] == 3
    assert [device["domain"] for device in found["plan"]["devices"]] == ["x", "x", "y", "z"]


def test_a_block_may_be_chosen(owl: Owl) -> None:
    panel = owl("inspect", "mlp:64-32", "--block", "8x16", "--devices", "2", "--json", "-").json["plan"]["panels"][0]
    assert panel["rows"] == 4
    assert panel["columns"] >= 4


def test_without_an_example_operations_are_not_known(owl: Owl, model_file: Callable[[str], str]) -> None:
    found = owl("inspect", model_file("return nn.Linear(16, 8)"), "--devices", "2", "--json", "-")
    assert found.json["flops"] is None
    assert found.json["outsourced_flop_share"] is None
    assert "unknown" in found.err
    assert "no example was given" in found.err
    assert "operations and traffic are of one vector a layer" in " ".join(found.err.split())


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["frob"], "no model 'frob'"),
        (["mlp:0"], "mlp takes"),
        (["mlp", "--devices", "0"], "no devices"),
        (["mlp", "--block", "0"], "a block has at least one row"),
        (["mlp", "--keep", "frob"], "keep names 'frob'"),
        (["mlp:8-4", "--keep", "layers.0"], "nothing is left to scatter"),
        (["nowhere.py:make"], "no such Python file"),
        (["mlp", "--json", "/nowhere/a.json"], "there is no folder /nowhere"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(owl: Owl, words: list[str], complaint: str) -> None:
    code, out, err = owl("inspect", *words)
    assert code == 2
    assert out == ""
    assert err.splitlines()[-1].startswith("error: ")
    assert complaint in err


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("return nn.ReLU(), torch.ones(1, 3)", "there is nothing to scatter in this model"),
        ("m = nn.Linear(8, 4)\nm.weight.data[0, 0] = float('nan')\nreturn m, torch.ones(1, 8)", "finite"),
        ("return 5", "must return a torch.nn.Module"),
    ],
)
def test_models_that_cannot_be_scattered_are_refused(
    owl: Owl, model_file: Callable[[str], str], body: str, complaint: str
) -> None:
    code, out, err = owl("inspect", model_file(body), "--json", "-")
    assert (code, out) == (2, "")
    assert complaint in err
    assert list(Path.cwd().glob("*.json")) == []
