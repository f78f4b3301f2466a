"""Every attack, by name."""

from collections.abc import Iterable, Mapping
from typing import Final

from awfulowl.errors import InputError
from awfulowl.lab.attacks.annealing import Annealing, HillClimbing
from awfulowl.lab.attacks.base import Attack
from awfulowl.lab.attacks.class_means import ClassMeans
from awfulowl.lab.attacks.frank_wolfe import FrankWolfe
from awfulowl.lab.attacks.genetic import Genetic, GeneticAsPublished, GeneticSegments
from awfulowl.lab.attacks.guided_swaps import GuidedSwaps
from awfulowl.lab.attacks.gumbel_sinkhorn import GumbelSinkhorn
from awfulowl.lab.attacks.jigsaw import Jigsaw
from awfulowl.lab.attacks.least_squares import LeastSquares
from awfulowl.lab.attacks.norms import Norms
from awfulowl.lab.attacks.policy_gradient import PolicyGradient
from awfulowl.lab.attacks.random import RandomPositions
from awfulowl.lab.attacks.surrogate import Surrogate, SurrogateWithNorms
from awfulowl.lab.attacks.whole_model import Hints, HintsAndBlocks
from awfulowl.lab.complaints import known


def catalogue(attacks: Iterable[Attack]) -> Mapping[str, Attack]:
    """Return attacks by name.

    Raises:
        InputError: two have the same name.
    """
    by_name: dict[str, Attack] = {}
    for attack in attacks:
        if attack.name in by_name:
            raise InputError(f"two attacks are called {attack.name!r}; so far there are {', '.join(by_name)}")
        by_name[attack.name] = attack
    return by_name


ATTACKS: Final = catalogue(
    [
        RandomPositions(),
        Norms(),
        ClassMeans(),
        Jigsaw(),
        Surrogate(),
        SurrogateWithNorms(),
        FrankWolfe(),
        GuidedSwaps(),
        HillClimbing(),
        Annealing(),
        Genetic(),
        GeneticSegments(),
        GeneticAsPublished(),
        GumbelSinkhorn(),
        PolicyGradient(),
        LeastSquares(),
        Hints(),
        HintsAndBlocks(),
    ]
)
"""A new attack is one file and one line here, cheapest first; tests/contract/test_attacks.py runs every entry."""


def find_attacks(names: Iterable[str]) -> list[Attack]:
    """Return attacks by their names.

    Raises:
        InputError: there is no such attack.
    """
    found = []
    for name in names:
        if name not in ATTACKS:
            raise InputError(f"no attack {name!r}{known(name, ATTACKS)}")
        found.append(ATTACKS[name])
    return found
