"""The calculator for molfeat: by hand, and in molfeat's own transformer in an environment of its own.

molfeat asks for notebooks and more than a hundred packages, so it is not in the lock. What it does with a calculator
is called by hand in every run of the tests; molfeat itself does it in those that are slow.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem

from mmsa_dist.embed import Embedder, EmbeddingError
from mmsa_dist.embed.molfeat import MolfeatCalculator
from tests.fixtures.embedders import DRUGS, random_embedder

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return random_embedder()


def test_smiles_and_molecules(embedder):
    calculator = MolfeatCalculator(embedder.model)
    expected = embedder.transform(DRUGS[:2])
    given = [DRUGS[0], "not a molecule", Chem.MolFromSmiles(DRUGS[1]), None]
    found = calculator.batch_compute(given, n_jobs=4)
    assert [vector is None for vector in found] == [False, True, False, True]
    np.testing.assert_allclose([found[0], found[2]], expected, atol=1e-6)
    assert [bad.reason for bad in calculator.embedder.report_] == ["syntax", "empty"]
    np.testing.assert_allclose(calculator(Chem.MolFromSmiles(DRUGS[0])), expected[0], atol=1e-6)
    with pytest.raises(EmbeddingError, match="'not a molecule' has no vector: "):
        calculator("not a molecule")


def test_travels_to_another_process(embedder):
    calculator = MolfeatCalculator(embedder.model)
    again = pickle.loads(pickle.dumps(calculator))  # noqa: S301
    np.testing.assert_array_equal(again.batch_compute(DRUGS[:2]), calculator.batch_compute(DRUGS[:2]))


def test_options(embedder):
    calculator = MolfeatCalculator(embedder.model, view="gin", pictures=False)
    assert len(calculator) == 32
    assert calculator.columns[:2] == ["mmsa_gin_0", "mmsa_gin_1"]


WITH_MOLFEAT = """
import json, pickle, sys
from molfeat.trans import MoleculeTransformer
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from mmsa_dist.embed.molfeat import MolfeatCalculator

model, smiles = json.loads(sys.argv[1])
transformer = MoleculeTransformer(MolfeatCalculator(model), dtype=float)
vectors, valid = transformer([*smiles, "not a molecule"], ignore_errors=True)
assert [int(row) for row in valid] == list(range(len(smiles))), valid
again = pickle.loads(pickle.dumps(transformer))
assert (again(smiles) == vectors).all()
fitted = transformer.fit(smiles)
assert len(fitted) == 16 and fitted.columns[0] == "mmsa_structure_0"
assert make_pipeline(transformer, Ridge()).fit(smiles, range(len(smiles))).predict(smiles[:2]).shape == (2,)
try:
    transformer(["not a molecule"])
except ValueError as error:
    assert "index 0" in str(error)
else:
    raise AssertionError
print(json.dumps(vectors.tolist()))
"""


@pytest.mark.slow
def test_in_molfeat(embedder, tmp_path):
    """It comes without what it asks for, from the package index: without one the test skips."""
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = str(environment / "bin" / "python")
    packages = ["molfeat==1.0.0", "loguru", "pmapper"]
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", *packages]
    if (done := subprocess.run(install, capture_output=True, text=True, check=False)).returncode:
        pytest.skip(f"molfeat cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    (site,) = (environment / "lib").glob("python*/site-packages")
    rooms = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "shards")]
    (site / "dev.pth").write_text("\n".join([*rooms, sysconfig.get_path("purelib")]))
    embedder.save_pretrained(tmp_path / "model")
    asked = json.dumps([str(tmp_path / "model"), DRUGS])
    paths = os.pathsep.join(rooms)
    done = subprocess.run(
        [python, "-c", WITH_MOLFEAT, asked], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    np.testing.assert_allclose(json.loads(done.stdout.splitlines()[-1]), embedder.transform(DRUGS), atol=1e-6)
