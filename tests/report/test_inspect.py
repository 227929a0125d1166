"""Statistics of shards against counts by hand, and the sheet of molecules."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from mmsa_dist.report import contact_sheet, inspect_shards, render_inspection


def test_statistics(tiny_shards):
    found = inspect_shards(tiny_shards)
    assert [(s.split, s.shards, s.molecules) for s in found.splits] == [("train", 2, 44), ("val", 1, 11)]
    assert found.molecules == found.molecules_read == found.ledger.written == 55
    # 11 chains of 1 to 11 carbons, each with five ends: O, N, Cl, COOH and a phenyl ring.
    carbons = 5 * sum(range(1, 12)) + 11 * (1 + 6)
    assert found.atoms_by_element == {"C": carbons, "O": 33, "N": 11, "Cl": 11}
    assert found.molecules_by_element == {"C": 55, "O": 22, "N": 11, "Cl": 11}
    assert (found.atoms_per_molecule[0], found.atoms_per_molecule[-1]) == (2, 17)
    assert found.bonds == found.atoms_per_molecule.sum() - 55 + 11  # trees, and one ring for each phenyl
    assert found.bytes_per_molecule == sum(p.stat().st_size for p in tiny_shards.glob("*.tar")) / 55


def test_a_sample_of_blocks_says_how_large_it_is(tiny_shards):
    found = inspect_shards(tiny_shards, blocks=3)
    assert found.molecules == 55
    assert found.molecules_read == len(found.atoms_per_molecule) < 13


def test_text(tiny_shards):
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render_inspection(inspect_shards(tiny_shards)))
    text = console.export_text()
    assert "Heavy atoms of 55 molecules" in text
    assert str(tiny_shards) in text.replace("\n", "")
    assert [word in text for word in ("Ledger", "Elements", "Conformers", "bytes/molecule")] == [True] * 4


def test_contact_sheet(tiny_shards, tmp_path):
    contact_sheet(tiny_shards, tmp_path / "sheet.png", 14)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (6 * 236 + 12, 3 * 258 + 12)
        pixels = np.asarray(sheet)
    cells = [pixels[12 + r * 258 :, 12 + c * 236 :][:224, :224] for r in range(3) for c in range(6)]
    drawn = [bool((cell < 250).any()) for cell in cells]
    assert drawn == [True] * 14 + [False] * 4
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"] == []


def test_what_is_no_folder_of_shards_is_said(tmp_path):
    with pytest.raises(ValueError, match="name a folder that `mmsa prepare` has finished"):
        inspect_shards(tmp_path)
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        contact_sheet(tmp_path, tmp_path / "x.png")
