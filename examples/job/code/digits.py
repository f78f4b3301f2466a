"""What is trained: a small network that reads handwritten digits. This is all that a client has to write."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from awfulowl.jobs.task import Batch, Task


class Digits(Task):
    """Ten digits, 8 x 8 pixels with values from 0 to 16."""

    def data(self, files: Mapping[str, bytes]) -> Batch:
        """Return images (n, 64) and labels (n,)."""
        pixels = torch.frombuffer(bytearray(files["images.bin"]), dtype=torch.uint8)
        labels = torch.frombuffer(bytearray(files["labels.bin"]), dtype=torch.uint8)
        return pixels.reshape(-1, 64) / 16, labels.long()

    def model(self) -> nn.Module:
        """Return a fresh network; its weights come from the job's seed."""
        return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the cross-entropy."""
        images, labels = batch
        return functional.cross_entropy(model(images), labels)
