"""What all tests share: the embedded broker, where this machine has one, and no assertion about time."""

import signal
from collections.abc import Iterator

import hypothesis
import pytest
import torch

from awfulowl.errors import BrokerError, SandboxError
from awfulowl.fabric.base import OWNER
from awfulowl.fabric.broker import Broker
from awfulowl.fabric.broker_binary import find_binary, verify_binary
from awfulowl.fabric.identity import Identity
from awfulowl.jobs.sandbox.command import find_bubblewrap
from awfulowl.owner.loop import LoopThread
from tests.missing import skip

# Tests run side by side, one on each core: threads of PyTorch that wait for each other would only stand in the way.
torch.set_num_threads(1)

# In the background of a script interruptions are ignored, and would be by all processes that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse names that hold an address: each process of a run would collect other tests."""
    named = [item.nodeid for item in items if "object at 0x" in item.nodeid or "function at 0x" in item.nodeid]
    if named:
        raise pytest.UsageError(f"the names of these tests change from run to run, give them ids: {', '.join(named)}")


class RunningBroker:
    """A broker that lives as long as the test session, and identities that it knows."""

    def __init__(self) -> None:
        self._thread = LoopThread()
        self._identities = {OWNER: Identity.generate(OWNER)}
        self._broker = Broker(self.identity(OWNER).enrolment.nkey_public)
        self._thread.run(self._broker.start())

    @property
    def url(self) -> str:
        """Where it listens."""
        return self._broker.url

    def identity(self, name: str) -> Identity:
        """Return the identity of `OWNER` or of a device, which is enrolled when it is first asked for."""
        if name not in self._identities:
            identity = self._identities[name] = Identity.generate(name)
            self._thread.run(self._broker.enrol(name, identity.enrolment.nkey_public))
        return self._identities[name]

    def stop(self) -> None:
        """End the broker."""
        self._thread.run(self._broker.stop())
        self._thread.close()


@pytest.fixture(scope="session")
def needs_broker() -> None:
    """Skip tests of NATS where its server is missing; in CI that is a failure."""
    try:
        verify_binary(find_binary())
    except BrokerError as error:
        skip(str(error))


@pytest.fixture(scope="session")
def bubblewrap() -> None:
    """Skip tests of the sandbox where its program is missing or too old; in CI that is a failure."""
    try:
        if find_bubblewrap() is None:
            skip("bubblewrap (bwrap) is not installed")
    except SandboxError as error:
        skip(str(error))


@pytest.fixture(scope="session")
def broker(needs_broker: None) -> Iterator[RunningBroker]:
    """One embedded broker for all tests of this process."""
    running = RunningBroker()
    yield running
    running.stop()
