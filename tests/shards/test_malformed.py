"""Broken and extreme files: every record is a molecule or a refusal with its reason, and the good ones are kept."""

from __future__ import annotations

import dataclasses
import gzip
from collections import Counter

import pytest

from mmsa_shards.errors import PrepareError
from mmsa_shards.molecule import Order, make_molecules
from mmsa_shards.options import Columns
from mmsa_shards.read import Record, Refused, read_records
from mmsa_shards.standardize import Parent, Refusal, standardize_many
from tests.fixtures.standardization import DEFAULT

# file -> what becomes of its records. Hand-checked: the counts of records against the `$$$$` lines or the lines
# of the file, the refusals against what the file holds.
OUTCOMES: dict[str, dict[str, int]] = {
    # One has an empty line where its counts belong, two stand right behind records that were cut off.
    "cdk_bug3488307.sdf.gz": {"ok": 5, "syntax": 1},
    "cdk_emptyStructures.sdf": {"ok": 1, "empty": 1},
    "cdk_macro.smi.gz": {"ok": 478},  # macrocycles
    "deepchem_freesolv_imperfect_sample.csv": {"ok": 5},
    "derived_truncated_pubchem.sdf.gz": {"ok": 75, "truncated_file": 1},
    "inchi_organometallic_structures_pubchem.sdf.gz": {"ok": 173, "valence": 14},
    "indigo_3227-copolymer.mol": {"undefined_atom": 1},
    "indigo_bad-header.sdf": {"ok": 1, "syntax": 1},
    "indigo_bad_valence.smi": {"valence": 2},
    "indigo_empty1.sdf": {"empty": 4},
    "indigo_ferrocene.mol": {"aromaticity": 1},  # rings of five with aromatic bonds and no charge
    "indigo_lib_empty.sdf": {"empty": 1},
    "indigo_peptides.sdf.gz": {"ok": 130},
    "indigo_pubchem_7m_err.sdf.gz": {"ok": 51, "valence": 13},  # carboranes and their like
    "indigo_sgroups_utf8.mol": {"ok": 1},
    "openbabel_102Uridine.smi": {"too_many_atoms": 1},  # RNA of 102 bases: 2037 heavy atoms
    "openbabel_attype.00.smi.gz": {"ok": 272, "valence": 2},
    "openbabel_cantest.sdf.gz": {"ok": 20},
    "openbabel_fullerene60.mdl": {"ok": 1},
    "openbabel_graphsym-nonconvergent.mol.gz": {"truncated_file": 1},  # ends among its bonds
    "openbabel_inchi-maxval-overflow.sdf": {"valence": 1},  # a carbon of 25 bonds
    "openbabel_kevlar.sdf.gz": {"ok": 1},
    "openbabel_nci.smi.gz": {"ok": 1000, "valence": 5},
    "rdkit_BlankPropLines.sdf": {"ok": 1},
    "rdkit_D_in_CTAB.mol": {"ok": 1},
    "rdkit_Issue3482695.sdf": {"empty": 1},
    "rdkit_ModifiedPeptide2.mol.gz": {"syntax": 1},  # residues in place of atoms
    "rdkit_O2.sdf": {"ok": 1, "empty": 1},  # its price is four dollars, which end a record
    "rdkit_T_in_CTAB.mol": {"ok": 1},
    "rdkit_Ugly.mol.gz": {"syntax": 1},  # abbreviations in place of atoms
    "rdkit_badConnection.mol": {"syntax": 1},  # likewise
    "rdkit_earlyEOF.sdf": {"ok": 5, "truncated_file": 1},
    "rdkit_esters.prop_name_trunc.sdf": {"ok": 6},
    "rdkit_good_bad_good_good.sdf": {"ok": 3, "valence": 1},
    "rdkit_sdErrors1.sdf": {"ok": 1},
    "rdkit_sdErrors3.sdf": {"syntax": 1},  # has an atom less than it says
    "rdkit_strictLax1.sdf": {"ok": 2},
    "rdkit_witch-salts.sdf.gz": {"ok": 240},
}
#: file -> what is said of the whole of it.
UNUSABLE = {
    "indigo_invalid.csv.gz": "has no SMILES column",
    "openbabel_cve-2022-46280.xyz": "is of no kind that can be read",
    "openbabel_truncated-record.mol2": "is of no kind that can be read",
    "rdkit_empty.smi": "holds no records",
}
#: file -> number of a record -> what its refusal says.
MESSAGES = {
    "cdk_bug3488307.sdf.gz": {2: "Counts line too short: '' on line4"},
    "indigo_bad-header.sdf": {2: "CTAB version string invalid at line 4"},
    "openbabel_102Uridine.smi": {1: "has 2037 heavy atoms, more than prepare.max_atoms=500"},
    "openbabel_inchi-maxval-overflow.sdf": {1: "atom 1 of the molfile, C without a charge, has a valence of 25"},
    "rdkit_badConnection.mol": {1: "Element 'Ala' not found"},
    "rdkit_good_bad_good_good.sdf": {2: "atom 1 of the molfile, F without a charge, has a valence of 2"},
    "rdkit_sdErrors3.sdf": {1: "Atom line too short"},
    "rdkit_earlyEOF.sdf": {6: "has data, but no '$$$$' after them"},
    "derived_truncated_pubchem.sdf.gz": {76: "ends in the middle here (its gzip stream has no end)"},
}


def _outcome(path, options) -> tuple[list[tuple[Record, Parent]], list[Refused]]:
    records = list(read_records(str(path), dataclasses.replace(options, allow_truncated=True)))
    good = [record for record in records if isinstance(record, Record)]
    refused = [record for record in records if isinstance(record, Refused)]
    kept = []
    for record, parent in zip(good, standardize_many([r.structure for r in good], DEFAULT), strict=True):
        if isinstance(parent, Refusal):
            refused.append(Refused(record.id, record.place, parent.reason, parent.message))
        else:
            kept.append((record, parent))
    orders = [Order(id=record.id, inchikey=parent.inchikey, smiles=parent.smiles) for record, parent in kept]
    made = make_molecules(orders, Columns.from_options(options))
    lost = [(record.id, molecule.message) for (record, _), molecule in zip(kept, made, strict=True)
            if isinstance(molecule, Refusal)]  # fmt: skip
    assert lost == []  # what was standardized can be read again and drawn
    return kept, refused


def _check(path, options, expected: dict[str, int], messages: dict[int, str]) -> None:
    kept, refused = _outcome(path, options)
    counts = Counter(refusal.reason for refusal in refused)
    assert counts + Counter(ok=len(kept)) == Counter(expected)
    places = [record.place for record, _ in kept] + [refusal.place for refusal in refused]
    assert len(set(places)) == len(places)
    assert {place.file for place in places} == {path.name}
    for record, parent in kept:
        assert record.id
        assert parent.smiles
        assert len(parent.inchikey) == 27
    for refusal in refused:
        assert refusal.id
        assert 10 < len(refusal.message) < 300
        assert "\n" not in refusal.message
    said = {refusal.place.number: refusal.message for refusal in refused}
    for number, message in messages.items():
        assert message in said[number]


@pytest.mark.parametrize("name", OUTCOMES)
def test_every_record_is_a_parent_or_has_a_reason(shared_data, options, name):
    _check(shared_data / "malformed" / name, options, OUTCOMES[name], MESSAGES.get(name, {}))


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_cannot_be_used_is_said(shared_data, options, name):
    with pytest.raises(PrepareError, match=UNUSABLE[name]):
        list(read_records(str(shared_data / "malformed" / name), options))


def test_no_file_is_left_out(shared_data):
    there = {path.name for path in (shared_data / "malformed").iterdir()}
    assert there == {*OUTCOMES, *UNUSABLE}


def test_peptides_lose_their_salts_and_nothing_else(shared_data, options):
    kept, _ = _outcome(shared_data / "malformed" / "indigo_peptides.sdf.gz", options)
    assert {change for _, parent in kept for change in parent.changes} == {"fragment_removed", "neutralized"}


GOOD = """{title}

  hand made
  2  1  0  0  0  0  0  0  0  0999 V2000
    0.0000    0.0000    0.0000 {element} 0  0
    1.5000    0.0000    0.0000 O   0  0
  1  2  {order}  0
M  END
$$$$
"""


def _mol(title: str, element: str = "C  ", order: int = 1) -> str:
    return GOOD.format(title=title, element=element, order=order)


def test_hand_made_sdf(tmp_path, options):
    empty = "none\n\n  hand made\n  0  0  0  0  0  0  0  0  0  0999 V2000\nM  END\n$$$$\n"
    short = _mol("short").replace("  2  1  0", "  3  1  0", 1)
    records = [
        _mol("a"), _mol("b", order=4), _mol("c", "F  ", 2), empty, _mol("d", "Ala"), short, _mol("e", "R  "), _mol("z"),
    ]  # fmt: skip
    path = tmp_path / "a.sdf"
    path.write_text("".join(records))
    expected = {"ok": 2, "inchi": 1, "valence": 1, "empty": 1, "syntax": 2, "undefined_atom": 1}
    messages = {
        2: "InChI has no identifier for C:O",  # an aromatic bond outside of a ring
        3: "atom 1 of the molfile, F without a charge, has a valence of 2",
        4: "the structure has no atoms",
        5: "Element 'Ala' not found",
        7: "attachment point, R-group or query",
    }
    _check(path, options, expected, messages)
    kept, _ = _outcome(path, options)
    assert [(record.id, parent.smiles) for record, parent in kept] == [("a", "CO"), ("z", "CO")]


def test_hand_made_smiles(tmp_path, options):
    path = tmp_path / "a.smi"
    lines = [
        b"\xef\xbb\xbfCCO a", b"C(C)(C)(C)(C)C b", b"c1cccc1 c", b"CC( d", b"\xff\xfe\xfd e", b"C\0C f", b"*CC g",
        b"C" * 501 + b" h", b"C" * 2_000_000 + b" i", b"[Na+].[O-]C(=O)C j",
    ]  # fmt: skip
    path.write_bytes(b"\r".join(lines))
    expected = {
        "ok": 2, "valence": 1, "aromaticity": 1, "syntax": 3, "undefined_atom": 1, "too_many_atoms": 1, "too_long": 1,
    }  # fmt: skip
    _check(path, options, expected, {4: "syntax error around character 3", 8: "has 501 heavy atoms"})
    kept, _ = _outcome(path, options)
    assert [(record.id, parent.smiles) for record, parent in kept] == [("a", "CCO"), ("j", "CC(=O)O")]


def test_a_flipped_bit_costs_what_follows(tmp_path, options):
    text = "".join(_mol(f"m{n}") for n in range(2000)).encode()
    whole = bytearray(gzip.compress(text))
    whole[-5] ^= 0x40  # in the checksum: nothing but the promise is broken
    path = tmp_path / "a.sdf.gz"
    path.write_bytes(whole)
    kept, (refusal,) = _outcome(path, options)
    assert refusal.reason == "damaged_file"
    assert "records just before may be wrong" in refusal.message
    assert len(kept) > 0
    assert [record.id for record, _ in kept] == [f"m{n}" for n in range(len(kept))]
    with pytest.raises(PrepareError, match="is damaged after"):
        list(read_records(str(path), options))
