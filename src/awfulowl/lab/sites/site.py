"""One attacked layer with all that a pirate knows around it: inputs that enter, blocks that it holds, what follows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from awfulowl.blocks.grid import Grid
from awfulowl.blocks.kernels import Dense, gradient, output_shape, product
from awfulowl.costs import Ledger
from awfulowl.errors import InputError, ModelError
from awfulowl.lab.scenes.loot import Scene, Spoils, assemble
from awfulowl.lab.sites.placing import Places
from awfulowl.lab.sites.softened import Softened
from awfulowl.lab.victims.tail import Entered, Tail
from awfulowl.models.data import Labelled

UNKNOWN_BIAS: Final = 0.01
"""Stands for every bias that is not known: units are then on where nothing enters, so that a gradient sees them."""

_BATCH: Final = 500
_WORTH_FOLDING: Final = 2
_TELLING: Final = 32


@dataclass(frozen=True, kw_only=True, eq=False)
class Site:
    """An attacked layer.

    Attributes:
        spoils: what is held of it.
        places: of its grid.
        entered: what reaches it, by public image: inputs (n, distinct, *space), and what goes around it.
        twins: (inputs,) int64, the distinct input that each input of the layer always equals; None where they differ.
        labels: (n,) of the public images; -1 where unknown.
        bias: (outputs,), a guess where it is not known, zeros where the layer has none.
        tail: everything after the layer.
        layer_flops: of the layer for one image, copies of inputs counted once.
        tail_flops: of the tail for one image.
    """

    spoils: Spoils
    places: Places
    entered: Entered
    twins: Tensor | None
    labels: Tensor
    bias: Tensor
    tail: Tail
    layer_flops: float
    tail_flops: float

    @property
    def grid(self) -> Grid:
        """How the layer is cut."""
        return self.spoils.grid

    def __len__(self) -> int:
        return len(self.labels)

    def column_inputs(self, column: int, chosen: Tensor | slice = slice(None)) -> Tensor:
        """Return the inputs of one block column: contiguous (n, width, *space)."""
        span = self.grid.columns[column].span
        values = self.entered.inputs[chosen]
        if self.twins is None:
            return values[:, span.start : span.stop].contiguous()
        return values[:, self.twins[span.start : span.stop]]

    def folded(self, weight: Tensor) -> Tensor:
        """Return weights by distinct input: those of equal inputs are added, since only their sum acts."""
        if self.twins is None:
            return weight
        return weight.new_zeros(len(weight), self.entered.inputs.shape[1]).index_add_(1, self.twins, weight)

    def unfolded(self, weight: Tensor) -> Tensor:
        """Return weights (outputs, distinct) given to every input that has them."""
        return weight if self.twins is None else weight[:, self.twins]

    def outputs(self, folded: Tensor, chosen: Tensor | slice) -> Tensor:
        """Return what leaves the layer with some folded weights: (n, outputs, *space)."""
        y = product(self.grid.kernel, folded, self.entered.inputs[chosen], self.grid.groups)
        return y + self.bias.reshape(-1, *[1] * (y.dim() - 2))

    def logits(self, outputs: Tensor, chosen: Tensor | slice) -> Tensor:
        """Return what the model answers when (n, outputs, *space) leaves the layer."""
        return self.tail(outputs, tuple(part[chosen] for part in self.entered.aside))

    def loss(self, outputs: Tensor, chosen: Tensor | slice) -> Tensor:
        """Return the mean cross-entropy when (n, outputs, *space) leaves the layer."""
        return functional.cross_entropy(self.logits(outputs, chosen), self.labels[chosen])

    def descent(self, weight: Tensor, chosen: Tensor, leak: float, ledger: Ledger) -> Tensor:
        """Return minus the gradient of the loss for weights of the grid's shape.

        Args:
            weight: of the grid's shape.
            chosen: int64 (n,) numbers of public images.
            leak: derivative of a ReLU that is off: see `Softened`.
            ledger: charged before.

        Returns:
            Of the grid's shape. The gradient is that of one weight: equal inputs have equal ones.
        """
        ledger.spend("gradient", len(chosen) * 2 * (self.layer_flops + self.tail_flops))
        folded = self.folded(weight)
        total = torch.zeros_like(folded)
        for some in torch.split(chosen, _BATCH):
            y = self.outputs(folded, some).detach().requires_grad_()
            with Softened(leak):
                loss = self.loss(y, some)
                (dy,) = torch.autograd.grad(loss, y)
            part = gradient(self.grid.kernel, self.grid.size, self.entered.inputs[some], dy, self.grid.groups)
            total -= part * (len(some) / len(chosen))
        return self.unfolded(total)

    @torch.no_grad()
    def evaluate(self, weight: Tensor, ledger: Ledger, chosen: Tensor | None = None) -> tuple[float, float]:
        """Return cross-entropy and accuracy on public images with weights of the grid's shape: one full evaluation."""
        images = torch.arange(len(self)) if chosen is None else chosen
        ledger.spend("evaluation", len(images) * (self.layer_flops + self.tail_flops), evaluations=1)
        folded = self.folded(weight)
        loss, right = 0.0, 0
        for some in torch.split(images, _BATCH):
            logits = self.logits(self.outputs(folded, some), some)
            loss += float(functional.cross_entropy(logits, self.labels[some], reduction="sum"))
            right += int((logits.argmax(1) == self.labels[some]).sum())
        return loss / len(images), right / len(images)


def make_site(scene: Scene, layer: str, ledger: Ledger, model: nn.Module | None = None) -> Site:
    """Look at one attacked layer.

    Args:
        scene: what the pirate has.
        layer: the name of an attacked layer.
        ledger: charged with one pass of the public images through what comes before the layer.
        model: the victim as far as it is known; that of the scene without.

    Raises:
        InputError: there are no public images, or numbers of the model or the blocks are not finite.
        ModelError: the model cannot be cut behind the layer.
    """
    return look(model or scene.model, layer, scene.layers[layer], scene.public, ledger)


def look(model: nn.Module, layer: str, spoils: Spoils, public: Labelled, ledger: Ledger) -> Site:
    """Look at one layer of a model: see `make_site`."""
    if not len(public.labels):
        raise InputError("the pirate has no public images, and this attack looks at what enters the layer")
    if not all(bool(block.isfinite().all()) for block in spoils.blocks):
        raise InputError(f"blocks of layer '{layer}' hold numbers that are not finite")
    tail, grid = Tail(model, layer), spoils.grid
    if tuple(model.get_submodule(layer).get_parameter("weight").shape) != grid.shape:
        raise ModelError(f"layer '{layer}' was cut in another form, {grid.shape}, than its weights have")
    ledger.spend("forward", len(public.labels) * tail.enter_flops(public.inputs[:1]))
    entered = tail.enter(public.inputs)
    if not bool(entered.inputs.isfinite().all()):
        raise InputError(f"what enters layer '{layer}' is not finite: are all weights before it?")
    if isinstance(grid.kernel, Dense) and entered.inputs.dim() != 2:
        raise ModelError(f"layer '{layer}' gets inputs of shape {tuple(entered.inputs.shape)}, not (images, inputs)")
    entered, twins = _fold(entered, grid)
    bias = torch.zeros(grid.outputs) if spoils.bias is None else spoils.bias.float()
    if spoils.bias is None and model.get_submodule(layer).bias is not None:
        bias = torch.full((grid.outputs,), UNKNOWN_BIAS)
    shape = output_shape(grid.kernel, grid.outputs, grid.size, torch.Size((1, *entered.inputs.shape[1:])))
    one = torch.zeros(shape)
    space = one.numel() // grid.outputs
    inside = entered.inputs.shape[1] if twins is not None else grid.shape[1]
    return Site(
        spoils=spoils,
        places=Places(grid),
        entered=entered,
        twins=twins,
        labels=public.labels,
        bias=bias,
        tail=tail,
        layer_flops=2.0 * space * grid.outputs * inside * torch.Size(grid.size).numel(),
        tail_flops=tail.flops(one, tuple(part[:1] for part in entered.aside)),
    )


def _fold(entered: Entered, grid: Grid) -> tuple[Entered, Tensor | None]:
    """Keep one of every set of inputs that are equal in all images, if that saves half of them or more."""
    x = entered.inputs
    if not isinstance(grid.kernel, Dense):
        return entered, None
    # A few images tell which inputs may be copies; whether they are, all say.
    few, twins = torch.unique(x[:_TELLING], dim=1, return_inverse=True)
    if few.shape[1] * _WORTH_FOLDING > x.shape[1]:
        return entered, None
    first = torch.full((few.shape[1],), x.shape[1]).scatter_reduce_(0, twins, torch.arange(len(twins)), "amin")
    distinct = x[:, first]
    same = all(
        torch.equal(part, own[:, twins])
        for part, own in zip(torch.split(x, _BATCH), torch.split(distinct, _BATCH), strict=True)
    )
    return (Entered(distinct, entered.aside), twins) if same else (entered, None)


def layer_by_layer(scene: Scene, attack: Callable[[str, nn.Module], Tensor]) -> dict[str, Tensor]:
    """Attack one layer after the other, each with those before it put together as they were found.

    Args:
        scene: what the pirate has.
        attack: from the layer's name and the model as far as it is known by then, to a placement int64 (k, 2).
    """
    model, found = scene.fresh_copy(), {}
    for layer, spoils in scene.layers.items():
        found[layer] = attack(layer, model)
        with torch.no_grad():
            weight = model.get_submodule(layer).get_parameter("weight")
            weight.copy_(assemble(spoils, found[layer], weight))
    return found
