"""Options that the tests of this room begin with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mmsa_shards.options import PrepareOptions
from tests.fixtures.local_ray import started_ray


@pytest.fixture(scope="session")
def options() -> PrepareOptions:
    return PrepareOptions(
        workers=1,
        shards=0,
        molecules_per_shard=65536,
        molecules_per_block=16,
        compression="zstd",
        val_fraction=0.1,
        seed=0,
        conformers="none",
        conformers_per_molecule=1,
        conformer_timeout_s=2.0,
        conformer_backend="rdkit",
        mmff_iterations=0,
        descriptors=False,
        max_atoms=500,
        groups="standardize",
        salts="strip",
        charges="neutralize",
        tautomers="keep",
        isotopes="keep",
        smiles_column="",
        id_column="",
        exclude=(),
        allow_truncated=False,
        work_dir="",
    )


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """One Ray for all tests of a file."""
    with started_ray():
        yield
