"""Small layers with everything around them, for tests of placement attacks: nothing is trained."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from awfulowl.blocks.grid import Grid, make_grid
from awfulowl.blocks.kernels import Convolution, Dense, Kernel
from awfulowl.costs import Ledger
from awfulowl.lab.scenes.loot import Spoils, cut_blocks, positions
from awfulowl.lab.sites.placing import Places
from awfulowl.lab.sites.site import Site, look
from awfulowl.models.data import Labelled
from awfulowl.models.seeding import seeded


class Around(nn.Module):
    """A residual network with batch norms and in-place activations: what a cut has to get right."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.inner = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.hidden = nn.Linear(24, 20)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(20, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(images)))
        x = self.relu(self.norm2(self.inner(x)) + x)
        logits: Tensor = self.head(self.dropout(self.relu(self.hidden(self.pool(x).flatten(1)))))
        return logits


class Set(NamedTuple):
    """A site, its true weights, the true position of every held block, and the model and images behind it."""

    site: Site
    weight: Tensor
    truth: Tensor
    model: nn.Module
    layer: str
    public: Labelled

    @torch.no_grad()
    def slow_loss(self, weight: Tensor, chosen: Tensor) -> float:
        """The slow and obvious way: put weights into the model, and run all of it."""
        module = copy.deepcopy(self.model).eval()
        module.get_submodule(self.layer).get_parameter("weight").copy_(weight)
        return float(functional.cross_entropy(module(self.public.inputs[chosen]), self.public.labels[chosen]))


def around(seed: int = 0) -> Around:
    """A network in eval mode, with norms that do something."""
    with seeded(seed):
        model = Around()
        for norm in (model.norm, model.norm2):
            nn.init.uniform_(norm.weight, 0.5, 2.0)
            nn.init.normal_(norm.bias)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2.0)
    return model.eval()


def examples(shape: Sequence[int], count: int = 40, classes: int = 5, seed: int = 1) -> Labelled:
    """Random inputs (count, *shape) with random labels."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, *shape, generator=generator)
    return Labelled(inputs, torch.randint(classes, (count,), generator=generator))


def site_of(
    model: nn.Module,
    layer: str,
    public: Labelled,
    block: int | tuple[int, int],
    held: Sequence[int] | None = None,
) -> Set:
    """What a pirate that holds some blocks, by number of place, knows of a layer of a model."""
    module = model.get_submodule(layer)
    weight = module.get_parameter("weight").detach()
    kernel: Kernel = Dense()
    groups = 1
    if isinstance(module, nn.Conv2d):
        assert not isinstance(module.padding, str)
        kernel, groups = Convolution(tuple(module.stride), module.padding, tuple(module.dilation)), module.groups
    grid: Grid = make_grid(tuple(weight.shape), kernel, groups, block=block)
    places = positions(grid)
    truth = places if held is None else places[torch.tensor(held)]
    bias = module.bias.detach().clone() if isinstance(module.bias, Tensor) else None
    spoils = Spoils(grid=grid, blocks=cut_blocks(weight, grid, truth), bias=bias)
    return Set(look(model, layer, spoils, public, Ledger()), weight, truth, model, layer, public)


def hidden(block: int | tuple[int, int] = (5, 6), held: Sequence[int] | None = None) -> Set:
    """The dense layer, 20 x 24, of the residual network."""
    return site_of(around(), "hidden", examples((2, 6, 6)), block, held)


def inner(block: int | tuple[int, int] = 2, held: Sequence[int] | None = None) -> Set:
    """The inner convolution, 6 x 6 x 3 x 3, with a shortcut around it."""
    return site_of(around(), "inner", examples((2, 6, 6)), block, held)


class Copying(nn.Module):
    """A dense layer, 8 x 35, whose inputs are 7 values, each 5 times."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(35, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, values: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.fc(torch.repeat_interleave(values, 5, dim=1))))
        return logits


def copying(block: int | tuple[int, int] = (4, 8), noise: float = 0.0, held: Sequence[int] | None = None) -> Set:
    """A layer with copied inputs; its weights differ within copies by `noise` of what they differ between values."""
    with seeded(3):
        model = Copying().eval()
        with torch.no_grad():
            model.fc.weight.copy_(torch.repeat_interleave(torch.randn(8, 7), 5, dim=1) + noise * torch.randn(8, 35))
    return site_of(model, "fc", examples((7,), classes=3), block, held)


def with_spoils(site: Site, spoils: Spoils) -> Site:
    """The same layer with other loot."""
    return replace(site, spoils=spoils, places=Places(spoils.grid))
