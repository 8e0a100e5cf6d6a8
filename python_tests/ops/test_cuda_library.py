"""Which CUDA library is loaded, where there are several in the folder, and what is said where it cannot be."""

from __future__ import annotations

import pytest
import torch

from ahkernels.ops import build

NAMES = ["_cuda.cpython-310-x86_64-linux-gnu.so", "_cuda.cpython-311-x86_64-linux-gnu.so", "_cuda.so"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with libraries that do not load, for a build and a torch with CUDA."""
    for name in NAMES:
        (tmp_path / name).write_bytes(b"no library")
    monkeypatch.setattr(build, "_FACTS", {"cuda": "built"})
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(build, "_CUDA_LIBRARY", tmp_path / NAMES[1])
    return tmp_path


def test_library_of_the_same_python_as_the_extension():
    assert build._CUDA_LIBRARY.parent.name == "ahkernels"
    assert build._CUDA_LIBRARY.name == build._C.__file__.rpartition("/")[2].replace("_C.", "_cuda.")


@pytest.mark.parametrize(("version", "used"), [("13.2", True), ("12.6", False)])
def test_one_of_several_libraries_is_loaded(folder, monkeypatch, version, used):
    loaded = []
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    monkeypatch.setattr(build, "cuda_library", lambda: {"cuda": version})
    assert build.load_cuda() == used
    assert loaded == [folder / NAMES[1]]


def test_nothing_is_loaded_without_need(folder, monkeypatch):
    for facts, cuda in [({"cuda": "left_out_by_AHKERNELS_CUDA"}, "13.0"), ({"cuda": "built"}, None)]:
        monkeypatch.setattr(build, "_FACTS", facts)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        assert not build.load_cuda()


def test_missing_library(folder):
    (folder / NAMES[1]).unlink()
    with pytest.raises(ImportError) as error:
        build.load_cuda()
    assert f"expected {folder / NAMES[1]}, found {NAMES[0]}, {NAMES[2]} there. Build ahkernels again" in str(
        error.value
    )
    for name in (NAMES[0], NAMES[2]):
        (folder / name).unlink()
    with pytest.raises(ImportError, match="found none there"):
        build.load_cuda()


def test_library_that_does_not_load(folder):
    with pytest.raises(ImportError, match=rf"the CUDA library .*{NAMES[1]} does not load \(.*Build ahkernels again"):
        build.load_cuda()
