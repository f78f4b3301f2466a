"""Write the job's data beside this file: scikit-learn's handwritten digits, one byte for each pixel and each label.

python make_data.py
"""

from pathlib import Path

from sklearn.datasets import load_digits


def main(folder: Path = Path(__file__).parent) -> None:
    images, labels = load_digits(return_X_y=True)
    (folder / "images.bin").write_bytes(images.astype("uint8").tobytes())
    (folder / "labels.bin").write_bytes(labels.astype("uint8").tobytes())


if __name__ == "__main__":
    main()
