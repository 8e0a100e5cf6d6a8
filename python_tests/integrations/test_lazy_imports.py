"""Nothing is imported unless it is used, and a package that is missing is named with what installs it."""

from __future__ import annotations

import subprocess
import sys

PACKAGES = ("lightning", "pytorch_lightning", "transformers", "accelerate", "wandb", "mlflow", "tensorboard")


def run(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_package_and_its_writers_import_none_of_them():
    code = (
        "import sys, ahkernels.integrations, ahkernels.integrations.writers\n"
        f"print([name for name in {PACKAGES} if name in sys.modules])"
    )
    assert run(code) == ["[]"]


def test_a_missing_package_is_named():
    # An entry None in sys.modules makes an import fail as that of a missing package does.
    code = f"""
import sys
sys.modules.update(dict.fromkeys({PACKAGES}))
from ahkernels.integrations.writers import MLflowWriter, WandbWriter

def lightning():
    import ahkernels.integrations.lightning

def transformers():
    import ahkernels.integrations.transformers

for use in (lightning, transformers, WandbWriter, MLflowWriter):
    try:
        use()
    except ImportError as error:
        print(error)
"""
    assert run(code) == [
        'ahkernels.integrations.lightning needs lightning: pip install "ahkernels[lightning]"',
        'ahkernels.integrations.transformers needs transformers: pip install "ahkernels[transformers]"',
        'WandbWriter needs wandb: pip install "ahkernels[wandb]"',
        'MLflowWriter needs mlflow: pip install "ahkernels[mlflow]"',
    ]
