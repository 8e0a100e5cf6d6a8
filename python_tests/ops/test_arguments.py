"""What the ops refuse, and in which words: the CPU's kernels, the checks for other devices, and on the meta device."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import reference
import torch
from batches import one_layer
from on_device import moved
from torch import Tensor

from ahkernels import ops
from ahkernels.ops import KernelBatch, arguments

N, S, OUT, D, M = 4, 2, 2, 3, 5
OPS = [name for name in (*ops.__all__, "tangent_gram_out") if hasattr(torch.ops.ahkernels, name)]


def factors(dtype: torch.dtype = torch.float32) -> KernelBatch:
    return one_layer(*reference.factors(N, S, OUT, D, M, dtype), 1.0)


def valid(name: str) -> dict[str, Any]:
    """Arguments of an op by name, flat."""
    v = torch.ones(N, OUT, 1, dtype=torch.float64)
    batches = factors()._asdict()
    if name == "tangent_cross_product":
        batches |= {f"column_{key}": value for key, value in factors()._asdict().items()}
    others = {
        "centered_inner_products": {"row_means": [v[..., 0]], "precision": "high"},
        "pair_inner_products": {
            "means": [v.expand(N, OUT, OUT)],
            "precision": "high",
            "first_end": N,
            "second_begin": 0,
            "forward_means": [torch.ones(S, D, dtype=torch.float64)],
            "backward_means": [torch.ones(S, OUT, M, dtype=torch.float64)],
        },
        "per_output_inner_products": {"precision": "high"},
        "tangent_gram": {"precision": "high"},
        "tangent_gram_out": {"precision": "high", "out": torch.empty(N * OUT, N * OUT)},
        "tangent_moments": {"v": v, "precision": "high"},
        "tangent_cross_product": {"v": v},
        "tangent_product": {"v": v},
        "tangent_quadratic": {"v": v},
    }
    return batches | others.get(name, {})


def kernels(name: str, given: dict[str, Any]) -> Any:
    """The op itself."""
    return getattr(torch.ops.ahkernels, name)(*given.values())


def checks(name: str, given: dict[str, Any]) -> Any:
    """The checks of Python's implementations."""
    values, width = list(given.values()), len(KernelBatch._fields)
    batches = [KernelBatch(*values[:width])]
    if "column_forward" in given:
        batches.append(KernelBatch(*values[width : 2 * width]))
    return getattr(arguments, name)(*batches, *values[len(batches) * width :])


def on_meta(name: str, given: dict[str, Any]) -> Any:
    """The op for shapes alone."""
    return kernels(name, {key: moved(value, "meta") for key, value in given.items()})


WAYS = (kernels, checks, on_meta)


def refusal(way: Callable[[str, dict[str, Any]], Any], name: str, given: dict[str, Any]) -> str:
    with pytest.raises(RuntimeError) as error:
        way(name, given)
    return str(error.value).splitlines()[0]


def test_valid_arguments_are_taken():
    for name in OPS:
        for way in WAYS:
            way(name, valid(name))
        schema = torch._C._get_schema(f"ahkernels::{name}", "")
        assert [one.name for one in schema.arguments][: len(valid(name))] == list(valid(name))
        assert len(inspect.signature(getattr(arguments, name)).parameters) == len(schema.arguments) - 4 * (
            2 if name == "tangent_cross_product" else 1
        )


a, g = factors()[:2]
half = [a[0].half()]
BAD_BATCHES = [
    ({"forward": []}, "forward: expected at least one factor, got none"),
    ({"backward": g + g}, r"backward: expected as many as {}forward has factors \(1\), got 2"),
    ({"bias": []}, r"bias: expected as many as {}forward has factors \(1\), got 0"),
    ({"by_jacobian": [True, True]}, r"by_jacobian: expected as many as {}forward has factors \(1\), got 2"),
    ({"layers": [1, -1]}, "layers: expected at least one for each kernel, got -1"),
    ({"layers": []}, r"layers: expected a sum of 1, the factors of {}forward, got less: \[\]"),
    ({"layers": [2**62]}, rf"layers: expected a sum of 1, the factors of {{}}forward, got more: \[{2**62}\]"),
    ({"forward": [a[0][0]]}, r"forward\[0\]: expected shape \[n, s, d\], got \[2, 3\]"),
    ({"backward": [g[0][0]]}, r"backward\[0\]: expected shape \[n, s, o, m\], got \[2, 2, 5\]"),
    ({"backward": [g[0][:3]]}, r"backward\[0\]: expected n and s of {}forward\[0\], \[4, 2\], got \[3, 2\]"),
    ({"backward": [g[0][:, :1]]}, r"backward\[0\]: expected n and s of {}forward\[0\], \[4, 2\], got \[4, 1\]"),
    ({"backward": [g[0][:, :, :0]]}, r"backward\[0\]: expected n, s and o of at least 1, got shape \[4, 2, 0, 5\]"),
    (
        {"forward": [a[0][:0]], "backward": [g[0][:0]]},
        r"backward\[0\]: expected n, s and o of at least 1, got shape \[0, 2, 2, 5\]",
    ),
    ({"backward": [g[0].double()]}, r"backward\[0\]: expected the dtype of {}forward\[0\], float32, got float64; con"),
    ({"forward": half}, r"backward\[0\]: expected the dtype of {}forward\[0\], float16, got float32; convert one of"),
    ({"bias": [-1.0]}, r"bias\[0\]: expected a finite number of at least 0, which is 1 for .*, got -1"),
    ({"bias": [math.nan]}, r"bias\[0\]: expected a finite number of at least 0, .*, got nan"),
    ({"bias": [math.inf]}, r"bias\[0\]: expected a finite number of at least 0, .*, got inf"),
    ({"bias": [-1.0], "by_jacobian": [True]}, r"bias\[0\]: expected a finite number of at least 0, .*, got -1"),
    ({"bias": [math.nan], "by_jacobian": [True]}, r"bias\[0\]: expected a finite number of at least 0, .*, got nan"),
] + [
    (
        {"forward": [a[0].to(dtype)], "backward": [g[0].to(dtype)]},
        rf"forward\[0\]: expected float32, float64, float16 or bfloat16 numbers, got {name}; convert both factors",
    )
    for dtype, name in ((torch.int32, "int32"), (torch.int64, "int64"), (torch.complex64, "complex64"))
]


@pytest.mark.parametrize(("change", "words"), BAD_BATCHES)
def test_batches_that_do_not_fit(change, words):
    """For every op, and for the columns of a cross product, in the same words whatever takes the arguments."""
    for name in OPS:
        for prefix in ("", "column_") if name == "tangent_cross_product" else ("",):
            given = valid(name) | {prefix + key: value for key, value in change.items()}
            found = {refusal(way, name, given) for way in WAYS}
            assert len(found) == 1
            assert re.match(f"{name}: {prefix}{words.format(prefix)}", found.pop())


def test_layers_that_do_not_fit_the_first():
    """The others have other samples, outputs or numbers."""
    for name in OPS:
        for other, words in (
            (
                one_layer(*reference.factors(3, S, OUT, D, M), 1.0),
                r"backward\[1\]: .* n and o of backward\[0\], \[4, 2\], .* \[3, 2",
            ),
            (
                one_layer(*reference.factors(N, S, 3, D, M), 1.0),
                r"backward\[1\]: .* n and o of backward\[0\], \[4, 2\], .* \[4, 3",
            ),
            (
                factors(torch.float64),
                r"forward\[1\]: expected the dtype of forward\[0\], float32, got float64; convert ",
            ),
        ):
            given = valid(name)
            for key, value in other._asdict().items():
                given[key] = [2] if key == "layers" else given[key] + value
            found = {refusal(way, name, given) for way in WAYS}
            assert len(found) == 1
            assert re.match(f"{name}: {words}", found.pop())


V = "expected float64 numbers of shape"
BAD = [
    ("centered_inner_products", {"row_means": []}, "row_means: expected 1 tensors, got 0"),
    (
        "centered_inner_products",
        {"row_means": [torch.ones(N, OUT)]},
        rf"row_means\[0\]: {V} \[n, o\] = \[4, 2\], got float32",
    ),
    ("pair_inner_products", {"means": []}, "means: expected 1 tensors, got 0"),
    ("pair_inner_products", {"forward_means": []}, "forward_means: expected 1 tensors, got 0"),
    ("pair_inner_products", {"backward_means": []}, "backward_means: expected 1 tensors, got 0"),
    (
        "pair_inner_products",
        {"forward_means": [], "backward_means": []},
        rf"means\[0\]: {V} \[n, o, 1\] = \[4, 2, 1\], got float64 of shape \[4, 2, 2\]",
    ),
    ("pair_inner_products", {"second_begin": -48}, "second_begin: expected 0 or a multiple of 48 below n = 4, got -48"),
    ("pair_inner_products", {"second_begin": 2}, "second_begin: expected 0 or a multiple of 48 below n = 4, got 2"),
    ("pair_inner_products", {"second_begin": 48}, "second_begin: expected 0 or a multiple of 48 below n = 4, got 48"),
    ("pair_inner_products", {"first_end": 3}, "first_end: expected n = 4 for all pairs, which .* asks for, got 3"),
    (
        "tangent_cross_product",
        {"column_forward": [a[0][..., :2]]},
        r"column_forward\[0\]: expected d and m of the rows, \[3, 5\], got \[2, 5\]",
    ),
    ("tangent_cross_product", {"column_bias": [0.25]}, r"column_bias\[0\]: expected the bias of the rows, 1, got 0.25"),
    ("tangent_gram_out", {"out": torch.empty(8, 9)}, r"out: expected a contiguous .* \[8, 8\], got shape \[8, 9\]"),
    (
        "tangent_gram_out",
        {"out": torch.empty(8, 8).T},
        r"out: expected .* got one with gaps or turned, shape \[8, 8",
    ),
    (
        "tangent_gram_out",
        {"out": torch.empty(8, 8).half()},
        "out: expected float64 numbers, or float32 .*, got float16",
    ),
    (
        "tangent_moments",
        {"v": torch.ones(N, OUT, 2).double()},
        rf"v: {V} \[n, o, 1\] = \[4, 2, 1\], got float64 of shape",
    ),
    (
        "tangent_moments",
        {"backward": [g[0][:, :, :1]], "v": torch.ones(N, 1, 1).double()},
        "backward: expected at least 2 outputs, got 1; for kernels over samples alone",
    ),
]
BAD += [
    (name, {"v": v}, rf"v: {V} \[n, o, columns\] = \[4, 2, 1 or more\], got {got}")
    for name in ("tangent_product", "tangent_quadratic", "tangent_cross_product")
    for v, got in (
        (torch.ones(N, OUT, 1), r"float32 of shape \[4, 2, 1\]"),
        (torch.ones(N, OUT, 1).cdouble(), r"complex128 of shape \[4, 2, 1\]"),
        (torch.ones(N * OUT, 1).double(), r"float64 of shape \[8, 1\]"),
        (torch.ones(N, OUT, 0).double(), r"float64 of shape \[4, 2, 0\]"),
        (torch.ones(N, 3, 1).double(), r"float64 of shape \[4, 3, 1\]"),
    )
]
BAD += [
    (name, {"precision": "lowest"}, "precision: expected highest, high or medium, got lowest")
    for name in OPS
    if "precision" in valid(name)
]


@pytest.mark.parametrize(("name", "change", "words"), BAD)
def test_other_arguments_that_do_not_fit(name, change, words):
    given = valid(name) | change
    found = {refusal(way, name, given) for way in WAYS}
    assert len(found) == 1
    assert re.match(f"{name}: {words}", found.pop())


@pytest.mark.parametrize(
    "name", ["tangent_gram", "tangent_product", "tangent_quadratic", "tangent_diagonal", "tangent_row_sums"]
)
def test_one_kernel_where_one_is_measured(name):
    given = valid(name)
    given |= {key: 2 * given[key] for key in KernelBatch._fields}
    assert {refusal(way, name, given) for way in WAYS} == {f"{name}: layers: expected one kernel, got 2"}


def changed(given: dict[str, Any], change: Callable[[Tensor], Tensor]) -> list[tuple[str, dict[str, Any]]]:
    """The arguments with one of the tensors changed, for each of them, and the name of that one."""
    found = []
    for key, value in given.items():
        if isinstance(value, Tensor):
            found.append((key, given | {key: change(value)}))
        elif isinstance(value, list) and isinstance(value[0], Tensor):
            found.append((f"{key}[0]", given | {key: [change(value[0])]}))
    return found


@pytest.mark.parametrize("name", OPS)
def test_tensors_on_different_devices(name):
    """Shapes alone would be the result where one of the tensors has no numbers."""
    for argument, given in changed(valid(name), lambda tensor: tensor.to("meta")):
        words = f"{name}: {argument}: expected the device of forward[0], cpu, got meta; move it"
        if argument.endswith("forward[0]"):  # which the others are compared with
            prefix = argument.removesuffix("forward[0]")
            words = f"{name}: {prefix}backward[0]: expected the device of {argument}, meta, got cpu; move it"
        assert refusal(kernels, name, given) in (words, words.replace("of forward[0]", "of column_forward[0]"))


@pytest.mark.parametrize("name", OPS)
def test_sparse_tensors(name):
    for argument, given in changed(valid(name), lambda tensor: tensor.contiguous().to_sparse()):
        assert refusal(kernels, name, given) == (
            f"{name}: {argument}: expected a dense tensor, got one of layout torch.sparse_coo; take its to_dense()"
        )


@pytest.mark.parametrize("name", [name for name in OPS if name != "tangent_gram_out"])
def test_views_are_read_by_their_strides(name):
    """Also where the sign of a number is a flag of its tensor."""
    expected = kernels(name, valid(name))

    def spread(tensor: Tensor) -> Tensor:
        return tensor.unsqueeze(-1).repeat(*[1] * tensor.dim(), 2)[..., 1]

    def negative(tensor: Tensor) -> Tensor:
        return torch._neg_view(-tensor)

    for change in (spread, negative):
        for argument, given in changed(valid(name), change):
            torch.testing.assert_close(kernels(name, given), expected, rtol=1e-5, atol=1e-5, msg=argument)


def test_memory_for_the_kernel_that_a_factor_shares():
    memory = torch.randn(1000)
    backward = memory[:80].view(N, S, OUT, M)
    for first in (0, 79):
        out = memory[first : first + 64].view(8, 8)
        with pytest.raises(
            RuntimeError, match="tangent_gram_out: out: expected memory of its own, got some that a fac"
        ):
            ops.tangent_gram(one_layer(a[0], backward, 0.0), "high", out)
    out = memory[80:144].view(8, 8)
    assert torch.equal(ops.tangent_gram(one_layer(a[0], backward, 0.0), "high", out), out)


@pytest.mark.parametrize("sizes", [(2**40, 1, 1), (1, 2**40, 1), (1, 1, 2**40), (2**15, 2**15, 2**15)], ids=str)
def test_sizes_that_no_index_counts(sizes):
    """Expanded factors, whose numbers take no memory."""
    n, s, o = sizes
    batch = one_layer(torch.ones(1).expand(n, s, 2**8), torch.ones(1).expand(n, s, o, 2**8), 0.0)
    for name in ("tangent_diagonal", "tangent_row_sums", "per_output_inner_products", "tangent_gram"):
        rest = ["high"] if "precision" in valid(name) else []
        with pytest.raises(
            RuntimeError, match=rf"{name}: backward\[0\]: expected n\*s\*o\*\(d \+ 1\) and .* 2\^57, got"
        ):
            getattr(torch.ops.ahkernels, name)(*batch, *rest)


def test_kernels_of_more_entries_than_are_counted():
    batch = one_layer(torch.ones(1).expand(2**20, 1, 1), torch.ones(1).expand(2**20, 1, 2**6, 1), 0.0)
    words = (
        r"backward: expected kernels of at most 2\^50 entries together, got 1 of n = 1048576 samples and o = 64 outputs"
    )
    for call in (
        lambda: ops.tangent_gram(batch, "high"),
        lambda: ops.per_output_inner_products(batch, "high"),
        lambda: ops.tangent_moments(batch, torch.ones(1).double().expand(2**20, 2**6, 1), "high"),
    ):
        with pytest.raises(RuntimeError, match=words):
            call()


def test_means_of_deviations_that_do_not_fit():
    forward, backward = [torch.ones(S, D).double()], [torch.ones(S, OUT, M).double()]
    assert ops.deviations(factors(), forward, backward).forward[0].shape == (N, 2 * S, D + 1)
    with pytest.raises(RuntimeError, match="deviations: forward_means: expected 1 tensors, got 0"):
        ops.deviations(factors(), [], backward)
    with pytest.raises(
        RuntimeError, match=r"deviations: backward_means\[0\]: expected float64 numbers of shape \[s, o, m\]"
    ):
        ops.deviations(factors(), forward, forward)
    with pytest.raises(RuntimeError, match=r"deviations: bias\[0\]: expected a finite number"):
        ops.deviations(factors()._replace(bias=[-1.0]), forward, backward)


@pytest.mark.parametrize("name", [name for name in OPS if name != "tangent_gram_out"])
def test_gradients_that_are_asked_for(name):
    """There are none, and torch says so."""
    for argument, given in changed(valid(name), lambda tensor: tensor.clone().requires_grad_()):
        found = kernels(name, given)
        torch.testing.assert_close(found, kernels(name, valid(name)), rtol=1e-5, atol=1e-5, msg=argument)
        with pytest.warns(UserWarning, match=f"ahkernels::{name}: an autograd kernel was not registered"):
            found.sum().backward()
