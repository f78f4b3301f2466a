"""A fleet on this machine: the embedded broker and one process for each device."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

import msgspec

from awfulowl.device.accelerator import check_accelerator
from awfulowl.device.control import Command, Corrupt, Delay, Join, Report, Stray, Told
from awfulowl.device.lies import KINDS, STEP_KINDS, Kind, StepKind
from awfulowl.device.worker import Offer
from awfulowl.errors import InputError, UnavailableError
from awfulowl.fabric.base import OWNER
from awfulowl.fabric.broker import Broker
from awfulowl.fabric.identity import Enrolment, Identity
from awfulowl.fabric.nats import NatsFabric
from awfulowl.files import Scratch
from awfulowl.fleet.fleet import Fleet
from awfulowl.limits import GIB
from awfulowl.owner.loop import LoopThread
from awfulowl.owner.policy import Policy
from awfulowl.placement.ledger import UNKNOWN, Device
from awfulowl.placement.naming import name_devices

T = TypeVar("T", bound=msgspec.Struct)

_STOP_S = 5.0
_COMES_S = 60.0


class Lies(NamedTuple):
    """False answers of a device.

    `used` are those that its owner added into a sum, so each is to be caught. `unused` could do no harm: they came
    when another device had answered, or after the device was found out and got old inputs only, so as not to notice.
    """

    used: int
    unused: int


class DeviceProcess:
    """One device process, and the pipes to command it."""

    def __init__(self, name: str, folder: Path, offer: Offer) -> None:
        self.name = name
        arguments = [sys.executable, "-m", "awfulowl.device", "--name", name]
        arguments += ["--identity", str(folder / f"{name}.json")]
        arguments += ["--threads", str(offer.threads), "--memory-bytes", str(offer.memory_bytes)]
        arguments += ["--accelerator", offer.accelerator]
        # A session of its own keeps the terminal's Ctrl-C from it: the fleet says goodbye, then its input ends.
        self._process = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(offer.threads),
            start_new_session=True,
        )

    def enrolment(self) -> Enrolment:
        """Return who the device is; waits until the process has started.

        Raises:
            UnavailableError: it ended instead.
        """
        return self._read(Enrolment)

    def tell(self, command: Command) -> None:
        """Send a command.

        Raises:
            UnavailableError: the process has ended.
        """
        if self._process.stdin is None:
            raise UnavailableError(f"{self.name}: no pipe to the process")
        try:
            self._process.stdin.write(msgspec.json.encode(command) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise UnavailableError(f"{self.name}: the process has ended") from error

    def lies_told(self) -> tuple[int, ...]:
        """Return the ids of the requests that the device answered falsely since it was told to lie."""
        self.tell(Report())
        return self._read(Told).requests

    def _read(self, kind: type[T]) -> T:
        line = self._process.stdout.readline() if self._process.stdout is not None else b""
        if not line:
            raise UnavailableError(f"{self.name}: the device process ended with code {self._process.wait()}")
        return msgspec.json.decode(line, type=kind)

    def kill(self) -> None:
        """End the process at once, as a power cut would."""
        self._process.kill()
        self._process.wait()
        _close(self._process.stdin)
        _close(self._process.stdout)

    def leave(self) -> None:
        """Let the process end by itself: its standard input ends."""
        _close(self._process.stdin)

    def stop(self) -> None:
        """End the process; kill it if it does not leave."""
        self.leave()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
        _close(self._process.stdout)


def _close(pipe: IO[bytes] | None) -> None:
    if pipe is not None:
        with contextlib.suppress(OSError):
            pipe.close()


def _environment(threads: int) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


class LocalFleet(Fleet):
    """A fleet whose devices are processes on this machine: for development, demonstrations and tests."""

    def __init__(self, devices: Sequence[Device], offer: Offer, policy: Policy | None) -> None:
        self._folder = Scratch("fleet")
        self._offer = offer
        self._broker: Broker | None = None
        loop = LoopThread()
        self._processes: dict[str, DeviceProcess] = {}
        try:
            # In a thread: Ctrl-C strikes the main one, and must not come between a process and the note of it.
            with ThreadPoolExecutor(1) as starter:
                starter.submit(self._start_all, [device.name for device in devices]).result()
            keys = {name: process.enrolment().nkey_public for name, process in self._processes.items()}
            owner = Identity.generate(OWNER)
            self._broker = Broker(owner.enrolment.nkey_public, keys)
            loop.run(self._broker.start())
            super().__init__(NatsFabric(self._broker.url, owner), devices, policy=policy, loop=loop)
            for process in self._processes.values():
                process.tell(Join(self._broker.url))
            self.wait_for_devices()
        except BaseException:
            for process in self._processes.values():
                process.kill()  # none has anything yet, and a goodbye would have to wait until it has started
            self._stop_everything(loop)
            raise

    @property
    def url(self) -> str:
        """The address of the embedded broker."""
        if self._broker is None:
            raise UnavailableError("the broker is not running")
        return self._broker.url

    def _start_all(self, names: Sequence[str]) -> None:
        for name in names:
            self._processes[name] = self._start(name)

    def _start(self, name: str) -> DeviceProcess:
        return DeviceProcess(name, self._folder.path, self._offer)

    def kill(self, name: str) -> None:
        """Kill a device's process."""
        self._process(name).kill()

    def restart(self, name: str) -> None:
        """Start a killed device again, as itself: with its key, without its blocks."""
        self._process(name).kill()
        process = self._start(name)
        process.enrolment()
        process.tell(Join(self.url))
        self._processes[name] = process

    def start(self, name: str, domain: str = UNKNOWN) -> None:
        """Start one more device, which may take over blocks of others from now on; returns when it is there.

        Raises:
            InputError: there is a device of this name.
            UnavailableError: the process does not start, or does not come.
        """
        (device,) = name_devices({name: domain})
        if name in self._processes:
            raise InputError(f"there is a device {name!r} already")
        url, broker = self.url, self._broker
        process = self._start(name)
        try:
            if broker is not None:
                self._loop.run(broker.enrol(name, process.enrolment().nkey_public))
            self.admit(device)
            process.tell(Join(url))
        except BaseException:
            process.kill()
            raise
        self._processes[name] = process
        self._loop.run(self._engine.present([name], _COMES_S), _COMES_S + 5)

    def corrupt(self, name: str, kind: Kind, size: float | None = None, probability: float = 1.0) -> None:
        """Make a device lie from now on.

        Args:
            name: of the device.
            kind: one of `device.lies.KINDS`.
            size: of its errors, relative to the right answers; None: as large as the kind makes them.
            probability: of a false answer.

        Raises:
            InputError: there is no such device or kind.
        """
        if kind not in KINDS:
            raise InputError(f"lies of kind {kind!r} are none of {', '.join(KINDS)}")
        self._process(name).tell(Corrupt(kind, size, probability))

    def lead_astray(self, name: str, kind: StepKind, size: float = 0.1, probability: float = 1.0) -> None:
        """Make a device step along false gradients from now on.

        Args:
            name: of the device.
            kind: one of `device.lies.STEP_KINDS`.
            size: by how much scaled gradients are longer.
            probability: of a false step.

        Raises:
            InputError: there is no such device or kind.
        """
        if kind not in STEP_KINDS:
            raise InputError(f"steps of kind {kind!r} are none of {', '.join(STEP_KINDS)}")
        self._process(name).tell(Stray(kind, size, probability))

    def delay(self, name: str, delay_s: float) -> None:
        """Make a device answer late."""
        self._process(name).tell(Delay(delay_s))

    def lies_told(self, name: str) -> Lies:
        """Return how many answers a device falsified, by its own account."""
        told = set(self._process(name).lies_told())
        used = told.intersection(self._engine.peers[name].used)
        return Lies(len(used), len(told) - len(used))

    def _process(self, name: str) -> DeviceProcess:
        if name not in self._processes:
            raise InputError(f"no device {name!r}; there are {', '.join(self._processes)}")
        return self._processes[name]

    def _shut_down(self) -> None:
        self._stop_everything(self._loop)

    def _stop_everything(self, loop: LoopThread) -> None:
        for process in self._processes.values():
            process.leave()
        for process in self._processes.values():
            process.stop()
        if self._broker is not None:
            loop.run(self._broker.stop(), 20)
        self._folder.remove()


def local_fleet(
    devices: int | Sequence[str | Device] | Mapping[str, str] = 8,
    *,
    threads: int = 1,
    memory_bytes: int = 4 * GIB,
    accelerator: str = "cpu",
    policy: Policy | None = None,
) -> LocalFleet:
    """Start the embedded broker and device processes on this machine; use it as a context manager.

    Args:
        devices: how many, their names, or a mapping of names to the domains that they play.
        threads: of each device.
        memory_bytes: of weights that each device accepts.
        accelerator: where devices hold blocks and multiply, as PyTorch names it: cpu, cuda, cuda:1.
        policy: times and sizes, where the standard ones do not fit.

    Raises:
        BrokerError: the broker is missing, not the one that we know, or cannot start.
        InputError: PyTorch has no such accelerator here.
        UnavailableError: a device process does not start.
    """
    check_accelerator(accelerator)
    offer = Offer(threads=threads, memory_bytes=memory_bytes, accelerator=accelerator)
    return LocalFleet(name_devices(devices), offer, policy)
