"""What can be scattered, and how: one adapter for each kind of module, in one catalogue."""

from awfulowl.blocks.adapters.base import Adapter, Product
from awfulowl.blocks.adapters.catalogue import ADAPTERS, Found, Target, adapter_of, scatterable
from awfulowl.blocks.adapters.stand_in import Multiply, StandIn
from awfulowl.blocks.adapters.weight import ScatteredWeight

__all__ = [
    "ADAPTERS",
    "Adapter",
    "Found",
    "Multiply",
    "Product",
    "ScatteredWeight",
    "StandIn",
    "Target",
    "adapter_of",
    "scatterable",
]
