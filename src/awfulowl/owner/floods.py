"""How much of what is no violation by itself a device may send: more of it in too short a time is a flood."""

from enum import Enum

from awfulowl.owner.policy import Policy


class Nuisance(Enum):
    """What is harmless once, and named by the field of `Policy` that bounds it."""

    UNASKED = "max_unasked"
    """Messages that nobody asked for: answers to nothing, what is of sessions that are over, calls in an open one."""
    DAMAGED = "max_damaged"
    """Frames that are not what was sent: the network's doing, as long as answers come through as well."""
    STARTS = "max_starts"
    """New boots, and blocks that were dropped: either is loaded again."""


class Floods:
    """Counts the nuisances of one device. Each count runs out at an even rate, wholly in `Policy.flood_s`."""

    def __init__(self) -> None:
        self._levels: dict[Nuisance, tuple[float, float]] = {}

    def add(self, nuisance: Nuisance, now: float, policy: Policy) -> bool:
        """Count one more; say whether there were too many."""
        limit: int = getattr(policy, nuisance.value)
        level, since = self._levels.get(nuisance, (0.0, now))
        level = max(0.0, level - (now - since) * limit / policy.flood_s) + 1
        self._levels[nuisance] = level, now
        return level > limit

    def forgive(self, nuisance: Nuisance) -> None:
        """Take one back: something good came."""
        level, since = self._levels.get(nuisance, (0.0, 0.0))
        if level:
            self._levels[nuisance] = max(0.0, level - 1), since
