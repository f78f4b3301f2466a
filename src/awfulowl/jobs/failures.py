"""Why code failed, in one word, and whether what it was given is to blame."""

import errno
import socket
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Literal

from awfulowl.errors import AwfulOwlError, ProofError

Failure = Literal["raised", "refused", "ended", "memory", "disk", "processes", "network"]
"""Why code failed by itself: it raised or was at fault, the platform refused it, it ended without a word, or it met
a bound and said so."""

_NETWORK: Final = {errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ECONNREFUSED}
_DISK: Final = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


def failure(error: BaseException) -> Failure:
    """Return why code failed that raised this, by all that led to it."""
    return next((reason for one in _chain(error) if (reason := _classified(one)) is not None), "raised")


class Blamed:
    """Holds a runner's state to blame for what the job's code raises when it runs from there.

    The code ran from the W_0 of the seed before, and an honest runner has run from each of its states. What tells of a
    bound that the verifier's machine has put, as too little memory does, is passed on.

    Args:
        step: before which the state stands.
    """

    def __init__(self, step: int) -> None:
        self._step: Final = step

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and failure(error) == "raised":
            name = type(error).__name__
            raise ProofError(f"the job's code raises {name} at the state before step {self._step}") from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        reason = getattr(error, "reason", None)  # of urllib's errors
        error = error.__cause__ or error.__context__ or (reason if isinstance(reason, BaseException) else None)


def _classified(error: BaseException) -> Failure | None:
    text = str(error)
    if isinstance(error, AwfulOwlError):
        return "refused"
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        return "memory"
    if isinstance(error, socket.gaierror) or (isinstance(error, OSError) and error.errno in _NETWORK):
        return "network"
    if isinstance(error, OSError) and error.errno in _DISK:
        return "disk"
    if isinstance(error, BlockingIOError) or "can't start new thread" in text:
        return "processes"
    return None
