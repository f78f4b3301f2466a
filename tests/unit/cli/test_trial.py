"""What `owl run` does around the fleet."""

from pathlib import Path

import msgspec
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from awfulowl.cli import trial
from awfulowl.cli.trial import Trial, _timed, repeated, tensors
from tests.unit.cli.conftest import Owl


@pytest.fixture
def identities(owl: Owl) -> None:
    for name in ("owner", "d1", "d2"):
        assert owl("identity", name, "-o", f"{name}.key", "--json", f"{name}.json").code == 0


def test_examples_are_repeated_along_their_samples() -> None:
    x = torch.arange(6).reshape(2, 3)
    many = repeated(x, 2)
    assert isinstance(many, Tensor)
    assert torch.equal(many, torch.cat([x, x]))


def test_examples_of_many_parts_are_repeated_in_each() -> None:
    x, number = torch.ones(1, 2), torch.tensor(3.0)
    many = repeated((x, {"a": x, "b": number}), 4)
    assert isinstance(many, tuple)
    assert many[0].shape == many[1]["a"].shape == (4, 2)
    assert many[1]["b"] is number
    assert repeated("text", 3) == "text"


def test_all_tensors_of_an_answer_are_found() -> None:
    a, b, c = (torch.full((1,), float(number)) for number in range(3))
    assert list(tensors({"x": a, "y": (b, [c, None, "text"])})) == [a, b, c]
    assert list(tensors(a)) == [a]
    assert list(tensors(None)) == []


def test_a_model_is_called_as_often_as_asked() -> None:
    progress: list[float] = []
    asked: list[Tensor] = []
    layer = nn.Identity()
    layer.register_forward_hook(lambda _, inputs, __: asked.append(inputs[0]))
    answer, seconds = _timed(layer, torch.ones(1), 5, progress.append)
    assert isinstance(answer, Tensor)
    assert len(asked) == 5
    assert progress == [1, 2, 3, 4, 5]
    assert seconds >= 0


def test_what_was_found_is_shown() -> None:
    found = Trial(
        model="digits",
        devices=4,
        calls=10,
        samples_per_call=8,
        max_abs_diff=1.5e-8,
        max_abs_output=0.146,
        seconds_local=0.0005,
        seconds_scattered=0.029,
        bytes_per_sample=110_000,
        statistics={"checks": 5360, "checks_failed": 1, "requests_lost": 0, "kept": 0, "given_out": 0},
        notes=("share relaxed",),
    )
    console = Console(width=120, no_color=True)
    with console.capture() as capture:
        trial.show(found, console)
    for words in ("digits on 4 devices", "10 of 8 samples", "1.50e-08", "0.5 ms", "29.0 ms", "107 KiB", "5,360"):
        assert words in capture.get()
    assert msgspec.json.decode(msgspec.json.encode(found), type=Trial) == found


def test_layers_that_the_owner_took_back_are_shown() -> None:
    counted = {"checks": 1, "checks_failed": 0, "requests_lost": 0, "kept": 3, "given_out": 1}
    found = Trial(
        model="digits",
        devices=2,
        calls=1,
        samples_per_call=1,
        max_abs_diff=0.0,
        max_abs_output=1.0,
        seconds_local=0.1,
        seconds_scattered=0.1,
        bytes_per_sample=1,
        statistics=counted,
        notes=(),
    )
    console = Console(width=120, no_color=True)
    for statistics, words in ((counted, "3: the rules"), (counted | {"kept": 0, "given_out": 0}, "none")):
        with console.capture() as capture:
            trial.show(msgspec.structs.replace(found, statistics=statistics), console)
        (row,) = [line for line in capture.get().splitlines() if "layers taken back" in line]
        assert words in row


URL = "nats://127.0.0.1:9"


@pytest.mark.usefixtures("identities")
@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        (["digits", "--url", URL, "--identity", "owner.key", "--device", "d1.json"], 1, "no broker lets us in"),
        (["digits", "--url", URL, "--identity", "d1.key", "--device", "d1.json"], 2, "this identity is of 'd1'"),
        (["digits", "--url", "tls//x", "--identity", "owner.key", "--device", "d1.json"], 2, "no address of a broker"),
        (["digits", "--url", URL, "--identity", "nowhere", "--device", "d1.json"], 2, "nowhere cannot be read"),
        (["digits", "--url", URL, "--identity", "owner.key", "--device", "d1.key"], 2, "is no enrolment"),
        (["digits", "--url", URL, "--identity", "owner.key"], 2, "--device"),
        (["frob", "--url", URL, "--identity", "owner.key", "--device", "d1.json"], 2, "no model 'frob'"),
        (
            ["digits", "--url", URL, "--identity", "owner.key", "--device", "d1.json", "--plan", "none.owl"],
            2,
            "there is no key file",
        ),
    ],
)
def test_bad_input_is_refused(owl: Owl, words: list[str], code: int, complaint: str) -> None:
    outcome = owl("run", *words)
    assert (outcome.code, outcome.out) == (code, "")
    assert complaint in outcome.err.splitlines()[-1]


@pytest.mark.usefixtures("identities")
@pytest.mark.parametrize(
    ("enrolled", "missing"), [(["d1"], ["d2", "d3"]), (["d1", "d2"], ["d3"]), (["d1", "d2", "d3"], [])]
)
def test_devices_of_a_plan_that_are_not_named_are(owl: Owl, enrolled: list[str], missing: list[str]) -> None:
    assert owl("identity", "d3", "-o", "d3.key", "--json", "d3.json").code == 0
    assert owl("plan", "digits", "--devices", "d1@one,d2@two,d3@three", "-o", "plan.owl").code == 0
    devices = [word for name in enrolled for word in ("--device", f"{name}.json")]
    outcome = owl("run", "digits", "--url", URL, "--identity", "owner.key", *devices, "--plan", "plan.owl")
    complaint = outcome.err.splitlines()[-1]
    if not missing:
        assert "no broker lets us in" in complaint
        return
    assert (outcome.code, outcome.out) == (2, "")
    assert f"plan.owl is a plan for devices that are not here: {', '.join(missing)}. " in complaint
    assert f"owl plan digits --devices {','.join(enrolled)} -o FILE" in complaint
    assert "--device" in complaint


@pytest.mark.usefixtures("identities")
def test_a_model_without_an_example_cannot_be_tried(owl: Owl) -> None:
    Path("model.py").write_text("from torch import nn\ndef make(): return nn.Linear(4, 4)\n")
    words = ["model.py:make", "--url", URL, "--identity", "owner.key", "--device", "d1.json"]
    code, _, err = owl("run", *words)
    assert code == 2
    assert "without an example" in err


@pytest.mark.usefixtures("identities")
def test_going_without_seals_is_warned_of(owl: Owl) -> None:
    words = ["digits", "--url", URL, "--identity", "owner.key", "--device", "d1.json", "--plain"]
    assert owl("run", *words).err.startswith("warning: nothing is sealed: ")
