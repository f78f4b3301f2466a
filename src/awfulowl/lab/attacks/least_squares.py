"""Every layer whose inputs and outputs were seen, by least squares: no block held, no training."""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from awfulowl.costs import Ledger, SpentError
from awfulowl.lab.attacks.base import Attack, Recovery, Scope
from awfulowl.lab.attacks.whole_model import watch
from awfulowl.lab.scenes.loot import Scene, Watched
from awfulowl.lab.traffic.equations import Solution, solve
from awfulowl.lab.traffic.relays import Relay, find_relays, outputs_seen
from awfulowl.randomness import Entropy


class LeastSquares(Attack):
    """Solve what traffic determines of each layer (rung P2), and leave the rest fresh.

    Outputs with fewer equations than unknowns are left alone, as are layers behind which a pooling loses outputs. Read
    the cosines: where a layer in between stays unknown, the network as a whole answers nothing.
    """

    name: ClassVar[str] = "least-squares"
    rung: ClassVar[str] = "P2"
    scope: ClassVar[Scope] = "model"
    needs: ClassVar[frozenset[str]] = frozenset(
        {"knows_architecture", "knows_inputs", "public", "queries", "sees_inputs"}
    )

    def recover(self, scene: Scene, ledger: Ledger, entropy: Entropy) -> Recovery:
        """Ask, watch and solve the layers that the budget allows, one by one."""
        _, watched = watch(scene, ledger, entropy, mirrored=False)
        model = scene.build(entropy.below(1 << 62)).eval()
        for layer, relay in find_relays(scene.model, scene.layers).items():
            try:
                _solve_layer(model, layer, relay, watched, ledger)
            except SpentError:
                continue
        return Recovery(weights=model.state_dict())


@torch.no_grad()
def _solve_layer(model: nn.Module, layer: str, relay: Relay, watched: Watched, ledger: Ledger) -> None:
    """Put what can be solved of a layer into a model."""
    module, seen = model.get_submodule(layer), watched.seen[layer]
    if not isinstance(module, (nn.Linear, nn.Conv2d)) or relay.pool is not None or not bool(seen.any()):
        return
    if isinstance(module, nn.Conv2d) and (module.groups > 1 or isinstance(module.padding, str)):
        return
    found = _outputs(relay, len(module.weight), watched)
    if found is None:
        return
    outputs, shown = found
    unknowns = int(seen.sum()) * math.prod(module.weight.shape[2:]) + 1
    vectors = len(outputs) * math.prod(outputs.shape[2:])
    told = (
        (outputs > 0).transpose(0, 1).flatten(1).sum(dim=1)
        if relay.rectified
        else torch.full_like(shown, vectors, dtype=torch.int64)
    )
    rows = (shown & (told >= unknowns)).nonzero().flatten()
    if len(rows):
        solution = solve(module, watched.inputs[layer], outputs, seen, ledger, rectified=relay.rectified, rows=rows)
        _put(model, module, relay, rows, solution)


def _outputs(relay: Relay, count: int, watched: Watched) -> tuple[Tensor, Tensor] | None:
    if relay.next is None:
        return outputs_seen(relay, count, watched.logits, torch.ones(watched.logits.shape[1], dtype=torch.bool))
    return outputs_seen(relay, count, watched.inputs[relay.next], watched.seen[relay.next])


def _put(model: nn.Module, module: nn.Linear | nn.Conv2d, relay: Relay, rows: Tensor, solution: Solution) -> None:
    """Set solved rows, and let a batch norm behind them do nothing but add their constant."""
    module.weight[rows] = solution.weight
    constant = module.bias
    if relay.norm is not None:
        norm = model.get_submodule(relay.norm)
        state: Mapping[str, Tensor] = norm.state_dict()
        if "running_var" not in state or "bias" not in state:
            return
        state["running_var"][rows] = 1.0 - float(getattr(norm, "eps", 0.0))
        state["running_mean"][rows], state["weight"][rows] = 0.0, 1.0
        if module.bias is not None:
            module.bias[rows] = 0.0
        constant = state["bias"]
    if constant is not None:
        constant[rows] = solution.bias
