"""Handwritten digits: real images that come with scikit-learn, and a network that learns them in seconds."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from awfulowl.errors import InputError
from awfulowl.models.data import DataSet, Labelled
from awfulowl.models.seeding import seeded

Progress = Callable[[int, int, float], None]
"""Called after every epoch: epochs done, epochs in all, mean cross-entropy of the epoch."""

EPOCHS = 15
_BATCH = 64
_PEAK_RATE = 4e-3
_TEST_SHARE = 0.2
_LEVELS = 16.0


class DigitsNet(nn.Module):
    """Classify digits: (batch, 1, 8, 8) float32 in [0, 1] to (batch, 10) logits.

    Every layer can be scattered.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.hidden = nn.Linear(64 * 4 * 4, 128)
        self.head = nn.Linear(128, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return (batch, 10) logits for (batch, 1, 8, 8)."""
        x = functional.relu(self.conv1(images))
        x = functional.relu(self.conv2(x))
        x = functional.max_pool2d(x, 2).flatten(1)
        logits: Tensor = self.head(functional.relu(self.hidden(x)))
        return logits


class TrainedDigits(NamedTuple):
    """A trained network, in eval mode, and the data it learned from and never saw."""

    model: DigitsNet
    data: DataSet


def read_digits(seed: int = 0) -> DataSet:
    """Return scikit-learn's 1,797 digits, a fifth of them, drawn by `seed`, as the test set.

    Inputs are float32 in [0, 1] of shape (n, 1, 8, 8).

    Raises:
        InputError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415 - an extra: only the demo needs it
    except ImportError as error:
        raise InputError(
            "the digits come with scikit-learn, which is not installed: pip install 'awfulowl[demo]'"
        ) from error
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).to(torch.float32).div(_LEVELS).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    tests = round(_TEST_SHARE * len(labels))
    test, train = order[:tests], order[tests:]
    return DataSet(
        train=Labelled(images[train], labels[train]),
        test=Labelled(images[test], labels[test]),
        classes=tuple("0123456789"),
    )


def train_digits(seed: int = 0, progress: Progress | None = None) -> TrainedDigits:
    """Train a `DigitsNet` from scratch; equal seeds give equal weights on one machine with equal threads.

    Adam with a one-cycle learning rate (Smith and Topin, 2018) on the cross-entropy.

    Args:
        seed: of the split, the initial weights and the order of the images.
        progress: told about every epoch.

    Raises:
        InputError: scikit-learn is not installed.
    """
    data = read_digits(seed)
    with seeded(seed):
        model = DigitsNet()
    order = torch.Generator().manual_seed(seed)
    steps = -(-len(data.train.labels) // _BATCH)
    optimizer = torch.optim.Adam(model.parameters(), lr=_PEAK_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _PEAK_RATE, epochs=EPOCHS, steps_per_epoch=steps)
    for epoch in range(EPOCHS):
        loss = _epoch(model, data.train, optimizer, schedule, order)
        if progress is not None:
            progress(epoch + 1, EPOCHS, loss)
    return TrainedDigits(model.eval(), data)


def _epoch(
    model: nn.Module,
    train: Labelled,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    order: torch.Generator,
) -> float:
    total = 0.0
    for chosen in torch.split(torch.randperm(len(train.labels), generator=order), _BATCH):
        loss = functional.cross_entropy(model(train.inputs[chosen]), train.labels[chosen])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        total += loss.item() * len(chosen)
    return total / len(train.labels)


@torch.inference_mode()
def accuracy(model: nn.Module, examples: Labelled, batch: int = 256) -> float:
    """Return the share of `examples` whose largest logit is the label's."""
    right = 0
    for inputs, labels in zip(*(torch.split(part, batch) for part in examples), strict=True):
        right += int((model(inputs).argmax(1) == labels).sum())
    return right / len(examples.labels)
