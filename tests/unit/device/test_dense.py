"""The products a device may choose from: right, or not chosen."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from awfulowl.device import dense
from awfulowl.device.dense import (
    PLAIN,
    Multiply,
    Products,
    fastest,
    is_right,
    maker,
    mkl_holds_back,
    onednn,
    onednn_transposed,
    plain,
    plain_transposed,
)
from awfulowl.verification.rounding import variance

CANDIDATES = [plain, onednn]
ONEDNN = Products(onednn, onednn_transposed)

needs_onednn = pytest.mark.skipif(not dense.is_right(onednn), reason="this PyTorch has no oneDNN")


def energy(x: Tensor, weight: Tensor) -> Tensor:
    exact = x.double() @ weight.double().T
    return x.double().square() @ weight.double().square().T + exact.square()


@needs_onednn
@pytest.mark.parametrize("multiply", CANDIDATES)
@settings(max_examples=60, deadline=None)
@given(batch=st.integers(0, 9), inputs=st.integers(1, 40), outputs=st.integers(1, 40), seed=st.integers(0, 99))
def test_every_product_is_that_of_float32(multiply: Multiply, batch: int, inputs: int, outputs: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, inputs, generator=generator)
    weight = torch.randn(outputs, inputs, generator=generator)
    y = multiply(x, weight)
    assert (y.shape, y.dtype) == ((batch, outputs), torch.float32)
    error = (y - x.double() @ weight.double().T).square()
    assert bool((error <= 100 * variance(inputs) * energy(x, weight)).all())  # ten deviations, as the owner's check


@needs_onednn
@pytest.mark.parametrize("transposed", [plain_transposed, onednn_transposed])
@settings(max_examples=60, deadline=None)
@given(batch=st.integers(0, 9), inputs=st.integers(1, 40), outputs=st.integers(1, 40), seed=st.integers(0, 99))
def test_every_transposed_product_is_that_of_float32(
    transposed: Multiply, batch: int, inputs: int, outputs: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    dy = torch.randn(batch, outputs, generator=generator)
    weight = torch.randn(outputs, inputs, generator=generator)
    dx = transposed(dy, weight)
    assert (dx.shape, dx.dtype) == ((batch, inputs), torch.float32)
    error = (dx - dy.double() @ weight.double()).square()
    assert bool((error <= 100 * variance(outputs) * energy(dy, weight.T)).all())


@needs_onednn
def test_weights_and_inputs_that_are_parts_of_others() -> None:
    whole, wide = torch.randn(30, 50), torch.randn(7, 50)
    for weight, x in [(whole[3:9, 10:40], wide[:, 5:35]), (whole[4:8], wide), (whole[:, :20], wide[:, 30:])]:
        torch.testing.assert_close(onednn(x, weight), x @ weight.T)
        dy = wide[:, 2 : 2 + len(weight)]
        torch.testing.assert_close(onednn_transposed(dy, weight), dy @ weight)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, weight: (x.bfloat16() @ weight.bfloat16().T).float(),
        lambda x, weight: (x.half() @ weight.half().T).float(),
        lambda x, weight: coarse(x, 11) @ coarse(weight, 11).T,  # TF32
        lambda x, weight: x @ weight.T + 1e-3,
        lambda x, weight: (x @ weight.T).double(),
        lambda x, weight: (x @ weight.T)[:, 1:],
        lambda x, weight: torch.full((len(x), len(weight)), torch.nan),
    ],
)
def test_what_is_not_float32_is_never_chosen(wrong: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert not is_right(wrong)


def coarse(x: Tensor, bits: int) -> Tensor:
    """Round to so many bits of mantissa."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2**bits).round() / 2**bits, exponent)


def test_pytorch_s_own_product_is_right() -> None:
    assert is_right(plain)


AMD, INTEL = "AuthenticAMD", "GenuineIntel"


def processor(patch: pytest.MonkeyPatch, capability: str, made_by: str | None, *, mkl: bool = True) -> None:
    """Let this machine be another one."""
    patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    patch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    patch.setattr(dense, "maker", lambda: made_by)


@pytest.mark.parametrize("wrong", [onednn, onednn_transposed])
@pytest.mark.parametrize("error", [AttributeError, RuntimeError])
def test_both_ways_are_chosen_or_none(monkeypatch: pytest.MonkeyPatch, wrong: Multiply, error: type[Exception]) -> None:
    def missing(x: Tensor, weight: Tensor) -> Tensor:
        raise error("no such operator")

    processor(monkeypatch, "AVX512", AMD)
    monkeypatch.setattr(dense, wrong.__name__, missing)
    assert fastest.__wrapped__() == PLAIN == Products(plain, plain_transposed)


@pytest.mark.parametrize(
    ("capability", "made_by", "mkl", "held_back"),
    [
        ("AVX512", AMD, True, True),
        ("AVX512_VNNI", AMD, True, True),
        ("AVX512", "HygonGenuine", True, True),
        ("AVX512", INTEL, True, False),
        ("AVX512", None, True, False),
        ("AVX512", AMD, False, False),
        ("AVX2", AMD, True, False),
        ("DEFAULT", AMD, True, False),
        ("NO AVX", None, True, False),
    ],
)
def test_the_processor_decides(
    monkeypatch: pytest.MonkeyPatch, capability: str, made_by: str | None, mkl: bool, held_back: bool
) -> None:
    processor(monkeypatch, capability, made_by, mkl=mkl)
    monkeypatch.setattr(dense, "is_right", lambda _: True)
    assert mkl_holds_back() == held_back
    assert fastest.__wrapped__() == (ONEDNN if held_back else PLAIN)


@needs_onednn
@pytest.mark.parametrize(("made_by", "chosen"), [(AMD, ONEDNN), (INTEL, PLAIN)])
@pytest.mark.parametrize("slow", [plain, onednn])
def test_how_fast_they_are_decides_nothing(
    monkeypatch: pytest.MonkeyPatch, made_by: str, chosen: Products, slow: Multiply
) -> None:
    """Two devices that choose otherwise round otherwise, and so does one that is started again."""

    def dawdle(x: Tensor, weight: Tensor) -> Tensor:
        time.sleep(0.01)  # ten times a product
        return slow(x, weight)

    processor(monkeypatch, "AVX512", made_by)
    monkeypatch.setattr(dense, slow.__name__, dawdle)
    found: Products = fastest.__wrapped__()
    assert found.transposed is chosen.transposed


def test_the_choice_is_made_once() -> None:
    assert fastest() is fastest()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 26\n", AMD),
        ("processor\t: 0\nvendor_id\t: GenuineIntel\n\nprocessor\t: 1\nvendor_id\t: GenuineIntel\n", INTEL),
        ("vendor_id:HygonGenuine", "HygonGenuine"),
        ("model name\t: made by vendor_id of AuthenticAMD\n", None),
        ("processor\t: 0\nCPU implementer\t: 0x41\n", None),
        ("vendor_id\t:\n", None),
        ("vendor_id", None),
        ("", None),
        ("\udcff\udcfe\nvendor_id\t: AuthenticAMD\n", AMD),
    ],
)
def test_who_made_a_processor(tmp_path: Path, content: str, found: str | None) -> None:
    file = tmp_path / "cpuinfo"
    file.write_bytes(content.encode(errors="surrogateescape"))
    assert maker(file) == found


def test_nobody_made_it_where_there_is_no_such_file(tmp_path: Path) -> None:
    assert maker(tmp_path / "cpuinfo") is None
    assert maker(tmp_path) is None
