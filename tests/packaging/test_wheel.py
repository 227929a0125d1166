"""The wheel, built and installed beside the mandatory dependencies alone, used from outside the tree."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.fixtures.embedders import DRUGS, random_embedder

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    random_embedder().save_pretrained(folder)
    return folder


def test_what_is_in_the_wheel(build):
    (wheel,) = build.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    packages = {"mmsa_dist", "mmsa_kernels", "mmsa_shards"}
    assert {name.split("/")[0] for name in names} == packages | {"mmsa_dist-0.1.0.dist-info"}, "no tests, no launch"
    rooms = {"mmsa_dist": ROOT, "mmsa_kernels": ROOT / "kernels", "mmsa_shards": ROOT / "shards"}
    for package, room in rooms.items():
        files = {p for p in (room / package).rglob("*") if p.is_file() and "__pycache__" not in p.parts}
        assert {str(p.relative_to(room)) for p in files} == {n for n in names if n.startswith(f"{package}/")}
    assert "mmsa_dist-0.1.0.dist-info/licenses/LICENSE" in names


def test_what_is_in_the_sdist(build):
    (sdist,) = build.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    needed = {"pyproject.toml", "README.md", "LICENSE", "mmsa_dist/config/default.yaml", "shards/mmsa_shards/py.typed"}
    assert needed <= names


def test_the_command_line(light_python):
    said = light_python("mmsa", "--help")
    assert said.returncode == 0, said.stderr
    assert "pretrain" in said.stdout
    config = light_python("mmsa", "config")
    assert config.returncode == 0, config.stderr
    assert "\ntrain:\n" in config.stdout


def test_embeds(light_python, model):
    code = f"""
import mmsa_dist, mmsa_kernels, mmsa_shards
from mmsa_dist.embed import Embedder
assert "site-packages" in mmsa_dist.__file__
print(Embedder.from_pretrained({str(model)!r}).transform({DRUGS[:2]!r}).tolist())
"""
    done = light_python("python", "-c", code)
    assert done.returncode == 0, done.stderr
    vectors = np.array(json.loads(done.stdout), dtype=np.float32)
    np.testing.assert_allclose(vectors, random_embedder().transform(DRUGS[:2]), atol=1e-6)


def test_embeds_a_file(light_python, model, tmp_path):
    (tmp_path / "mine.smi").write_text("CCO ethanol\nnot-a-molecule none\n")
    done = light_python(
        "mmsa", "embed", str(tmp_path / "mine.smi"), "--model", str(model), "--out", str(tmp_path / "vectors")
    )
    assert done.returncode == 0, done.stderr
    assert "1 of 2 rows have a vector" in done.stdout
    assert (tmp_path / "vectors" / "part-00000.parquet").is_file()


@pytest.mark.parametrize(("command", "extra"), [("prepare", "prepare"), ("pretrain", "train"), ("search", "train")])
def test_what_needs_an_extra_names_it(light_python, model, tmp_path, command, extra):
    (tmp_path / "mine.smi").write_text("CCO ethanol\n")
    vectors, runs = tmp_path / "vectors", tmp_path / "run"
    if command == "search":
        light_python("mmsa", "embed", str(tmp_path / "mine.smi"), "--model", str(model), "--out", str(vectors))
    arguments = {
        "prepare": [str(tmp_path / "mine.smi"), "--out", str(tmp_path / "shards")],
        "pretrain": [f"run.dir={runs}"],
        "search": [str(vectors), "CCO", "--model", str(model)],
    }
    done = light_python("mmsa", command, *arguments[command])
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"pip install 'mmsa-dist[{extra}]'" in " ".join((done.stdout + done.stderr).split())


COPIED = ("conftest.py", "fixtures", "embed/test_embedder.py", "integration/test_commands.py")
WHERE = """
import sys
import mmsa_dist, mmsa_kernels, mmsa_shards
def test_it_is_the_wheel_that_is_tested():
    assert all("site-packages" in package.__file__ for package in (mmsa_dist, mmsa_kernels, mmsa_shards))
    assert not [path for path in sys.path if path.startswith({tree!r}) and "site-packages" not in path]
"""


@pytest.mark.timeout(600)
def test_the_tests_of_the_embedder_and_of_the_commands_pass(full_python, tmp_path):
    """But for the commands that start Ray, which take minutes."""
    for name in COPIED:
        source, copy = ROOT / "tests" / name, tmp_path / "tests" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, copy)
    shutil.copyfile(ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    (tmp_path / "tests" / "test_where.py").write_text(WHERE.format(tree=str(ROOT)))
    chosen = "not whole_way and not adding and not ctrl_c and not cannot_be_used"
    options = ["-q", "-p", "no:cacheprovider", "-o", "pythonpath=.", "-m", "not slow and not gpu", "-k", chosen]
    done = full_python("python", "-m", "pytest", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 50, done.stdout[-3000:]
