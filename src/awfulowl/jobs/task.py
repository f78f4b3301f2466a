"""What a client writes: a small class that says what is trained; the platform owns the loop.

::

    class Digits(Task):
        def data(self, files):
            images = torch.frombuffer(bytearray(files["images.bin"]), dtype=torch.uint8).reshape(-1, 64)
            labels = torch.frombuffer(bytearray(files["labels.bin"]), dtype=torch.uint8)
            return images / 16, labels.long()

        def model(self):
            return nn.Linear(64, 10)

        def loss(self, model, batch):
            images, labels = batch
            return functional.cross_entropy(model(images), labels)
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from awfulowl.jobs.job import Training

Batch = tuple[Tensor, ...]
"""Rows of the tensors that `Task.data` returned, in its order."""


class Task(ABC):
    """A training that can be run again exactly, from any of its states.

    Every step has to be a function of the state (parameters, buffers, state of the optimiser), of the batch and of
    PyTorch's, NumPy's and Python's global generators, which are seeded anew before every step from the job's seed.
    What an object keeps for itself from one step to the next, reads from a clock or draws elsewhere is found by
    `loop.preflight`, and the job refused.
    """

    @abstractmethod
    def data(self, files: Mapping[str, bytes]) -> Batch:
        """Return the examples: one tensor or more, all of the same length (n, ...).

        Args:
            files: the contents of the job's data files, by name.
        """

    @abstractmethod
    def model(self) -> nn.Module:
        """Return the model with its initial weights, drawn from PyTorch's global generator, on the CPU."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean loss of a batch, a scalar with a gradient; random augmentation belongs here."""

    def optimizer(self, model: nn.Module, training: Training) -> torch.optim.Optimizer:
        """Return the optimiser of all parameters that learn, by default the one that the job names."""
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if training.optimizer == "sgd":
            return torch.optim.SGD(
                learning, lr=training.lr, momentum=training.momentum, weight_decay=training.weight_decay
            )
        kind = torch.optim.Adam if training.optimizer == "adam" else torch.optim.AdamW
        return kind(learning, lr=training.lr, weight_decay=training.weight_decay)

    def rate(self, step: int, steps: int) -> float:  # noqa: ARG002 - for those that override it
        """Return the factor of the learning rate at a step of `steps`: a schedule without any state of its own."""
        return 1.0


class Run(ABC):
    """What a plain script is handed, to say what it does."""

    @abstractmethod
    def log(self, step: int, loss: float, *, rate: float = 0.0, norm: float = 0.0) -> None:
        """Record a step: its loss, learning rate, norm of the gradient."""

    @abstractmethod
    def checkpoint(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Store tensors by name, as they are before a step."""


class Script(ABC):
    """A training that owns its loop.

    Its log is chained and signed and its checkpoints are kept, but nobody can run a step of it again: the verdict is
    "unverified", whatever the log says.
    """

    @abstractmethod
    def main(self, run: Run, files: Mapping[str, bytes]) -> None:
        """Train.

        Args:
            run: records and checkpoints go there.
            files: the contents of the job's data files, by name.
        """
