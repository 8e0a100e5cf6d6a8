"""Image data sets as standardised tensors, read from the formats they are published in.

``digits`` comes with scikit-learn. The others are read from ``data_dir/<name>/``: the MNIST family as IDX .gz
files, CIFAR in its binary version. Nothing is downloaded and no pickle is loaded.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Bytes = NDArray[np.uint8]
Integers = NDArray[np.int64]
Samples = tuple[Tensor, Tensor]  # x [n, d], y [n]

DIGITS_TEST = 360  # of 1,797
IDX_SIDE = 28
IDX_MOST = 60_000  # images in a file, as many as the published training sets of the MNIST family have
CIFAR_PIXELS = 3 * 32 * 32
CIFAR_RECORDS = {"cifar10": 10_000, "cifar100": 50_000}  # in one training file; test files hold 10,000
CIFAR_TEST_RECORDS = 10_000
CIFAR_FOLDERS = {"cifar10": "cifar-10-batches-bin", "cifar100": "cifar-100-binary"}
CIFAR_TRAIN = {"cifar10": [f"data_batch_{i}.bin" for i in range(1, 6)], "cifar100": ["train.bin"]}
CIFAR_TEST = {"cifar10": "test_batch.bin", "cifar100": "test.bin"}
CIFAR_LABELS = {"cifar10": 1, "cifar100": 2}  # label bytes in front of a record's pixels; the last one counts

PUBLISHED = {
    "mnist": "http://yann.lecun.com/exdb/mnist/ (mirror: https://storage.googleapis.com/cvdf-datasets/mnist/)",
    "fashion-mnist": "https://github.com/zalandoresearch/fashion-mnist",
    "kmnist": "http://codh.rois.ac.jp/kmnist/",
    "cifar10": "https://www.cs.toronto.edu/~kriz/cifar.html (binary version)",
    "cifar100": "https://www.cs.toronto.edu/~kriz/cifar.html (binary version)",
}
NAMES = ("digits", *PUBLISHED)


class MissingDataError(FileNotFoundError):
    """A data file is not where it was expected; says which files are, and where the set is published."""


class CorruptDataError(ValueError):
    """A data file does not hold what its format promises; names the file, what was expected and what came."""


@dataclass(frozen=True)
class Dataset:
    """Images, flattened and standardised by the training set's mean and deviation (per channel in CIFAR).

    Attributes:
        name: One of NAMES.
        train_x: [n, d] float32.
        train_y: [n] int64, in 0 ... classes - 1.
        test_x: [m, d] float32.
        test_y: [m] int64.
        classes: Number of classes.
        channels: The number of channels of an image, which is a square of d / channels pixels.
        digest: 16 hexadecimal digits of a hash over all pixels and labels, as published.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int
    channels: int
    digest: str

    def describe(self) -> dict[str, Any]:
        """The entries for the data in a run's configuration."""
        return {
            "data_digest": self.digest,
            "train_samples": len(self.train_y),
            "test_samples": len(self.test_y),
        }

    def to(self, device: torch.device) -> Dataset:
        """The same data on a device."""
        tensors = ("train_x", "train_y", "test_x", "test_y")
        return replace(self, **{name: getattr(self, name).to(device) for name in tensors})


def load(name: str, data_dir: Path | None = None) -> Dataset:
    """Read a data set.

    Args:
        name: One of NAMES.
        data_dir: Folder that holds ``<name>/``; not needed for digits.

    Raises:
        MissingDataError: If a file is missing.
        CorruptDataError: If a file is truncated or is not what its name promises.
        ValueError: If the name is unknown, or the set needs a data_dir and there is none.
    """
    if name not in NAMES:
        raise ValueError(f"name: expected one of {', '.join(NAMES)}, got {name!r}")
    if name == "digits":
        return _standardised(name, 10, 1, *_digits())
    if data_dir is None:
        raise ValueError(f"data_dir: expected the folder that holds {name}/, got None")
    if name in CIFAR_FOLDERS:
        classes = 100 if name == "cifar100" else 10
        return _standardised(name, classes, 3, *_cifar(name, classes, data_dir))
    return _standardised(name, 10, 1, *_idx(name, data_dir / name))


def stratified_subset(labels: Tensor, size: int, seed: int) -> Tensor:
    """A random subset with each class in proportion, the same for the same seed.

    Args:
        labels: [n] int64, on any device.
        size: Number of samples to choose, 1 ... n.
        seed: A non-negative seed.

    Returns:
        [size] int64 on the CPU: the chosen indices, ascending.

    Raises:
        ValueError: If the size is out of range.
    """
    y = labels.cpu().numpy()
    if not 1 <= size <= len(y):
        raise ValueError(f"size: expected 1 ... {len(y)}, got {size}")
    rng = np.random.default_rng(seed)
    counts = np.bincount(y)
    share = counts * (size / len(y))
    take = np.floor(share).astype(np.int64)
    # Largest remainders take what rounding down left over; the lower class wins a tie.
    take[np.argsort(take - share, kind="stable")[: size - take.sum()]] += 1
    chosen = [rng.permutation(np.flatnonzero(y == c))[:k] for c, k in enumerate(take)]
    return torch.from_numpy(np.sort(np.concatenate(chosen)))


def probe(dataset: Dataset, size: int, seed: int) -> Samples:
    """A stratified subset of the training samples to measure on.

    Raises:
        ValueError: If the size is out of range.
    """
    chosen = stratified_subset(dataset.train_y, size, seed).to(dataset.train_y.device)
    return dataset.train_x[chosen], dataset.train_y[chosen]


def probes(dataset: Dataset, size: int, seed: int) -> dict[str, Samples]:
    """Stratified subsets of as many training and test samples to measure on, as "train" and "test".

    Raises:
        ValueError: If the size is out of range.
    """
    held_out = test_subset(dataset, size, seed)
    return {"train": probe(dataset, size, seed), "test": (held_out.test_x, held_out.test_y)}


def training_subset(dataset: Dataset, size: int, seed: int) -> Dataset:
    """The data set with a stratified subset of its training samples; test samples and standardisation stay.

    Raises:
        ValueError: If the size is out of range.
    """
    chosen = stratified_subset(dataset.train_y, size, seed).to(dataset.train_y.device)
    return replace(dataset, train_x=dataset.train_x[chosen], train_y=dataset.train_y[chosen])


def test_subset(dataset: Dataset, size: int, seed: int) -> Dataset:
    """The data set with a stratified subset of its test samples.

    Raises:
        ValueError: If the size is out of range.
    """
    chosen = stratified_subset(dataset.test_y, size, seed).to(dataset.test_y.device)
    return replace(dataset, test_x=dataset.test_x[chosen], test_y=dataset.test_y[chosen])


def with_label_noise(dataset: Dataset, fraction: float, seed: int) -> Dataset:
    """The data set with a fraction of its training labels drawn anew, uniformly; test labels stay.

    A label drawn anew may be the one that was there, so that (classes - 1) / classes of them are wrong.

    Args:
        dataset: A data set with labels as published.
        fraction: The share of training samples, in [0, 1], rounded to whole samples.
        seed: The non-negative seed of the choice of samples and of their labels.

    Raises:
        ValueError: If the fraction is out of range.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction: expected 0 ... 1, got {fraction}")
    # A stream of its own: the seed's other streams order the batches and choose the probe.
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
    labels = dataset.train_y.cpu().numpy().copy()
    chosen = rng.permutation(len(labels))[: round(fraction * len(labels))]
    labels[chosen] = rng.integers(0, dataset.classes, len(chosen))
    return replace(dataset, train_y=torch.from_numpy(labels).to(dataset.train_y.device))


# ---- digits


def _digits() -> tuple[Bytes, Integers, Bytes, Integers]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x, y = images.astype(np.uint8), labels.astype(np.int64)  # pixels are whole numbers, 0 ... 16
    test = np.zeros(len(y), dtype=bool)
    test[stratified_subset(torch.from_numpy(y), DIGITS_TEST, seed=0).numpy()] = True
    return x[~test], y[~test], x[test], y[test]


# ---- the MNIST family: IDX


def _idx(name: str, folder: Path) -> tuple[Bytes, Integers, Bytes, Integers]:
    names = [f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    _require(name, [folder / file for file in names])
    (train_x, train_y), (test_x, test_y) = (_idx_pair(folder, *names[i : i + 2]) for i in (0, 2))
    return train_x, train_y, test_x, test_y


def _idx_pair(folder: Path, images: str, labels: str) -> tuple[Bytes, Integers]:
    x = read_idx(folder / images, dimensions=3)
    y = read_idx(folder / labels, dimensions=1)
    if x.shape[1:] != (IDX_SIDE, IDX_SIDE):
        got = "x".join(map(str, x.shape[1:]))
        raise CorruptDataError(f"{folder / images}: expected images of {IDX_SIDE}x{IDX_SIDE}, got {got}")
    if len(x) != len(y):
        expected = f"{len(x)} labels, one per image in {images}"
        raise CorruptDataError(f"{folder / labels}: expected {expected}, got {len(y)}")
    _check_labels(folder / labels, y, 10)
    return x.reshape(len(x), -1), y.astype(np.int64)


def read_idx(path: Path, dimensions: int) -> Bytes:
    """Read a gzip-compressed IDX file of unsigned bytes, of at most 60,000 images of 28x28 or as many labels.

    Args:
        path: The file.
        dimensions: Expected number of dimensions.

    Returns:
        uint8 array of the shape that the file's header states.

    Raises:
        CorruptDataError: If it cannot be read or is no gzip file, its magic number is another, it promises more than
            that, or its length is not what it promises.
    """
    try:
        with gzip.open(path) as file:
            magic = file.read(4)
            expected = bytes([0, 0, 8, dimensions])
            if magic != expected:
                raise CorruptDataError(
                    f"{path}: expected the IDX magic number {expected.hex()} (unsigned bytes, "
                    f"{dimensions} dimensions), got {magic.hex() or 'an empty file'}"
                )
            header = file.read(4 * dimensions)
            if len(header) < 4 * dimensions:
                raise CorruptDataError(
                    f"{path}: expected a header of {4 + 4 * dimensions} bytes, got {4 + len(header)}"
                )
            shape = struct.unpack(f">{dimensions}I", header)
            if 0 in shape:
                raise CorruptDataError(f"{path}: expected at least one item, got shape {list(shape)}")
            if shape[0] > IDX_MOST or any(side > IDX_SIDE for side in shape[1:]):  # before any memory is taken for it
                most = " x ".join(map(str, [IDX_MOST, IDX_SIDE, IDX_SIDE][:dimensions]))
                raise CorruptDataError(f"{path}: expected at most {most} items, got shape {list(shape)}")
            size = math.prod(shape)
            body = file.read(size + 1)  # one more than there should be, to notice a surplus
    except (OSError, EOFError, zlib.error) as error:
        raise CorruptDataError(f"{path}: expected a complete gzip file, got one that fails with: {error}") from error
    if len(body) != size:
        got = "more" if len(body) > size else f"{len(body)}"
        raise CorruptDataError(f"{path}: expected {size} bytes of data for shape {list(shape)}, got {got}")
    return np.frombuffer(body, dtype=np.uint8).reshape(shape)


# ---- CIFAR: binary version


def _cifar(name: str, classes: int, data_dir: Path) -> tuple[Bytes, Integers, Bytes, Integers]:
    inner = data_dir / name / CIFAR_FOLDERS[name]
    folder = inner if inner.is_dir() else data_dir / name
    _require(name, [folder / file for file in [*CIFAR_TRAIN[name], CIFAR_TEST[name]]])
    train = [_cifar_records(folder / file, name, classes, CIFAR_RECORDS[name]) for file in CIFAR_TRAIN[name]]
    test_x, test_y = _cifar_records(folder / CIFAR_TEST[name], name, classes, CIFAR_TEST_RECORDS)
    return np.concatenate([x for x, _ in train]), np.concatenate([y for _, y in train]), test_x, test_y


def _cifar_records(path: Path, name: str, classes: int, count: int) -> tuple[Bytes, Integers]:
    length = CIFAR_LABELS[name] + CIFAR_PIXELS
    try:
        with path.open("rb") as file:
            content = file.read(count * length + 1)  # one more than there should be, to notice a surplus
    except OSError as error:
        raise CorruptDataError(f"{path}: expected a file that can be read, got one that fails with: {error}") from error
    if len(content) != count * length:  # the format has no header: its size is all there is to check
        got = "more" if len(content) > count * length else f"{len(content)}"
        raise CorruptDataError(f"{path}: expected {count * length} bytes ({count} records of {length}), got {got}")
    records = np.frombuffer(content, dtype=np.uint8).reshape(count, length)
    y = records[:, CIFAR_LABELS[name] - 1].astype(np.int64)
    _check_labels(path, y, classes)
    return records[:, CIFAR_LABELS[name] :], y


# ---- checks and standardisation


def _require(name: str, paths: list[Path]) -> None:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        files = ", ".join(path.name for path in paths)
        folder = str(missing[0].parent)
        inner = CIFAR_FOLDERS.get(name)
        if inner is not None and missing[0].parent.name != inner:
            folder += f" or its folder {inner}"
        raise MissingDataError(
            f"{missing[0]}: no such file. {name} needs {files} in {folder}; it is published at {PUBLISHED[name]}"
        )


def _check_labels(path: Path, y: NDArray[np.integer], classes: int) -> None:
    if y.max() >= classes:
        raise CorruptDataError(f"{path}: expected labels 0 ... {classes - 1}, got {y.max()}")


def _standardised(
    name: str, classes: int, channels: int, train_x: Bytes, train_y: Integers, test_x: Bytes, test_y: Integers
) -> Dataset:
    mean, deviation = _channel_statistics(train_x, channels)
    if not deviation.all():
        raise CorruptDataError(f"{name}: expected training images that differ, got a constant channel")
    digest = hashlib.sha256()
    for part in (train_x, train_y, test_x, test_y):
        digest.update(np.ascontiguousarray(part).data)

    def standardise(x: Bytes) -> Tensor:
        images = x.reshape(len(x), channels, -1).astype(np.float32)
        images -= mean.astype(np.float32)
        images /= deviation.astype(np.float32)
        return torch.from_numpy(images.reshape(len(x), -1))

    return Dataset(
        name=name,
        train_x=standardise(train_x),
        train_y=torch.from_numpy(train_y),
        test_x=standardise(test_x),
        test_y=torch.from_numpy(test_y),
        classes=classes,
        channels=channels,
        digest=digest.hexdigest()[:16],
    )


def _channel_statistics(x: Bytes, channels: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mean and the standard deviation, [channels, 1] each, from exact integer sums."""
    total = np.zeros((channels, 1), dtype=np.int64)
    squares = np.zeros((channels, 1), dtype=np.int64)
    for block in _blocks(x):
        wide = block.reshape(len(block), channels, -1).astype(np.int64)
        total += wide.sum(axis=(0, 2))[:, None]
        squares += np.square(wide).sum(axis=(0, 2))[:, None]
    count = x.size // channels
    mean = total / count
    return mean, np.sqrt(squares / count - np.square(mean))


def _blocks(x: Bytes) -> Iterator[Bytes]:
    for start in range(0, len(x), 4096):  # keeps the wide copies small
        yield x[start : start + 4096]
