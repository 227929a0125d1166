"""Descriptors: RDKit's values under RDKit's names, from a SMILES to the batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import Crippen, Descriptors, rdMolDescriptors

from mmsa_shards.descriptors import NAMES, compute_descriptors

ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"


def test_names_are_the_values_of_rdkit() -> None:
    mol = Chem.MolFromSmiles(ASPIRIN)
    value = dict(zip(NAMES, compute_descriptors(mol).tolist(), strict=True))
    assert len(value) == len(NAMES) == 121
    assert value["NumHeavyAtoms"] == 13
    assert value["CrippenClogP"] == pytest.approx(Crippen.MolLogP(mol), rel=1 / 1024)
    assert value["tpsa"] == pytest.approx(63.6, rel=1 / 1024)
    assert value["PEOE_VSA1"] == pytest.approx(Descriptors.PEOE_VSA1(mol), rel=1 / 1024)
    assert value["PEOE_VSA14"] == pytest.approx(Descriptors.PEOE_VSA14(mol), rel=1 / 1024)
    assert value["SMR_VSA10"] == pytest.approx(Descriptors.SMR_VSA10(mol), rel=1 / 1024)
    assert value["SlogP_VSA12"] == pytest.approx(Descriptors.SlogP_VSA12(mol), rel=1 / 1024)
    assert value["MQN42"] == rdMolDescriptors.MQNs_(mol)[41]


@pytest.mark.parametrize("smiles", [ASPIRIN, "[2H]C", "C" * 40, "[Na+].[Cl-]", "O=S(=O)(c1ccc(F)cc1)N1CCN(C)CC1"])
def test_every_value_is_rdkits_within_a_thousandth(smiles: str) -> None:
    mol = Chem.MolFromSmiles(smiles)
    sets = (rdMolDescriptors.MQNs_, rdMolDescriptors.PEOE_VSA_, rdMolDescriptors.SMR_VSA_, rdMolDescriptors.SlogP_VSA_)
    theirs = [*rdMolDescriptors.Properties().ComputeProperties(mol), *(value for one in sets for value in one(mol))]
    np.testing.assert_allclose(compute_descriptors(mol), theirs, rtol=1 / 1024)


def test_what_has_no_value_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    first = [math.inf, -math.inf, math.nan, 1e300, 1.0, 0.0]
    monkeypatch.setattr("mmsa_shards.descriptors._PROPERTIES.ComputeProperties", lambda mol: first, raising=False)
    values = compute_descriptors(Chem.MolFromSmiles("C"))
    assert np.isnan(values[:4]).all()
    assert values[4:6].tolist() == [1.0, 0.0]
