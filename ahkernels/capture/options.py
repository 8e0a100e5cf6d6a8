"""What every measurement of a model lets its user choose: one object, checked once, that all of capture reads."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, TypedDict

from ahkernels.capture.choice import Layers
from ahkernels.capture.forward import OutputOf
from ahkernels.distributed.group import Group
from ahkernels.outputs import Outputs
from ahkernels.precision import resolve_precision

DEFAULT_MEMORY_BUDGET = 2 << 30  # bytes
_CERTIFY_EVERY = 32
_OF_REPORTS = ("centering", "statistics", "products", "tolerance")  # what reports take beside these options

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class CaptureKeywords(TypedDict, total=False):
    """The keywords of `CaptureOptions`, as the annotation of `**options`."""

    layers: Layers
    outputs: Outputs
    output: OutputOf | None
    precision: str | None
    memory_budget: int
    certify: int
    progress: bool
    process_group: ProcessGroup | None
    shard: Literal["samples", "layers", "auto"]


@dataclass(frozen=True)
class CaptureOptions:
    """The options that all measurements of a model share.

    Attributes:
        layers: Names, patterns ("fc*") and types (`nn.Conv2d`) of layers, one or a sequence of them; None for all that
            have parameters. "(root)" is the name of the parameters of the model itself. "trainable" chooses the layers
            that have a parameter that requires gradients, each with all of its parameters; a layer of that name goes
            before. A dict {group: any of these} asks for one kernel for each group, which is the sum of the kernels of
            its layers: {"all": "*"} gives the kernel of the network.
        outputs: "all": rows (x, i) for every sample and output, as in the paper. "trace": the n x n kernel summed over
            the outputs. "sum": the n x n kernel of the sum of the outputs. An index or a sequence of indices: those
            outputs alone. See `OutputSelection`.
        output: Takes the outputs [n, o] from what the model returns, such as `lambda returned: returned[0]` or, for the
            last word alone, `lambda logits: logits[:, -1]`. None where they are obvious: a tensor [n, o], a tensor [n]
            of one output, what has `.logits`, or a structure with a single tensor. It sees some of the samples at a
            time.
        precision: "highest", "high" or "medium"; None for `torch.get_float32_matmul_precision()`.
        memory_budget: Bytes that a call may hold beyond the model, its inputs and its own results. A smaller budget
            takes more passes over the model, and decides how a layer is captured: its Jacobian is kept only where it
            fits. What cannot be cut any smaller may exceed the budget; `explain` states the expected peak.
        certify: How often what was captured is held against autograd: 1 in each call; k in the first call for a model
            of the same structure, shapes and options, and in every k-th after it; 0 never.
        progress: Whether to show a progress bar on stderr.
        process_group: A group of torch.distributed whose processes measure together, each with some of the samples; all
            of them get the results for all samples. A process may have no sample. None to measure in this process
            alone. It is kept as an `ahkernels.distributed.Group`.
        shard: What the processes of a group share out. "samples": each works on its own. "layers", for reports alone:
            all of them get all samples, and each measures some of the layers; for few samples and many layers. "auto":
            layers where `explain` finds that exact norms cost less that way, otherwise samples; for what is no report,
            for estimates, and where a rank has no sample or samples of another shape, always samples.

    Raises:
        ValueError: If `precision`, `memory_budget` or `certify` is out of range; the message names it.
        TypeError: If one has another type; the message names it.

    Example:
        >>> import ahkernels as ah
        >>> ah.CaptureOptions(layers="fc*").memory_budget
        2147483648
    """

    layers: Layers = None
    outputs: Outputs = "all"
    output: OutputOf | None = None
    precision: str | None = None
    memory_budget: int = DEFAULT_MEMORY_BUDGET
    certify: int = _CERTIFY_EVERY
    progress: bool = False
    process_group: ProcessGroup | Group | None = None
    shard: Literal["samples", "layers", "auto"] = "samples"

    def __post_init__(self) -> None:
        resolve_precision(self.precision)
        if self.output is not None and not callable(self.output):
            raise TypeError(
                f"output: expected a callable from what the model returns to [n, o], got {self.output!r}; write "
                "output=lambda returned: returned[0], say"
            )
        if isinstance(self.memory_budget, bool) or not isinstance(self.memory_budget, int):
            raise TypeError(f"memory_budget: expected a number of bytes, got {self.memory_budget!r}")
        if self.memory_budget <= 0:
            raise ValueError(f"memory_budget: expected a positive number of bytes, got {self.memory_budget}")
        if not isinstance(self.certify, int):
            raise TypeError(f"certify: expected 0 (never), 1 (each call) or k (every k-th call), got {self.certify!r}")
        if self.certify < 0:
            raise ValueError(f"certify: expected 0 (never), 1 (each call) or k (every k-th call), got {self.certify}")

        if not isinstance(self.progress, bool):
            raise TypeError(f"progress: expected True or False, got {self.progress!r}")
        if self.shard not in ("samples", "layers", "auto"):
            raise ValueError(f'shard: expected "samples", "layers" or "auto", got {self.shard!r}')
        if self.process_group is not None:
            object.__setattr__(self, "process_group", Group.of(self.process_group))

    @classmethod
    def of(cls, keywords: CaptureKeywords) -> CaptureOptions:
        """The options that keywords give.

        Raises:
            TypeError: For an unknown keyword; the message has the nearest.
        """
        known = [field.name for field in fields(cls)]
        for name in keywords:
            if name not in known:
                near = difflib.get_close_matches(name, [*known, *_OF_REPORTS], n=1) or known
                raise TypeError(f"{name}: expected no such option; nearest: {', '.join(near)}")
        return cls(**keywords)
