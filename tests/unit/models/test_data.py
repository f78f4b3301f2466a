import io
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from awfulowl.errors import InputError
from awfulowl.models.data import DataSet, read_cifar10, read_cifar100, read_text, scaled
from tests.unit.models.pickled import dumps, folder, table, tar

Store = Callable[[Path, Mapping[str, bytes]], Path]
STORES = [tar, folder]
NAMES = [b"airplane", b"automobile", b"bird", b"cat", b"deer", b"dog", b"frog", b"horse", b"ship", b"truck"]
FINE = [b"fine%d" % number for number in range(100)]


def pixels(seed: int, count: int = 3) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


def batch(seed: int, labels: list[int], key: bytes = b"labels") -> bytes:
    return dumps({b"batch_label": b"b", key: labels, b"data": table(pixels(seed, len(labels)))})


def cifar10() -> dict[str, bytes]:
    files = {"cifar-10-batches-py/": b"", "cifar-10-batches-py/readme.html": b"<html>"}
    for number in range(1, 6):
        files[f"cifar-10-batches-py/data_batch_{number}"] = batch(number, [number, 0, 9])
    files["cifar-10-batches-py/test_batch"] = batch(6, [6, 7])
    files["cifar-10-batches-py/batches.meta"] = dumps({b"label_names": NAMES, b"num_cases_per_batch": 3})
    return files


def cifar100() -> dict[str, bytes]:
    return {
        "cifar-100-python/train": batch(1, [99, 0, 5], b"fine_labels"),
        "cifar-100-python/test": batch(2, [42], b"fine_labels"),
        "cifar-100-python/meta": dumps({b"fine_label_names": FINE, b"coarse_label_names": [b"fish"]}),
    }


def jpeg(colour: tuple[int, int, int], size: tuple[int, int] = (32, 32), mode: str = "RGB") -> bytes:
    raw = io.BytesIO()
    Image.new("RGB", size, colour).convert(mode).save(raw, "JPEG", quality=95)
    return raw.getvalue()


def pictures() -> dict[str, bytes]:
    files = {}
    for number, name in enumerate(NAMES):
        for half, count in (("train", 2), ("test", 1)):
            for place in range(count):
                files[f"{half}/{name.decode()}/{place:04}.jpg"] = jpeg((20 * number, 100 * place, 200))
    return files


@pytest.mark.parametrize("store", STORES)
def test_cifar10_from_the_official_archive(tmp_path: Path, store: Store) -> None:
    data = read_cifar10(store(tmp_path / "data", cifar10()))
    assert data.train.labels.tolist() == [1, 0, 9, 2, 0, 9, 3, 0, 9, 4, 0, 9, 5, 0, 9]
    assert data.test.labels.tolist() == [6, 7]
    assert data.train.labels.dtype == torch.int64
    assert data.classes == tuple(name.decode() for name in NAMES)
    assert data.train.inputs.shape == (15, 3, 32, 32)
    assert data.train.inputs.dtype == torch.uint8
    assert torch.equal(data.test.inputs, torch.from_numpy(pixels(6, 2)).reshape(2, 3, 32, 32))


def test_the_inner_folder_will_do(tmp_path: Path) -> None:
    folder(tmp_path, cifar10())
    assert len(read_cifar10(tmp_path / "cifar-10-batches-py").train.labels) == 15


@pytest.mark.parametrize("store", STORES)
def test_cifar100(tmp_path: Path, store: Store) -> None:
    data = read_cifar100(store(tmp_path / "data", cifar100()))
    assert data.train.labels.tolist() == [99, 0, 5]
    assert data.test.labels.tolist() == [42]
    assert data.classes[:2] == ("fine0", "fine1")
    assert torch.equal(data.train.inputs.flatten(1), torch.from_numpy(pixels(1)))


@pytest.mark.parametrize("store", [lambda path, files: tar(path, files, "w:xz"), folder])
def test_cifar10_from_jpeg_files(tmp_path: Path, store: Store) -> None:
    data = read_cifar10(store(tmp_path / "data", pictures()))
    assert data.classes == tuple(name.decode() for name in NAMES)
    assert data.train.labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert data.test.labels.tolist() == list(range(10))
    middle = data.train.inputs[2 * 5 + 1, :, 16, 16].int()
    assert (middle - torch.tensor([100, 100, 200])).abs().max() <= 4, "red, green, blue of the sixth class"
    assert data.test.inputs.is_contiguous()


def test_a_grey_jpeg_becomes_three_channels(tmp_path: Path) -> None:
    files = pictures() | {"test/cat/0000.jpg": jpeg((90, 90, 90), mode="L")}
    data = read_cifar10(folder(tmp_path, files))
    assert (data.test.inputs[3].int() - 90).abs().max() <= 2


@pytest.mark.parametrize("gone", ["data_batch_3", "test_batch", "batches.meta"])
def test_an_archive_that_lacks_a_file(tmp_path: Path, gone: str) -> None:
    files = {name: content for name, content in cifar10().items() if not name.endswith(gone)}
    with pytest.raises(InputError, match=f"lacks {gone}"):
        read_cifar10(tar(tmp_path / "data", files))


@pytest.mark.parametrize(
    ("read", "files", "title"),
    [
        (read_cifar10, cifar100(), "CIFAR-10"),
        (read_cifar100, cifar10(), "CIFAR-100"),
        (read_cifar100, pictures(), "CIFAR-100"),
    ],
)
def test_the_other_archive(
    tmp_path: Path, read: Callable[[Path], DataSet], files: dict[str, bytes], title: str
) -> None:
    with pytest.raises(InputError, match=f"not a whole {title} archive: it lacks"):
        read(tar(tmp_path / "data", files))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (dumps({b"labels": [1], b"data": table(pixels(1, 2))}), "shape"),
        (dumps({b"labels": [10], b"data": table(pixels(1, 1))}), "number below 10"),
        (dumps({b"labels": [-1], b"data": table(pixels(1, 1))}), "number below 10"),
        (dumps({b"labels": [True], b"data": table(pixels(1, 1))}), "number below 10"),
        (dumps({b"labels": [b"cat"], b"data": table(pixels(1, 1))}), "number below 10"),
        (dumps({b"labels": [1], b"data": table(pixels(1, 1)[:, :3000])}), "shape"),
        (dumps({b"labels": 1, b"data": table(pixels(1, 1))}), "no images and labels"),
        (dumps({b"labels": [1], b"data": [1]}), "no images and labels"),
        (dumps({}), "no images and labels"),
        (b"\x80\x02cos\nsystem\n.", "asks for os.system"),
        (b"", "damaged"),
    ],
)
def test_a_bad_batch(tmp_path: Path, content: bytes, message: str) -> None:
    files = cifar10() | {"cifar-10-batches-py/data_batch_2": content}
    with pytest.raises(InputError, match=message) as error:
        read_cifar10(tar(tmp_path / "data", files))
    assert "data_batch_2" in str(error.value)


@pytest.mark.parametrize("meta", [{}, {b"label_names": []}, {b"label_names": [1]}, {b"label_names": b"cat"}])
def test_bad_class_names(tmp_path: Path, meta: dict[bytes, object]) -> None:
    files = cifar10() | {"cifar-10-batches-py/batches.meta": dumps(meta)}
    with pytest.raises(InputError, match="list of class names"):
        read_cifar10(tar(tmp_path / "data", files))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no readable JPEG"),
        (b"GIF89a" + b"\0" * 100, "no readable JPEG"),
        (jpeg((1, 2, 3))[:400], "no readable JPEG"),
        (jpeg((1, 2, 3), size=(31, 32)), "31 x 32, not 32 x 32"),
        (jpeg((1, 2, 3), size=(3000, 3000)), "3000 x 3000, not 32 x 32"),
    ],
)
def test_a_bad_picture(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        read_cifar10(folder(tmp_path, pictures() | {"train/dog/0001.jpg": content}))
    assert "train/dog/0001.jpg" in str(error.value)


def test_a_picture_that_is_no_jpeg_is_refused_whatever_its_name(tmp_path: Path) -> None:
    raw = io.BytesIO()
    Image.new("RGB", (32, 32)).save(raw, "PNG")
    with pytest.raises(InputError, match="no readable JPEG"):
        read_cifar10(folder(tmp_path, pictures() | {"train/dog/0001.jpg": raw.getvalue()}))


def test_the_wrong_classes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"these are 11: .*owl"):
        read_cifar10(folder(tmp_path, pictures() | {"train/owl/0000.jpg": jpeg((0, 0, 0))}))


def test_only_training_pictures(tmp_path: Path) -> None:
    files = {name: content for name, content in pictures().items() if name.startswith("train")}
    with pytest.raises(InputError, match="no pictures under test/"):
        read_cifar10(folder(tmp_path, files))


def test_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(tmp_path, pictures())
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(InputError, match=r"pip install 'awfulowl\[data\]'"):
        read_cifar10(path)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lacks data_batch_1, data_batch_2"):
        read_cifar10(tmp_path)


def test_scaled() -> None:
    assert torch.equal(scaled(torch.tensor([0, 255], dtype=torch.uint8)), torch.tensor([-1.0, 1.0]))


def test_text(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("to be, or nöt 🦉", encoding="utf-8")
    text = read_text(path)
    assert text.alphabet == "".join(sorted(set("to be, or nöt 🦉")))
    assert "".join(text.alphabet[token] for token in text.tokens.tolist()) == "to be, or nöt 🦉"
    assert text.tokens.dtype == torch.int64


@pytest.mark.parametrize(("content", "message"), [(b"", "empty"), (b"\xff\xfe", "UTF-8")])
def test_bad_text(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_text(path)


def test_text_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(InputError, match="not a readable"):
            read_text(path)


def test_too_much_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.txt"
    path.write_text("12345")
    monkeypatch.setattr("awfulowl.models.data._MOST_TEXT_BYTES", 4)
    with pytest.raises(InputError, match="more than the 4 bytes"):
        read_text(path)
