"""Statistics of shards against counts by hand, and the sheet of molecules."""

from __future__ import annotations

import dataclasses
import io
import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from rich.console import Console

from mmsa_dist.report import contact_sheet, inspect_shards, render_inspection
from mmsa_dist.report.contact_sheet import small_sheet
from mmsa_shards.manifest import Ledger, Manifest
from mmsa_shards.schema import BLOCK_SCHEMA
from mmsa_shards.shard import read_block, write_shard


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
    ledger = text[text.index("Ledger") : text.index("Conformers")].split()
    assert ledger[2:] == [
        *("read", "55", "written", "55", "duplicates", "0", "joined", "0", "rejected", "0", "excluded", "0"),
    ]
    bars = {line.split()[0]: line.count("█") for line in text[text.index("Elements") :].splitlines()[2:] if "█" in line}
    assert bars == {"C": 40, "O": 16, "N": 8, "Cl": 8}, "of 55 molecules 55, 22, 11 and 11"


def test_sizes(tiny_shards):
    found = inspect_shards(tiny_shards)
    # A chain of n carbons, with one atom more (three kinds), three more (COOH), or six (phenyl).
    expected = Counter(n + end for n in range(1, 12) for end in (1, 1, 1, 3, 6))
    assert {size.least: size.molecules for size in found.sizes} == {n: expected[n] for n in range(2, 18)}

    def bins(*atoms: int) -> list[tuple[str, int]]:
        sizes = dataclasses.replace(found, atoms_per_molecule=np.sort(np.array(atoms, np.int64))).sizes
        return [(size.name, size.molecules) for size in sizes]

    assert bins() == []
    assert bins(7) == [("7", 1)]
    assert bins(*[3] * 99, 500) == [("3", 99), ("4", 0), ("5", 0), ("6", 0), ("7", 0), ("8+", 1)]
    wide = bins(*range(1, 101))
    assert wide[:2] == [("0–9", 9), ("10–19", 10)]
    assert wide[-1] == ("100+", 1)
    assert len(wide) == 11


def test_json(tiny_shards):
    found = json.loads(json.dumps(inspect_shards(tiny_shards).to_json(), allow_nan=False))
    assert list(found) == [
        "folder", "digest", "molecules", "bytes", "bytes_per_molecule", "splits", "ledger", "reject_reasons",
        "conformer_sources", "standardization", "molecules_read", "heavy_atoms", "bonds", "elements", "shared_ids",
    ]  # fmt: skip
    assert found["molecules"] == found["ledger"]["read"] == 55
    assert found["splits"]["val"] | {"bytes": 0} == {"shards": 1, "blocks": 3, "molecules": 11, "bytes": 0}
    assert found["heavy_atoms"]["quantiles"]["0%"] == 2
    assert found["heavy_atoms"]["histogram"][0] == {"least": 2, "most": 2, "molecules": 3}
    assert found["elements"]["N"] == {"atoms": 11, "molecules": 11}


def test_ids_that_several_molecules_have(tiny_shards):
    """Two in one block, four over two shards; and what nobody shares is not spoken of."""
    alone = inspect_shards(tiny_shards)
    assert alone.to_json()["shared_ids"] == {"ids": 0, "molecules": 0, "examples": ()}
    manifest = Manifest.load(tiny_shards)
    entries = []
    for number, shard in enumerate(manifest.shards):
        blocks = [read_block(tiny_shards, shard, block) for block in range(len(shard.blocks))]
        ids = {(0, 1): ["a", "b", "one", "one"], (0, 3): ["many", "c", "d", "many"], (2, 0): ["many", "e", "many", "f"]}
        for block in range(len(blocks)):
            if (number, block) in ids:
                blocks[block] = blocks[block].set_column(0, BLOCK_SCHEMA.field("id"), pa.array(ids[number, block]))
        entries.append(write_shard(tiny_shards, shard.name, shard.split, blocks, "zstd"))
    dataclasses.replace(manifest, shards=tuple(entries)).save(tiny_shards)
    found = inspect_shards(tiny_shards)
    assert found.to_json()["shared_ids"] == {"ids": 2, "molecules": 6, "examples": ("one", "many")}
    for statistics, count in ((alone, 0), (found, 1)):
        console = Console(width=120, record=True, file=io.StringIO())
        console.print(render_inspection(statistics))
        assert console.export_text().count("6 of 55 molecules share 2 ids, such as one, many\n") == count


def test_an_empty_folder_has_statistics(tmp_path):
    Manifest(shards=(), ledger=Ledger(0, 0, 0, 0, 0, 0)).save(tmp_path)
    found = json.loads(json.dumps(inspect_shards(tmp_path).to_json(), allow_nan=False))
    assert (found["molecules"], found["bytes_per_molecule"], found["heavy_atoms"]["mean"]) == (0, None, None)
    Console(file=io.StringIO()).print(render_inspection(inspect_shards(tmp_path)))


def test_contact_sheet(tiny_shards, tmp_path):
    contact_sheet(tiny_shards, tmp_path / "sheet.png", 14)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (6 * 236 + 12, 3 * 258 + 12)
        pixels = np.asarray(sheet)
    cells = [pixels[12 + r * 258 :, 12 + c * 236 :][:224, :224] for r in range(3) for c in range(6)]
    drawn = [bool((cell < 250).any()) for cell in cells]
    assert drawn == [True] * 14 + [False] * 4
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"] == []


def test_a_small_sheet_keeps_to_its_bytes(tiny_shards):
    whole = small_sheet(tiny_shards)
    assert len(whole) <= 300_000
    smaller = small_sheet(tiny_shards, most_bytes=len(whole) - 1)
    with Image.open(io.BytesIO(whole)) as first, Image.open(io.BytesIO(smaller)) as second:
        assert first.size == (6 * 236 + 12, 3 * 258 + 12)
        assert second.size == (6 * 236 + 12, 2 * 258 + 12)
    assert len(smaller) < len(whole)


def test_what_is_no_folder_of_shards_is_said(tmp_path):
    with pytest.raises(ValueError, match="name a folder that `mmsa prepare` has finished"):
        inspect_shards(tmp_path)
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        contact_sheet(tmp_path, tmp_path / "x.png")
