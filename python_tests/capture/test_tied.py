"""Tables that are an embedding and the weight of a linear layer, against plain autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import ahkernels as ah
from ahkernels.capture import tied_root

WORDS, LENGTH, SIZE = 23, 7, 6
D = torch.float64


class LanguageModel(nn.Module):
    """A causal mean over words, with logits at every position from the table of the embedding."""

    def __init__(self, *, bias: bool = False, padding: int | None = None) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, SIZE, padding_idx=padding)
        self.mix = nn.Linear(SIZE, SIZE)
        self.head = nn.Linear(SIZE, WORDS, bias=bias)
        self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.words(x).cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]
        return self.head(torch.tanh(self.mix(h)))


def chosen_tokens(logits: Tensor) -> Tensor:
    return logits[:, -1, [3, 5, 11]]


def log_probabilities(logits: Tensor) -> Tensor:
    return logits.log_softmax(2)[:, 1:, :2].sum(1)


def two_positions(logits: Tensor) -> Tensor:
    return logits[:, -1, [0, 4]] + logits[:, 2, [4, 9]]


def jacobian(model: nn.Module, x: Tensor, output: Callable[[Tensor], Tensor]) -> Tensor:
    """[n o, parameters of the table]."""
    rows = output(model(x)).flatten()
    return torch.stack(
        [torch.autograd.grad(one, model.words.weight, retain_graph=True)[0].flatten() for one in rows]
    ).double()


@pytest.fixture
def used(monkeypatch):
    """What the route of tied tables has made."""
    found = []
    right = tied_root.root_of_table

    def noted(*args):
        found.append(right(*args))
        return found[-1]

    monkeypatch.setattr("ahkernels.capture.fallback.root_of_table", noted)
    return found


@pytest.mark.parametrize("output", [chosen_tokens, log_probabilities, two_positions])
@pytest.mark.parametrize("options", [{}, {"bias": True}, {"padding": 4}], ids=str)
@pytest.mark.parametrize("budget", [1 << 20, 1 << 30])
def test_kernel_of_a_tied_table(output, options, budget, used):
    model, x = LanguageModel(**options).to(D), torch.randint(0, WORDS, (9, LENGTH))
    x[2] = 4  # but padding
    j = jacobian(model, x, output)
    report = ah.explain(model, x, output=output, memory_budget=budget)
    assert next(one.route for one in report if one.layer == "words") == "tied"
    kernels = ah.tangent_kernels(model, x, output=output, memory_budget=budget)
    expected = j @ j.T
    assert used and used[0] is not None
    assert (kernels["words"].to_dense() - expected).norm() <= 1e-9 * expected.norm()
    y = torch.arange(9) % j.shape[0] % (len(j) // 9)
    assert 0 < ah.layerwise_alignment(model, x, y, output=output)["words"] <= 1


@pytest.mark.parametrize("outputs", ["trace", 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_outputs_and_dtypes(outputs, dtype, used):
    model, x = LanguageModel().to(dtype), torch.randint(0, WORDS, (9, LENGTH))
    j = jacobian(model, x, chosen_tokens).view(9, 3, -1)
    j = j[:, 1:2] if outputs == 1 else j
    expected = torch.einsum("iap,jap->ij", j, j)
    found = ah.tangent_kernels(model, x, output=chosen_tokens, outputs=outputs)["words"].to_dense().double()
    assert used and used[0] is not None
    assert (found - expected).norm() <= (1e-5 if dtype == torch.float32 else 0.03) * expected.norm()


def test_a_use_that_no_rule_knows_goes_by_the_fallback(used):
    """A norm of the table is neither a lookup nor a product with inputs, and the certificate finds it."""

    class Penalised(LanguageModel):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.words.weight.square().sum()

    model, x = Penalised().to(D), torch.randint(0, WORDS, (9, LENGTH))
    j = jacobian(model, x, chosen_tokens)
    found = ah.tangent_kernels(model, x, output=chosen_tokens)["words"].to_dense()
    assert used
    assert (found - j @ j.T).norm() <= 1e-9 * (j @ j.T).norm()


class Scaled(nn.Embedding):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * SIZE**0.5


@pytest.mark.parametrize("kind", ["third use", "sum", "square", "subclass"])
def test_other_uses_are_found_in_every_call(kind):
    """Without a certificate, too, and in calls after one."""

    class Another(LanguageModel):
        def __init__(self) -> None:
            super().__init__()
            if kind == "subclass":
                self.words = Scaled(WORDS, SIZE)
                self.head.weight = self.words.weight
            self.register_buffer("on", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            logits, table = super().forward(x), self.words.weight
            more = {
                "third use": lambda: nn.functional.linear(logits[..., :SIZE], table),
                "sum": table.sum,
                "square": lambda: nn.functional.embedding(x, table).square().sum((1, 2))[:, None, None],
                "subclass": lambda: 0,
            }
            return logits + float(self.on) * more[kind]()

    model, x = Another().to(D), torch.randint(0, WORDS, (9, LENGTH))
    for on, certify in ((0, 32), (1, 32), (1, 0)):
        model.on.fill_(on)
        j = jacobian(model, x, chosen_tokens)
        found = ah.tangent_kernels(model, x, output=chosen_tokens, certify=certify)["words"].to_dense()
        assert (found - j @ j.T).norm() <= 1e-9 * (j @ j.T).norm()


def test_products_with_a_jacobian_are_refused_in_a_sentence():
    model, x = LanguageModel().to(D), torch.randint(0, WORDS, (9, LENGTH))
    kernel = ah.tangent_kernels(model, x, output=chosen_tokens)["words"]
    with pytest.raises(ValueError, match="a table that is an embedding and the weight of a linear layer has no other"):
        kernel.vjp(torch.randn(27, dtype=D))


def test_several_embeddings_and_calls(used):
    """An encoder and a decoder share the table; words come twice."""

    class Both(LanguageModel):
        def __init__(self) -> None:
            super().__init__()
            self.others = nn.Embedding(WORDS, SIZE)
            self.others.weight = self.words.weight

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.mix(self.words(x[:, :4]).mean(1) * self.others(x[:, 4:]).sum(1) + self.words(x[:, 0])))
            return self.head(h)[:, None] + self.head(h**2)[:, None]

    model, x = Both().to(D), torch.randint(0, WORDS, (9, LENGTH))
    j = jacobian(model, x, chosen_tokens)
    found = ah.tangent_kernels(model, x, output=chosen_tokens)["words"].to_dense()
    assert used and used[0] is not None
    assert (found - j @ j.T).norm() <= 1e-9 * (j @ j.T).norm()
