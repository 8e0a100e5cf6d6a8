"""Tangent kernels of the layers of a model: all at once, or one after the other within a memory budget."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from ahkernels.capture.plan import plan_capture
from ahkernels.capture.run import DEFAULT_MEMORY_BUDGET
from ahkernels.capture.selection import Layers
from ahkernels.kernel import TangentKernel
from ahkernels.outputs import Outputs


def tangent_kernels(
    model: nn.Module,
    x: Tensor,
    *,
    layers: Layers = None,
    outputs: Outputs = "all",
    precision: str | None = None,
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
    keep_factors: bool = False,
    progress: bool = False,
) -> dict[str, TangentKernel]:
    """Captures the tangent kernel of each layer, or of each group of layers (equation 9 of the paper).

    The kernels hold their factors, and all of them are returned together; `iter_tangent_kernels` yields one at a time.
    The model is left as it was, also after an error.

    Args:
        model: A network whose samples are independent given its parameters, with f(x) of shape [n, o].
        x: Inputs [n, ...].
        layers: Names or patterns ("fc*") of layers; None for all that have parameters. A dict {group: names or
            patterns} asks for one kernel for each group, which is the sum of the kernels of its layers: {"all": "*"}
            gives the kernel of the network.
        outputs: "all", "trace", "sum", an index or a sequence of indices; see `OutputSelection`.
        precision: "highest", "high" or "medium"; None for `torch.get_float32_matmul_precision()`.
        memory_budget: Bytes of factors that one pass over the model may capture. A smaller budget takes more passes. It
            also decides how a layer with several positions is captured: its Jacobian is kept only where it fits. A
            single layer or group may exceed the budget.
        keep_factors: Whether to keep the factors of layers with several positions also where their Jacobian is
            smaller. The forward and the backward Gram need the factors.
        progress: Whether to show a progress bar on stderr.

    Returns:
        Each kernel by the name of its layer or group, in forward order. The shape is [n*o, n*o] for outputs "all",
        [n, n] for "trace", "sum" and an index, and [n*k, n*k] for k indices. The kernels stay valid when the model
        trains on, because they hold the factors and not the model.

    Raises:
        ValueError: If an argument is out of range or does not fit the model, or a factor has nan or inf; the message
            names the argument or the layer.
        TypeError: If an argument has another type; the message names it.

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
    return dict(
        iter_tangent_kernels(
            model,
            x,
            layers=layers,
            outputs=outputs,
            precision=precision,
            memory_budget=memory_budget,
            keep_factors=keep_factors,
            progress=progress,
        )
    )


def iter_tangent_kernels(
    model: nn.Module,
    x: Tensor,
    *,
    layers: Layers = None,
    outputs: Outputs = "all",
    precision: str | None = None,
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
    keep_factors: bool = False,
    progress: bool = False,
) -> Iterator[tuple[str, TangentKernel]]:
    """Captures tangent kernels one after the other, with bounded memory.

    To stay within the budget, drop each kernel before taking the next. The model must not change before the last
    kernel has been taken.

    Args:
        model: See `tangent_kernels`, as for all arguments.
        x: Inputs [n, ...].
        layers: Names or patterns of layers, a dict of groups, or None for all layers.
        outputs: "all", "trace", "sum", an index or a sequence of indices.
        precision: "highest", "high", "medium" or None.
        memory_budget: Bytes of factors that one pass may capture. A smaller budget takes more passes. No budget is too
            small, since a single layer or group may exceed it.
        keep_factors: Whether to keep the factors also where the Jacobian is smaller.
        progress: Whether to show a progress bar on stderr.

    Yields:
        The name of each layer or group with its kernel, in forward order.

    Raises:
        ValueError: As `tangent_kernels`, when the first kernel is taken or, for nan and inf, the kernel concerned.
        TypeError: As `tangent_kernels`, when the first kernel is taken.

    Example:
        >>> import torch
        >>> import ahkernels as ah
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
        >>> for name, kernel in ah.iter_tangent_kernels(model, torch.randn(6, 4), outputs="trace"):
        ...     print(name, tuple(kernel.shape))
        0 (6, 6)
        2 (6, 6)
    """
    plan = plan_capture(
        model,
        x,
        layers=layers,
        outputs=outputs,
        precision=precision,
        memory_budget=memory_budget,
        keep_factors=keep_factors,
        progress=progress,
    )
    for name, kernel in plan.kernels():
        for layer_factors in kernel.factors:
            layer_factors.require_finite()
        yield name, kernel
