"""Where `torch.compile` breaks its graph; imported only while a compiler traces.

The decorator imports the compiler, which takes a second and 100 MB that an owner who never compiles need not pay.
"""

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from awfulowl.blocks.adapters.stand_in import StandIn


@torch.compiler.disable  # type: ignore[untyped-decorator]
def answer(stand_in: "StandIn", *args: Any, **kwargs: Any) -> Any:
    """Run a stand-in as ordinary Python, with nothing of it traced."""
    return stand_in.answer(*args, **kwargs)
