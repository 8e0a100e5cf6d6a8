"""The precision that a measurement has where none is given: that of torch's own products, however it was set."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from ahkernels.precision import resolve_precision

SETTINGS = [
    ("torch.set_float32_matmul_precision('medium')", "medium"),
    ("torch.backends.fp32_precision = 'tf32'", "high"),
    ("torch.backends.mkldnn.matmul.fp32_precision = 'bf16'", "medium"),
    ("torch.backends.cuda.matmul.fp32_precision = 'tf32'", "high"),
]


def test_of_torch():
    """Each in a process of its own, since torch does not take settings back that were made in both of its ways."""
    code = "import torch\nfrom ahkernels.precision import resolve_precision\n{}\nprint(resolve_precision(None))"
    processes = [
        subprocess.Popen([sys.executable, "-c", code.format(setting)], stdout=subprocess.PIPE, text=True)
        for setting, _ in SETTINGS
    ]
    found = [process.communicate(timeout=120)[0].split()[-1] for process in processes]
    assert found == [expected for _, expected in SETTINGS]


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_given(precision):
    assert resolve_precision(precision) == precision


def test_unknown():
    with pytest.raises(ValueError, match=r"precision: expected .* got 'low'"):
        resolve_precision("low")


def test_none_is_highest_here():
    assert resolve_precision(None) == torch.get_float32_matmul_precision() == "highest"
