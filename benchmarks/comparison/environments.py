"""A virtual environment for each set of pinned requirements, made once and kept.

Requirements that name the runner's own torch get an environment that sees the runner's packages behind its own: the
same torch for all of them, and no second copy of it to download. All others are closed.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

DEFAULT = Path(__file__).resolve().parents[1] / ".cache" / "environments"
TIME_LIMIT = 600  # seconds for one installation
LIST_VERSIONS = (  # the first folder on the path counts
    "import importlib.metadata as m, json; "
    "print(json.dumps({d.name.lower(): d.version for d in reversed(list(m.distributions()))}))"
)
PIP = ("-m", "pip", "--disable-pip-version-check", "--quiet", "--no-input")


class InstallationError(RuntimeError):
    """The requirements could not be installed; the text is a clause for the table."""


def filled(requirements: Sequence[str]) -> list[str]:
    """Requirements with the runner's torch for {torch}, and for {cuda} the extra of jax for its GPU, or nothing."""
    import torch

    cuda = f"[cuda{torch.version.cuda.split('.')[0]}]" if torch.version.cuda and torch.cuda.is_available() else ""
    return [one.format(torch=torch.__version__.split("+")[0], cuda=cuda) for one in requirements]


def python_of(requirements: Sequence[str], folder: Path = DEFAULT) -> Path:
    """The interpreter of an environment with these requirements, which is made where it is not there.

    Raises:
        InstallationError: where pip does not succeed.
    """
    if not requirements:
        return Path(sys.executable)
    wanted = filled(requirements)
    layered = any("{torch}" in one for one in requirements)
    identity = [*wanted, platform.python_version(), sys.prefix if layered else ""]
    place = folder / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    python = place / "bin" / "python"
    if (place / "requirements.json").exists():
        return python
    shutil.rmtree(place, ignore_errors=True)
    venv.create(place, symlinks=True)  # pip comes from the runner, so that ensurepip is not needed
    if layered:
        _show_packages_of_runner(place)
    install(python, wanted)
    (place / "requirements.json").write_text(json.dumps(wanted) + "\n")
    return python


def install(python: Path, requirements: Sequence[str]) -> None:
    """Installs into the environment of this interpreter, by the runner's pip."""
    command = [sys.executable, *PIP, "--python", str(python), "install", *requirements]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT)
    except subprocess.TimeoutExpired as late:
        raise InstallationError(f"pip took more than {TIME_LIMIT} s") from late
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or done.stderr.splitlines()
        raise InstallationError(" ".join((lines or ["pip failed"])[-1].removeprefix("ERROR:").split())[:200])


def versions(python: Path, packages: Sequence[str]) -> dict[str, str]:
    """The versions of the packages that the environment has."""
    done = subprocess.run([python, "-c", LIST_VERSIONS], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    return {package: found[package.lower()] for package in packages if package.lower() in found}


def _show_packages_of_runner(place: Path) -> None:
    """Every folder of packages on the runner's path comes last on the environment's."""
    folders = [one for one in sys.path if Path(one).name in ("site-packages", "dist-packages")]
    own = next(place.glob("lib/python*/site-packages"))
    (own / "packages_of_runner.pth").write_text("".join(f"{one}\n" for one in folders))
