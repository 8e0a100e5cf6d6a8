"""Runs the quick start of README.md on a wheel under several versions of torch, each in a fresh environment.

    python .ci/try_wheel.py WHEEL VERSION [VERSION ...]

The wheel is installed as users would install it, beside the torch that is named, by this Python and its pip. Each
environment is removed before the next one is made.
"""

import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
FACTS = "import ahkernels as ah; info = ah.build_info(); print(ah.__version__, ah.__file__, info)"


def quick_start() -> str:
    """The Python of README.md, all of it."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL))


def try_under(version: str, wheel: Path) -> None:
    with tempfile.TemporaryDirectory() as work:
        venv.create(work, with_pip=True)
        python = Path(work, "bin", "python")
        subprocess.run([python, "-m", "pip", "install", "--quiet", f"torch=={version}", wheel], check=True)
        for code in (FACTS, quick_start()):
            subprocess.run([python, "-W", "error::FutureWarning", "-c", code], cwd=work, check=True)


def main(wheel: str, *versions: str) -> None:
    for version in versions:
        print(f"=== torch {version}", flush=True)
        try_under(version, Path(wheel).resolve())


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
