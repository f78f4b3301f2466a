"""Norms of a block's rows and columns, compared with what its neighbours in the network say of each place."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from awfulowl.lab.scenes.loot import Spoils
from awfulowl.lab.sites.placing import NEVER, Places, correlations
from awfulowl.lab.sites.site import Site

_AT_ONCE: Final = 1024

Tables = Sequence[tuple[Tensor, Tensor]]
"""Scores (blocks, rows or columns of the grid), and the row or column of every place: what is known of one side."""


def row_scores(spoils: Spoils, places: Places, influence: Tensor) -> Tensor:
    """Correlate the norms of a block's rows with how strongly the next layer takes in the outputs of each grid row.

    Args:
        spoils: what is held.
        places: of the grid.
        influence: (outputs,), such as the norms of the next layer's columns: see `Tail.influence`.

    Returns:
        (blocks, grid rows); -inf where heights differ.
    """
    expected = [influence[span.start : span.stop] for span in places.grid.rows]
    profiles = [block.flatten(1).norm(dim=1) for block in spoils.blocks]
    return _correlated(profiles, expected)


def column_scores(spoils: Spoils, places: Places, strength: Tensor) -> Tensor:
    """Correlate the norms of a block's columns with how strong the inputs of each grid column are.

    Weight decay makes weights small where little enters; without it there is nothing to see here.

    Args:
        spoils: what is held.
        places: of the grid.
        strength: (inputs,), root mean square of every input.

    Returns:
        (blocks, grid columns); -inf where widths differ.
    """
    expected = [strength[column.span.start : column.span.stop] for column in places.grid.columns]
    per_group = [column.groups for column in places.grid.columns]
    # A column of several groups: each output sees the inputs of its own group only.
    expected = [
        strengths.reshape(groups, -1).square().mean(dim=0).sqrt()
        for strengths, groups in zip(expected, per_group, strict=True)
    ]
    profiles = [block.transpose(0, 1).flatten(1).norm(dim=1) for block in spoils.blocks]
    return _correlated(profiles, expected)


def input_strength(site: Site) -> Tensor:
    """Return the root mean square of every input of the layer over the public images: (inputs,)."""
    x = site.entered.inputs.transpose(0, 1).flatten(1)
    strength = x.square().mean(dim=1).sqrt()
    return strength if site.twins is None else strength[site.twins]


def _correlated(ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
    found = torch.full((len(ours), len(theirs)), NEVER)
    for length in {len(profile) for profile in ours}:
        left = [number for number, profile in enumerate(ours) if len(profile) == length]
        right = [number for number, profile in enumerate(theirs) if len(profile) == length]
        if right:
            values = correlations(torch.stack([ours[i] for i in left]), torch.stack([theirs[i] for i in right]))
            found[torch.tensor(left)[:, None], torch.tensor(right)] = values
    return found


def profile_tables(site: Site, *, rows: bool = True, columns: bool = True) -> Tables:
    """Return what norms say of rows, where a layer with weights follows, and of columns."""
    tables: list[tuple[Tensor, Tensor]] = []
    influence = site.tail.influence(site.grid.outputs) if rows else None
    if influence is not None:
        tables.append((row_scores(site.spoils, site.places, influence), site.places.rows))
    if columns:
        tables.append((column_scores(site.spoils, site.places, input_strength(site)), site.places.columns))
    return tables


def at_places(tables: Tables, site: Site) -> Tensor:
    """Return the scores float64 (blocks, places) that tables add up to."""
    scores = torch.zeros(len(site.spoils), len(site.places), dtype=torch.float64)
    return add_tables(scores, tables, 0.0, 1.0)


def add_tables(scores: Tensor, tables: Tables, shift: float, scale: float) -> Tensor:
    """Add (sum of the tables - shift) * scale to scores, in place; a few blocks at a time, since scores are large."""
    for start in range(0, len(scores), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        for table, where in tables:
            scores[some].add_(table[some][:, where].double(), alpha=scale)
    return scores.sub_(shift * scale)


def add_standardised(scores: Tensor, tables: Tables, weight: float) -> Tensor:
    """Add `weight` times the sum of the tables, at mean 0 and deviation 1, to scores, in place.

    The deviation is that of finite entries, as if rows and columns were independent: the sum itself is too large to
    be made only for that.
    """
    known = [table[table.isfinite()].double() for table, _ in tables]
    shift = sum(float(values.mean()) for values in known)
    deviation = sum(float(values.var(correction=0)) for values in known) ** 0.5
    return add_tables(scores, tables, shift, weight / deviation) if deviation > 0 else scores
