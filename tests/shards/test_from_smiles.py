"""SMILES to a block, in this process."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mmsa_shards.block import molecules_to_block
from mmsa_shards.from_smiles import smiles_to_block
from mmsa_shards.molecule import Order, make_molecules
from mmsa_shards.options import Columns, Conformers, SmilesOptions
from mmsa_shards.read import Structure
from mmsa_shards.standardize import Parent, Refusal, standardize_many
from tests.fixtures.standardization import DEFAULT

OPTIONS = SmilesOptions(standardization=dataclasses.replace(DEFAULT, max_atoms=60))
ETKDG = Columns(conformers=Conformers(mode="etkdg", count=1, seed=0, timeout_s=2.0))
WITH_3D = dataclasses.replace(OPTIONS, columns=ETKDG)


def test_conformers_are_not_embedded_from_other_seeds():
    with pytest.raises(ValueError, match="seeds from InChIKeys"):
        dataclasses.replace(WITH_3D, keys="none")


def test_smiles_to_block_keeps_rows_and_gives_reasons():
    smiles = ["CCO", None, "C(C)(C)(C)(C)C", "c1ccccc1C(=O)[O-].[Na+]", "c1cccc1", "xyz", "*CC", "C" * 61, ""]
    read = smiles_to_block(smiles, OPTIONS)
    assert read.rows.tolist() == [0, 3]
    assert read.block["smiles"].to_pylist() == ["CCO", "O=C(O)c1ccccc1"]
    assert read.block["id"].to_pylist() == ["0", "3"]
    assert read.block["conformer_source"].to_pylist() == ["none", "none"]
    assert {row: reason for row, (reason, _) in read.refused.items()} == {
        1: "empty", 2: "valence", 4: "aromaticity", 5: "syntax", 6: "undefined_atom", 7: "too_many_atoms", 8: "empty",
    }  # fmt: skip


def test_smiles_to_block_embeds_the_same_whatever_comes_along():
    together = smiles_to_block(["CCO", "CC(C)O", "[Na+]"], WITH_3D, ["a", "b", "c"]).block
    alone = smiles_to_block(["CC(C)O"], WITH_3D, ["b"]).block
    assert together.slice(1, 1).to_pylist() == alone.to_pylist()
    assert together["conformer_source"].to_pylist()[:2] == ["etkdg", "etkdg"]
    xyz = np.cumsum(alone["conformers"].to_pylist()[0][0], axis=0) / 1000
    assert xyz.shape == (4, 3)
    assert 1.4 < np.linalg.norm(xyz[0] - xyz[1]) < 1.65


@pytest.mark.parametrize(
    "options",
    [
        OPTIONS,
        dataclasses.replace(OPTIONS, keys="none", columns=Columns(depiction=False)),
        dataclasses.replace(OPTIONS, keys="wanted", columns=Columns(descriptors=True)),
    ],
)
def test_smiles_to_block_in_one_go_is_standardizing_and_then_making(options):
    smiles = ["OCC", "C(", "CC(=O)[O-].[Na+]", "F/C=C/F", None, "*C", "C[C@H](N)C(=O)O", "C" * 61]
    read = smiles_to_block(smiles, options)
    structures = [Structure("SMILES", text or "") for text in smiles]
    parents = standardize_many(structures, options.standardization, keys=options.keys)
    orders = [
        Order(id=str(row), inchikey=parent.inchikey, smiles=parent.smiles)
        for row, parent in enumerate(parents)
        if isinstance(parent, Parent)
    ]
    made = make_molecules(orders, options.columns)
    assert [len(molecule.xy) > 0 for molecule in made] == [options.columns.depiction] * len(made)
    assert [len(molecule.descriptors) > 0 for molecule in made] == [options.columns.descriptors] * len(made)
    assert read.block.equals(molecules_to_block(made), check_metadata=True)
    assert read.rows.tolist() == [int(order.id) for order in orders]
    assert read.refused == {
        row: (parent.reason, parent.message) for row, parent in enumerate(parents) if isinstance(parent, Refusal)
    }


def test_smiles_to_block_of_nothing_is_an_empty_block():
    read = smiles_to_block([], WITH_3D)
    assert (read.block.num_rows, read.rows.size, read.refused) == (0, 0, {})
