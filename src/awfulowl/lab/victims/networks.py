"""Networks that are robbed in the lab, and in no other place."""

from typing import Final

import torch
from torch import Tensor, nn

COPIES: Final = 49
"""Of each value, as a pooling of one pixel to 7 x 7 makes them in VGG16 with pictures of 32 x 32."""
_VALUES: Final = 512


class CifarNet(nn.Module):
    """Classify pictures: (batch, 3, 32, 32) to (batch, classes) logits; 2.35 M weights.

    Four convolutions with batch norms (32, 64, 128, 128 channels), the first three with a max-pooling, and two dense
    layers, 2048 to 1024 to the classes, with dropout of a half between them: victim S of our measurements.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(*_stage(3, 32), *_stage(32, 64), *_stage(64, 128), *_stage(128, 128)[:-1])
        self.flatten = nn.Flatten()
        self.hidden = nn.Linear(128 * 4 * 4, 1024)
        self.activation = nn.ReLU()
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(1024, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return (batch, classes) logits for (batch, 3, 32, 32)."""
        hidden = self.hidden(self.flatten(self.features(images)))
        logits: Tensor = self.head(self.dropout(self.activation(hidden)))
        return logits


def _stage(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]


class CopiedNet(nn.Module):
    """Classify pictures with the dense layer that the founding paper cut: 4096 x 25088, whose inputs are 512 values.

    The convolutions are those of `CifarNet`; their 128 x 4 x 4 numbers are pooled to 128 x 2 x 2, and each goes into
    the layer 49 times, channel first, as in VGG16 with pictures of 32 x 32.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.features = CifarNet(classes).features
        self.pool = nn.AvgPool2d(2)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(_VALUES * COPIES, 4096)
        self.activation1 = nn.ReLU()
        self.dropout1 = nn.Dropout(0.5)
        self.fc2 = nn.Linear(4096, 512)
        self.activation2 = nn.ReLU()
        self.dropout2 = nn.Dropout(0.5)
        self.fc3 = nn.Linear(512, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return (batch, classes) logits for (batch, 3, 32, 32)."""
        values = self.flatten(self.pool(self.features(images)))
        copied = torch.repeat_interleave(values, COPIES, dim=1)
        hidden = self.dropout1(self.activation1(self.fc1(copied)))
        logits: Tensor = self.fc3(self.dropout2(self.activation2(self.fc2(hidden))))
        return logits
