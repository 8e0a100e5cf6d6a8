"""Claim tested: classifiers of Hugging Face are measured as their users call them, with the numbers of a wrapper.

BERT and GPT-2 for sequence classification get a `BatchEncoding` with a mask and return an object with `.logits`: in
float64, float32 and bfloat16, and in an autocast region as a trainer has it. Beside them stands the same network in a
wrapper by hand that takes one tensor and returns one. Needs transformers (`benchmarks/third_party/requirements.txt`).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.common import ours, script, tables

CLASSES = 3
COLUMNS = ["network", "precision", "layers", "on the fallback", "from the wrapper", "from float64", "certificate"]
TEXT = (
    "The largest difference of an alignment from that of the wrapper, and from that of the network in float64; and the "
    "largest difference that the certificate found, relative to the size of the addends."
)


class Wrapped(nn.Module):
    """What a user had to write: one tensor [n, 2, t] of words and mask to one tensor of outputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(input_ids=x[:, 0], attention_mask=x[:, 1]).logits


def bert(width: int) -> nn.Module:
    """Two layers; wide initial weights, so that attention is not uniform."""
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 2 * width}
    return BertForSequenceClassification(BertConfig(vocab_size=60, num_labels=CLASSES, initializer_range=0.3, **sizes))


def gpt2(width: int) -> nn.Module:
    """Two layers, likewise."""
    from transformers import GPT2Config, GPT2ForSequenceClassification

    sizes = {"n_embd": width, "n_layer": 2, "n_head": 2, "n_positions": 32}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    config = GPT2Config(vocab_size=60, num_labels=CLASSES, initializer_range=0.3, **sizes, **special)
    return GPT2ForSequenceClassification(config)


def autocast() -> AbstractContextManager[object]:
    return torch.autocast("cpu", torch.bfloat16)


PRECISIONS: dict[str, tuple[torch.dtype, Callable[[], AbstractContextManager[object]]]] = {
    "float64": (torch.float64, nullcontext),
    "float32": (torch.float32, nullcontext),
    "bfloat16": (torch.bfloat16, nullcontext),
    "autocast to bfloat16": (torch.float32, autocast),
}


def measure(name: str, build: Callable[[], nn.Module], n: int, length: int) -> list[list[tables.Cell]]:
    """A row for each precision; in float64 first."""
    from transformers import BatchEncoding

    torch.manual_seed(1)
    mask = (torch.arange(length) < torch.randint(length // 2, length + 1, (n, 1))).long()
    words, y = torch.randint(5, 60, (n, length)) * mask, torch.arange(n) % CLASSES
    texts = BatchEncoding({"input_ids": words, "attention_mask": mask})
    exact, rows = torch.empty(0), []
    for precision, (dtype, region) in PRECISIONS.items():
        torch.manual_seed(0)
        model = build().to(dtype).eval()
        with region():
            report = ours.certified_report(model, texts, y)
            wrapped = ours.certified_report(Wrapped(model), torch.stack((words, mask), 1), y)
        exact = report.cka if dtype == torch.float64 else exact
        without_rule = sum(one.route == "fallback" for one in ours.explained(model, texts))
        distances = [float((report.cka - other).abs().max()) for other in (wrapped.cka, exact)]
        found = (*distances, max(report.certificate.differences.values()))
        rows.append([name, precision, len(report.layers), without_rule, *(float(f"{one:.1e}") for one in found)])
    return rows


def main() -> None:
    args = script.parse(script.parser("hugging_face", __doc__, quick="of tiny networks", repeats=1))
    width, n, length = (8, 6, 5) if args.quick else (64, 32, 24)
    rows = [row for one in (bert, gpt2) for row in measure(one.__name__, partial(one, width), n, length)]
    tables.show("Classifiers as their users call them", COLUMNS, rows)
    script.save(args, **tables.record("Classifiers as their users call them", TEXT, COLUMNS, rows))


if __name__ == "__main__":
    main()
