"""`nn.Linear`: y = x Wᵀ + b, with the bias at the owner."""

from typing import ClassVar

from torch import Tensor, nn

from awfulowl.blocks.adapters.base import Adapter, Product
from awfulowl.blocks.adapters.stand_in import StandIn
from awfulowl.blocks.kernels import Dense


class ScatteredLinear(StandIn):
    """A linear layer whose product is computed elsewhere."""

    in_features: int
    bias: Tensor | None

    def answer(self, input: Tensor) -> Tensor:  # noqa: A002 - the name in nn.Linear, for keyword calls
        """Map (..., in) to (..., out)."""
        y = self._product("", self._to_send(input, self.in_features))
        return self._finish(y, input, self.bias)


class LinearAdapter(Adapter):
    """`nn.Linear` and subclasses that compute the same."""

    kind: ClassVar[str] = "linear"
    stand_in: ClassVar[type[StandIn]] = ScatteredLinear

    def original(self, module: nn.Module) -> type[nn.Module] | None:
        """Return `nn.Linear` for linear layers."""
        return nn.Linear if isinstance(module, nn.Linear) else None

    def products(self, module: nn.Module, *, unfold: bool = False) -> tuple[Product, ...]:
        """Return the weight as it is."""
        del unfold
        return (Product("", (module.get_parameter("weight").detach(),), Dense()),)
