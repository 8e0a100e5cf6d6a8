"""`.ci/release.py` notices what is missing for a release, and makes a tag only when nothing is."""

from __future__ import annotations

import importlib.util
import io
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("release", ROOT / ".ci" / "release.py")
release = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(release)

KERNELS = "ahkernels/kernel.py"
WHEEL = "dist/ahkernels-1.2.3-cp311-cp311-manylinux_2_34_x86_64.whl"


def git(root, *arguments):
    subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True)


def commit(root):
    git(root, "add", "--all")
    git(root, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message", "All")


def pack(root, kernel=b"K = 1\n"):
    """What .ci/wheels.py would leave in dist, with that file in it."""
    files = {KERNELS: kernel, "ahkernels/__init__.py": (root / "ahkernels/__init__.py").read_bytes()}
    (root / "dist").mkdir(exist_ok=True)
    with tarfile.open(root / "dist" / "ahkernels-1.2.3.tar.gz", "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"ahkernels-1.2.3/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with zipfile.ZipFile(root / WHEEL, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository that is ready for a release."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_COMMITTER_NAME", "a")
    monkeypatch.setenv("GIT_COMMITTER_EMAIL", "a@b")
    (tmp_path / "ahkernels").mkdir()
    (tmp_path / KERNELS).write_text("K = 1\n")
    (tmp_path / "ahkernels/__init__.py").write_text('"""Kernels."""\n\n__version__ = "1.2.3"\n')
    (tmp_path / "pyproject.toml").write_text('[project]\ndynamic = ["version"]\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## [1.2.3] - 2026-01-31\n\n## [1.2.2] - 2025-12-31\n")
    (tmp_path / ".gitignore").write_text("dist/\n")
    git(tmp_path, "init", "--quiet")
    commit(tmp_path)
    pack(tmp_path)
    return tmp_path


def tags(root):
    return release.git(root, "tag", "--list").split()


def test_ready(root, capsys):
    release.main(root, [])
    assert capsys.readouterr().out == "v1.2.3: ready to be tagged\n"
    assert tags(root) == []
    release.main(root, ["--tag"])
    assert tags(root) == ["v1.2.3"]
    with pytest.raises(SystemExit, match=r"expected a new version, got v1\.2\.3, which is a tag"):
        release.main(root, ["--tag"])


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("ahkernels/__init__.py", '__version__ = "1.2.3rc1"\n', "expected a version such as 1.2.3, got '1.2.3rc1'"),
        ("pyproject.toml", '[project]\nversion = "1.2.3"\n', "pyproject.toml: expected no version of its own"),
        ("CHANGELOG.md", "## [1.2.2] - 2025-12-31\n", r"expected a first section \[1.2.3\], got 1.2.2"),
        ("CHANGELOG.md", "# Changelog\n", r"expected a first section \[1.2.3\], got none"),
        ("CHANGELOG.md", "## [1.2.3] - Unreleased\n", "expected the date of the release, .*got 'Unreleased'"),
        (KERNELS, "K = 2\n", f"1.2.3.tar.gz: 1 files are not as in git, {KERNELS} among them"),
        (KERNELS, "K = 2\n", f"{WHEEL}: 1 files are not as in git, {KERNELS} among them"),
    ],
)
def test_a_mistake_in_a_file(root, file, text, expected):
    (root / file).write_text(text)
    commit(root)
    with pytest.raises(SystemExit, match=expected):
        release.main(root, ["--tag"])
    assert tags(root) == []


def test_changes_that_are_not_committed(root):
    (root / "new.py").touch()
    with pytest.raises(SystemExit, match="expected all changes to be committed, got 1 files that differ"):
        release.main(root, [])


@pytest.mark.parametrize(
    ("missing", "instead", "expected"),
    [
        (WHEEL, None, "ahkernels-1.2.3-.*whl: not there"),
        ("dist/ahkernels-1.2.3.tar.gz", None, "ahkernels-1.2.3.tar.gz: not there"),
        (WHEEL, WHEEL.replace("manylinux_2_34", "linux"), "expected a manylinux tag"),
    ],
)
def test_files_that_are_not_built(root, missing, instead, expected):
    if instead:
        (root / missing).rename(root / instead)
    else:
        (root / missing).unlink()
    with pytest.raises(SystemExit, match=expected):
        release.main(root, [])


def test_this_repository_has_its_version_in_one_place():
    assert release.wrong_in_the_version(ROOT) == []
