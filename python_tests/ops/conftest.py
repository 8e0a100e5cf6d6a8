"""What tests of the CUDA kernels share: the kernels as a library for the emulator, built once."""

from __future__ import annotations

import pytest
from emulated import Device, build

from ahkernels.ops import cuda


@pytest.fixture(scope="session")
def library():
    return build()


@pytest.fixture(params=[False, True], ids=["mma", "wgmma"])
def device(request, library, monkeypatch):
    library.set_schedule(0)
    device = Device(library, hopper=request.param)
    monkeypatch.setattr(cuda, "LEAST_FOR_DEVIATIONS", 0)
    for name in ("pack_parts", "pack_slices", "tangent_tiles", "deviation_tiles"):
        monkeypatch.setattr(cuda, name, getattr(device, name))
    return device
