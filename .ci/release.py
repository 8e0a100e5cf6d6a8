"""Says what is missing for a release, and with --tag makes the tag if nothing is. It pushes and uploads nothing.

    python .ci/release.py [--tag]

Looked at are the version, the changelog, the state of git, and the files that .ci/wheels.py left in dist.
"""

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

VERSION = re.compile(r'^__version__ = "(?P<version>[^"]*)"$', re.MULTILINE)
RELEASE = re.compile(r"\d+\.\d+\.\d+")
SECTION = re.compile(r"^## \[(?P<version>[^\]]+)\] - (?P<date>.+)$", re.MULTILINE)


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True).stdout


def version_of(root: Path) -> str:
    return VERSION.findall((root / "ahkernels" / "__init__.py").read_text())[0]


def wrong_in_the_version(root: Path) -> list[str]:
    version, wrong = version_of(root), []
    if not RELEASE.fullmatch(version):
        wrong.append(f"ahkernels/__init__.py: expected a version such as 1.2.3, got {version!r}")
    if re.search(r"^version = \"", (root / "pyproject.toml").read_text(), re.MULTILINE):
        wrong.append("pyproject.toml: expected no version of its own, since ahkernels/__init__.py has it")
    return wrong


def wrong_in_the_changelog(root: Path) -> list[str]:
    newest = SECTION.search((root / "CHANGELOG.md").read_text())
    version = version_of(root)
    if newest is None or newest["version"] != version:
        got = newest["version"] if newest else "none"
        return [f"CHANGELOG.md: expected a first section [{version}], got {got}"]
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", newest["date"]):
        return [f"CHANGELOG.md: expected the date of the release, such as 2026-01-31, got {newest['date']!r}"]
    return []


def wrong_in_git(root: Path) -> list[str]:
    wrong = []
    if changed := git(root, "status", "--porcelain").splitlines():
        wrong.append(f"git: expected all changes to be committed, got {len(changed)} files that differ")
    tag = f"v{version_of(root)}"
    if git(root, "tag", "--list", tag):
        wrong.append(f"git: expected a new version, got {tag}, which is a tag")
    return wrong


def wrong_in_the_files(root: Path) -> list[str]:
    """The source distribution and the wheels have what git has in csrc and ahkernels, byte for byte."""
    name = f"ahkernels-{version_of(root)}"
    source, wheels = root / "dist" / f"{name}.tar.gz", sorted((root / "dist").glob(f"{name}-*.whl"))
    wrong = [f"dist/{source.name}: not there; run .ci/wheels.py"] * (not source.exists())
    if not wheels:
        wrong.append(f"dist/{name}-*.whl: not there; run .ci/wheels.py")
    if source.exists():
        with tarfile.open(source) as archive:
            packed = {
                member.name.removeprefix(f"{name}/"): archive.extractfile(member).read()
                for member in archive
                if member.isfile()
            }
        wrong += different(source, packed, committed(root, "ahkernels", "csrc"))
    for wheel in wheels:
        if "manylinux" not in wheel.name:
            wrong.append(f"dist/{wheel.name}: expected a manylinux tag; run .ci/wheels.py")
        with zipfile.ZipFile(wheel) as archive:
            packed = {member: archive.read(member) for member in archive.namelist()}
        wrong += different(wheel, packed, committed(root, "ahkernels"))
    return wrong


def committed(root: Path, *folders: str) -> dict[str, bytes]:
    """The files that git knows of, with what is in them."""
    names = git(root, "ls-files", "-z", *folders).split("\0")
    return {name: (root / name).read_bytes() for name in names if name and (root / name).exists()}


def different(file: Path, packed: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    names = sorted(name for name, content in expected.items() if packed.get(name) != content)
    if not names:
        return []
    return [f"dist/{file.name}: {len(names)} files are not as in git, {names[0]} among them; run .ci/wheels.py again"]


def main(root: Path, arguments: list[str]) -> None:
    if arguments not in ([], ["--tag"]):
        sys.exit(__doc__)
    checks = (wrong_in_the_version, wrong_in_the_changelog, wrong_in_git, wrong_in_the_files)
    if wrong := [line for check in checks for line in check(root)]:
        sys.exit("\n".join(wrong))
    tag = f"v{version_of(root)}"
    if arguments:
        git(root, "tag", "--annotate", tag, "--message", f"ahkernels {version_of(root)}")
    print(f"{tag}: {'tagged' if arguments else 'ready to be tagged'}")


if __name__ == "__main__":
    main(Path(__file__).resolve().parent.parent, sys.argv[1:])
