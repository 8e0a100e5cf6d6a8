"""Runs the tests with other versions, compilers and packages than those of CI, and writes what passed as JSON.

    python .ci/matrix.py [--torch VERSION ...] [--python PATH ...] [--compiler NAME ...] [--without PACKAGE ...]
                         [--tests PATH ...] [--only CASE ...] [--output FILE]

One thing is changed at a time: each torch, Python and compiler takes the place of the first one, and each package is
missing in turn. A wheel is built for each Python and compiler, with the torch that [build-system] names; it must run
beside all of the others. Each case has a virtual environment of its own. The file is written as each case ends, with
its commit; a run that is given the file of an earlier one does the cases that it lacks or that failed.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
import zipfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from wheels import PYTHONS, pythons_on_path

ROOT = Path(__file__).parent.parent
BUILT_WITH = "2.13.0"
# Newest last; "newest" is what PyPI has.
TORCHES = [BUILT_WITH, "2.11.0", "newest"]
COMPILERS = ["g++", "clang++"]
OPTIONAL = ["pandas", "tensorboard", "threadpoolctl", "matplotlib", "safetensors"]


@dataclass(frozen=True)
class Case:
    """What one run of the tests is done with."""

    python: str
    torch: str
    compiler: str
    without: str | None = None

    @property
    def name(self) -> str:
        missing = f", without {self.without}" if self.without else ""
        return f"{Path(self.python).name}, torch {self.torch}, {self.compiler}{missing}"


def run(*command: str, log: Path, **environment: str) -> int:
    """The exit status of a command, whose output is added to a file."""
    with log.open("ab") as file:
        file.write(f"\n$ {' '.join(command)}\n".encode())
        file.flush()
        of_command = {**os.environ, **environment}
        return subprocess.run(command, cwd=ROOT, env=of_command, stdout=file, stderr=subprocess.STDOUT).returncode


def cases(args: argparse.Namespace) -> list[Case]:
    """One thing changed at a time; what is not on this machine is left out, and named."""
    pythons = pythons_on_path(args.python)
    compilers = [name for name in args.compiler if shutil.which(name)]
    for missing in sorted({*args.compiler} - {*compilers}):
        print(f"matrix: {missing} is not on the PATH, and is left out")
    if not pythons or not compilers:
        sys.exit(
            "matrix: expected a Python and a compiler on the PATH, found none; name them with --python, --compiler"
        )
    first = Case(pythons[0], args.torch[0], compilers[0])
    return [
        first,
        *(replace(first, torch=one) for one in args.torch[1:]),
        *(replace(first, python=one) for one in pythons[1:]),
        *(replace(first, compiler=one) for one in compilers[1:]),
        *(replace(first, without=one) for one in args.without),
    ]


def wheel(case: Case, work: Path, log: Path) -> Path | None:
    """The wheel of a Python and a compiler, built once."""
    folder = work / f"wheel-{Path(case.python).name}-{case.compiler}"
    if not folder.exists():
        pip = [case.python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder)]
        run(*pip, str(work / "source"), log=log, CXX=case.compiler, AHKERNELS_CUDA="off")
    return next(folder.glob("*.whl"), None)


def environment(case: Case, built: Path, folder: Path, log: Path) -> Path | None:
    """The Python of a new virtual environment with a case's packages; None where they cannot be installed."""
    if run(case.python, "-m", "venv", str(folder), log=log):
        return None
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    torch = ["--upgrade", "torch"] if case.torch == "newest" else [f"torch=={case.torch}"]
    if run(*pip, *torch, log=log) or run(*pip, f"{built}[test,tensorboard]", "threadpoolctl", log=log):
        return None
    if case.without and run(str(python), "-m", "pip", "uninstall", "--yes", "--quiet", case.without, log=log):
        return None
    return python


def tested(case: Case, args: argparse.Namespace, work: Path) -> dict[str, object]:
    """What became of a case: versions, counts of tests and seconds, and the names of those that failed."""
    log = args.logs / f"{case.name.replace(', ', '-').replace(' ', '-')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    start, found = time.monotonic(), asdict(case) | {"python": Path(case.python).name}
    built = wheel(case, work, log)
    if built is None:
        return found | {"passed": False, "reason": "the wheel was not built"}
    folder = work / "environment"
    shutil.rmtree(folder, ignore_errors=True)
    python = environment(case, built, folder, log)
    if python is None:
        return found | {"passed": False, "reason": "the packages were not installed"}
    tree = work / "source"
    for stale in tree.glob("ahkernels/*.so"):
        stale.unlink()
    with zipfile.ZipFile(built) as archive:  # as a checkout has them that was built in place
        archive.extractall(tree, [name for name in archive.namelist() if name.endswith(".so")])
    results = work / "results.xml"
    results.unlink(missing_ok=True)
    command = f'cd "{tree}" && exec "{python}" -m pytest -q -n {args.processes} --dist loadfile -p no:cacheprovider'
    status = run("bash", "-c", f'{command} --junitxml "{results}" {" ".join(args.tests)}', log=log, OMP_NUM_THREADS="1")
    versions = subprocess.run(
        [
            str(python),
            "-c",
            "import ahkernels as a, json, torch as t; print(json.dumps([t.__version__, a.__version__]))",
        ],
        cwd=tree,
        capture_output=True,
        text=True,
    )
    found["versions"] = json.loads(versions.stdout) if versions.returncode == 0 else versions.stderr[-500:]
    found |= {"passed": status == 0, "seconds": round(time.monotonic() - start)}
    if results.exists():
        root = ElementTree.parse(results).getroot()
        suites = root.findall("testsuite")
        found |= {
            kind: sum(int(one.get(kind, 0)) for one in suites) for kind in ("tests", "failures", "errors", "skipped")
        }
        found["failed"] = sorted(
            f"{one.get('classname')}::{one.get('name')}"
            for one in root.iter("testcase")
            if one.find("failure") is not None or one.find("error") is not None
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--torch", nargs="+", default=TORCHES, metavar="VERSION")
    parser.add_argument("--python", nargs="+", default=PYTHONS, metavar="PATH")
    parser.add_argument("--compiler", nargs="+", default=COMPILERS, metavar="NAME")
    parser.add_argument("--without", nargs="*", default=OPTIONAL, metavar="PACKAGE", help="packages missing in turn")
    parser.add_argument("--tests", nargs="+", default=["python_tests"], metavar="PATH")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="cases with this text in their names")
    parser.add_argument("--processes", type=int, default=2, help="of pytest")
    parser.add_argument("--output", type=Path, default=ROOT / ".ci" / "matrix.json")
    parser.add_argument("--logs", type=Path, default=Path(tempfile.gettempdir()) / "matrix", help="folder of outputs")
    args = parser.parse_args()

    told = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    commit = told.stdout.strip()
    head = {"tests": args.tests, "machine": platform.machine()}
    found: dict[str, dict[str, object]] = {}
    if args.output.exists():
        before = json.loads(args.output.read_text())
        found = before["cases"] if {key: before[key] for key in head} == head else {}
    chosen = [one for one in cases(args) if not args.only or any(text in one.name for text in args.only)]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(Path(folder) / "source")], check=True)
        for case in chosen:
            if case.name not in found or not found[case.name]["passed"]:
                found[case.name] = {"commit": commit} | tested(case, args, Path(folder))
                args.output.write_text(json.dumps(head | {"cases": found}, indent=1) + "\n")
            print(f"{case.name}: {json.dumps(found[case.name])}", flush=True)
    sys.exit(0 if all(found[case.name]["passed"] for case in chosen) else 1)


if __name__ == "__main__":
    main()
