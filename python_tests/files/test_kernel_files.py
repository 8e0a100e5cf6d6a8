"""Kernels in safetensors: the same factors, outputs and precision come back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import ahkernels as ah

pytest.importorskip("safetensors")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(1, 3, 3), nn.LayerNorm(6), nn.Flatten(), nn.Linear(18, 5), nn.ReLU(), nn.Linear(5, 3)
    )


@pytest.mark.parametrize("outputs", ["all", "trace", "sum", 1, [2, 0]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernels_read_back_exactly(outputs: object, dtype: torch.dtype, tmp_path: Path) -> None:
    model, x = network().to(dtype), torch.randn(7, 1, 8, dtype=dtype)
    groups = {"first": ["0", "1"], "last": "5", "all": "*"}
    kernels = ah.tangent_kernels(model, x, layers=groups, outputs=outputs, precision="high", keep_factors=True)
    ah.save_kernels(kernels, tmp_path / "kernels.safetensors")
    again = ah.load_kernels(tmp_path / "kernels.safetensors")
    assert list(again) == list(kernels)
    for name, kernel in kernels.items():
        assert repr(again[name]) == repr(kernel) and again[name].precision == "high"
        assert torch.equal(again[name].to_dense(), kernel.to_dense())
        assert [one.layer for one in again[name].factors] == [one.layer for one in kernel.factors]


def test_views_are_written_as_they_look(tmp_path: Path) -> None:
    a, g = torch.randn(4, 1, 3).expand(4, 5, 3), torch.randn(2, 5, 4, 3).permute(2, 1, 0, 3)
    layers = [ah.LayerFactors(a, g, False, by_jacobian=True), ah.LayerFactors(a[:, :2], g[:, :2], True)]
    whole = g.contiguous()
    layers += [ah.LayerFactors(g[:, :, 0], whole, True), ah.LayerFactors(whole[:, :, 1], whole.view(4, 5, 2, 3), True)]
    kernel = ah.TangentKernel(layers)
    ah.save_kernels({"": kernel}, tmp_path / "kernels.safetensors")
    assert torch.equal(ah.load_kernels(tmp_path / "kernels.safetensors")[""].to_dense(), kernel.to_dense())


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "kernels.safetensors"
    with pytest.raises(TypeError, match=r"^kernels: expected tangent kernels, got Tensor as 'fc'$"):
        ah.save_kernels({"fc": torch.zeros(3)}, path)  # type: ignore[dict-item]
    root = ah.TangentKernel(ah.LayerFactors(torch.zeros(3, 1, 0), torch.ones(3, 1, 1, 3), False, "fc", root=object()))
    with pytest.raises(ValueError, match=r"^kernels: expected the factors .*'fc'; capture it with a larger memory_b"):
        ah.save_kernels({"fc": root}, path)
    assert not path.exists()


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "kernels.safetensors"
    with pytest.raises(FileNotFoundError, match=r"^path: expected a file, got .*which does not exist$"):
        ah.load_kernels(path)
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"^path: expected a file of save_kernels\(\), got "):
        ah.load_kernels(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"^path: expected a file of save_kernels\(\), got "):
        ah.load_kernels(path)


def test_kernels_that_have_changed_are_refused(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = tmp_path / "kernels.safetensors"
    ah.save_kernels(ah.tangent_kernels(network(), torch.randn(7, 1, 8)), path)
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata)
    ah.load_kernels(path)
    for name, tensor in tensors.items():
        if not tensor.numel():
            continue
        other = tensor.clone()
        other.view(-1)[0] += 1
        save_file({**tensors, name: other}, path, metadata)
        with pytest.raises(
            ValueError, match=r"^path: expected a file of save_kernels\(\), .*has changed since it was wri"
        ):
            ah.load_kernels(path)
    save_file(tensors, path, {**metadata, "ahkernels": metadata["ahkernels"].replace("highest", "high")})
    with pytest.raises(ValueError, match="has changed since it was written"):
        ah.load_kernels(path)
    save_file(tensors, path, {"ahkernels": metadata["ahkernels"]})
    with pytest.raises(ValueError, match="it has no digest"):
        ah.load_kernels(path)
