"""What a device remembers of the requests of a session, so that none is done twice."""

from collections.abc import Sequence

from awfulowl.errors import LimitError, ProtocolError
from awfulowl.limits import Limits
from awfulowl.wire.codec import Buffer


class Window:
    """The ids that were seen among the latest `size` ones; everything older counts as seen.

    The sliding window of RFC 4303, section 3.4.3: one bit for each id below the highest.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._top = -1
        self._bits = 0

    def is_past(self, number: int) -> bool:
        """Return whether `number` is too old to tell whether it was seen."""
        return number <= self._top - self._size

    def __contains__(self, number: int) -> bool:
        age = self._top - number
        return age >= 0 and (age >= self._size or bool(self._bits >> age & 1))

    def add(self, number: int) -> None:
        """Mark `number` as seen."""
        ahead = number - self._top
        if ahead > 0:
            kept = self._bits << ahead if ahead < self._size else 0
            self._bits = (kept & ((1 << self._size) - 1)) | 1
            self._top = number
        elif not self.is_past(number):
            self._bits |= 1 << -ahead


class Replay:
    """The requests of one session: which were seen, which are in progress, and the kept answers of changes."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._seen = Window(limits.replay_window)
        self._changes: dict[int, bool] = {}  # of the requests in progress
        self._kept: dict[int, bytes] = {}  # oldest first
        self._kept_bytes = 0

    def admit(self, request_id: int, *, changes: bool) -> bool:
        """Return whether the request is to be done now, because it was never seen before.

        Raises:
            ProtocolError: the id is older than the window.
            LimitError: too many requests are in progress. The request does not count as seen.
        """
        if self._seen.is_past(request_id):
            raise ProtocolError(f"request {request_id} is older than the last {self._limits.replay_window}: a replay")
        if request_id in self._seen:
            return False
        if len(self._changes) >= self._limits.max_in_flight:
            raise LimitError(f"max_in_flight of {self._limits.max_in_flight} requests are in progress")
        self._seen.add(request_id)
        self._changes[request_id] = changes
        return True

    def cancel(self, request_id: int) -> bool:
        """Forget a pure request in progress; a change is finished, so that there is no doubt whether it was."""
        if self._changes.get(request_id, True):
            return False
        del self._changes[request_id]
        return True

    def is_in_progress(self, request_id: int) -> bool:
        """Return whether an answer to the request is still due."""
        return request_id in self._changes

    def finish(self, request_id: int, message: Sequence[Buffer]) -> None:
        """Note that `message` answers a request in progress; that of a change is kept, within limits."""
        if not self._changes.pop(request_id):
            return
        # A copy: the tensors of an answer may change at the device, the answer may not.
        self._kept[request_id] = b"".join(message)
        self._kept_bytes += len(self._kept[request_id])
        while (
            len(self._kept) > self._limits.remembered_replies or self._kept_bytes > self._limits.remembered_reply_bytes
        ):
            self._kept_bytes -= len(self._kept.pop(next(iter(self._kept))))

    def kept(self, request_id: int) -> bytes | None:
        """Return the message that answered a change, if it is still kept."""
        return self._kept.get(request_id)
