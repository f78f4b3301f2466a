"""Draw loot: which blocks of which layers a pirate of a threat model got, and what it knows beside them."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor, nn

from awfulowl.blocks.adapters.base import Product
from awfulowl.blocks.adapters.catalogue import scatterable
from awfulowl.blocks.grid import Grid, make_grid
from awfulowl.errors import InputError, ModelError
from awfulowl.lab.complaints import known
from awfulowl.lab.scenes.loot import Scene, Service, Spoils, Truth, cut_blocks, input_channels, positions
from awfulowl.lab.scenes.threat import ThreatModel
from awfulowl.lab.victims.data import Split
from awfulowl.lab.victims.kinds import Victim
from awfulowl.models.data import Labelled
from awfulowl.placement.plan import Panel, Plan
from awfulowl.randomness import Entropy

Block = Literal["auto"] | int | tuple[int, int]

_SIZES: Final = (256, 128, 64, 32, 16)
_ENOUGH: Final = 64
_KINDS: Final = frozenset({"linear", "convolution"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """Which layers are scattered, and how they are cut.

    `layers` are paths of modules; empty: all that can be cut. `block` is the rows and columns of a block; auto: the
    largest of 256 to 16 that gives the largest of the layers 64 blocks. With a plan, its own grids and holders count.
    """

    layers: tuple[str, ...] = ()
    block: Block = "auto"
    plan: Plan | None = None


def draw(
    victim: Victim,
    data: Split,
    threat: ThreatModel,
    cut: Cut,
    *,
    seed: int,
    source: nn.Module | None = None,
) -> tuple[Scene, Truth]:
    """Draw what a pirate gets of a victim.

    Args:
        victim: who is robbed.
        data: of which the pirate has the public and validation parts.
        threat: the pirate.
        cut: the attacked layers.
        seed: of which blocks (without a plan: a share of each layer's; with one: of the devices) and of their order.
        source: the network whose blocks and activations are taken, in controls; its service is still the victim's.

    Raises:
        InputError: the cut does not fit the model, the data hold less than the threat model says, or nothing is held.
    """
    entropy = Entropy(seed)
    products = attackable(victim.model)
    layers = cut.layers or tuple(products)
    _check_layers(products, layers)
    robbed = victim.model if source is None else source
    grids = _grids(products, layers, cut)
    taken = _taken(grids, threat, cut, entropy)
    if threat.share > 0 and not any(map(len, taken.values())):
        raise InputError(
            f"a share of {threat.share:g} of {', '.join(layers)} is no block at all; cut finer or take more"
        )
    known, unknown = _known(victim, threat, layers, entropy)
    service = Service(
        victim.model,
        robbed,
        {layer: input_channels(grids[layer], places[:, 1]) for layer, places in taken.items()}
        if threat.sees_inputs
        else {},
    )
    scene = Scene(
        threat=threat,
        model=known,
        unknown=unknown,
        layers={
            layer: _spoils(robbed, known, layer, grids[layer], places, threat, entropy)
            for layer, places in taken.items()
        },
        public=public_images(data, threat),
        validation=_labels(data.validation if threat.knows_inputs else _none(data.validation), threat),
        service=service,
        build=victim.kind.build,
        forward_flops=victim.forward_flops,
    )
    return scene, Truth(
        positions=taken, answers=victim.answers, validation=data.validation, test=data.test, seed=victim.seed
    )


def attackable(model: nn.Module) -> Mapping[str, Product]:
    """Return the linear and convolutional layers of a model that can be scattered, in order of definition."""
    return {
        target.name: target.products()[0]
        for target in scatterable(model).targets
        if target.adapter.kind in _KINDS and target.name
    }


def cut_natively(model: nn.Module, plan: Plan) -> tuple[str, ...]:
    """Return the layers whose blocks attacks here know how to use: cut alone, and as what they are.

    A plan unfolds convolutions with few inputs, so that devices hold single taps of them.
    """
    products = attackable(model)
    return tuple(layer for layer in products if _why_unknown(plan, layer, products[layer]) is None)


def largest_layer(model: nn.Module) -> str:
    """Return the name of the layer with the most weights.

    Raises:
        ModelError: there is none that can be attacked.
    """
    products = attackable(model)
    if not products:
        raise ModelError("the model has no linear or convolutional layer that can be scattered")
    return max(products, key=lambda name: products[name].weights[0].numel())


def block_size(products: Sequence[Product], block: Block) -> int | tuple[int, int]:
    """Return the block that `auto` stands for, or the block that was asked for."""
    if block != "auto":
        return block
    largest = max((product.weights[0] for product in products), key=lambda weight: weight.numel())
    rows, columns = largest.shape[:2]
    found = (size for size in _SIZES if -(-rows // size) * -(-columns // size) >= _ENOUGH)
    return next(found, _SIZES[-1])


def _grids(products: Mapping[str, Product], layers: Sequence[str], cut: Cut) -> dict[str, Grid]:
    if cut.plan is not None:
        return {layer: cut.plan.panels[_panel(cut.plan, layer, products[layer])].grid for layer in layers}
    return _cut_alone(products, layers, cut.block)


def grids_of(model: nn.Module, layers: Sequence[str], block: Block) -> dict[str, Grid]:
    """Return how layers are cut without a plan, in order of definition.

    Raises:
        InputError: a layer cannot be attacked.
    """
    products = attackable(model)
    _check_layers(products, layers)
    return _cut_alone(products, layers, block)


def _check_layers(products: Mapping[str, Product], layers: Sequence[str]) -> None:
    for layer in layers:
        if layer not in products:
            raise InputError(f"no layer {layer!r} that can be attacked{known(layer, products)}")


def _cut_alone(products: Mapping[str, Product], layers: Sequence[str], block: Block) -> dict[str, Grid]:
    if not layers:
        return {}
    sides = block_size([products[layer] for layer in layers], block)
    return {
        layer: make_grid(tuple(product.weights[0].shape), product.kernel, product.groups, block=sides)
        for layer, product in products.items()
        if layer in layers
    }


def _panel(plan: Plan, layer: str, product: Product) -> int:
    """Return the number of the panel of a layer.

    Raises:
        InputError: the plan keeps it, or cuts it in a way that no attack here knows yet.
    """
    why = _why_unknown(plan, layer, product)
    if why is not None:
        raise InputError(why)
    return next(index for index, panel in enumerate(plan.panels) if _holds(panel, layer))


def _holds(panel: Panel, layer: str) -> bool:
    return any(member.product == layer for member in panel.members)


def _why_unknown(plan: Plan, layer: str, product: Product) -> str | None:
    if plan.sharing is not None or plan.arithmetic != "float32":
        return "the plan shares or quantises blocks; attacks here know blocks of float32 in clear only"
    panel = next((panel for panel in plan.panels if _holds(panel, layer)), None)
    if panel is None:
        return f"the plan does not scatter {layer!r}: nothing of it can be stolen"
    if len(panel.members) > 1 or panel.grid.shape != tuple(product.weights[0].shape):
        return f"the plan stacks or unfolds {layer!r}; attacks here know layers cut alone and natively"
    return None


def _taken(grids: Mapping[str, Grid], threat: ThreatModel, cut: Cut, entropy: Entropy) -> dict[str, Tensor]:
    """Return the positions (k, 2) of the blocks that the pirate holds, in a random order, by layer."""
    if cut.plan is None:
        found = {}
        for layer, grid in grids.items():
            places = positions(grid)
            order = entropy.permutation(len(places))[: round(threat.share * len(places))]
            found[layer] = places[torch.tensor(order, dtype=torch.int64)]
        return found
    devices = cut.plan.devices
    pirates = {devices[index].name for index in entropy.permutation(len(devices))[: round(threat.share * len(devices))]}
    return {layer: _held(cut.plan, layer, pirates, entropy) for layer in grids}


def _held(plan: Plan, layer: str, pirates: set[str], entropy: Entropy) -> Tensor:
    panel = next(panel for panel in plan.panels if _holds(panel, layer))
    held = sorted({(row, cell.column) for cell in panel.cells if pirates & set(cell.holders) for row in cell.rows})
    order = entropy.permutation(len(held))
    return torch.tensor([held[index] for index in order], dtype=torch.int64).reshape(-1, 2)


def _known(
    victim: Victim, threat: ThreatModel, layers: Sequence[str], entropy: Entropy
) -> tuple[nn.Module, frozenset[str]]:
    """Return the victim as far as the pirate knows it, and the names of what it does not know."""
    if not threat.knows_other_layers:
        # 62 random bits are no victim's seed: with it a student would start from the victim's first weights.
        fresh = victim.kind.build(entropy.below(1 << 62)).eval()
        return fresh, frozenset(fresh.state_dict())
    known = copy.deepcopy(victim.model).eval()
    state = known.state_dict()
    unknown = {f"{layer}.weight" for layer in layers}
    if not threat.knows_biases:
        unknown |= {f"{layer}.bias" for layer in layers if f"{layer}.bias" in state}
    known.load_state_dict(
        {name: torch.zeros_like(value) if name in unknown else value for name, value in state.items()}
    )
    return known, frozenset(unknown)


def _spoils(
    robbed: nn.Module,
    known: nn.Module,
    layer: str,
    grid: Grid,
    places: Tensor,
    threat: ThreatModel,
    entropy: Entropy,
) -> Spoils:
    bias = known.get_submodule(layer)._parameters.get("bias")  # noqa: SLF001  None where a layer has none
    shown = threat.sees_inputs and len(places) > 0
    matched = shown and threat.knows_other_layers and threat.queries > 0
    return Spoils(
        grid=grid,
        blocks=cut_blocks(robbed.get_submodule(layer).get_parameter("weight"), grid, places),
        bias=bias.detach().clone() if bias is not None and threat.knows_biases and threat.knows_other_layers else None,
        together=_renumbered(places[:, 1], entropy) if shown else None,
        columns=places[:, 1].clone() if matched else None,
    )


def _renumbered(columns: Tensor, entropy: Entropy) -> Tensor:
    """Return numbers that are equal where columns are, and say nothing else."""
    different, inverse = torch.unique(columns, return_inverse=True)
    return torch.tensor(entropy.permutation(len(different)), dtype=torch.int64)[inverse]


def public_images(data: Split, threat: ThreatModel) -> Labelled:
    """Return the images that a pirate learns from, as many as it has; labels are -1 where it has none.

    Raises:
        InputError: the data hold less than the threat model says.
    """
    if not threat.knows_inputs:
        return _none(data.public)
    there = len(data.public.labels)
    wanted = there if threat.public is None else threat.public
    if wanted > there:
        raise InputError(f"threat model: public = {wanted}, and the data leave {there} images for the pirate")
    return _labels(Labelled(data.public.inputs[:wanted], data.public.labels[:wanted]), threat)


def _labels(examples: Labelled, threat: ThreatModel) -> Labelled:
    return examples if threat.knows_labels else Labelled(examples.inputs, torch.full_like(examples.labels, -1))


def _none(examples: Labelled) -> Labelled:
    return Labelled(examples.inputs[:0], examples.labels[:0])
