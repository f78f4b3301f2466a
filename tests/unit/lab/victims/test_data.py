"""How data are split, and what is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from awfulowl.errors import InputError
from awfulowl.lab.victims import data
from awfulowl.lab.victims.data import Sizes, read_split, some, split
from awfulowl.models.data import DataSet, Labelled
from tests.scenes import digits


def own(tmp_path: Path, **tensors: Tensor) -> str:
    path = tmp_path / "own.safetensors"
    save_file(tensors, path)
    return str(path)


def pictures(count: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    chance = torch.Generator().manual_seed(0)
    inputs = torch.rand(count, 1, 4, 4, generator=chance)
    labels = torch.arange(count) % 3
    return {"inputs": inputs if dtype is torch.float32 else (255 * inputs).to(dtype), "labels": labels}


def test_the_parts_share_no_image() -> None:
    found = digits()
    parts = (found.train, found.public, found.validation, found.test)
    images = [tuple(one.flatten().tolist()) for part in parts for one in part.inputs]
    assert len(images) == 1797
    # scikit-learn's digits hold a few pictures twice
    assert len(set(images)) > 1780
    assert [len(part.labels) for part in parts] == [1038, 300, 100, 359]


def test_the_split_is_the_same_for_everybody() -> None:
    again = read_split("digits")
    assert torch.equal(again.public.inputs, digits().public.inputs)
    assert again.digest == digits().digest


def test_own_data_are_split_and_pixels_become_floats(tmp_path: Path) -> None:
    found = read_split(own(tmp_path, **pictures(400, torch.uint8)))
    assert [len(part.labels) for part in found[:4]] == [240, 64, 16, 80]
    assert found.classes == 3
    assert found.train.inputs.dtype is torch.uint8
    assert found.public.inputs.dtype is torch.float32
    assert found.public.inputs.min() >= -1


def test_own_test_images_stay_the_test(tmp_path: Path) -> None:
    test = {f"test_{name}": tensor for name, tensor in pictures(9).items()}
    found = read_split(own(tmp_path, **pictures(400), **test))
    assert torch.equal(found.test.inputs, test["test_inputs"])


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        ({"inputs": torch.zeros(4, 2)}, "must hold inputs and labels"),
        ({**pictures(400), "more": torch.zeros(1)}, "must hold inputs and labels"),
        ({**pictures(400), "test_inputs": torch.zeros(1, 1, 4, 4)}, "must hold inputs and labels"),
        (pictures(400) | {"labels": torch.zeros(400)}, "int64"),
        (pictures(400) | {"labels": torch.zeros(399, dtype=torch.int64)}, "do not belong together"),
        (pictures(400) | {"labels": -torch.ones(400, dtype=torch.int64)}, "label -1"),
        (pictures(400) | {"inputs": torch.full((400, 1, 4, 4), torch.nan)}, "not finite"),
        (pictures(400) | {"inputs": torch.zeros(400, 2, dtype=torch.float64)}, "float64"),
        (pictures(8), "too few"),
    ],
)
def test_data_that_are_none_are_refused(tmp_path: Path, tensors: dict[str, Tensor], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        read_split(own(tmp_path, **tensors))


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no tensors at all")
    with pytest.raises(InputError, match="no safetensors file"):
        read_split(str(broken))
    with pytest.raises(InputError, match="no readable data"):
        read_split(str(tmp_path / "none.safetensors"))
    with pytest.raises(InputError, match="no data 'nonsense'; give digits"):
        read_split("nonsense")
    with pytest.raises(InputError, match="no readable data"):
        read_split(f"cifar100:{tmp_path / 'none'}")


def test_no_more_than_half_is_held_back() -> None:
    small = DataSet(
        train=Labelled(*pictures(10).values()), test=Labelled(*pictures(4).values()), classes=("a", "b", "c")
    )
    with pytest.raises(InputError, match="cannot be held back"):
        split(small, Sizes(5, 1))


def test_decoded_pictures_are_kept_and_a_damaged_copy_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []

    def read(path: Path) -> DataSet:
        reads.append(path)
        many = pictures(14_000, torch.uint8)
        return DataSet(
            Labelled(many["inputs"], many["labels"]), Labelled(*pictures(20, torch.uint8).values()), ("a", "b", "c")
        )

    monkeypatch.setattr(data, "_ARCHIVES", {"cifar10": read, "cifar100": read})
    archive = tmp_path / "archive"
    archive.write_bytes(b"?")
    first, again = (read_split(str(archive), tmp_path / "cache") for _ in range(2))
    assert len(reads) == 1
    assert torch.equal(first.train.inputs, again.train.inputs)
    assert first.digest == again.digest
    assert len(first.public.labels) == 5000
    kept = next((tmp_path / "cache" / "data").iterdir())
    kept.write_bytes(kept.read_bytes()[:1000])
    assert read_split(str(archive), tmp_path / "cache").digest == first.digest
    assert len(reads) == 2


def test_some_images_are_of_all_classes_though_archives_are_sorted() -> None:
    labels = torch.arange(10).repeat_interleave(100)
    images = Labelled(torch.arange(1000.0)[:, None], labels)
    drawn = some(images, 200, seed=3)
    assert set(drawn.labels.tolist()) == set(range(10))
    assert len(set(drawn.inputs.flatten().tolist())) == 200
    assert torch.equal(labels[drawn.inputs.long().flatten()], drawn.labels)
    assert torch.equal(some(images, 200, seed=3).inputs, drawn.inputs)
    assert some(images, 1000, seed=3) is images
