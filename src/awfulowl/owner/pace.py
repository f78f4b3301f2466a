"""How fast devices answer, so that slow ones are hedged first and passed over later."""

from collections.abc import Iterable, Sequence
from typing import Final

_SMOOTHING: Final = 0.2
_SLOW: Final = 2.0
_FORGIVENESS: Final = 0.97


class Pace:
    """Usual times by kind of request, and each device's slowness relative to them.

    A device's slowness is a running mean of its time over the usual one; above 2 another holder is preferred.
    Each time that a device is passed over it is forgiven 3 %, so it is tried again after some dozens of requests.
    """

    def __init__(self) -> None:
        self._usual_s: dict[object, float] = {}
        self._slowness: dict[str, float] = {}
        self._late: dict[str, tuple[int, float]] = {}
        """How often in a row a device was late, and when it last was."""

    def usual_s(self, kind: object) -> float | None:
        """Return the usual time of a kind of request in seconds, or None while nothing is known."""
        return self._usual_s.get(kind)

    def observe(self, device: str, kind: object, elapsed_s: float, *, finished: bool = True) -> None:
        """Take note of an answer's time; `finished=False` says that it took at least so long."""
        usual = self._usual_s.get(kind)
        if usual is None:
            if finished:
                self._usual_s[kind] = elapsed_s
            return
        ratio = elapsed_s / max(usual, 1e-6)
        slowness = self._slowness.get(device, 1.0)
        self._slowness[device] = slowness + _SMOOTHING * (ratio - slowness) if finished else max(slowness, ratio)
        if finished:
            # One slow device must not move what is usual for all: its times count with less weight.
            weight = _SMOOTHING * min(1.0, 1.0 / ratio if ratio > 1.0 else 1.0)
            self._usual_s[kind] = usual + weight * (elapsed_s - usual)

    def slowness(self, device: str) -> float:
        """Return the device's usual time over everybody's."""
        return self._slowness.get(device, 1.0)

    def quicker(self, device: str, others: Iterable[str], factor: float) -> set[str]:
        """Return those who are quicker than a device, `factor` times at least: nobody where all are slow alike."""
        return {other for other in others if factor * self.slowness(other) < self.slowness(device)}

    def late(self, device: str, asked_s: float, now_s: float) -> int:
        """Take note of a late answer; return how many in a row there were.

        Those that were waited for at the same time count once: they have one cause.
        """
        count, last_s = self._late.get(device, (0, asked_s))
        if asked_s >= last_s:
            count, last_s = count + 1, now_s
        self._late[device] = (count, last_s)
        return count

    def punctual(self, device: str) -> None:
        """Take note of an answer that was not late."""
        self._late.pop(device, None)

    def choose(self, holders: Sequence[str]) -> str:
        """Return the first holder that is not slow, else the least slow; the others are forgiven a little."""

        def burden(device: str) -> float:
            slowness = self.slowness(device)
            return slowness if slowness > _SLOW else 0.0

        chosen = min(holders, key=burden)
        for device in holders:
            if device != chosen and self.slowness(device) > _SLOW:
                self._slowness[device] *= _FORGIVENESS
        return chosen
