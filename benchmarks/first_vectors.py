"""From an empty virtual environment to vectors, once everything is downloaded; and what importing the embedder takes.

    python benchmarks/first_vectors.py
    python benchmarks/first_vectors.py --json first_vectors.json

The wheel of this checkout and its mandatory dependencies, at the versions of requirements.lock, are fetched into a
folder first; that is not counted. Wall time. Correctness gate: the new environment gives this one's vectors.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from shared.figures import Figure, parser, publish

from mmsa_dist.config.load import load_config
from mmsa_dist.embed import Embedder
from mmsa_dist.model import MMSAModel

ROOT = Path(__file__).resolve().parents[1]
SMILES = ["CC(=O)Oc1ccccc1C(=O)O", "CN1C=NC2=C1C(=O)N(C(=O)N2C)C", "CC(C)Cc1ccc(cc1)[C@@H](C)C(=O)O"]
MOST_S, MOST_IMPORT_S = 60.0, 3.0
_IMPORTS = 5


def main() -> None:
    arguments = parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "model"
        config = load_config()
        embedder = Embedder.from_model(MMSAModel(config.model), config, None)
        embedder.save_pretrained(model)
        wheels = folder / "wheels"
        run(
            sys.executable,
            "-m",
            "pip",
            "-qq",
            "wheel",
            "--no-deps",
            "--no-build-isolation",
            "--wheel-dir",
            wheels,
            ROOT,
        )
        (wheel,) = wheels.glob("*.whl")
        versions = folder / "versions.txt"
        versions.write_text((ROOT / "requirements.lock").read_text())
        run(sys.executable, "-m", "pip", "-qq", "download", "--constraint", versions, "--dest", wheels, wheel)

        python = folder / "new" / "bin" / "python"
        making = timed(sys.executable, "-m", "venv", folder / "new")
        installing = timed(python, "-m", "pip", "-qq", "install", "--no-index", "--find-links", wheels, wheel)
        vectors = folder / "vectors.json"
        embed = (
            "import json; from mmsa_dist.embed import Embedder; "
            f"vectors = Embedder.from_pretrained({str(model)!r}).transform({SMILES!r}); "
            f"json.dump(vectors.tolist(), open({str(vectors)!r}, 'w'))"
        )
        embedding = timed(python, "-c", embed)
        np.testing.assert_allclose(json.loads(vectors.read_text()), embedder.transform(SMILES), atol=1e-5)
        importing = statistics.median(timed(python, "-c", "import mmsa_dist.embed") for _ in range(_IMPORTS))
    figures = [
        Figure("venv", making, "s"),
        Figure("pip install from a folder", installing, "s"),
        Figure("first vectors, the model loaded", embedding, "s"),
        Figure("together", making + installing + embedding, "s", most=MOST_S),
        Figure(f"import mmsa_dist.embed, median of {_IMPORTS}", importing, "s", most=MOST_IMPORT_S),
    ]
    publish("from an empty virtual environment to vectors", figures, arguments.json, libraries=("torch",))


def timed(*words: object) -> float:
    """Runs a command and returns the seconds that it took."""
    began = time.perf_counter()
    run(*words)
    return time.perf_counter() - began


def run(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL, cwd=tempfile.gettempdir())


if __name__ == "__main__":
    main()
