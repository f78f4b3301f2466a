"""JOB.toml is read strictly, and a job's digest changes with everything in it."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from awfulowl.errors import InputError
from awfulowl.jobs.job import _SMALL, Job, JobFile, bind, canonical, decode_job, is_small, read_job_file
from awfulowl.jobs.keys import PrivateKeys
from tests.unit.jobs.small import SIGNERS, small_work

PARTY = f'signing = "{"a" * 64}"\nsealing = "{"b" * 64}"'
GOOD = f"""
version = 1
name = "digits"
task = "digits:Digits"
code = "code"
data = ["images", "labels"]

[training]
seed = 7
batch = 64
epochs = 20
lr = 0.05
momentum = 0.9

[keys.client]
{PARTY}
[keys.runner]
{PARTY}
[keys.verifier]
{PARTY}
"""


def read(tmp_path: Path, text: str) -> JobFile:
    path = tmp_path / "JOB.toml"
    path.write_text(text)
    return read_job_file(path)


def test_a_good_file_is_read(tmp_path: Path) -> None:
    found = read(tmp_path, GOOD)
    assert found.task == "digits:Digits"
    assert found.training.epochs == 20
    assert found.training.steps is None
    assert found.proving.challenges == 33
    assert 0.75**found.proving.challenges < 1e-4
    assert found.limits.processes > 0


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("version = 1", "version = 2", "version"),
        ('name = "digits"', 'name = "../digits"', "name"),
        ('name = "digits"', 'name = "digits"\ncolour = "x"', "colour.*there are version, name, task, .*, keys$"),
        ("lr = 0.05", "lr = 0.05\nrate = 1", r"rate.*training.*there are seed, batch, epochs, .*, threads$"),
        ("lr = 0.05", 'lr = 0.05\noptimizer = "adem"', "adem.*there are adam, adamw, sgd$"),
        ("[keys.client]", "[keys.client]\ncolour = 1", "colour.*there are signing, sealing$"),
        ('"digits:Digits"', '"digits"', "module:Class"),
        ('"digits:Digits"', '"digits:Digits()"', "module:Class"),
        ('"digits:Digits"', '"os.system:x y"', "module:Class"),
        ("epochs = 20", "", "either"),
        ("epochs = 20", "epochs = 20\nsteps = 4", "either"),
        ("epochs = 20", "epochs = 0", "epochs"),
        ("lr = 0.05", "lr = nan", "lr"),
        ("lr = 0.05", "lr = inf", "lr"),
        ("lr = 0.05", "lr = -1.0", "lr"),
        ("lr = 0.05", 'lr = 0.05\noptimizer = "adam"', "momentum"),
        ("lr = 0.05", "lr = 0.05\nclip = inf", "finite"),
        ("batch = 64", "batch = 0", "batch"),
        ("[keys.client]", "[proving]\ntolerance = 0.051\n[keys.client]", "tolerance"),
        ("seed = 7", "seed = -7", "seed"),
        ('data = ["images", "labels"]', "data = []", "data"),
        ("a" * 64, "A" * 64, "signing"),
        ("a" * 64, "a" * 63, "signing"),
        ("[keys.runner]", "[keys.somebody]", "somebody.*there are client, runner, verifier$"),
        ("[training]", "[training", "JOB.toml"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    with pytest.raises(InputError, match=said):
        read(tmp_path, GOOD.replace(old, new, 1))


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_job_file(tmp_path / "missing")
    with pytest.raises(InputError, match="larger"):
        read(tmp_path, "#" * 70_000)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError):
        read_job_file(tmp_path / "bytes")


def changed(job: Job, path: str, value: Any) -> Job:
    first, _, rest = path.partition(".")
    inner = getattr(job, first)
    return msgspec.structs.replace(job, **{first: msgspec.structs.replace(inner, **{rest: value}) if rest else value})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", "other"),
        ("task", "other:Class"),
        ("code", {"a.py": "0" * 64}),
        ("data", {"x": "0" * 64}),
        ("training.seed", 4),
        ("training.lr", 0.2),
        ("training.threads", 2),
        ("training.precision", "bfloat16"),
        ("proving.challenges", 1),
        ("proving.tolerance", 0.05),
        ("logging.sample_every_s", 2.0),
        ("limits.processes", 2),
    ],
)
def test_the_digest_is_of_everything(path: str, value: Any) -> None:
    job = small_work().job
    assert changed(job, path, value).digest != job.digest


def test_a_job_comes_back_from_its_bytes() -> None:
    job = small_work().job
    assert decode_job(canonical(job)) == job
    assert decode_job(canonical(job)).digest == job.digest
    assert (job.module, job.classname) == ("reference", "Small")


@pytest.mark.parametrize("content", [b"", b"\x90", b"\xc1", canonical(small_work().job)[:-1], bytes(2 << 20)])
def test_bytes_that_are_no_job(content: bytes) -> None:
    with pytest.raises(InputError):
        decode_job(content)


def test_code_and_data_are_needed(tmp_path: Path) -> None:
    order = read(tmp_path, GOOD)
    job = bind(order, {"b.py": b"2", "a.py": b"1"}, {"x": b"3"})
    assert list(job.code) == ["a.py", "b.py"]
    for code, data in (({}, {"x": b""}), ({"a.py": b""}, {})):
        with pytest.raises(InputError, match="has no"):
            bind(order, code, data)


def test_keys_check_signatures() -> None:
    signature = SIGNERS.client.sign(b"message")
    small_work().job.keys.client.verifying_key().verify(signature, b"message")


PRIME = 2**255 - 19
CURVE = -121665 * pow(121666, -1, PRIME) % PRIME


def doubled(point: tuple[int, int]) -> tuple[int, int]:
    """Twice a point of edwards25519 (RFC 8032, section 5.1.4, in affine coordinates)."""
    x, y = point
    k = CURVE * x * x * y * y
    return 2 * x * y * pow(1 + k, -1, PRIME) % PRIME, (y * y + x * x) * pow(1 - k, -1, PRIME) % PRIME


def squared_x(y: int) -> int:
    return (y * y - 1) * pow(CURVE * y * y + 1, -1, PRIME) % PRIME


def test_the_points_that_are_no_keys_are_all_of_small_order() -> None:
    """Eight times each is the neutral point, and with their two signs there are eight of them."""
    points = set()
    for y in _SMALL:
        square = squared_x(y)
        root = pow(square, (PRIME + 3) // 8, PRIME)
        x = root if root * root % PRIME == square else root * pow(2, (PRIME - 1) // 4, PRIME) % PRIME
        assert x * x % PRIME == square
        points |= {(x, y), (-x % PRIME, y)}
        assert doubled(doubled(doubled((x, y)))) == (0, 1)
    assert len(points) == 8


@pytest.mark.parametrize("y", sorted(_SMALL))
@pytest.mark.parametrize("sign", [0, 1 << 255])
def test_nobody_signs_with_a_point_of_small_order(tmp_path: Path, y: int, sign: int) -> None:
    for number in (y, y + PRIME):
        if number < 1 << 255:
            key = (number | sign).to_bytes(32, "little").hex()
            assert is_small(key)
            with pytest.raises(InputError, match=r"`signing` is no key.*keys.client"):
                read(tmp_path, GOOD.replace("a" * 64, key, 1))


@pytest.mark.parametrize("u", [0, 1, PRIME - 1, PRIME, PRIME + 1, 1 << 255])
def test_nothing_is_sealed_to_a_point_of_small_order(tmp_path: Path, u: int) -> None:
    with pytest.raises(InputError, match=r"`sealing` is no key.*keys.client"):
        read(tmp_path, GOOD.replace("b" * 64, u.to_bytes(32, "little").hex(), 1))


def test_real_keys_are_keys() -> None:
    for _ in range(20):
        assert PrivateKeys.generate().public is not None
    assert not is_small((4 * pow(5, -1, PRIME) % PRIME).to_bytes(32, "little").hex())  # the base point
