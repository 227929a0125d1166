"""An environment as `pip install mmsa-dist` makes it, without fetching anything: the mandatory dependencies alone."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
NOT_PACKAGED = (".git", ".venv", "runs", "build", "dist", "__pycache__", "*.egg-info", ".*_cache", ".hypothesis")


def closure(requirements: list[str]) -> dict[str, importlib.metadata.Distribution]:
    """The installed distributions that `requirements` bring along, by name."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        wanted = waiting.pop()
        extras = [{"extra": extra} for extra in wanted.extras] or [{"extra": ""}]
        if wanted.marker and not any(wanted.marker.evaluate(extra) for extra in extras):
            continue
        name = canonicalize_name(wanted.name)
        if name in found and not wanted.extras:
            continue
        try:
            found[name] = importlib.metadata.distribution(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{wanted.name} is not installed")
        for text in found[name].requires or []:
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate(extra) for extra in extras):
                needed.marker = None
                waiting.append(needed)
    return found


@pytest.fixture(scope="session")
def light_packages() -> dict[str, importlib.metadata.Distribution]:
    """What the mandatory dependencies of pyproject.toml bring along."""
    return closure(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])


@pytest.fixture(scope="session")
def light_site(light_packages, tmp_path_factory) -> Path:
    """A folder of packages that holds `light_packages` and nothing else."""
    site = tmp_path_factory.mktemp("light") / "site-packages"
    site.mkdir()
    for distribution in light_packages.values():
        for top in {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            source, link = Path(str(distribution.locate_file(top))), site / top
            if source.exists() and not link.exists():
                link.symlink_to(source)
    return site


@pytest.fixture(scope="session")
def build(tmp_path_factory) -> Path:
    """The sdist and the wheel of this checkout, built from a copy."""
    pytest.importorskip("build")
    parent = tmp_path_factory.mktemp("build")
    tree = shutil.copytree(ROOT, parent / "tree", symlinks=True, ignore=shutil.ignore_patterns(*NOT_PACKAGED))
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(parent / "dist"), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return parent / "dist"


Runner = Callable[..., subprocess.CompletedProcess[str]]


def installed(build: Path, site: Path | str, parent: Path) -> Runner:
    """What runs a command of a fresh environment with the wheel and the packages of `site`, from outside the tree."""
    environment, outside = parent / "venv", parent / "outside"
    outside.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    (wheel,) = build.glob("*.whl")
    python = environment / "bin" / "python"
    install = ["--python", str(python), "install", "--no-deps", "--no-index", "--quiet", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True, capture_output=True)
    (own,) = (environment / "lib").glob("python*/site-packages")
    (own / "others.pth").write_text(f"{site}\n")  # after the wheel, and without what .pth files of `site` would add

    def run(program: str, *arguments: str, cwd: Path = outside) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(environment / "bin" / program), *arguments],
            capture_output=True,
            text=True,
            cwd=cwd,
            env={"PATH": f"{environment / 'bin'}:/usr/bin:/bin", "HOME": str(outside), "OMP_NUM_THREADS": "1"},
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def light_python(build, light_site, tmp_path_factory) -> Runner:
    """The wheel beside the mandatory dependencies alone."""
    return installed(build, light_site, tmp_path_factory.mktemp("light_python"))


@pytest.fixture(scope="session")
def full_python(build, tmp_path_factory) -> Runner:
    """The wheel beside all that is installed here."""
    return installed(build, sysconfig.get_path("purelib"), tmp_path_factory.mktemp("full_python"))
