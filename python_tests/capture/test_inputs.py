"""What a model is called with, and what it returns: batches of several tensors, and outputs of any kind."""

from __future__ import annotations

import dataclasses
from collections import UserDict
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ahkernels as ah

N, T, WORDS, OUTPUTS = 9, 5, 11, 3


class Masked(nn.Module):
    """Words [n, t] with a mask [n, t], and numbers [n, 4]; the outputs come as a test wants them."""

    def __init__(self, returns=lambda logits: logits):
        super().__init__()
        self.words, self.numbers = nn.Embedding(WORDS, 6), nn.Linear(4, 6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(6, OUTPUTS)
        self.returns = returns

    def forward(self, words, mask=None, numbers=None, scale=1.0):
        h = self.words(words)
        if numbers is not None:
            h = h + self.numbers(numbers).unsqueeze(1)
        mask = torch.ones_like(words, dtype=torch.bool) if mask is None else mask
        h = h + self.attention(h, h, h, key_padding_mask=~mask.bool(), need_weights=False)[0]
        pooled = (h * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True)
        return self.returns(scale * self.head(torch.tanh(pooled)))


class Samples(NamedTuple):
    words: torch.Tensor
    mask: torch.Tensor
    numbers: torch.Tensor


@dataclasses.dataclass
class Record:
    words: torch.Tensor
    mask: torch.Tensor
    numbers: torch.Tensor
    scale: float = 1.0


class TakesRecord(Masked):
    def forward(self, record):
        return super().forward(record.words, record.mask, record.numbers, record.scale)


class TakesNested(Masked):
    def forward(self, texts, more):
        return super().forward(texts["words"], texts["mask"], more[0], more[1])


def samples() -> Samples:
    torch.manual_seed(0)
    words, numbers = torch.randint(0, WORDS, (N, T)), torch.randn(N, 4, dtype=torch.float64)
    return Samples(words, torch.arange(T) < torch.randint(1, T + 1, (N, 1)), numbers)


def measured(model, x, y=None, **options):
    y = torch.arange(N) % OUTPUTS if y is None else y
    return ah.layerwise_alignment(model, x, y, certify=1, **options)


def model_of(kind=Masked, *args):
    torch.manual_seed(1)
    return kind(*args).double().eval()


class Bound(nn.Module):
    """The wrapper that a user had to write: the model as a function of the numbers of the samples."""

    def __init__(self, model, call):
        super().__init__()
        self.model, self.call = model, call

    def forward(self, places):
        return self.call(self.model, places)


def by_hand(model, call):
    """The report of a wrapper that takes the samples by their numbers."""
    report = measured(Bound(model, call), torch.arange(N))
    return [name.removeprefix("model.") for name in report.layers], report.cka


@pytest.mark.parametrize("budget", [2 << 30, 20_000])
@pytest.mark.parametrize("form", ["positional", "named", "keywords", "user dict", "dataclass", "nested", "constants"])
def test_structures(form, budget):
    s, kind = samples(), Masked
    if form == "positional":
        x = (s.words, s.mask, s.numbers)
    elif form == "named":
        x = s
    elif form in ("keywords", "user dict"):
        x = {"numbers": s.numbers, "words": s.words, "mask": s.mask}
        x = UserDict(x) if form == "user dict" else x
    elif form == "dataclass":
        x, kind = Record(*s), TakesRecord
    elif form == "nested":
        x, kind = ({"words": s.words, "mask": s.mask}, (s.numbers, 1.0)), TakesNested
    else:
        x = {"words": s.words, "mask": s.mask, "numbers": s.numbers, "scale": 1.0}
    layers, expected = by_hand(model_of(), lambda m, i: m(s.words[i], s.mask[i], s.numbers[i]))
    report = measured(model_of(kind), x, memory_budget=budget)
    assert report.layers == layers
    assert torch.allclose(report.cka, expected, rtol=1e-9, atol=1e-12)


def test_every_function_takes_a_batch():
    s, model = samples(), model_of()
    x, y = s._asdict(), torch.arange(N) % OUTPUTS
    kernels = ah.tangent_kernels(model, x)
    assert list(kernels) == [name for name, _ in ah.iter_tangent_kernels(model, x)]
    assert len(ah.explain(model, x)) == len(kernels)
    tracker = ah.AlignmentTracker(model, x, y)
    assert torch.allclose(tracker.update(0).report.cka, measured(model, x).cka, rtol=1e-12)
    assert len(
        ah.layerwise_alignment(model, x, y, statistics=("fisher_label_correlation",)).statistics[
            "fisher_label_correlation"
        ]
    ) == len(kernels)


@pytest.mark.parametrize(
    ("returns", "output"),
    [
        (lambda f: SimpleNamespace(logits=f, hidden=f.mean(1)), None),
        (lambda f: {"logits": f, "loss": f.sum()}, None),
        (lambda f: (f,), None),
        (lambda f: {"anything": f, "count": 3}, None),
        (lambda f: (f.mean(1), f), lambda returned: returned[1]),
        (lambda f: f.unsqueeze(2).expand(-1, -1, 7) * torch.arange(7), lambda returned: returned[:, :, 1]),
        (lambda f: torch.stack((0 * f, f), 1), lambda returned: returned[:, -1]),
    ],
    ids=["attribute", "mapping", "tuple", "single tensor", "chosen", "positions", "last word"],
)
def test_outputs(returns, output):
    x = samples()._asdict()
    report = measured(model_of(Masked, returns), x, output=output)
    assert torch.allclose(report.cka, measured(model_of(), x).cka, rtol=1e-9)


def test_one_logit_with_classes():
    x, y = torch.randn(N, 4, dtype=torch.float64), torch.arange(N) % 2
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1), nn.Flatten(0)).double()
    with_dimension = model[:3]
    expected = ah.layerwise_alignment(with_dimension, x, y.double().unsqueeze(1)).cka
    for labels in (y, y.bool(), y.double()):
        assert torch.equal(ah.layerwise_alignment(model, x, labels).cka, expected)
    with pytest.raises(ValueError, match=r"y: expected the classes 0 and 1 for a network with one output, got 2"):
        ah.layerwise_alignment(model, x, y + 1)


def test_a_new_callable_of_the_same_code_is_the_same_structure():
    model, x = model_of(Masked, lambda f: (f, f)), samples()._asdict()
    ages = []
    for _ in range(3):
        report = ah.layerwise_alignment(model, x, torch.arange(N) % 3, output=lambda returned: returned[0])
        ages.append(report.certificate.calls_ago)
    assert ages == [0, 1, 2]


# ---- first samples

GOOD = samples()
LOADER = DataLoader(TensorDataset(torch.randn(6, 3), torch.arange(6)), batch_size=2)


@pytest.mark.parametrize("count", [1, 4, 10, 20])
def test_first_samples(count):
    x, y = torch.randn(20, 3), torch.arange(20)
    data = TensorDataset(x, y)
    rows = [{"x": x[i], "labels": y[i]} for i in range(20)]
    for source in (data, DataLoader(data, batch_size=4), DataLoader(data, batch_size=7)):
        found = ah.first_samples(source, count)
        assert torch.equal(found[0], x[:count])
        assert torch.equal(found[1], y[:count])
    found = ah.first_samples(DataLoader(rows, batch_size=3), count)
    assert torch.equal(found[0]["x"], x[:count])
    assert torch.equal(found[1], y[:count])
    batch, labels = ah.first_samples(DataLoader(TensorDataset(x, x, y), batch_size=6), count)
    assert labels is None
    assert torch.equal(batch[2], y[:count])


@pytest.mark.parametrize(("count", "read"), [(25, 30), (30, 30), (31, 40)])
def test_first_samples_reads_no_more_than_it_needs(count, read):
    class Counting(torch.utils.data.Dataset):
        read = 0

        def __len__(self):
            return 1000

        def __getitem__(self, index):
            Counting.read += 1
            return torch.ones(2) * index, index

    x, y = ah.first_samples(DataLoader(Counting(), batch_size=10), count)
    assert (len(x), y.tolist(), Counting.read) == (count, list(range(count)), read)


def test_first_samples_leaves_random_numbers_alone():
    before = torch.get_rng_state()
    ah.first_samples(DataLoader(LOADER.dataset, batch_size=2, shuffle=True), 3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("fixed", ["in forward", "shared tensor", "in output"])
def test_a_number_of_samples_that_is_fixed(fixed):
    model = nn.Linear(4, 6).double()
    if fixed == "in forward":
        model, x, output = nn.Sequential(nn.Unflatten(0, (9, 1)), nn.Flatten(), model), torch.randn(9, 4), None
        x = x.double()
    elif fixed == "shared tensor":

        class Weighted(nn.Linear):
            def forward(self, x, w):
                return super().forward(x) * w

        model, x, output = Weighted(4, 9).double(), (torch.randn(9, 4).double(), torch.randn(9).double()), None
    else:
        x, mask = torch.randn(9, 4).double(), torch.ones(9, 1)
        output = lambda returned: returned * mask  # noqa: E731
    with pytest.raises(ValueError, match=r"takes all 9 and raises .* write t\.expand\(9, \*t\.shape\)"):
        ah.tangent_kernels(model, x, output=output)


# ---- mistakes


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (
            {**GOOD._asdict(), "mask": GOOD.mask[:4]},
            ValueError,
            r"x\['mask'\]: expected 9 samples .* as in x\['words'\]",
        ),
        ({**GOOD._asdict(), "scale": torch.tensor(1.0)}, ValueError, r"x\['scale'\]: expected at least one sample"),
        (
            {**GOOD._asdict(), "mask": GOOD.mask.to("meta")},
            ValueError,
            r"x\['mask'\]: expected the device of the model",
        ),
        ({**GOOD._asdict(), "numbers": GOOD.numbers / 0 * 0}, ValueError, r"x\['numbers'\]: expected numbers, got nan"),
        ({**GOOD._asdict(), "mask": [1, 2]}, TypeError, r"x\['mask'\]: expected a tensor \[n, ...\], .* got list"),
        ({**GOOD._asdict(), 3: GOOD.mask}, TypeError, r"x: expected names of arguments, got the key 3"),
        ({"scale": 1.0}, TypeError, r"x: expected at least one tensor \[n, ...\], got dict"),
        ((), TypeError, r"x: expected at least one tensor \[n, ...\], got tuple"),
        (list(GOOD), TypeError, r"x: expected a tensor .* got list; write tuple\(x\) for positional"),
        ((GOOD.words, GOOD.mask.to_sparse()), TypeError, r"x\[1\]: expected a dense tensor"),
        (
            GOOD._replace(numbers=GOOD.numbers.float()),
            ValueError,
            r"x\[2\]: expected the dtype of the model, .*float64",
        ),
        (LOADER, TypeError, r"got DataLoader; write x, y = ahkernels.first_samples\(data, 256\)"),
        (LOADER.dataset, TypeError, r"got TensorDataset; write x, y = ahkernels.first_samples\(data, 256\)"),
        ("words", TypeError, r"x: expected a tensor .* got str"),
        (None, TypeError, r"x: expected a tensor .* got NoneType"),
    ],
)
def test_mistakes_in_a_batch(x, error, message):
    with pytest.raises(error, match=message):
        measured(model_of(), x)


@pytest.mark.parametrize(
    ("returns", "output", "error", "message"),
    [
        (
            lambda f: (f, f),
            None,
            ValueError,
            r"output: expected a callable .* \(\[0\] \[\d, 3\], \[1\] \[\d, 3\]\); write",
        ),
        (lambda f: f.unsqueeze(2), None, ValueError, r"got shape \[5, 3, 1\]; write output=lambda"),
        (
            lambda f: f,
            lambda f: f[0],
            ValueError,
            r"output\(model\(x\)\) to be a tensor .* got shape \[3\]; keep a row",
        ),
        (
            lambda f: f,
            lambda f: f.tolist(),
            ValueError,
            r"output\(model\(x\)\) to be a tensor .* got list; write output=",
        ),
        (lambda f: f, "logits", TypeError, r"output: expected a callable .* got 'logits'; write"),
        (lambda f: f, lambda f: f.argmax(1), ValueError, r"real floating-point outputs, got dtype torch.int64; return"),
        (lambda f: "logits", None, ValueError, r"to be a tensor \[5, o\] for 5 samples, got str; write output="),
    ],
)
def test_mistakes_in_outputs(returns, output, error, message):
    with pytest.raises(error, match=message):
        measured(model_of(Masked, returns), samples()._asdict(), output=output)


def scaled(rows):
    return {"x": torch.stack([row["x"] for row in rows]), "scale": rows[0]["scale"]}


def positioned(rows):
    return {"x": torch.stack([row["x"] for row in rows]), "places": torch.arange(7)}


@pytest.mark.parametrize(
    ("data", "count", "error", "message"),
    [
        (LOADER, 7, ValueError, r"at least 7 samples, got 6; write first_samples\(data, 6\)"),
        (LOADER, 0, ValueError, r"count: expected a positive number of samples, got 0"),
        (LOADER, 2.0, TypeError, r"count: expected a number of samples, got 2.0"),
        (
            DataLoader([{"x": torch.ones(2), "scale": 1.0 * i} for i in range(4)], batch_size=2, collate_fn=scaled),
            4,
            ValueError,
            r"data\['scale'\]: expected tensors, or a constant that all batches share, got 0.0",
        ),
        (
            DataLoader([{"x": torch.ones(2)}] * 4, batch_size=2, collate_fn=positioned),
            4,
            ValueError,
            r"data\['places'\]: expected 2 samples in the first dimension, as in data\['x'\], got 7",
        ),
        (DataLoader([1, 2], collate_fn=str), 2, ValueError, r"data: expected tensors in a batch, got str"),
        (torch.randn(5, 2), 2, TypeError, r"data: expected a torch.utils.data.DataLoader or Dataset, got Tensor"),
        (
            DataLoader([torch.ones(2), torch.ones(3)], batch_size=1),
            2,
            ValueError,
            r"samples of one shape, got \[2\] and \[3\]; pad",
        ),
    ],
)
def test_mistakes_in_first_samples(data, count, error, message):
    with pytest.raises(error, match=message):
        ah.first_samples(data, count)
