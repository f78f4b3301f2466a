"""What a benchmark has to show, as far as it does not depend on time: what it missed is said, and ends it with 1."""

import sys
from collections.abc import Iterable
from typing import NamedTuple


class Claim(NamedTuple):
    """Something that is so, in words, or is not."""

    text: str
    holds: bool


def verdict(claims: Iterable[Claim]) -> int:
    """Print the claims that were missed, each on a line; return 1 if there are any, else 0."""
    missed = [claim.text for claim in claims if not claim.holds]
    for text in missed:
        print(f"missed: {text}", file=sys.stderr, flush=True)
    return int(bool(missed))
