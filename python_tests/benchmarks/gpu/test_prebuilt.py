"""Whether a CUDA library that was built elsewhere fits."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.gpu import prebuilt


@pytest.mark.parametrize(
    ("capability", "reason"),
    [
        ([8, 0], None),
        ([8, 9], None),
        ([9, 0], None),
        ([10, 0], None),
        ([7, 5], "architectures [80, 90], and the device has 75"),
        (None, "no CUDA device"),
    ],
)
def test_whether_a_library_built_elsewhere_fits_the_device(capability: list[int] | None, reason: str | None) -> None:
    found = prebuilt.misfit({"cuda": "13.0", "architectures": "80,90"}, "13.2", capability)
    assert found == reason if reason is None else reason in str(found)


def test_a_library_of_another_cuda_or_for_other_devices_alone_does_not_fit(tmp_path: Path) -> None:
    assert "CUDA 12.9" in str(prebuilt.misfit({"cuda": "12.9", "architectures": "80,90"}, "13.0", [9, 0]))
    assert "[80]" in str(prebuilt.misfit({"cuda": "13.0", "architectures": "80"}, "13.0", [9, 0]))
    (tmp_path / "_cuda.so").write_text("no library")
    assert "_cuda.so" in str(prebuilt.reason_against(tmp_path / "_cuda.so"))
