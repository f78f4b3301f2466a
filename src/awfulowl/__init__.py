"""AwfulOwl: run neural networks on machines you do not trust, and know that every answer is right.

::

    import awfulowl as owl

    with owl.local_fleet(devices=8) as fleet:
        plan = owl.plan(model, example, devices=fleet)
        scattered = fleet.scatter(model, plan)
        y = scattered(x)

Names are imported when they are first used (PEP 562), so that `import awfulowl` costs nothing.
"""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from awfulowl.fleet.connect import connect
    from awfulowl.fleet.local import local_fleet
    from awfulowl.owner.checkpoint import read_checkpoint
    from awfulowl.placement.request import plan

    # Its types are in awfulowl.lab.audit.running; an import here would make everything that imports the package
    # import the lab.
    audit: Callable[..., Any]

__version__: Final = "0.1.0"

_HOMES: Final = {
    "audit": "awfulowl.lab.audit.running",
    "connect": "awfulowl.fleet.connect",
    "local_fleet": "awfulowl.fleet.local",
    "plan": "awfulowl.placement.request",
    "read_checkpoint": "awfulowl.owner.checkpoint",
}

__all__ = ["__version__", "audit", "connect", "local_fleet", "plan", "read_checkpoint"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'awfulowl' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
