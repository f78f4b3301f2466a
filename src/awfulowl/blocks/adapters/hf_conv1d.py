"""`transformers.pytorch_utils.Conv1D`: a linear layer whose weight is stored as (in, out)."""

from typing import ClassVar

from torch import Tensor, nn

from awfulowl.blocks.adapters.base import Adapter, Product
from awfulowl.blocks.adapters.stand_in import StandIn
from awfulowl.blocks.kernels import Dense


class ScatteredConv1D(StandIn):
    """A `Conv1D` whose product is computed elsewhere."""

    weight: Tensor
    bias: Tensor | None

    def answer(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        y = self._product("", self._to_send(x, self.weight.shape[0]))
        return self._finish(y, x, self.bias)


class HfConv1dAdapter(Adapter):
    """The `Conv1D` of GPT-2 and its kin, known by its name, so that transformers need not be there."""

    kind: ClassVar[str] = "hf_conv1d"
    stand_in: ClassVar[type[StandIn]] = ScatteredConv1D

    def original(self, module: nn.Module) -> type[nn.Module] | None:
        """Return the `Conv1D` among the module's types."""
        for base in type(module).__mro__:
            if f"{base.__module__}.{base.__name__}" == "transformers.pytorch_utils.Conv1D":
                return base
        return None

    def products(self, module: nn.Module, *, unfold: bool = False) -> tuple[Product, ...]:
        """Return the weight seen as (out, in)."""
        del unfold
        return (Product("", (module.get_parameter("weight").detach().T,), Dense()),)
