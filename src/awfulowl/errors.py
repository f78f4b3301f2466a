"""Every error that AwfulOwl raises, in two families and one verdict.

::

    AwfulOwlError
    ├── LocalError               ours or the user's: it stops us
    │   ├── InputError           an argument, a tensor or a file is not usable
    │   │   ├── ModelError       a model cannot be cut, or its weights cannot be read
    │   │   ├── PlanError        a plan is unreadable, was tampered with, or is of another model
    │   │   ├── CheckpointError  a checkpoint is damaged, of another model, or cannot be written
    │   │   ├── ProofError       a proof of training, or part of one, is damaged, of another job, or forged
    │   │   ├── RuleError        the placement rules cannot be met by this fleet
    │   │   └── UnwritableError  the lab cannot write a file: a full disk, a folder that is not ours
    │   ├── ScatteredError       a scattered module was used as if its weights were here
    │   ├── BrokerError          the broker cannot be found, verified or started
    │   ├── SandboxError         no sandbox for a job's code can be made here
    │   ├── JobError             a job's code failed, or took more than it may
    │   └── ClosedError          the fleet is closed, or belongs to another process
    ├── PeerError                a peer's fault: it costs the peer
    │   ├── ProtocolError        bytes that our decoder or session refuses
    │   │   ├── DamagedError     a frame that is not what was sent: the network's fault, or the peer's
    │   │   ├── VersionError     another version of the protocol
    │   │   └── LimitError       larger, more or faster than a named limit allows
    │   ├── RefusedError         the peer refused a request and said why
    │   ├── LieError             an answer that the check rejects
    │   └── GoneError            the peer is silent, or said goodbye
    └── UnavailableError         nothing honest is left that could answer

A ``PeerError`` never reaches a user: the owner turns it into failover and, at the end of its means, into an
``UnavailableError``. ``exit_code`` is what the command line returns.
"""

from typing import ClassVar


class AwfulOwlError(Exception):
    """The base of all errors of this package."""

    exit_code: ClassVar[int] = 1


class LocalError(AwfulOwlError):
    """Our fault or the user's; nothing was sent to a peer that must be undone."""


class InputError(LocalError, ValueError):
    """An argument, a tensor or a file is not usable."""

    exit_code = 2


class ModelError(InputError):
    """A model cannot be cut, or its weights cannot be read."""


class PlanError(InputError):
    """A plan is unreadable, was tampered with, or belongs to another model."""


class CheckpointError(InputError):
    """A checkpoint is incomplete, damaged or of another model, or cannot be written."""


class ProofError(InputError):
    """A proof of training, or a part of one, is damaged, of another job, or forged."""


class RuleError(InputError):
    """The placement rules cannot be met by this fleet."""


class UnwritableError(InputError):
    """The lab cannot write a file: the disk is full, or the folder is not ours."""


class ScatteredError(LocalError, RuntimeError):
    """A scattered module was used as if its weights were here."""


class BrokerError(LocalError, RuntimeError):
    """The broker cannot be found, verified or started."""


class SandboxError(LocalError, RuntimeError):
    """No sandbox for a job's code can be made here."""


class JobError(LocalError, RuntimeError):
    """A job's code failed, or took more than it may; `reason` says which, in one word."""

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(text)
        self.reason: str = reason


class ClosedError(LocalError, RuntimeError):
    """The fleet is closed, or belongs to another process."""


class PeerError(AwfulOwlError):
    """A peer's fault: it costs the peer its trust, never the request."""


class ProtocolError(PeerError):
    """Bytes that the decoder or the session refuses."""


class DamagedError(ProtocolError):
    """A frame whose digest is wrong, or that is none: a network may do that to an honest peer."""


class VersionError(ProtocolError):
    """The peer speaks another version of the protocol."""


class LimitError(ProtocolError):
    """Something is larger, more or faster than a named limit allows."""


class RefusedError(PeerError):
    """The peer refused a request and said why."""


class LieError(PeerError):
    """An answer that the check rejects."""


class GoneError(PeerError):
    """The peer is silent, or said goodbye."""


class UnavailableError(AwfulOwlError):
    """Nothing honest is left that could answer, or not in time."""

    exit_code = 3
