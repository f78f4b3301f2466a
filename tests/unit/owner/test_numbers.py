"""What a panel's numbers say of weights that they cannot hold."""

import math

import pytest
import torch

from awfulowl.errors import ModelError
from awfulowl.owner.numbers import numbers_of
from awfulowl.randomness import Entropy
from awfulowl.veil.shares import sharing_of
from tests.unit.placement.fleets import dense, fleet, plan


@pytest.mark.parametrize(("name", "title"), [("head", "head"), ("", "the model")])
def test_weights_that_integers_cannot_hold_are_named(name: str, title: str) -> None:
    (panel,) = plan([dense(name, 8, 8)._replace(arithmetic="int8")], fleet(2), block=4, arithmetic="int8").panels
    weights = torch.ones(8, 8)
    numbers_of(panel, [weights], sharing_of(None), Entropy(1))
    weights[3, 5] = math.nan
    with pytest.raises(ModelError, match=f"^{title}: weights are not finite"):
        numbers_of(panel, [weights], sharing_of(None), Entropy(1))
