"""What an embedder imports: only what the mandatory dependencies bring, and nothing of the extras."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest
from packaging.utils import canonicalize_name

from tests.fixtures.embedders import DRUGS, random_embedder

HEAVY = {"ray", "deepspeed", "faiss", "bokeh", "umap", "matplotlib", "tensorboard", "webdataset"}
#: These are imported by torch and scikit-learn where they are installed, and by nothing of ours.
BROUGHT_ALONG = {"triton", "pandas"}

LOADED = """
import sys
asked = set()
class Listener:
    def find_spec(self, name, path=None, target=None):
        frame = sys._getframe(1)
        while frame.f_globals.get("__name__", "").startswith(("importlib", "_frozen_importlib")):
            frame = frame.f_back
        if frame.f_globals.get("__name__", "").startswith("mmsa_"):
            asked.add(name.split(".")[0])
sys.meta_path.insert(0, Listener())
{work}
print(*{{name.split(".")[0] for name in sys.modules}})
print(*asked)
"""


def loaded(work: str) -> tuple[set[str], set[str]]:
    """Top-level modules that are loaded after `work`, and those that our packages themselves ask for."""
    done = subprocess.run([sys.executable, "-c", LOADED.format(work=work)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    modules, asked = done.stdout.splitlines()[-2:]
    return set(modules.split()), set(asked.split())


@pytest.fixture(scope="module")
def embedding(tmp_path_factory) -> tuple[set[str], set[str]]:
    """What two molecules take, from the import to the vectors."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    random_embedder().save_pretrained(folder)
    return loaded(f"from mmsa_dist.embed import Embedder; Embedder({str(folder)!r}).transform({DRUGS[:2]!r})")


def test_the_import_loads_nothing_of_the_extras():
    modules, asked = loaded("import mmsa_dist.embed")
    assert not modules & HEAVY
    assert not asked & BROUGHT_ALONG
    assert not modules & {"rdkit", "torch_geometric", "omegaconf", "huggingface_hub"}, "they come when needed"


def test_embedding_loads_nothing_of_the_extras(embedding):
    modules, asked = embedding
    assert not modules & HEAVY
    assert not asked & BROUGHT_ALONG


def test_what_embedding_asks_for_is_a_mandatory_dependency(embedding, light_packages):
    _, asked = embedding
    provided = importlib.metadata.packages_distributions()
    third_party = {
        name
        for name in asked
        if name in provided and name not in sys.stdlib_module_names and not name.startswith("mmsa_")
    }
    assert {"torch", "rdkit", "numpy", "sklearn"} <= third_party
    for name in third_party:
        assert {canonicalize_name(d) for d in provided[name]} & light_packages.keys(), f"{name} is of an extra"
