"""Claim tested: a call takes no more memory than its memory_budget and 100 MiB, beyond the model and the inputs.

Networks of several kinds, each under budgets of 64 MiB, 256 MiB and 2 GiB: the peak of resident memory during one call,
in a fresh process, above what the process holds with model and inputs before it. Beside it stand the seconds of the
call, relative to those under the largest budget, and what cannot be avoided: the parameters, the inputs, and the
factors or the Jacobian of the largest layer, as `ahkernels.explain` has them for that budget.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.common import machine, memory, ours, script, tables, timing, workload
from benchmarks.common.arguments import positive

MIB = 1 << 20
BUDGETS = (64, 256, 2048)  # MiB
ALLOWANCE = 100  # MiB beyond the budget, for the libraries' and the ops' own workspaces
OUTPUTS = 10

Problem = tuple[nn.Module, Tensor, Tensor]


def multilayer_perceptron(n: int, quick: bool) -> Problem:
    """A network whose layers all go by their factors."""
    return workload.mlp(3 if quick else 10, 16 if quick else 512), *workload.images(n)


def convolutional(n: int, quick: bool) -> Problem:
    """VGG11 for 32 x 32 images without batch normalisation, with a bias in every layer."""
    layers: list[nn.Module] = []
    before = 3
    for size in (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool"):
        if isinstance(size, str):
            layers.append(nn.MaxPool2d(2))
            continue
        after = size // 16 if quick else size
        layers += [he_initialised(nn.Conv2d(before, after, 3, padding=1)), nn.ReLU()]
        before = after
    images, labels = torch.randn(n, 3, 32, 32), torch.arange(n) % OUTPUTS
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before, OUTPUTS)), images, labels


def he_initialised(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with weights that keep the size of its activations behind a ReLU."""
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layer


def weight_normalised(n: int, quick: bool) -> Problem:
    """A network with a parametrised layer, which goes by its own Jacobian, or by the fallback where that is large."""
    inputs, width, hidden = (16, 16, 24) if quick else (128, 256, 480)
    parametrised = nn.utils.parametrizations.weight_norm(nn.Linear(width, hidden))
    model = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), parametrised, nn.ReLU(), nn.Linear(hidden, OUTPUTS))
    return model, torch.randn(n, inputs), torch.arange(n) % OUTPUTS


class Projection(nn.Module):
    """Uses the parameters of a linear layer without calling it, so that no rule applies."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.linear.weight, self.linear.bias)


class Attention(nn.Module):
    """Causal self-attention with one projection to queries, keys and values."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, 2))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.projection(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a feed-forward part beside the identity."""

    def __init__(self, width: int, projection: type[nn.Linear] | type[Projection]) -> None:
        super().__init__()
        self.before_attention, self.attention = nn.LayerNorm(width), Attention(width)
        self.before_feed_forward = nn.LayerNorm(width)
        self.up, self.down = projection(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before_attention(x))
        return x + self.down(functional.gelu(self.up(self.before_feed_forward(x))))


class Transformer(nn.Module):
    """Blocks as in GPT-2 on words [n, t], with outputs from the last position."""

    def __init__(
        self, vocabulary: int, length: int, width: int, depth: int, projection: type[nn.Linear] | type[Projection]
    ) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, projection) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, OUTPUTS)

    def forward(self, words: Tensor) -> Tensor:
        places = torch.arange(words.shape[1]).expand_as(words)
        return self.head(self.norm(self.blocks(self.words(words) + self.places(places)))[:, -1])


def transformer(n: int, quick: bool, projection: type[nn.Linear] | type[Projection] = nn.Linear) -> Problem:
    """A transformer whose layers all have rules."""
    vocabulary, length, width, depth = (20, 8, 16, 1) if quick else (1000, 64, 128, 4)
    words = torch.randint(0, vocabulary, (n, length))
    return Transformer(vocabulary, length, width, depth, projection), words, torch.arange(n) % OUTPUTS


def transformer_without_rule(n: int, quick: bool) -> Problem:
    """The same, with a layer in each block that goes by the fallback."""
    return transformer(n, quick, Projection)


class BagOfWords(nn.Module):
    """The mean embedding of the words, and a linear layer."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(vocabulary, width), nn.Linear(width, OUTPUTS)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.words(words).mean(1))


def embedding(n: int, quick: bool) -> Problem:
    """A large vocabulary."""
    vocabulary, width, length = (50, 8, 6) if quick else (50_000, 64, 54)
    return BagOfWords(vocabulary, width), torch.randint(0, vocabulary, (n, length)), torch.arange(n) % OUTPUTS


def vgg19(n: int, quick: bool) -> Problem:
    """The network whose first layers have the most positions; a quick run has the small convolutional one."""
    return convolutional(n, quick) if quick else workload.image_network("vgg19", n, OUTPUTS)


@dataclass(frozen=True)
class Case:
    """A network with n samples, and what is measured of it.

    Attributes:
        build: Makes the network, its inputs and the labels from the number of samples; the network is tiny for a quick
            run.
        samples: The number of samples.
        options: Keywords of `layerwise_alignment`.
    """

    build: Callable[[int, bool], Problem]
    samples: int
    options: dict[str, object] = field(default_factory=dict)


CASES = {
    "mlp": Case(multilayer_perceptron, 2000),
    "convolutions": Case(convolutional, 128),
    "weight norm": Case(weight_normalised, 64),
    "transformer": Case(transformer, 32),
    "transformer without rules": Case(transformer_without_rule, 32),
    "embedding": Case(embedding, 64),
    "grams": Case(vgg19, 128, {"layers": ["0", "3"], "statistics": ("forward_cka", "backward_cka")}),
}


def problem(name: str, n: int, quick: bool) -> Problem:
    """The problem of a case with n samples, the same in every process."""
    torch.manual_seed(0)
    model, x, y = CASES[name].build(n, quick)
    return model.eval(), x, y


def setup(name: str, n: int, budget: int, quick: bool, threads: int) -> Callable[[], object]:
    """The call of a case under a budget in bytes, warmed up on four samples (for memory.peak)."""
    machine.use_threads(threads)

    def job(samples: int) -> Callable[[], object]:
        model, x, y = problem(name, samples, quick)
        return lambda: ours.layerwise_within(budget, model, x, y, **CASES[name].options)

    job(4)()
    return job(n)


def measure(name: str, args: argparse.Namespace) -> list[dict[str, object]]:
    """One record for each budget."""
    n = 8 if args.quick else CASES[name].samples
    model, x, _ = problem(name, n, args.quick)
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    found: list[dict[str, object]] = []
    for budget in args.budgets:
        peaks = [memory.peak(setup, name, n, budget * MIB, args.quick, args.threads) for _ in range(args.repeats)]
        layer, route, held = ours.largest_layer(budget * MIB, model, x, CASES[name].options.get("layers"))
        peak = max(one.bytes for one in peaks)
        found.append(
            {
                "case": name,
                "n": n,
                "budget_bytes": budget * MIB,
                "peak_bytes": peak,
                "within": peak <= (budget + ALLOWANCE) * MIB,
                "median_s": timing.Timing(tuple(one.seconds for one in peaks)).median,
                "rounds_s": [one.seconds for one in peaks],
                "parameter_bytes": parameters,
                "input_bytes": x.nbytes,
                "largest_layer": layer,
                "largest_layer_route": route,
                "largest_layer_bytes": held,
            }
        )
        print(f"  {name}, {budget} MiB: {peak / MIB:.0f} MiB, {peaks[0].seconds:.2f} s", flush=True)
    largest = max(found, key=lambda record: record["budget_bytes"])
    for record in found:
        record["ratio"] = record["median_s"] / largest["median_s"]
    return found


def show(records: list[dict[str, object]]) -> None:
    """Prints the table."""
    columns = ("", "n", "budget MiB", "peak MiB", f"<= budget + {ALLOWANCE}", "s", "/ largest budget", "parameters MiB")
    columns += ("inputs MiB", "largest layer MiB", "which, and its route")
    rows = [
        (
            record["case"],
            record["n"],
            record["budget_bytes"] // MIB,
            round(record["peak_bytes"] / MIB),
            "yes" if record["within"] else "no",
            f"{record['median_s']:.2f}",
            f"{record['ratio']:.2f}",
            f"{record['parameter_bytes'] / MIB:.1f}",
            f"{record['input_bytes'] / MIB:.1f}",
            f"{record['largest_layer_bytes'] / MIB:.1f}",
            f"{record['largest_layer']}: {record['largest_layer_route']}",
        )
        for record in records
    ]
    left = {0, 4, len(columns) - 1}
    tables.show("Peak memory of a call", columns, rows, numeric=[i not in left for i in range(len(columns))])


def main() -> None:
    parser = script.parser("memory_budget", __doc__, quick="with tiny networks", repeats=1, of_repeats="runs of each")
    parser.add_argument("--budgets", type=positive(int), nargs="+", default=BUDGETS, help="memory budgets in MiB")
    parser.add_argument("--cases", choices=CASES, nargs="+", default=list(CASES), metavar="CASE", help="networks")
    args = script.parse(parser)
    records: list[dict[str, object]] = []
    for name in args.cases:
        records += measure(name, args)
        script.save(args, allowance_bytes=ALLOWANCE * MIB, rows=records)
    show(records)


if __name__ == "__main__":
    main()
