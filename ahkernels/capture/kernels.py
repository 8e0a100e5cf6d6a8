"""Tangent kernels of the layers of a model: all at once, or one after the other within a memory budget."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import nn

from ahkernels.capture.batch import Inputs
from ahkernels.capture.options import CaptureOptions
from ahkernels.capture.start import start_capture
from ahkernels.distributed.group import everywhere, watched
from ahkernels.kernel import TangentKernel
from ahkernels.statistics.degenerate_warning import Finding, OneWarning

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ahkernels.capture.options import CaptureKeywords


def tangent_kernels(
    model: nn.Module, x: Inputs, *, keep_factors: bool = False, **options: Unpack[CaptureKeywords]
) -> dict[str, TangentKernel]:
    """Captures the tangent kernel of each layer, or of each group of layers (equation 9 of the paper).

    The kernels hold their factors, and all of them are returned together; `iter_tangent_kernels` yields one at a time.
    The model is left as it was, also after an error.

    Args:
        model: A network whose samples are independent given its parameters, with f(x) of shape [n, o].
        x: What the model takes for n samples: a tensor, or a tuple, dict or dataclass of tensors [n, ...].
        keep_factors: Whether to keep the factors of layers with several positions also where their Jacobian is
            smaller. The forward and the backward Gram need the factors.
        **options: `layers`, `outputs`, `output`, `precision`, `memory_budget`, `certify`, `progress` and
            `process_group`; see `CaptureOptions`.

    Returns:
        Each kernel by the name of its layer or group, in forward order. The shape is [n*o, n*o] for outputs "all",
        [n, n] for "trace", "sum" and an index, and [n*k, n*k] for k indices. The kernels stay valid when the model
        trains on, because they hold the factors and not the model.

    Raises:
        ValueError: If an argument is out of range or does not fit the model, or a factor has nan or inf; the message
            names the argument or the layer.
        TypeError: If an argument has another type; the message names it.
        RuntimeError: If a parameter changes while the model is measured.

    Example:
        >>> import torch
        >>> import ahkernels as ah
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
        >>> kernels = ah.tangent_kernels(model, torch.randn(6, 4))
        >>> list(kernels)
        ['0', '2']
        >>> kernels["2"].to_dense().shape
        torch.Size([18, 18])
    """
    return dict(iter_tangent_kernels(model, x, keep_factors=keep_factors, **options))


def iter_tangent_kernels(
    model: nn.Module, x: Inputs, *, keep_factors: bool = False, **options: Unpack[CaptureKeywords]
) -> Iterator[tuple[str, TangentKernel]]:
    """Captures tangent kernels one after the other, with bounded memory.

    To stay within the budget, drop each kernel before taking the next. The model must not change before the last
    kernel has been taken.

    Args:
        model: See `tangent_kernels`, as for all arguments.
        x: What the model takes for n samples: a tensor, or a tuple, dict or dataclass of tensors [n, ...].
        keep_factors: Whether to keep the factors also where the Jacobian is smaller.
        **options: `layers`, `outputs`, `output`, `precision`, `memory_budget`, `certify`, `progress` and
            `process_group`; see `CaptureOptions`.

    Yields:
        The name of each layer or group with its kernel, in forward order. After the last one, a
        `DegenerateKernelWarning` names the layers that the output does not depend on.

    Raises:
        ValueError: As `tangent_kernels`, when the first kernel is taken or, for nan and inf, the kernel concerned.
        TypeError: As `tangent_kernels`, when the first kernel is taken.
        RuntimeError: If a parameter changes before the last kernel has been taken.

    Example:
        >>> import torch
        >>> import ahkernels as ah
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
        >>> for name, kernel in ah.iter_tangent_kernels(model, torch.randn(6, 4), outputs="trace"):
        ...     print(name, tuple(kernel.shape))
        0 (6, 6)
        2 (6, 6)
    """
    chosen = everywhere(options.get("process_group"), lambda: CaptureOptions.of(options))
    with watched(chosen.process_group):
        capture = start_capture(model, x, chosen, keep_factors=keep_factors, arguments={"call": "tangent_kernels"})
        for name, kernel, _ in capture.kernels():
            kernel.samples.everywhere(kernel.require_finite)
            yield name, kernel
            del kernel  # before the next pass
    OneWarning().warn(map(Finding.unreached, capture.unreached))
