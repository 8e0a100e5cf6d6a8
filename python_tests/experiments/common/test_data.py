"""Readers: formats, standardisation, splits, and what a missing or damaged file is answered with."""

from __future__ import annotations

import gzip
import math
import struct
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from experiments.common import data

SIDE = 28


def idx(array: NDArray[np.uint8]) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_gz(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, mtime=0))


def promising(*shape: int) -> bytes:
    """An IDX file that promises items and has none."""
    return gzip.compress(bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape), mtime=0)


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """A data_dir with seven training and five test images."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 7), ("t10k", 5)):
        images = rng.integers(0, 256, (count, SIDE, SIDE), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        write_gz(tmp_path / "mnist" / f"{part}-images-idx3-ubyte.gz", idx(images))
        write_gz(tmp_path / "mnist" / f"{part}-labels-idx1-ubyte.gz", idx(labels))
    return tmp_path


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data_dir with CIFAR-10 of 5 x 4 training and 3 test images, and CIFAR-100 of 6 and 3."""
    monkeypatch.setattr(data, "CIFAR_RECORDS", {"cifar10": 4, "cifar100": 6})
    monkeypatch.setattr(data, "CIFAR_TEST_RECORDS", 3)
    rng = np.random.default_rng(1)
    for name, folder, label_bytes, files in (
        ("cifar10", "cifar10/cifar-10-batches-bin", 1, {f"data_batch_{i}.bin": 4 for i in range(1, 6)}),
        ("cifar100", "cifar100", 2, {"train.bin": 6}),
    ):
        (tmp_path / folder).mkdir(parents=True)
        for file, count in {**files, ("test_batch.bin" if label_bytes == 1 else "test.bin"): 3}.items():
            records = rng.integers(0, 256, (count, label_bytes + 3072), dtype=np.uint8)
            records[:, 0] = 19  # the coarse label of CIFAR-100, not to be taken
            records[:, label_bytes - 1] = np.arange(count) + (90 if name == "cifar100" else 5)
            records.tofile(tmp_path / folder / file)
    return tmp_path


# ---- digits


def test_digits_split_is_stratified_and_deterministic() -> None:
    first, second = data.load("digits"), data.load("digits")
    assert first.train_x.shape == (1437, 64)
    assert first.test_x.shape == (360, 64)
    assert first.train_x.dtype == torch.float32
    assert first.train_y.dtype == torch.int64
    assert first.classes == 10
    assert torch.equal(first.train_x, second.train_x)
    assert first.digest == second.digest
    train, test = torch.bincount(first.train_y), torch.bincount(first.test_y)
    share = test / (train + test)
    assert ((share - 360 / 1797).abs() < 1 / (train + test)).all()  # proportional up to one sample


def test_digits_split_loses_and_repeats_nothing() -> None:
    from sklearn.datasets import load_digits

    loaded = data.load("digits")
    images = load_digits().data
    both = torch.cat([loaded.train_x, loaded.test_x])
    pixels = torch.tensor(images, dtype=torch.float64).sort(dim=0).values
    mean, std = images.mean(), 0.0
    train = both[: len(loaded.train_x)]
    assert abs(train.double().mean()) < 1e-6
    assert abs(train.double().std(correction=0) - 1) < 1e-6
    # Standardisation is monotone and the same for every pixel, so the sorted columns correspond one to one.
    standardised = both.double().sort(dim=0).values
    slope = (standardised[-1, 20] - standardised[0, 20]) / (pixels[-1, 20] - pixels[0, 20])
    std = 1 / float(slope)
    offset = float(standardised[0, 20]) - float(pixels[0, 20]) / std
    torch.testing.assert_close(standardised, pixels / std + offset, rtol=0, atol=1e-5)
    assert abs(mean / std + offset) < 0.05  # the training set's mean is close to that of all


# ---- IDX


def test_idx_reads_what_was_written(mnist: Path) -> None:
    loaded = data.load("mnist", mnist)
    assert loaded.train_x.shape == (7, SIDE * SIDE)
    assert loaded.test_y.tolist() == [0, 1, 2, 3, 4]
    raw = data.read_idx(mnist / "mnist/train-images-idx3-ubyte.gz", dimensions=3).astype(np.float64)
    test = data.read_idx(mnist / "mnist/t10k-images-idx3-ubyte.gz", dimensions=3).astype(np.float64)
    expected = ((test - raw.mean()) / raw.std()).reshape(5, -1)  # test images by the training set's statistics
    np.testing.assert_allclose(loaded.test_x.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_missing_file_names_path_files_and_source(mnist: Path) -> None:
    path = mnist / "mnist" / "t10k-labels-idx1-ubyte.gz"
    path.unlink()
    with pytest.raises(FileNotFoundError) as error:
        data.load("mnist", mnist)
    message = str(error.value)
    assert str(path) in message
    assert "train-images-idx3-ubyte.gz" in message
    assert "yann.lecun.com" in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (gzip.compress(bytes([0, 0, 8, 1]) + bytes(8), mtime=0), "magic number 00000803.*got 00000801"),
        (gzip.compress(b"", mtime=0), "magic number.*got an empty file"),
        (gzip.compress(bytes([0, 0, 8, 3]) + bytes(5), mtime=0), "header of 16 bytes, got 9"),
        (promising(2**32 - 1, 2**32 - 1, 2**32 - 1), "at most 60000 x 28 x 28 items, got shape"),
        (promising(2**31, 28, 28), r"at most 60000 x 28 x 28 items, got shape \[2147483648, 28, 28\]"),
        (promising(60_001, 28, 28), "at most 60000 x 28 x 28"),
        (promising(1, 29, 28), "at most 60000 x 28 x 28"),
        (promising(60_000, 28, 28), "47040000 bytes of data.*got 0"),
        (gzip.compress(idx(np.zeros((2, 3, 3), np.uint8))[:-4], mtime=0), "18 bytes of data.*got 14"),
        (gzip.compress(idx(np.zeros((2, 3, 3), np.uint8)) + b"x", mtime=0), "18 bytes of data.*got more"),
        (gzip.compress(idx(np.zeros((0, 3, 3), np.uint8)), mtime=0), "at least one item"),
        (gzip.compress(idx(np.ones((9, 28, 28), np.uint8)), mtime=0)[:40], "complete gzip file"),
        (b"not a gzip file at all", "complete gzip file"),
        (gzip.compress(idx(np.zeros((2, 3, 3), np.uint8)), mtime=0)[:-8] + bytes(8), "complete gzip file"),
    ],
)
def test_damaged_idx_is_refused(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "images.gz"
    path.write_bytes(content)
    with pytest.raises(data.CorruptDataError, match=f"images.gz: expected .*{expected}"):
        data.read_idx(path, dimensions=3)


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    images = idx(np.zeros((1, 28, 28), np.uint8))
    write_gz(tmp_path / "images.gz", images + bytes(1 << 24))
    tracemalloc.start()
    with pytest.raises(data.CorruptDataError, match=r"images.gz: expected 784 bytes of data .*got more"):
        data.read_idx(tmp_path / "images.gz", dimensions=3)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("file", ["mnist/train-labels-idx1-ubyte.gz", "cifar10/cifar-10-batches-bin/data_batch_3.bin"])
def test_what_cannot_be_read_is_named(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / file).mkdir(parents=True)  # past the look at which files are there
    reader = data._cifar_records if "cifar" in file else data.read_idx
    arguments = ("cifar10", 10, 4) if "cifar" in file else (1,)
    with pytest.raises(data.CorruptDataError, match=rf"{Path(file).name}: expected .* Is a directory"):
        reader(tmp_path / file, *arguments)
    name = file.partition("/")[0]
    with pytest.raises(data.MissingDataError):
        data.load(name, tmp_path)


def test_idx_files_that_disagree_are_refused(mnist: Path) -> None:
    labels = mnist / "mnist" / "train-labels-idx1-ubyte.gz"
    write_gz(labels, idx(np.zeros(6, np.uint8)))
    with pytest.raises(data.CorruptDataError, match=r"train-labels.*expected 7 labels.*got 6"):
        data.load("mnist", mnist)
    write_gz(labels, idx(np.full(7, 10, np.uint8)))
    with pytest.raises(data.CorruptDataError, match=r"train-labels.*labels 0 ... 9, got 10"):
        data.load("mnist", mnist)
    write_gz(mnist / "mnist" / "train-images-idx3-ubyte.gz", idx(np.zeros((7, 28, 27), np.uint8)))
    with pytest.raises(data.CorruptDataError, match=r"train-images.*28x28, got 28x27"):
        data.load("mnist", mnist)


def test_constant_images_are_refused(mnist: Path) -> None:
    write_gz(mnist / "mnist" / "train-images-idx3-ubyte.gz", idx(np.full((7, 28, 28), 3, np.uint8)))
    with pytest.raises(data.CorruptDataError, match="constant"):
        data.load("mnist", mnist)


# ---- CIFAR


def test_cifar_is_standardised_per_channel(cifar: Path) -> None:
    loaded = data.load("cifar10", cifar)
    assert loaded.train_x.shape == (20, 3072)
    assert loaded.train_y.tolist() == [5, 6, 7, 8] * 5
    assert loaded.test_y.tolist() == [5, 6, 7]
    channels = loaded.train_x.double().reshape(20, 3, 1024).transpose(0, 1).flatten(1)
    assert (channels.mean(dim=1).abs() < 1e-6).all()
    assert ((channels.std(dim=1, correction=0) - 1).abs() < 1e-6).all()
    records = np.fromfile(cifar / "cifar10/cifar-10-batches-bin/data_batch_1.bin", np.uint8).reshape(4, 3073)
    order = np.corrcoef(records[0, 1:1025], loaded.train_x[0, :1024].numpy())[0, 1]
    assert order > 1 - 1e-6  # pixels stay in the file's order


def test_cifar100_takes_fine_labels_from_the_folder_itself(cifar: Path) -> None:
    loaded = data.load("cifar100", cifar)
    assert loaded.classes == 100
    assert loaded.train_y.tolist() == [90, 91, 92, 93, 94, 95]


def test_cifar_of_another_size_is_refused(cifar: Path) -> None:
    path = cifar / "cifar10/cifar-10-batches-bin/data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(data.CorruptDataError, match=r"data_batch_3.bin: expected 12292 bytes .*, got 12291"):
        data.load("cifar10", cifar)


def test_a_cifar_file_that_grows_or_shrinks_is_refused(cifar: Path) -> None:
    path = cifar / "cifar10/cifar-10-batches-bin/data_batch_3.bin"
    whole = path.read_bytes()
    for content, got in ((whole + b"x", "more"), (whole[:1], "1"), (b"", "0")):
        path.write_bytes(content)
        with pytest.raises(data.CorruptDataError, match=rf"data_batch_3.bin: expected 12292 bytes .*, got {got}$"):
            data.load("cifar10", cifar)


def test_cifar_labels_out_of_range_are_refused(cifar: Path) -> None:
    path = cifar / "cifar10/cifar-10-batches-bin/test_batch.bin"
    content = bytearray(path.read_bytes())
    content[3073] = 10
    path.write_bytes(content)
    with pytest.raises(data.CorruptDataError, match=r"test_batch.bin: expected labels 0 ... 9, got 10"):
        data.load("cifar10", cifar)


def test_missing_cifar_names_both_places(tmp_path: Path) -> None:
    with pytest.raises(data.MissingDataError) as error:
        data.load("cifar10", tmp_path)
    assert "data_batch_1.bin" in str(error.value)
    assert "cifar-10-batches-bin" in str(error.value)
    assert "cs.toronto.edu" in str(error.value)


# ---- arguments and subsets


def test_unknown_name_and_missing_folder_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected one of digits, .*got 'svhn'"):
        data.load("svhn")
    with pytest.raises(ValueError, match=r"data_dir: expected .* got None"):
        data.load("kmnist")


def test_stratified_subset_is_proportional_and_depends_on_the_seed_alone() -> None:
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    state = torch.get_rng_state()
    chosen = data.stratified_subset(labels, 10, seed=3)
    assert torch.bincount(labels[chosen]).tolist() == [5, 3, 2]
    assert len(set(chosen.tolist())) == 10
    assert torch.equal(chosen, data.stratified_subset(labels, 10, seed=3))
    assert not torch.equal(chosen, data.stratified_subset(labels, 10, seed=4))
    assert torch.equal(torch.get_rng_state(), state)
    for size in (1, 7, 99, 100):
        assert len(data.stratified_subset(labels, size, seed=0)) == size


def test_largest_remainders_take_what_rounding_leaves_over() -> None:
    labels = torch.tensor([0] * 10 + [1] * 11 + [2] * 19)
    chosen = data.stratified_subset(labels, 20, seed=0)  # shares of 5, 5.5 and 9.5: the lower class wins the tie
    assert torch.bincount(labels[chosen]).tolist() == [5, 6, 9]


@pytest.mark.parametrize("size", [0, 4])
def test_stratified_subset_refuses_a_size_out_of_range(size: int) -> None:
    with pytest.raises(ValueError, match=rf"size: expected 1 ... 3, got {size}"):
        data.stratified_subset(torch.tensor([0, 1, 1]), size, seed=0)


def test_training_subset_leaves_the_rest_alone() -> None:
    digits = data.load("digits")
    part = data.training_subset(digits, 300, seed=2)
    chosen = data.stratified_subset(digits.train_y, 300, seed=2)
    assert torch.equal(part.train_x, digits.train_x[chosen])
    assert torch.equal(part.train_y, digits.train_y[chosen])
    assert part.test_x is digits.test_x
    assert (part.digest, part.classes) == (digits.digest, digits.classes)
    assert torch.equal(data.training_subset(digits, 1437, seed=2).train_x, digits.train_x)


# ---- label noise


def test_label_noise_is_uniform_on_its_fraction_and_nowhere_else() -> None:
    digits = data.load("digits")
    labels = torch.arange(10_000) % 10
    clean = replace(digits, train_x=torch.zeros(10_000, 1), train_y=labels)
    noisy = data.with_label_noise(clean, 0.2, seed=0)
    changed = noisy.train_y != labels
    sigma = math.sqrt(2000 * 0.9 * 0.1)
    assert abs(int(changed.sum()) - 2000 * 0.9) < 5 * sigma  # of 2,000 drawn anew, a tenth got its own label again
    assert changed.reshape(-1, 10).sum(0).min() > 100  # of every class
    counts = torch.bincount(noisy.train_y[changed], minlength=10).double()
    expected = counts.mean()
    assert ((counts - expected).square() / expected).sum() < 33.7  # chi-square, 9 degrees of freedom, p = 1e-4
    assert noisy.test_y is clean.test_y
    assert torch.equal(clean.train_y, labels)


def test_label_noise_depends_on_the_seed_alone() -> None:
    digits = data.load("digits")
    state = torch.get_rng_state()
    first, same, other = (data.with_label_noise(digits, 0.2, seed=seed).train_y for seed in (7, 7, 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_label_noise_has_a_stream_of_its_own() -> None:
    """The seed's other streams order batches and choose probes: noise must not know which samples those are."""
    digits = data.load("digits")
    changed = (data.with_label_noise(digits, 0.2, seed=7).train_y != digits.train_y).nonzero().flatten().tolist()
    first_of_the_seed = np.random.default_rng(7).permutation(len(digits.train_y))[: round(0.2 * len(digits.train_y))]
    assert len(set(changed) & set(first_of_the_seed.tolist())) < 0.4 * len(changed)


def test_label_noise_of_none_and_all() -> None:
    digits = data.load("digits")
    assert torch.equal(data.with_label_noise(digits, 0.0, seed=0).train_y, digits.train_y)
    kept = (data.with_label_noise(digits, 1.0, seed=0).train_y == digits.train_y).double().mean()
    assert abs(kept - 0.1) < 5 * math.sqrt(0.09 / 1437)
    with pytest.raises(ValueError, match=r"fraction: expected 0 ... 1, got 1.2"):
        data.with_label_noise(digits, 1.2, seed=0)
