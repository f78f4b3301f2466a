"""A small convolutional network for pictures of 32 x 32, made to be trained where bytes and cores are scarce."""

from itertools import pairwise
from typing import Final

from torch import Tensor, nn

from awfulowl.errors import InputError

IMAGE: Final = (3, 32, 32)
_WIDTHS: Final = (3, 32, 96, 192)


class ConvNet(nn.Module):
    """Classify pictures: (batch, 3, 32, 32) to (batch, classes) logits.

    Every convolution halves height and width, so that what travels between layers is small; batch normalisation
    (Ioffe and Szegedy, 2015) stays at the owner.

    Args:
        classes: 10 for CIFAR-10.

    Raises:
        InputError: fewer than one class.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        if classes < 1:
            raise InputError(f"a classifier needs one class or more, not {classes}")
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(_WIDTHS):
            layers += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        side = IMAGE[1] >> (len(_WIDTHS) - 1)
        self.head = nn.Linear(_WIDTHS[-1] * side * side, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return (batch, classes) logits for (batch, 3, 32, 32)."""
        logits: Tensor = self.head(self.features(images).flatten(1))
        return logits
