"""Recipes that take no time: digits, and a network of one or two small layers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from awfulowl.recipes.recipe import Recipe

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def small(tmp_path: Path) -> MakeRecipe:
    """Return a maker of recipes on digits; `layers` are those of the network, in Python."""

    def make(layers: str = "nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)", **changes: Any) -> Recipe:
        path = tmp_path / f"model_{abs(hash(layers))}.py"
        path.write_text(f"from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), {layers})\n")
        usual: dict[str, Any] = {"name": "small", "model": f"{path}:make", "data": "digits", "batch": 32, "lr": 0.1}
        if "epochs" not in changes:
            usual["steps"] = 6
        return Recipe(**(usual | changes))

    return make
