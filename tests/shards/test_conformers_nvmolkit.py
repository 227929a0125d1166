"""nvMolKit's place in preparation, with hand-made results: what is taken, what is left to RDKit, what is missing."""

from __future__ import annotations

import dataclasses
import importlib.util
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom

from mmsa_shards import conformers_nvmolkit, molecule
from mmsa_shards.block import Molecule
from mmsa_shards.build import ShardPlan
from mmsa_shards.conformers_nvmolkit import BatchError, embed_many, require_nvmolkit
from mmsa_shards.errors import PrepareError
from mmsa_shards.molecule import Order, make_molecules
from mmsa_shards.options import Columns, Conformers
from mmsa_shards.steps import Preparation

RDKIT = Columns(conformers=Conformers(mode="etkdg", count=1, seed=0, timeout_s=10.0))
GPU = Columns(conformers=dataclasses.replace(RDKIT.conformers, backend="nvmolkit"))


def places(mol: Chem.Mol) -> np.ndarray:
    """Returns heavy atoms in a row, 1.5 Å apart, hydrogens around theirs at 1 Å."""
    xyz = np.zeros((mol.GetNumAtoms(), 3))
    for atom in mol.GetAtoms():
        number = atom.GetIdx()
        if atom.GetAtomicNum() > 1:
            xyz[number] = (1.5 * number, 0, 0)
        else:  # these come after the heavy atoms
            xyz[number] = xyz[atom.GetNeighbors()[0].GetIdx()] + (0, np.cos(number), np.sin(number))
    return xyz


def add(mol: Chem.Mol, xyz: np.ndarray) -> None:
    conformer = Chem.Conformer(mol.GetNumAtoms())
    conformer.SetPositions(xyz)
    mol.AddConformer(conformer, assignId=True)


def good(mols, count, seed, mmff_iterations) -> None:
    for mol in mols:
        for _ in range(count):
            add(mol, places(mol))


def test_good_conformers_are_taken_without_their_hydrogens():
    ethanol, methane = embed_many(["CCO", "C"], count=2, seed=0, mmff_iterations=0, embed_batch=good)
    np.testing.assert_array_equal(ethanol, [[[0, 0, 0], [1.5, 0, 0], [3, 0, 0]]] * 2)
    assert ethanol.dtype == np.float32
    assert methane.shape == (2, 1, 3)


@pytest.mark.parametrize(
    "fault", ["none", "too few", "nan", "infinite hydrogen", "coinciding", "pressed", "torn", "zeros"]
)
def test_what_is_missing_or_spoilt_is_left(fault):
    def spoil(mols, count, seed, mmff_iterations):
        good(mols[:1], count, seed, mmff_iterations)
        mol = mols[1]
        xyz = places(mol)
        if fault == "none":
            return
        if fault == "nan":
            xyz[1] = np.nan
        if fault == "infinite hydrogen":
            xyz[-1, 2] = np.inf
        if fault == "coinciding":
            xyz[1] = xyz[0]
        if fault == "pressed":
            xyz[1] += (-0.6, 0, 0)  # C-C of 0.9 Å
        if fault == "torn":
            xyz[2] += (0.6, 0, 0)  # C-N of 2.1 Å
        if fault == "zeros":
            xyz[:] = 0
        add(mol, xyz)
        if fault != "too few":
            add(mol, places(mol))

    first, second, unreadable = embed_many(["CCO", "CCN", "C("], count=2, seed=0, mmff_iterations=0, embed_batch=spoil)
    assert first.shape == (2, 3, 3)
    assert second is None
    assert unreadable is None


def test_what_a_whole_batch_would_wait_for_is_not_given_to_it():
    seen = []

    def see(mols, count, seed, mmff_iterations):
        seen.extend(Chem.MolToSmiles(Chem.RemoveHs(mol)) for mol in mols)
        good(mols, count, seed, mmff_iterations)

    asked = ["CCO", "C[Ti](C)(C)C", "C" * 60, "C" * 61, "[Na+].[Cl-]", "CCN"]
    found = embed_many(asked, count=1, seed=0, mmff_iterations=0, embed_batch=see)
    easy = ["CCO", "C" * 60, "CCN"]
    assert seen == easy
    assert [text for text, xyz in zip(asked, found, strict=True) if xyz is not None] == easy
    assert embed_many(["C[Ti](C)(C)C"], count=1, seed=0, mmff_iterations=0, embed_batch=see) == [None]


def test_rdkit_embeds_what_is_left(monkeypatch):
    def only_the_first(mols, count, seed, mmff_iterations):
        good(mols[:1], count, seed, mmff_iterations)

    monkeypatch.setattr(conformers_nvmolkit, "require_nvmolkit", lambda: None)
    monkeypatch.setattr(conformers_nvmolkit, "_nvmolkit", only_the_first)
    given = np.arange(9, dtype=np.float32).reshape(1, 3, 3)
    orders = [
        Order(id="a", inchikey="A", smiles="CCO"),
        Order(id="b", inchikey="B", smiles="CCN", given=given),
        Order(id="c", inchikey="C", smiles="CCS"),
    ]
    made = make_molecules(orders, GPU)
    assert all(isinstance(m, Molecule) for m in made)
    assert [m.conformer_source for m in made] == ["etkdg", "input", "etkdg"]
    np.testing.assert_array_equal(made[0].conformers, [[[0, 0, 0], [1.5, 0, 0], [3, 0, 0]]])
    np.testing.assert_array_equal(made[1].conformers, given)
    (rdkit,) = make_molecules(orders[2:], RDKIT)
    np.testing.assert_array_equal(made[2].conformers, rdkit.conformers)


def test_without_the_package_the_error_says_so(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PrepareError, match=r"nvmolkit is not installed .*prepare\.conformer_backend=rdkit"):
        require_nvmolkit()
    with pytest.raises(PrepareError, match="nvmolkit is not installed"):
        molecule.make_molecules([Order(id="a", inchikey="A", smiles="CCO")], GPU)


def test_without_a_gpu_the_error_says_so(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(conformers_nvmolkit, "_count_gpus", lambda: 0)
    with pytest.raises(PrepareError, match="no GPU"):
        require_nvmolkit()


def out_of_memory(mols, count, seed, mmff_iterations):
    add(mols[0], places(mols[0]))  # what it did before it failed is not taken
    raise RuntimeError("CUDA error: out of memory")


def test_a_batch_that_fails_is_embedded_by_rdkit_and_told(monkeypatch):
    with pytest.raises(BatchError, match=r"failed on a batch of 1 molecules \(CUDA error: out of memory\)"):
        embed_many(["CCO"], count=1, seed=0, mmff_iterations=0, embed_batch=out_of_memory)
    monkeypatch.setattr(conformers_nvmolkit, "require_nvmolkit", lambda: None)
    monkeypatch.setattr(conformers_nvmolkit, "_nvmolkit", out_of_memory)
    orders = [Order(id="a", inchikey="A", smiles="CCO"), Order(id="b", inchikey="B", smiles="CCN")]
    told: list[str] = []
    made = make_molecules(orders, GPU, tell=told.append)
    assert told == ["nvMolKit failed on a batch of 2 molecules (CUDA error: out of memory); RDKit embeds them"]
    alone = make_molecules(orders, RDKIT)
    for one, other in zip(made, alone, strict=True):
        np.testing.assert_array_equal(one.conformers, other.conformers)


def test_batches_that_fail_are_counted(tmp_path, caplog):
    (tmp_path / "making").mkdir()
    schema, plan = pa.schema([("x", pa.int64())]), ShardPlan("train-00000", "train", 0, 1)
    with pa.ipc.new_file(str(tmp_path / "deal.arrow"), schema) as writer:
        for _ in range(3):
            writer.write_batch(pa.RecordBatch.from_pydict({"x": [1, 2]}, schema=schema))
    results = [(2, 0, ""), (2, 0, "nvMolKit failed (a); RDKit embeds them"), (2, 0, "nvMolKit failed (b)")]
    preparation = SimpleNamespace(
        work=tmp_path,
        options=None,
        gpus=1,
        progress=lambda *call: None,
        pool=SimpleNamespace(map=lambda function, calls, gpus, heartbeat: results),
    )
    Preparation.build(preparation, {plan: tmp_path / "deal.arrow"}, 0)
    assert [record.getMessage() for record in caplog.records] == [
        "nvMolKit failed (a); RDKit embeds them, and those of other batches that fail",
        "nvMolKit failed on 2 of 3 batches: check the GPU",
    ]


@pytest.mark.parametrize("mirrored", ["none", "first", "second"])
@pytest.mark.parametrize("smiles", ["C[C@H](F)O", "C/C=C/[C@@H](N)O"])
def test_what_has_not_the_stereo_that_is_drawn_is_left(smiles, mirrored):
    def embed(mols, count, seed, mmff_iterations):
        for mol in mols:
            rdDistGeom.EmbedMultipleConfs(mol, 2, randomSeed=1)
            if mirrored != "none":
                conformer = mol.GetConformer(("first", "second").index(mirrored))
                conformer.SetPositions(conformer.GetPositions() * (-1, 1, 1))

    (found,) = embed_many([smiles], count=2, seed=0, mmff_iterations=0, embed_batch=embed)
    assert (found is not None) == (mirrored == "none")
