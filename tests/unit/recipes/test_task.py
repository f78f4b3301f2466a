"""Batches are a function of seed and step alone, and what is held back is never trained on."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from awfulowl.errors import InputError
from awfulowl.models.convnet import ConvNet
from awfulowl.models.data import DataSet, Labelled
from awfulowl.models.digits import DigitsNet
from awfulowl.models.transformer import Transformer
from awfulowl.recipes import task as tasks
from awfulowl.recipes.recipe import BUILT_IN, Recipe, changed
from awfulowl.recipes.task import Batches, Pictures, Task, Windows, evaluate, loss, make_task, moved
from tests.unit.recipes.conftest import MakeRecipe

TEXT = "the quick brown owl jumps over the lazy dog. " * 30


def numbered(count: int) -> Pictures:
    """Pictures of which each is its own label."""
    labels = torch.arange(count)
    return Pictures(examples=Labelled(labels.float().reshape(-1, 1, 1, 1), labels))


def text_recipe(tmp_path: Path, text: str = TEXT) -> Recipe:
    path = tmp_path / "text.txt"
    path.write_text(text)
    return changed(BUILT_IN["text"], path=str(path), context=8)


def fake_cifar(classes: int = 10) -> DataSet:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(256, (40, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(40) % classes
    return DataSet(Labelled(inputs[:30], labels[:30]), Labelled(inputs[30:], labels[30:]), ("x",) * classes)


def test_an_epoch_has_every_example_once_but_for_those_that_fill_no_batch() -> None:
    batches = Batches(numbered(11), 3, seed=1)
    assert batches.per_epoch == 3
    for epoch in range(4):
        labels = torch.cat([batches.at(3 * epoch + step).labels for step in range(3)])
        assert len(labels.unique()) == 9  # type: ignore[no-untyped-call]


def test_every_epoch_and_every_seed_has_an_order_of_its_own() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        batches = Batches(numbered(50), 50, seed)
        found: list[int] = batches.at(epoch).labels.tolist()
        return found

    orders = [order(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert len({tuple(one) for one in orders}) == 9


def test_a_batch_depends_on_nothing_but_its_step() -> None:
    recipe = BUILT_IN["digits"]
    source = make_task(recipe).train
    forward, backward = Batches(source, 64, 5), Batches(source, 64, 5)
    steps = [0, 1, 21, 22, 50]
    there = {step: forward.at(step) for step in steps}
    torch.manual_seed(99)
    back = {step: backward.at(step) for step in reversed(steps)}
    assert all(torch.equal(there[step].inputs, back[step].inputs) for step in steps)
    assert all(torch.equal(there[step].labels, back[step].labels) for step in steps)


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(InputError, match="batch: 12 is more than the 11 examples"):
        Batches(numbered(11), 12, 0)


def test_half_of_the_pictures_are_mirrored_and_in_evaluation_none() -> None:
    found = fake_cifar()
    source = Pictures(examples=found.train, augment="flip")
    numbers = torch.arange(30)
    as_they_are = source.take(numbers, None).inputs
    chance = torch.Generator().manual_seed(0)
    seen = torch.stack([source.take(numbers, chance).inputs for _ in range(20)])
    same = (seen == as_they_are).flatten(2).all(2)
    mirrored = (seen == as_they_are.flip(3)).flatten(2).all(2)
    assert bool((same ^ mirrored).all())
    assert 0.4 < float(mirrored.double().mean()) < 0.6
    assert torch.equal(source.take(numbers, None).labels, found.train.labels)
    assert float(as_they_are.min()) >= -1.0
    assert as_they_are.dtype is torch.float32


def test_pictures_are_moved_by_up_to_four_pixels_and_zeros_come_in() -> None:
    numbered = 1.0 + torch.arange(2 * 6 * 5).reshape(1, 2, 6, 5).expand(400, -1, -1, -1)
    found = moved(numbered, torch.Generator().manual_seed(0))
    possible = {(down, right): shifted(numbered[0], down, right) for down in range(-4, 5) for right in range(-4, 5)}
    shifts = set()
    for picture in found:
        matches = {shift for shift, expected in possible.items() if torch.equal(picture, expected)}
        shifts |= matches
        assert matches
    assert {down for down, _ in shifts} == {right for _, right in shifts} == set(range(-4, 5))


def shifted(picture: Tensor, down: int, right: int) -> Tensor:
    """Slow and obvious: every pixel by itself."""
    found = torch.zeros_like(picture)
    _, height, width = picture.shape
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - right < width:
                found[:, row, column] = picture[:, row - down, column - right]
    return found


def test_crops_are_of_mirrored_pictures_and_in_evaluation_none() -> None:
    found = fake_cifar()
    source = Pictures(examples=found.train, augment="crop")
    numbers = torch.arange(30)
    plain = Pictures(examples=found.train).take(numbers, None).inputs
    assert torch.equal(source.take(numbers, None).inputs, plain)
    one = source.take(numbers, torch.Generator().manual_seed(1)).inputs
    again = source.take(numbers, torch.Generator().manual_seed(1)).inputs
    assert torch.equal(one, again)
    assert not torch.equal(one, plain)


def test_the_label_of_a_character_is_the_next_one() -> None:
    windows = Windows(tokens=torch.arange(100), context=8)
    assert len(windows) == 11
    for chance in (None, torch.Generator().manual_seed(0)):
        inputs, labels = windows.take(torch.arange(11), chance)
        assert inputs.shape == labels.shape == (11, 8)
        assert torch.equal(labels, inputs + 1)
    assert torch.equal(windows.take(torch.tensor([3]), None).inputs, torch.arange(24, 32)[None])


def test_pieces_of_text_begin_anywhere_and_end_before_the_end() -> None:
    windows = Windows(tokens=torch.arange(57), context=7)
    starts: set[int] = set()
    for seed in range(200):
        inputs, labels = windows.take(torch.arange(len(windows)), torch.Generator().manual_seed(seed))
        starts |= {int(first) for first in inputs[:, 0]}
        assert int(labels.max()) < 57
    assert starts == set(range(7 * len(windows)))


def test_text_is_held_back_at_its_end(tmp_path: Path) -> None:
    task = make_task(text_recipe(tmp_path))
    assert isinstance(task.train, Windows)
    assert isinstance(task.test, Windows)
    assert task.metric == "nats"
    assert len(task.test.tokens) == len(TEXT) // 10
    whole = torch.cat([task.train.tokens, task.test.tokens])
    letters = sorted(set(TEXT))
    assert "".join(letters[token] for token in whole) == TEXT


def test_a_text_makes_a_causal_model_of_its_alphabet(tmp_path: Path) -> None:
    task = make_task(text_recipe(tmp_path))
    assert isinstance(task.model, Transformer)
    assert task.model.config.vocabulary == len(set(TEXT))
    assert task.model.config.causal
    assert task.example.shape == (1, 8)
    assert task.model(task.example).shape == (1, 8, len(set(TEXT)))


def test_digits() -> None:
    task = make_task(BUILT_IN["digits"])
    assert isinstance(task.model, DigitsNet)
    assert task.model.training
    assert (len(task.train), len(task.test), task.metric) == (1438, 359, "accuracy")
    assert task.example.shape == (1, 1, 8, 8)


def test_pictures_of_cifar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "read_cifar10", lambda _: fake_cifar())
    monkeypatch.setattr(tasks, "read_cifar100", lambda _: fake_cifar(7))
    ten = make_task(changed(BUILT_IN["cifar10"], path="x"))
    assert isinstance(ten.model, ConvNet)
    assert ten.model.head.out_features == 10
    assert isinstance(ten.train, Pictures)
    assert isinstance(ten.test, Pictures)
    assert (ten.train.augment, ten.test.augment) == (BUILT_IN["cifar10"].augment, "none")
    other = make_task(changed(BUILT_IN["cifar10"], path="x", data="cifar100"))
    assert isinstance(other.model, ConvNet)
    assert other.model.head.out_features == 7


def test_equal_seeds_give_equal_models() -> None:
    first, again, other = (make_task(changed(BUILT_IN["digits"], seed=seed)).model.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


@pytest.mark.parametrize(
    ("name", "changes", "complaint"),
    [
        ("cifar10", {}, "where is the data"),
        ("text", {}, "where is the data"),
        ("cifar10", {"path": "nowhere"}, "no such file or folder"),
        ("text", {"path": "nowhere"}, "not a readable UTF-8 text"),
        ("digits", {"path": "digits.csv"}, "path: digits come with scikit-learn"),
        ("digits", {"model": "resnet"}, "no model 'resnet'"),
        ("digits", {"model": "convnet"}, "model: convnet does not take examples of digits"),
        ("digits", {"model": "nowhere.py:make"}, "no such Python file"),
        ("digits", {"model": "transformer"}, "model: transformer does not take"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, changes: dict[str, str], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        make_task(changed(BUILT_IN[name], **changes))


@pytest.mark.parametrize("layers", ["nn.Linear(64, 9)", "nn.Linear(64, 10), nn.Unflatten(1, (2, 5))"])
def test_a_model_with_other_answers_is_refused(small: MakeRecipe, layers: str) -> None:
    with pytest.raises(InputError, match=r"digits needs logits of shape \(1, 10\)"):
        make_task(small(layers))


def test_a_text_shorter_than_its_pieces_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="too short for pieces of 8 characters"):
        make_task(text_recipe(tmp_path, "a short text, of which a tenth is held back"))


def test_data_is_known_by_its_digest(tmp_path: Path) -> None:
    same = [make_task(text_recipe(tmp_path)).digest() for _ in range(2)]
    other = make_task(text_recipe(tmp_path, TEXT[1:])).digest()
    assert same[0] == same[1] != other


class Fixed(nn.Module):
    """Answers with logits by the example's own number."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        return self.logits[x.flatten().long()]


def test_accuracy_is_over_all_that_is_held_back() -> None:
    logits = torch.eye(600)
    logits[:150] = logits[:150].roll(1, 1)
    task = Task(nn.Identity(), numbered(600), numbered(600), "accuracy")
    model = Fixed(logits).train()
    assert evaluate(model, task) == 0.75
    assert model.training


def test_nats_are_those_of_every_character() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, (2600,), generator=generator)
    logits = torch.randn(5, 5, generator=generator)

    class Bigrams(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return logits[x]

    windows = Windows(tokens=tokens, context=8)
    count = 8 * len(windows)
    expected = functional.cross_entropy(logits[tokens[:count]].double(), tokens[1 : count + 1])
    assert len(windows) > 256  # more than are evaluated at once
    assert evaluate(Bigrams(), Task(nn.Identity(), windows, windows, "nats")) == pytest.approx(float(expected))


def test_the_loss_is_the_mean_of_a_batch() -> None:
    logits, labels = torch.randn(4, 6, 3), torch.randint(3, (4, 6))
    found = loss(nn.Identity(), Labelled(logits, labels))
    expected = -logits.log_softmax(2).gather(2, labels[..., None]).mean()
    torch.testing.assert_close(found, expected)
