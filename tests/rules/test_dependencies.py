"""pyproject.toml declares what the packages import, and nothing that they do not need."""

from __future__ import annotations

import importlib.metadata
import sys
import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.rules.test_imports import ROOT, imports, sources

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
OF_USERS = {name: listed for name, listed in EXTRAS.items() if name not in ("docs", "dev", "quickstart")}
OURS = {"mmsa_dist", "mmsa_shards", "mmsa_kernels"}
#: Imported names whose distribution has another name, where the distribution may not be installed.
DISTRIBUTIONS = {"nvmolkit": "nvmolkit", "faiss": "faiss-cpu", "triton": "triton"}
NOT_DECLARED = {"nvmolkit": "is installed by hand, for a GPU"}
NOT_IMPORTED = {
    "faiss-gpu-cu12": "is imported as faiss, like faiss-cpu",
    "gcsfs": "fsspec imports it for gs://",
    "s3fs": "fsspec imports it for s3://",
    "tensorboard": "torch.utils.tensorboard imports it",
    "webdataset": "reads shards in other programs (docs/block_format.md)",
}


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def imported() -> dict[str, str]:
    """Distributions that the packages import, with a file that does."""
    known = importlib.metadata.packages_distributions()
    found = {}
    for file, tree in sources():
        for name in {name.partition(".")[0] for name in imports(tree)} - OURS - set(sys.stdlib_module_names) - {""}:
            found[canonicalize_name(DISTRIBUTIONS.get(name) or known.get(name, [name])[0])] = file
    return found


DECLARED = names(PROJECT["dependencies"]).union(*map(names, OF_USERS.values()))


def test_what_is_imported_is_declared():
    undeclared = {name: file for name, file in imported().items() if name not in DECLARED}
    assert undeclared.keys() == NOT_DECLARED.keys(), undeclared


def test_what_is_declared_is_imported():
    assert DECLARED - imported().keys() == NOT_IMPORTED.keys()
