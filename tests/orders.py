"""Small jobs with their keys, for tests that pack, run and verify them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from awfulowl.jobs import signing
from awfulowl.jobs.hosting import Own
from awfulowl.jobs.job import Bounds, JobFile, Parties, Proving, Training, bind
from awfulowl.jobs.keys import PrivateKeys
from awfulowl.jobs.machine import this_machine
from awfulowl.jobs.package import Opened, open_package, seal
from awfulowl.jobs.proof import COMMITMENT, LOG, Commitment, claim
from awfulowl.jobs.records import RecordBatch, encode_frame, genesis
from awfulowl.limits import MIB

LEARNER = b"""
import torch
from torch import nn
from torch.nn import functional
from awfulowl.jobs.task import Task

class Learner(Task):
    def data(self, files):
        points = torch.frombuffer(bytearray(files["points.bin"]), dtype=torch.uint8).reshape(-1, 4).float() / 255
        return points, (points.sum(dim=1) > 2).long()

    def model(self):
        return nn.Linear(4, 2)

    def loss(self, model, batch):
        points, labels = batch
        return functional.cross_entropy(model(points), labels)
"""
SCRIPT = b"""
import torch
from awfulowl.jobs.task import Script

class Learner(Script):
    def main(self, run, files):
        for step in range(20):
            run.log(step, 1 / (step + 1), rate=0.1)
        run.checkpoint(20, {"weight": torch.zeros(2, 2)})
"""
POINTS = bytes(range(256)) * 2
BOUNDS = Bounds(memory_bytes=1024 * MIB, processes=32, disk_bytes=32 * MIB, time_s=100.0)


@dataclass(frozen=True)
class People:
    """Who takes part."""

    client: PrivateKeys = field(default_factory=PrivateKeys.generate)
    runner: PrivateKeys = field(default_factory=PrivateKeys.generate)
    verifier: PrivateKeys = field(default_factory=PrivateKeys.generate)

    @property
    def parties(self) -> Parties:
        """Their public keys."""
        return Parties(client=self.client.public, runner=self.runner.public, verifier=self.verifier.public)


def ordered(
    people: People,
    code: Mapping[str, bytes] | bytes = LEARNER,
    *,
    data: Mapping[str, bytes] | None = None,
    limits: Bounds = BOUNDS,
    **changes: Any,
) -> Own:
    """Return a job of 40 steps, with its code and data; `changes` are of fields of its training."""
    files = dict(data or {"points.bin": POINTS})
    modules = {"learner.py": code} if isinstance(code, bytes) else dict(code)
    training = Training(seed=5, batch=16, steps=40, lr=0.5)
    order = JobFile(
        version=1,
        name="small",
        task="learner:Learner",
        code="code",
        data=tuple(files),
        training=msgspec.structs.replace(training, **changes),
        proving=Proving(checkpoint_every=10),
        limits=limits,
        keys=people.parties,
    )
    return Own(bind(order, modules, files), modules, files)


def packed(folder: Path, people: People, own: Own) -> Path:
    """Pack a job into a folder, and return the package."""
    seal(folder / "job.pkg", own.job, own.code, own.data, people.client)
    return folder / "job.pkg"


def opened(folder: Path, people: People, own: Own) -> Opened:
    """Return the job as its runner gets it."""
    return open_package(packed(folder, people, own), people.runner)


def committed(folder: Path, people: People, own: Own) -> Commitment:
    """Write the signed parts of a proof whose states are none; return its commitment."""
    empty = RecordBatch(
        before=genesis(own.job), first=0, last=40, resumed=False, iterations=(), samples=(), evaluations=()
    )
    frame, head = encode_frame(empty, people.runner.signing_key)
    commitment = Commitment(
        version=1,
        job=own.job.digest.hex(),
        steps=40,
        per_epoch=8,
        root="a" * 64,
        final="b" * 64,
        log=head.hex(),
        machine=this_machine(1),
        state_bytes=8,
    )
    claim(folder, own.job)
    (folder / LOG).write_bytes(frame)
    (folder / COMMITMENT).write_bytes(signing.sign(commitment, people.runner.signing_key))
    return commitment


needs_bubblewrap = pytest.mark.usefixtures("bubblewrap")
