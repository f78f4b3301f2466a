import sys
from math import sqrt

import pytest
import torch

from awfulowl.errors import InputError
from awfulowl.models.data import Labelled
from awfulowl.models.digits import EPOCHS, DigitsNet, TrainedDigits, accuracy, read_digits, train_digits


@pytest.fixture(scope="module")
def trained() -> tuple[TrainedDigits, list[tuple[int, int, float]]]:
    told: list[tuple[int, int, float]] = []
    torch.set_num_threads(1)
    return train_digits(7, lambda *report: told.append(report)), told


def test_the_split() -> None:
    data = read_digits(1)
    assert data.train.inputs.shape == (1438, 1, 8, 8)
    assert data.test.inputs.shape == (359, 1, 8, 8)
    assert data.train.inputs.dtype == torch.float32
    assert float(data.train.inputs.min()) == 0.0
    assert float(data.train.inputs.max()) == 1.0
    assert data.test.labels.unique().tolist() == list(range(10))  # type: ignore[no-untyped-call]
    assert data.classes == tuple("0123456789")


def test_training_and_test_share_no_image() -> None:
    data = read_digits(2)
    images = torch.cat([data.train.inputs, data.test.inputs]).flatten(1)
    assert len(torch.unique(images, dim=0)) == len(images)


def test_the_seed_draws_the_split() -> None:
    assert torch.equal(read_digits(3).test.inputs, read_digits(3).test.inputs)
    assert not torch.equal(read_digits(3).test.inputs, read_digits(4).test.inputs)


def test_shapes() -> None:
    assert DigitsNet()(torch.rand(5, 1, 8, 8)).shape == (5, 10)
    assert DigitsNet()(torch.rand(0, 1, 8, 8)).shape == (0, 10)


def test_it_learns(trained: tuple[TrainedDigits, list[tuple[int, int, float]]]) -> None:
    """The lower end of the 95 % interval (Wilson) of the test accuracy is above the demo's 96 %."""
    model, data = trained[0]
    share, n, z = accuracy(model, data.test), len(data.test.labels), 1.96
    centre, spread = share + z * z / (2 * n), z * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    assert (centre - spread) / (1 + z * z / n) > 0.96


def test_it_is_ready_to_serve(trained: tuple[TrainedDigits, list[tuple[int, int, float]]]) -> None:
    assert not trained[0].model.training


def test_progress_is_told(trained: tuple[TrainedDigits, list[tuple[int, int, float]]]) -> None:
    told = trained[1]
    assert [(done, of) for done, of, _ in told] == [(epoch, EPOCHS) for epoch in range(1, EPOCHS + 1)]
    assert told[-1][2] < 0.05 < told[0][2]


def test_equal_seeds_give_equal_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awfulowl.models.digits.EPOCHS", 2)
    torch.set_num_threads(1)
    state = torch.get_rng_state()
    first, again, other = (train_digits(seed).model.state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left as it was"


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match=r"pip install 'awfulowl\[demo\]'"):
        train_digits(0)


def test_accuracy_counts_every_batch() -> None:
    logits = torch.eye(3)[torch.tensor([0, 1, 2, 2, 1])]
    examples = Labelled(logits, torch.tensor([0, 1, 2, 0, 0]))
    assert accuracy(torch.nn.Identity(), examples, batch=2) == 3 / 5
