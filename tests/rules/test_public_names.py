"""The names at the top of the packages: they are there, and cost nothing until they are used."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

HEAVY = {"numpy", "torch", "pyarrow", "ray", "rdkit", "pydantic", "sklearn"}


@pytest.mark.parametrize("package", ["mmsa_dist", "mmsa_shards"])
def test_importing_a_package_loads_nothing(package):
    words = f"import sys, {package}; dir({package}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert package in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("package", ["mmsa_dist", "mmsa_shards"])
def test_every_name_leads_to_what_it_says(package):
    top = importlib.import_module(package)
    for name in top.__all__:
        assert name in dir(top)
        found = getattr(top, name)
        assert name == "__version__" or found.__module__.startswith(package)
    with pytest.raises(ImportError, match="cannot import name 'no_such'"):
        exec(f"from {package} import no_such")


def test_functions_of_modules_of_the_same_name():
    import mmsa_shards
    from mmsa_shards.prepare import prepare
    from mmsa_shards.repair import repair

    assert (mmsa_shards.prepare_shards, mmsa_shards.repair_shards) == (prepare, repair)
