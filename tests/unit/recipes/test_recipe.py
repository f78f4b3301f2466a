"""Recipes are read strictly, and what is wrong with one is said with the field's name."""

import math
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from awfulowl.errors import InputError
from awfulowl.recipes.recipe import BUILT_IN, Recipe, changed, find_recipe, read_recipe

LEAST = "model = 'digits'\ndata = 'digits'\nsteps = 3\nlr = 0.1\n"


def write(folder: Path, text: str | bytes, name: str = "mine.toml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("name", BUILT_IN)
def test_recipes_known_by_name_are_within_their_own_bounds(name: str) -> None:
    assert find_recipe(name) is BUILT_IN[name]
    assert msgspec.convert(msgspec.to_builtins(BUILT_IN[name]), Recipe) == BUILT_IN[name]
    assert BUILT_IN[name].name == name


def test_a_file_needs_little(tmp_path: Path) -> None:
    found = read_recipe(write(tmp_path, LEAST))
    assert found == Recipe(name="mine", model="digits", data="digits", steps=3, lr=0.1)
    assert find_recipe(str(tmp_path / "mine.toml")) == found


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_file_may_choose_the_optimizer(tmp_path: Path, optimizer: str) -> None:
    found = read_recipe(write(tmp_path, f"{LEAST}\noptimizer = '{optimizer}'\nweight_decay = 0.1\ndecoupled = true\n"))
    assert (found.optimizer, found.decoupled) == (optimizer, True)


def test_a_file_may_say_everything(tmp_path: Path) -> None:
    text = """
        name = "other"
        model = "vgg16:10"
        data = "cifar10"
        path = "/data/cifar.tar.gz"
        epochs = 7
        batch = 128
        micro_batches = 4
        optimizer = "sgd"
        lr = 1
        momentum = 0.9
        nesterov = true
        weight_decay = 5e-4
        decoupled = true
        schedule = "cosine"
        warmup = 10
        clip = 2.5
        augment = "flip"
        context = 32
        seed = 5
        checkpoint_every = 0
        eval_every = 9
    """
    found = read_recipe(write(tmp_path, text))
    assert msgspec.to_builtins(found) == {
        "name": "other",
        "model": "vgg16:10",
        "data": "cifar10",
        "path": "/data/cifar.tar.gz",
        "epochs": 7,
        "steps": None,
        "batch": 128,
        "micro_batches": 4,
        "optimizer": "sgd",
        "lr": 1.0,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 5e-4,
        "decoupled": True,
        "schedule": "cosine",
        "warmup": 10,
        "clip": 2.5,
        "augment": "flip",
        "context": 32,
        "seed": 5,
        "checkpoint_every": 0,
        "eval_every": 9,
    }


def test_the_example_says_everything_and_is_the_built_in_one() -> None:
    example = Path(__file__).parents[3] / "examples" / "recipe.toml"
    assert changed(read_recipe(example), name="cifar10") == BUILT_IN["cifar10"]
    assert [field for field in Recipe.__struct_fields__ if f"{field} = " not in example.read_text()] == []


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    text = "model = 'nets.py:make'\ndata = 'text'\npath = 'a/text.txt'\nsteps = 3\nlr = 0.1\n"
    found = read_recipe(write(tmp_path, text))
    assert found.model == f"{tmp_path}/nets.py:make"
    assert found.path == f"{tmp_path}/a/text.txt"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("lr = 0", "lr: expected `float` > 0"),
        ("lr = -1", "lr: "),
        ("lr = inf", "lr: "),
        ("lr = nan", "lr: "),
        ("lr = 'fast'", "lr: expected `float`, got `str`"),
        ("batch = 0", "batch: expected `int` >= 1"),
        ("batch = 65537", "batch: "),
        ("batch = 1.5", "batch: "),
        ("batch = true", "batch: "),
        ("momentum = 1", "momentum: expected `float` < 1"),
        ("momentum = -0.1", "momentum: "),
        ("weight_decay = -1", "weight_decay: "),
        ("warmup = -1", "warmup: "),
        ("clip = 0", "clip: "),
        ("seed = -1", "seed: "),
        ("context = 0", "context: "),
        ("schedule = 'step'", "schedule: invalid enum value 'step'"),
        ("data = 'mnist'", "data: invalid enum value 'mnist'"),
        ("model = ''", "model: "),
        ("name = 'a/b'", "name: "),
        ("epochs = 2", "epochs and steps: give one of the two"),
        ("micro_batches = 3", "micro_batches: 3 do not divide a batch of 64"),
        ("nesterov = true", "nesterov: "),
        ("augment = 'flip'", "augment: flip is for pictures"),
        ("optimizer = 'adamw'", "optimizer: invalid enum value 'adamw'"),
        ("optimizer = 1", "optimizer: "),
        ("optimizer = 'adam'\nmomentum = 0.9", "momentum: Adam has its own"),
        ("optimizer = 'adam'\nnesterov = true", "nesterov: "),
        ("learning_rate = 1", "unknown field `learning_rate`; there are name, model, data"),
        ("[lr]", "no TOML"),
        ("lr = ", "no TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, line: str, complaint: str) -> None:
    field = line.partition("=")[0].strip()
    lines = [one for one in LEAST.splitlines() if not one.startswith(f"{field} ") or line == "[lr]"]
    path = write(tmp_path, "\n".join([*lines, line]))
    with pytest.raises(InputError) as caught:
        read_recipe(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert complaint in str(caught.value)


@pytest.mark.parametrize("field", ["model", "data", "lr"])
def test_what_is_missing_is_named(tmp_path: Path, field: str) -> None:
    text = "\n".join(line for line in LEAST.splitlines() if not line.startswith(field))
    with pytest.raises(InputError, match=f"missing required field `{field}`"):
        read_recipe(write(tmp_path, text))


def test_steps_or_epochs_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="epochs and steps: give one of the two"):
        read_recipe(write(tmp_path, LEAST.replace("steps = 3", "")))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"\xff", "no TOML"),
        (b"a = " + b"[" * 40_000, "no TOML"),
        (b"#" * 65_537, "more than the 65536 bytes"),
        (b"lr = 1\nlr = 2", "no TOML"),
    ],
)
def test_what_is_no_recipe_is_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        read_recipe(write(tmp_path, content))


@pytest.mark.parametrize("text", ["", "digit", "Digits", "mnist", "cifar10 "])
def test_an_unknown_name_lists_what_there_is(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if not text:
        with pytest.raises(InputError, match="no readable recipe"):  # the empty path is the folder itself
            find_recipe(text)
        return
    with pytest.raises(InputError, match=r"there are digits, cifar10, text, and path/to/file\.toml"):
        find_recipe(text)


@pytest.mark.parametrize("name", ["nowhere.toml", "folder.toml"])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(InputError, match="no readable recipe"):
        find_recipe(str(tmp_path / name))


def test_changes_are_checked() -> None:
    digits = BUILT_IN["digits"]
    assert changed(digits) == digits
    assert changed(digits, seed=4, path=None).seed == 4
    assert (changed(digits, steps=5).steps, changed(digits, steps=5).epochs) == (5, None)
    with pytest.raises(InputError, match="recipe digits: seed"):
        changed(digits, seed=-1)
    with pytest.raises(InputError, match="epochs and steps"):
        changed(digits, steps=5, epochs=5)


def test_a_value_that_no_file_can_hold_is_refused_too() -> None:
    with pytest.raises(InputError, match="clip: inf"):
        Recipe(name="a", model="digits", data="digits", steps=1, lr=0.1, clip=math.inf)


def test_the_length_is_in_steps_or_epochs() -> None:
    digits = BUILT_IN["digits"]
    assert changed(digits, epochs=3).total(22) == 66
    assert changed(digits, steps=3).total(22) == 3


def test_the_rate_rises_and_then_falls_like_a_cosine() -> None:
    recipe = Recipe(name="a", model="digits", data="digits", steps=1, lr=0.1, schedule="cosine", warmup=4)
    factors = [recipe.factor(step, 24) for step in range(25)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert factors[14] == pytest.approx(0.5)
    assert factors[24] == pytest.approx(0.0)
    assert all(before > after for before, after in pairwise(factors[4:]))


def test_a_constant_rate_stays_after_the_warmup() -> None:
    recipe = Recipe(name="a", model="digits", data="digits", steps=1, lr=0.1, warmup=2)
    assert [recipe.factor(step, 9) for step in (0, 1, 2, 8)] == [0.5, 1.0, 1.0, 1.0]


def test_a_warmup_longer_than_the_training_never_ends() -> None:
    recipe = Recipe(name="a", model="digits", data="digits", steps=1, lr=0.1, warmup=10, schedule="cosine")
    assert [recipe.factor(step, 5) for step in range(5)] == [0.1, 0.2, 0.3, 0.4, 0.5]
