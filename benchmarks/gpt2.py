"""Claim tested: GPT-2 of Hugging Face costs at most 1.1 times as much as the same network with `nn.Linear`.

Four layers of width 256 with a classification head of ten outputs, on 32 texts of 64 words, called with a dict as a
trainer calls it: seconds and peak memory of the alignment of all layers. GPT-2 has its weights in modules `Conv1D` of
its library. Needs transformers (`benchmarks/third_party/requirements.txt`).

The floor is what the rules and products cannot do without: a forward pass, a backward pass for each output, and the
products from factors to kernels as `ahkernels.explain` counts them, at the best measured rate.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.common import machine, memory, ours, script, tables, timing

WORDS, OUTPUTS = 1000, 10
KINDS = ("nn.Linear", "Conv1D")
COLUMNS = ["weights", "n", "words", "s", "peak MiB", "layers", "on the fallback", "floor s", "/ nn.Linear"]

Problem = tuple[nn.Module, dict[str, Tensor], Tensor]


def problem(kind: str, n: int, quick: bool) -> Problem:
    """The network, texts that are padded to one length, and labels."""
    from transformers import GPT2Config, GPT2ForSequenceClassification

    length, width, layers = (8, 16, 1) if quick else (64, 256, 4)
    torch.manual_seed(0)
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "num_labels": OUTPUTS}
    config = GPT2Config(vocab_size=WORDS, n_positions=length, n_embd=width, n_layer=layers, n_head=4, **special)
    model = GPT2ForSequenceClassification(config).eval()
    if kind == "nn.Linear":
        with_linear(model)
    lengths = torch.randint(length // 2, length + 1, (n, 1))
    mask = (torch.arange(length) < lengths).long()
    texts = {"input_ids": torch.randint(2, WORDS, (n, length)) * mask, "attention_mask": mask}
    return model, texts, torch.arange(n) % OUTPUTS


def with_linear(module: nn.Module) -> None:
    """Puts an equal nn.Linear in the place of each Conv1D, whose weight is [inputs, outputs]."""
    for name, child in module.named_children():
        if type(child).__name__ == "Conv1D":
            linear = nn.Linear(*child.weight.shape)
            linear.weight.data, linear.bias.data = child.weight.data.T.contiguous(), child.bias.data
            setattr(module, name, linear)
        else:
            with_linear(child)


def setup(kind: str, n: int, quick: bool, threads: int) -> Callable[[], object]:
    """The call, warmed up on four samples (for memory.peak)."""
    machine.use_threads(threads)
    model, texts, y = problem(kind, 4, quick)
    ours.certified_report(model, texts, y)
    model, texts, y = problem(kind, n, quick)
    return lambda: ours.certified_report(model, texts, y)


def main() -> None:
    args = script.parse(script.parser("gpt2", __doc__, quick="with a tiny network", repeats=3))
    n = 8 if args.quick else 32
    best = script.measure_ceilings(args)
    problems = {kind: problem(kind, n, args.quick) for kind in KINDS}
    jobs = {
        kind: (lambda model=model, x=x, y=y: ours.certified_report(model, x, y))
        for kind, (model, x, y) in problems.items()
    }
    times = timing.interleaved(jobs, args.repeats)
    rows = []
    for kind, (model, x, _) in problems.items():
        explained = ours.explained(model, x)
        numbers = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2 and "wte" not in name)
        passes = 2 * numbers * x["input_ids"].numel() * (1 + 2 * OUTPUTS)
        floor = (passes + sum(one.flops for one in explained)) / best.rate("fp32")
        peak = memory.peak(setup, kind, n, args.quick, args.threads).bytes
        seconds = times[kind].median
        ratio = seconds / times["nn.Linear"].median
        rows.append(
            [
                *(kind, n, x["input_ids"].shape[1], tables.rounded(seconds), round(peak / 2**20), len(explained)),
                *(sum(one.route == "fallback" for one in explained), tables.rounded(floor), round(ratio, 3)),
            ]
        )
    tables.show("GPT-2 of Hugging Face", COLUMNS, rows)
    text = f"Medians of {args.repeats} rounds in turn, each call held against autograd. " + __doc__.partition("\n\n")[2]
    script.save(args, best, **tables.record("GPT-2 of Hugging Face", text, COLUMNS, rows))


if __name__ == "__main__":
    main()
