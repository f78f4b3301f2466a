"""What `owl broker` and `owl device` refuse before they serve."""

import os
from pathlib import Path

import pytest

from awfulowl.cli.threads import limit_threads
from tests.unit.cli.conftest import Owl

URL = "nats://127.0.0.1:9"


@pytest.fixture(autouse=True)
def identities(owl: Owl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MKL_NUM_THREADS", "1")
    for name in ("owner", "d1", "d2"):
        assert owl("identity", name, "-o", f"{name}.key", "--json", f"{name}.json").code == 0


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--owner", "d2.json", "--device", "d1.json"], "make one with owl identity owner"),
        (["--owner", "owner.json", "--device", "owner.json"], "a device cannot be called 'owner'"),
        (["--owner", "owner.json", "--device", "d1.json", "--device", "d1.json"], "two devices share a name"),
        (["--owner", "owner.json", "--device", "nowhere.json"], "nowhere.json cannot be read"),
        (["--owner", "owner.json", "--device", "d1.key"], "is no enrolment"),
        (["--owner", "owner.json"], "--device"),
        (["--device", "d1.json"], "--owner"),
        (["--owner", "owner.json", "--device", "d1.json", "--port", "70000"], "--port"),
        (["--owner", "owner.json", "--device", "d1.json", "--json", "/nowhere/a"], "there is no folder"),
    ],
)
def test_a_broker_needs_an_owner_and_devices(owl: Owl, words: list[str], complaint: str) -> None:
    code, out, err = owl("broker", *words)
    assert (code, out) == (2, "")
    assert complaint in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([URL, "--identity", "owner.key", "--owner", "owner.json"], "this identity is an owner's"),
        ([URL, "--identity", "d1.key", "--owner", "d2.json"], "the owner's enrolment is of 'd2'"),
        ([URL, "--identity", "nowhere.key"], "nowhere.key cannot be read"),
        ([URL, "--identity", "d1.json"], "d1.json"),
        ([URL], "--identity"),
        (["broker", "--identity", "d1.key", "--owner", "owner.json"], "is no address of a broker"),
        (["nats://example.com", "--identity", "d1.key", "--owner", "owner.json"], "in the clear"),
        ([URL, "--identity", "d1.key", "--threads", "0"], "--threads"),
        ([URL, "--identity", "d1.key", "--memory", "0"], "--memory"),
        ([URL, "--identity", "d1.key", "--json", "/nowhere/a"], "there is no folder"),
    ],
)
def test_a_device_needs_a_broker_and_keys(owl: Owl, words: list[str], complaint: str) -> None:
    code, out, err = owl("device", *words)
    assert (code, out) == (2, "")
    assert complaint in err.splitlines()[-1]


def test_a_device_that_finds_no_broker_says_so(owl: Owl) -> None:
    code, out, err = owl("device", URL, "--identity", "d1.key", "--owner", "owner.json", "--json", "d1.report")
    assert code == 1
    assert "d1: calling the owner" in out
    assert "no broker lets us in" in err
    assert '"sealed": true' in Path("d1.report").read_text()


def test_a_device_without_seals_is_warned(owl: Owl) -> None:
    code, _, err = owl("device", "nats://example.com", "--identity", "d1.key")
    assert code == 2
    assert err.startswith("warning: without --owner nothing is sealed: ")


def test_a_device_multiplies_with_the_threads_that_it_was_given() -> None:
    limit_threads(3)
    assert os.environ["OMP_NUM_THREADS"] == os.environ["MKL_NUM_THREADS"] == "3"
