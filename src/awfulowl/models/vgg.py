"""VGG16 as the founding paper attacked it: inputs of 32 x 32, a first dense layer of 4096 x 25088.

Configuration D of Simonyan and Zisserman, "Very deep convolutional networks for large-scale image
recognition" (2015). Five poolings leave one pixel of a 32 x 32 image; the pooling to 7 x 7 copies it 49
times, so the 25,088 inputs of the first dense layer are 512 values. Conclusions about protection must not be
drawn from that layer alone: the copies make it redundant and give positions away.
"""

from typing import Final

from torch import Tensor, nn

from awfulowl.errors import InputError

IMAGE: Final = (3, 32, 32)
_STAGES: Final = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_POOLED: Final = 7
_HIDDEN: Final = 4096


class Vgg16(nn.Module):
    """Classify images: (batch, 3, height, width) to (batch, classes) logits; the paper's are 32 x 32.

    Parts and parameters bear the names of torchvision's VGG16 without batch normalisation, so its state fits.

    Args:
        classes: 100 for CIFAR-100 as in the paper, 10 for CIFAR-10.

    Raises:
        InputError: fewer than one class.
    """

    def __init__(self, classes: int = 100) -> None:
        super().__init__()
        if classes < 1:
            raise InputError(f"a classifier needs one class or more, not {classes}")
        self.features = _features()
        self.avgpool = nn.AdaptiveAvgPool2d(_POOLED)
        self.classifier = nn.Sequential(
            nn.Linear(_STAGES[-1][-1] * _POOLED**2, _HIDDEN),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(_HIDDEN, _HIDDEN),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(_HIDDEN, classes),
        )
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Return (batch, classes) logits for (batch, 3, height, width)."""
        logits: Tensor = self.classifier(self.avgpool(self.features(images)).flatten(1))
        return logits


def _features() -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = IMAGE[0]
    for stage in _STAGES:
        for outputs in stage:
            layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.ReLU()]
            channels = outputs
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def _initialise(module: nn.Module) -> None:
    """He et al. (2015), fan out: with PyTorch's default, 16 layers without normalisation lose the signal."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
