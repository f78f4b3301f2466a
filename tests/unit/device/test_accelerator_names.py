"""Names of accelerators: what PyTorch cannot use here is refused before anything starts."""

import pytest
import torch

import awfulowl as owl
from awfulowl.device.accelerator import check_accelerator
from awfulowl.errors import InputError


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    return monkeypatch


@pytest.mark.parametrize("name", ["cpu", "cpu:0", "cuda", "cuda:0", "cuda:1"])
@pytest.mark.usefixtures("gpus")
def test_a_processor_and_gpus_that_are_there(name: str) -> None:
    check_accelerator(name)


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:-1", "CUDA", "/dev/null"])
def test_names_that_mean_nothing(name: str) -> None:
    with pytest.raises(InputError, match=f"no accelerator '{name}': cpu, cuda, or one GPU of several, as cuda:1"):
        check_accelerator(name)


@pytest.mark.parametrize("name", ["meta", "mps", "xpu:0"])
def test_accelerators_that_nobody_has_tried(name: str) -> None:
    with pytest.raises(InputError, match=f"accelerator {name}: blocks are multiplied on cpu and cuda only"):
        check_accelerator(name)


@pytest.mark.usefixtures("gpus")
def test_a_gpu_beyond_the_last() -> None:
    with pytest.raises(InputError, match="accelerator cuda:2: PyTorch finds 2 GPUs here"):
        check_accelerator("cuda:2")


def test_no_gpu(gpus: pytest.MonkeyPatch) -> None:
    gpus.setattr(torch.cuda, "device_count", lambda: 0)
    gpus.setattr(torch.version, "cuda", None)
    with pytest.raises(InputError, match="PyTorch finds no GPU here; this build of PyTorch has no CUDA"):
        owl.local_fleet(devices=1, accelerator="cuda")
