"""Claim tested: a damaged file is refused by one sentence that names it, or read right, and never taken for another.

Each kind of file that the package or its experiments read is damaged at random: bits, cuts, random bytes, swapped
blocks, insertions, gaps and zeroed ranges. What is read afterwards is compared with what was written. In formats
without a checksum, nobody can notice numbers that are others; the table says which formats these are. Nothing may be
written outside of the folder of the file.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import numpy as np
import torch

import ahkernels as ah
from ahkernels.checkpoints import load_weights
from ahkernels.command_line.data_file import read_data
from benchmarks.common import script
from experiments.common import data
from experiments.common.store import RunStore, StoreError, read_metrics

OUTCOMES = ("refused", "read right", "not noticeable", "wrong")
CONFIG = {"lr": 0.1, "depth": 3, "widths": [8, 16], "name": "digits", "bias": True}
HERE = {"torch": "2.13.0", "cpu": "one of many", "threads": 2, "ahkernels": {"version": "0", "cuda": None}}


Damage = Callable[[bytes, Random], bytes]


# ---- kinds of damage


def flipped(content: bytes, random: Random) -> bytes:
    """One to three bits are another."""
    changed = bytearray(content)
    for _ in range(random.randint(1, 3)):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def cut(content: bytes, random: Random) -> bytes:
    """The end is missing."""
    return content[: random.randrange(len(content))]


def overwritten(content: bytes, random: Random) -> bytes:
    """A range has random bytes."""
    start, end = _range(content, random)
    return content[:start] + random.randbytes(end - start) + content[end:]


def zeroed(content: bytes, random: Random) -> bytes:
    """A range is zero."""
    start, end = _range(content, random)
    return content[:start] + bytes(end - start) + content[end:]


def with_gap(content: bytes, random: Random) -> bytes:
    """A range is missing."""
    start, end = _range(content, random)
    return content[:start] + content[end:]


def with_insertion(content: bytes, random: Random) -> bytes:
    """There are random bytes, or a part of the file, in between."""
    at, (start, end) = random.randrange(len(content) + 1), _range(content, random)
    inserted = random.choice([random.randbytes(end - start), content[start:end]])
    return content[:at] + inserted + content[at:]


def swapped(content: bytes, random: Random) -> bytes:
    """Two blocks have changed places."""
    length = random.randint(1, max(1, len(content) // 4))
    first, second = sorted(random.randrange(max(1, len(content) - length)) for _ in range(2))
    if first + length > second:
        return content[second:] + content[:second]
    between = content[first + length : second]
    return (
        content[:first]
        + content[second : second + length]
        + between
        + content[first : first + length]
        + (content[second + length :])
    )


DAMAGES: tuple[Damage, ...] = (flipped, cut, overwritten, zeroed, with_gap, with_insertion, swapped)


def _range(content: bytes, random: Random) -> tuple[int, int]:
    start = random.randrange(len(content))
    return start, start + random.randint(1, min(len(content) - start, random.choice([1, 8, 64, 4096])))


# ---- kinds of files


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        file: The name of the file, in a folder of its own.
        write: Writes it, and what goes with it, to a folder.
        read: Reads it as its users do; what comes is compared.
        errors: How it may be refused.
        blind: What cannot be noticed, and why; empty where all can.
    """

    file: str
    write: Callable[[Path], object]
    read: Callable[[Path], object]
    errors: tuple[type[Exception], ...] = (ValueError,)
    blind: str = ""


def plain(value: Any) -> Any:
    """The same content, fit for a comparison, in which nan is equal to nan."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), list(value.shape), value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    if isinstance(value, Mapping):
        return [(name, plain(one)) for name, one in value.items()]
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return repr(value)


def network(seed: int = 0) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))


def write_run(folder: Path) -> None:
    with RunStore(folder, CONFIG, HERE) as store:
        store.rows += [{"iteration": i, "train_loss": 1 / (i + 3), "cka/layer1": 0.1 * i} for i in range(5)]
        store.tables["spectrum"] = [{"index": i, "layer1": 2.0**-i} for i in range(3)]
        store.save({"iteration": 4, "model": dict(network().state_dict()), "momentum": torch.randn(20)}, finished=True)


def read_run(folder: Path) -> object:
    with RunStore(folder, CONFIG, HERE) as store:
        return plain([store.state, store.rows, store.tables, store.finished])


def read_config(folder: Path) -> object:
    """What the file says where the store takes it for its own."""
    with RunStore(folder, CONFIG, HERE):
        found = json.loads((folder / "config.json").read_bytes())
        return sorted(found.items(), key=str)


def read_environment(folder: Path) -> object:
    with RunStore(folder, CONFIG, HERE) as store:
        return json.loads((folder / "environment.json").read_bytes())["environments"], store.notes


def history() -> ah.AlignmentHistory:
    x, y = torch.linspace(-1, 1, 48).reshape(12, 4).sin(), torch.arange(12) % 3
    tracker = ah.AlignmentTracker(network(), x, y, centering=("global", "per_output"), statistics=["stable_rank"])
    for step in (0, 7, 300):
        tracker.update(step, loss=1 / (step + 3))
    return tracker.history


def result(kind: type, name: str, make: Callable[[], Any]) -> Kind:
    """A report or a history in one of its formats."""
    return Kind(
        name,
        lambda folder: make().save(folder / name),
        lambda folder: json.dumps(kind.load(folder / name).to_dict(), sort_keys=True),
    )


def write_kernels(folder: Path) -> None:
    x = torch.linspace(-1, 1, 24).reshape(6, 4).sin()
    ah.save_kernels(ah.tangent_kernels(network(), x), folder / "kernels.safetensors")


def read_kernels(folder: Path) -> object:
    found = ah.load_kernels(folder / "kernels.safetensors")
    layers = [(one.layer, one.bias, one.by_jacobian) for kernel in found.values() for one in kernel.factors]
    tensors = [(one.forward, one.backward) for kernel in found.values() for one in kernel.factors]
    return repr(found), layers, plain(tensors)


def read_weights(path: Path) -> object:
    model = network(1)
    load_weights(model, path)
    return plain(model.state_dict())


def write_safetensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    save_file(dict(tensors), path)


def probe() -> dict[str, torch.Tensor]:
    return {"x": torch.linspace(-1, 1, 48).reshape(12, 4), "y": torch.arange(12) % 3}


def read_probe(path: Path) -> object:
    return plain(read_data(path, torch.float32, torch.device("cpu")))


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.tobytes(), mtime=0)


def write_mnist(folder: Path) -> None:
    random = np.random.default_rng(0)
    for part, count in (("train", 7), ("t10k", 5)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(idx(images))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(idx(np.arange(count, dtype=np.uint8)))


def read_mnist(folder: Path) -> object:
    (folder.parent / "mnist").symlink_to(folder, target_is_directory=True)
    try:
        return plain_dataset(data.load("mnist", folder.parent))
    finally:
        (folder.parent / "mnist").unlink()


def write_cifar(folder: Path) -> None:
    random = np.random.default_rng(1)
    for name, count in {**dict.fromkeys(data.CIFAR_TRAIN["cifar10"], 2), data.CIFAR_TEST["cifar10"]: 3}.items():
        records = random.integers(0, 256, (count, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        records.tofile(folder / name)


def read_cifar(folder: Path) -> object:
    (folder.parent / "cifar10").symlink_to(folder, target_is_directory=True)
    try:
        sizes = mock.patch.dict(data.CIFAR_RECORDS, cifar10=2)
        with sizes, mock.patch.object(data, "CIFAR_TEST_RECORDS", 3):  # a small set
            return plain_dataset(data.load("cifar10", folder.parent))
    finally:
        (folder.parent / "cifar10").unlink()


def plain_dataset(dataset: data.Dataset) -> object:
    tensors = [dataset.train_x, dataset.train_y, dataset.test_x, dataset.test_y]
    return dataset.digest, hashlib.sha256(repr(plain(tensors)).encode()).hexdigest()


NO_CHECKSUM = "numbers that are others: safetensors has no checksum"
KINDS = {
    "checkpoint of a run": Kind("checkpoint.pt", write_run, read_run, (StoreError,)),
    "metrics of a run": Kind("metrics.csv", write_run, lambda folder: plain(read_metrics(folder)), (StoreError,)),
    "configuration of a run": Kind("config.json", write_run, read_config, (StoreError,)),
    "environments of a run": Kind("environment.json", write_run, read_environment, (StoreError,)),
    **{
        f"{name} as {ending}": result(kind, f"{name}.{ending}", make)
        for name, kind, make in (
            ("history", ah.AlignmentHistory, history),
            ("report", ah.AlignmentReport, lambda: history()[-1].report),
        )
        for ending in ("json", "csv", "npz")
    },
    "kernels": Kind("kernels.safetensors", write_kernels, read_kernels),
    "weights of torch.save": Kind(
        "step_3.pt",
        lambda folder: torch.save(network().state_dict(), folder / "step_3.pt"),
        lambda folder: read_weights(folder / "step_3.pt"),
    ),
    "weights as safetensors": Kind(
        "step_3.safetensors",
        lambda folder: write_safetensors(folder / "step_3.safetensors", network().state_dict()),
        lambda folder: read_weights(folder / "step_3.safetensors"),
        blind=NO_CHECKSUM,
    ),
    "samples as npz": Kind(
        "probe.npz",
        lambda folder: np.savez(folder / "probe.npz", **{name: one.numpy() for name, one in probe().items()}),
        lambda folder: read_probe(folder / "probe.npz"),
    ),
    "samples as safetensors": Kind(
        "probe.safetensors",
        lambda folder: write_safetensors(folder / "probe.safetensors", probe()),
        lambda folder: read_probe(folder / "probe.safetensors"),
        blind=NO_CHECKSUM,
    ),
    "IDX images": Kind("train-images-idx3-ubyte.gz", write_mnist, read_mnist, (data.CorruptDataError,)),
    "IDX labels": Kind("train-labels-idx1-ubyte.gz", write_mnist, read_mnist, (data.CorruptDataError,)),
    "CIFAR records": Kind(
        "data_batch_2.bin",
        write_cifar,
        read_cifar,
        (data.CorruptDataError,),
        blind="pixels and labels that are others: the format has nothing but these, and only its size is known",
    ),
}


# ---- what comes of it


def damage(kind: Kind, count: int, seed: int, folder: Path) -> dict[str, int]:
    """How often each outcome comes of random damage.

    Args:
        kind: The kind of file.
        count: How many times it is damaged.
        seed: The seed of the damages.
        folder: An empty folder to work in.
    """
    random, outcomes, inside = Random(seed), Counter(dict.fromkeys(OUTCOMES, 0)), folder / "inside"
    inside.mkdir()
    kind.write(inside)
    kept = {path.name: path.read_bytes() for path in inside.iterdir()}
    whole, wanted = kept[kind.file], kind.read(inside)
    for number in range(count):
        changed = whole
        while changed == whole:
            changed = DAMAGES[number % len(DAMAGES)](whole, random)
        for path in inside.iterdir():
            path.unlink()
        for name, content in {**kept, kind.file: changed}.items():
            (inside / name).write_bytes(content)
        outcomes[outcome(kind, inside, wanted)] += 1
    return dict(outcomes)


def outcome(kind: Kind, folder: Path, wanted: object) -> str:
    """What comes of reading a damaged file."""
    try:
        found = kind.read(folder)
    except kind.errors as error:
        return "refused" if kind.file in str(error) and _only(folder) else "wrong"
    except Exception as error:
        print(f"  {kind.file}: {type(error).__name__} {error}")
        return "wrong"
    if not _only(folder):
        return "wrong"
    if found == wanted:
        return "read right"
    return "not noticeable" if kind.blind else "wrong"


def _only(folder: Path) -> bool:
    """Whether nothing was written beside the folder."""
    return [path.name for path in folder.parent.iterdir()] == [folder.name]


def main() -> None:
    parser: argparse.ArgumentParser = script.parser(
        "file_damage", __doc__, quick="of 20 damages", repeats=2000, of_repeats="damages of each kind"
    )
    args = script.parse(parser)
    count, table = 20 if args.quick else args.repeats, []
    torch.set_num_threads(1)
    print(f"{count} random damages to each kind of file\n{'':26}" + "".join(f"{name:>16}" for name in OUTCOMES))
    for number, (name, kind) in enumerate(KINDS.items()):
        with tempfile.TemporaryDirectory() as folder:
            found = damage(kind, count, number, Path(folder))
        print(f"{name:26}" + "".join(f"{found[one]:16}" for one in OUTCOMES), flush=True)
        table.append({"kind": name, "file": kind.file, **found, "cannot be noticed": kind.blind})
    script.save(args, damages=count, table=table)


if __name__ == "__main__":
    main()
