"""What tests of the CUDA kernels share: the kernels as a library for the emulator, built once."""

from __future__ import annotations

import pytest
from emulated import Device, build

from ahkernels.ops.cuda import deviation_kernel, tiles


@pytest.fixture(scope="session")
def library():
    return build()


@pytest.fixture(params=[False, True], ids=["mma", "wgmma"])
def device(request, library, monkeypatch):
    library.set_schedule(0)
    device = Device(library, hopper=request.param)
    monkeypatch.setattr(deviation_kernel, "LEAST_MULTIPLY_ADDS", 0)
    for name in ("pack_parts", "pack_slices", "tangent_tiles", "deviation_tiles"):
        monkeypatch.setattr(tiles, name, getattr(device, name))
    return device
