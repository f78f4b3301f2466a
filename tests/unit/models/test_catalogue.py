import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from awfulowl.errors import InputError
from awfulowl.models.catalogue import CATALOGUE, Entry, load_example, table
from awfulowl.models.transformer import Transformer
from awfulowl.models.vgg import Vgg16


def called(text: str) -> Tensor:
    model, inputs = load_example(text)
    assert not model.training
    with torch.inference_mode():
        answer: Tensor = model(inputs)
    return answer


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("convnet", (1, 10)),
        ("convnet:7", (1, 7)),
        ("digits", (1, 10)),
        ("mlp", (1, 10)),
        ("mlp:", (1, 10)),
        ("mlp:12-7-5", (1, 5)),
        ("transformer", (1, 128, 256)),
        ("transformer:causal", (1, 128, 256)),
    ],
)
def test_every_example_fits_its_model(text: str, shape: tuple[int, ...]) -> None:
    assert called(text).shape == shape


@pytest.mark.parametrize(("text", "classes"), [("vgg16", 100), ("vgg16:7", 7)])
def test_vgg16(text: str, classes: int) -> None:
    with torch.device("meta"):
        model, inputs = load_example(text)
    assert isinstance(model, Vgg16)
    assert model.classifier[-1].out_features == classes
    assert isinstance(inputs, Tensor)
    assert inputs.shape == (1, 3, 32, 32)


def test_options_reach_the_model() -> None:
    model = load_example("transformer:causal").model
    assert isinstance(model, Transformer)
    assert model.config.causal


def test_the_seed_gives_the_weights() -> None:
    first, again, other = (load_example("mlp:4-3", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.model.get_parameter("layers.0.weight"), again.model.get_parameter("layers.0.weight"))
    assert not torch.equal(first.model.get_parameter("layers.0.weight"), other.model.get_parameter("layers.0.weight"))


@pytest.mark.parametrize("text", ["", "resnet", "Digits", ":", "digits.py", "vgg16 ", "resnet:100"])
def test_an_unknown_name_lists_what_there_is(text: str) -> None:
    with pytest.raises(InputError, match=r"path/to/file\.py:function") as error:
        load_example(text)
    assert all(name in str(error.value) for name in CATALOGUE)


@pytest.mark.parametrize(
    "text",
    [
        "digits:10",
        "mlp:5",
        "mlp:5-",
        "mlp:5--3",
        "mlp:5-x",
        "mlp:0-3",
        "mlp:-5-3",
        "mlp:٣-٤",
        "mlp:99999999999999-1",
        "mlp:1000001-1",
        "convnet:0",
        "convnet:ten",
        "vgg16:0",
        "vgg16:ten",
        "vgg16:1.5",
        "transformer:encoder",
        "transformer:causal:causal",
    ],
)
def test_bad_options(text: str) -> None:
    with pytest.raises(InputError, match=r"takes|two widths"):
        load_example(text)


def test_the_table_refuses_duplicates() -> None:
    entry = Entry(name="a", usage="a", make=lambda _: (nn.Identity(), torch.zeros(1)))
    assert table(entry) == {"a": entry}
    with pytest.raises(ValueError, match="called a"):
        table(entry, entry)


SOURCE = """
from dataclasses import dataclass
import torch
from torch import nn
from neighbour import WIDTH

@dataclass
class Sizes:
    width: int = WIDTH

def model():
    return nn.Linear(Sizes().width, 2)

def both(width=5, *more, **options):
    return nn.Linear(width, 2), torch.zeros(1, width)

def needs(width):
    return nn.Linear(width, 2)

def number():
    return 5

def pair():
    return 5, nn.Linear(1, 1)

def broken():
    raise RuntimeError("the user's own error")

constant = 5
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("WIDTH = 3\n")
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


@pytest.fixture(autouse=True)
def _forget_modules() -> None:
    for name in ("neighbour", "awfulowl_user_mine"):
        sys.modules.pop(name, None)


def test_a_function_of_the_user(source: Path) -> None:
    model, inputs = load_example(f"{source}:model")
    assert isinstance(model, nn.Linear)
    assert model.in_features == 3
    assert not model.training
    assert inputs is None


def test_a_function_of_the_user_with_an_example(source: Path) -> None:
    model, inputs = load_example(f"{source}:both")
    assert model(inputs).shape == (1, 2)


def test_the_users_weights_follow_the_seed(source: Path) -> None:
    first, again = (load_example(f"{source}:model", seed=4).model.get_parameter("weight") for _ in range(2))
    assert torch.equal(first, again)


def test_the_import_path_is_put_back(source: Path) -> None:
    before = list(sys.path)
    load_example(f"{source}:model")
    assert sys.path == before


def test_a_relative_path(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source.parent)
    assert isinstance(load_example("mine.py:model").model, nn.Linear)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nothing", "no function 'nothing'"),
        ("", "no function ''"),
        ("constant", "no function 'constant'"),
        ("needs", "callable without arguments"),
        ("number", "must return a torch.nn.Module.*not int"),
        ("pair", "must return a torch.nn.Module.*not tuple"),
    ],
)
def test_a_function_that_will_not_do(source: Path, function: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_example(f"{source}:{function}")


def test_errors_of_the_user_pass(source: Path) -> None:
    with pytest.raises(RuntimeError, match="the user's own error"):
        load_example(f"{source}:broken")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such Python file"):
        load_example(f"{tmp_path}/none.py:model")


@pytest.mark.parametrize("text", ["def model(:\n", "import surely_not_installed\n"])
def test_a_file_that_cannot_be_imported(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(InputError, match="cannot be imported"):
        load_example(f"{path}:model")
