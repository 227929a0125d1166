"""Structures as small SVG."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from mmsa_dist.report.drawing import structure_svg
from tests.fixtures.embedders import DRUGS

SVG = "{http://www.w3.org/2000/svg}"


def letters(svg: str) -> str:
    return "".join(sorted(element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}text")))


def colours(svg: str) -> set[str]:
    paths = ElementTree.fromstring(svg).iter(f"{SVG}path")
    return {value for path in paths for value in (path.get("stroke"), path.get("fill")) if value}


def test_atoms_bonds_and_charges_are_there():
    svg = structure_svg("C[N+](C)(C)CC(=O)[O-]")  # betaine
    assert letters(svg) == "+-NOO"
    assert colours(svg) == {"currentColor", "#0000FF", "#FF0000"}
    assert letters(structure_svg("O")) == "2HO"
    assert letters(structure_svg("CC")) == ""


def test_lines_end_where_rdkit_ends_them():
    (path,) = ElementTree.fromstring(structure_svg("CC")).iter(f"{SVG}path")
    numbers = [int(n) for n in re.findall(r"-?\d+", path.get("d"))]
    assert path.get("d")[0] == "M"
    # Ethane lies in the middle of the view box; two half bonds of one colour are one line of two steps.
    assert numbers[0] + sum(numbers[2::2]) == pytest.approx(480 - numbers[0], abs=2)
    assert numbers[1] + sum(numbers[3::2]) == pytest.approx(360 - numbers[1], abs=2)


def test_a_wedge_is_filled():
    svg = structure_svg("C[C@H](F)Cl")
    filled = [p for p in ElementTree.fromstring(svg).iter(f"{SVG}path") if p.get("fill")]
    assert filled or "stroke" in svg
    assert structure_svg("C[C@H](F)Cl") != structure_svg("C[C@@H](F)Cl")


def test_drawings_are_small():
    assert max(len(structure_svg(smiles)) for smiles in DRUGS) < 2500


def test_what_is_no_molecule_draws_nothing():
    svg = structure_svg("<script>alert(1)</script>")
    assert list(ElementTree.fromstring(svg)) == []
