"""Blocks: what goes in comes out, and equal molecules give equal bytes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mmsa_shards.block import Molecule, decode_block, encode_block, fits, molecules_to_block
from mmsa_shards.schema import (
    ATOM_CATEGORIES,
    BLOCK_SCHEMA,
    BOND_CATEGORIES,
    CONFORMER_SOURCES,
    STEPS_PER_ANGSTROM,
    STEPS_PER_DRAWING_UNIT,
)

# Within 32.767 Å, or 327.67 units of a drawing, from one atom to the next.
_angstrom = st.floats(-16, 16, width=32)
_drawing_unit = st.floats(-160, 160, width=32)


@st.composite
def molecules(draw):
    num_atoms, num_bonds = draw(st.integers(1, 12)), draw(st.integers(0, 12))
    num_conformers = draw(st.integers(0, 3))
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    return Molecule(
        id=draw(text),
        inchikey=draw(text),
        smiles=draw(text),
        atoms=draw(hnp.arrays(np.uint8, (num_atoms, len(ATOM_CATEGORIES)))),
        bonds=draw(hnp.arrays(np.uint8, (num_bonds, len(BOND_CATEGORIES)))),
        bond_ends=draw(hnp.arrays(np.uint16, (num_bonds, 2))),
        xy=draw(hnp.arrays(np.float32, (num_atoms, 2), elements=_drawing_unit)),
        conformers=draw(hnp.arrays(np.float32, (num_conformers, num_atoms, 3), elements=_angstrom)),
        conformer_source=draw(st.sampled_from(CONFORMER_SOURCES)),
        descriptors=draw(hnp.arrays(np.float32, st.integers(0, 3), elements=st.floats(width=32, allow_nan=False))),
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(molecules(), max_size=6), st.sampled_from(["zstd", "lz4", "none"]))
def test_round_trip(wanted, compression):
    data = encode_block(molecules_to_block(wanted), compression)
    assert data == encode_block(molecules_to_block(wanted), compression)
    block = decode_block(data)
    block.validate(full=True)
    assert block.schema.equals(BLOCK_SCHEMA)
    for molecule, row in zip(wanted, block.to_pylist(), strict=True):
        for name in ("id", "inchikey", "smiles", "conformer_source"):
            assert row[name] == getattr(molecule, name)
        assert row["descriptors"] == molecule.descriptors.tolist()
        for name in ("atoms", "bonds", "bond_ends"):
            expected = getattr(molecule, name)
            np.testing.assert_array_equal(np.asarray(row[name]).reshape(expected.shape), expected)
        for name, scale in (("xy", STEPS_PER_DRAWING_UNIT), ("conformers", STEPS_PER_ANGSTROM)):
            wanted_places = getattr(molecule, name).astype(np.float64)
            steps = np.asarray(row[name], dtype=np.int64).reshape(wanted_places.shape)
            # Exact: places rounded to the grid, from the first atom on.
            grid = np.rint(wanted_places * scale)
            places = np.cumsum(steps, axis=-2)
            np.testing.assert_array_equal(places, grid - grid[..., :1, :])
            # So where two atoms lie to each other is off by one step at the most, half for either.
            apart = wanted_places - wanted_places[..., :1, :]
            assert np.abs(places / scale - apart).max(initial=0) <= (1 + 1e-9) / scale


def test_three_columns_worked_out_by_hand():
    water = Molecule(
        id="CID962",
        inchikey="XLYOFNOQVPJJNP-UHFFFAOYSA-N",
        smiles="O",
        atoms=np.array([[7, 0, 2, 5, 2, 0, 2, 0, 0]], np.uint8),
        bonds=np.empty((0, 4), np.uint8),
        bond_ends=np.empty((0, 2), np.uint16),
        xy=np.ones((1, 2), np.float32),
        conformers=np.array([[[0.0, 0.25, -0.5]]], np.float32),
        conformer_source="etkdg",
    )
    block = molecules_to_block([water, water])
    assert block.num_rows == 2
    assert block["atoms"].offsets.to_pylist() == [0, 1, 2]
    assert block["bonds"].offsets.to_pylist() == [0, 0, 0]
    assert block["xy"].to_pylist() == [[[0, 0]]] * 2
    assert block["conformers"].to_pylist() == [[[[0, 0, 0]]]] * 2
    assert block["conformer_source"].indices.to_pylist() == [2, 2]


def _chain(xyz: list[list[list[float]]], xy: list[list[float]]) -> Molecule:
    return Molecule(
        id="m",
        inchikey="KEY",
        smiles="C" * len(xy),
        atoms=np.zeros((len(xy), 9), np.uint8),
        bonds=np.zeros((0, 4), np.uint8),
        bond_ends=np.zeros((0, 2), np.uint16),
        xy=np.array(xy, np.float32),
        conformers=np.array(xyz, np.float32),
        conformer_source="input",
    )


def test_steps_worked_out_by_hand():
    xyz = [[[1.0, 0, 0], [2.5006, 0, -1], [2.4994, 0.5, -1]], [[0, 0, 0], [0, 0, 1.25], [0, 0, 0]]]
    block = molecules_to_block([_chain(xyz, [[3, 3], [4.5, 3], [4.5, 1.504]])])
    assert block["conformers"].to_pylist() == [
        [[[0, 0, 0], [1501, 0, -1000], [-2, 500, 0]], [[0, 0, 0], [0, 0, 1250], [0, 0, -1250]]]
    ]
    assert block["xy"].to_pylist() == [[[0, 0], [150, 0], [0, -150]]]


def test_the_length_of_a_molecule_has_no_limit():
    stretched = [[[1.25 * atom, 0.4 * (atom % 2), 0] for atom in range(500)]]
    (steps,) = molecules_to_block([_chain(stretched, [[1.3 * a, 0] for a in range(500)])])["conformers"].to_pylist()[0]
    np.testing.assert_allclose(np.cumsum(steps, axis=0) / 1000, stretched[0], atol=0.001)


@pytest.mark.parametrize("far", [32.768, -40, 1e9, np.nan, np.inf])
def test_what_cannot_be_kept_is_refused(far):
    molecule = _chain([[[0, 0, 0], [0, far, 0]]], [[0, 0], [1, 1]])
    assert not fits(molecule.conformers[0], STEPS_PER_ANGSTROM)
    with pytest.raises(ValueError, match=r"more than 32\.767 from one atom to the next"):
        molecules_to_block([molecule])
    assert fits(np.array([[0, 0, 0], [0, 32.767, 0]], np.float32), STEPS_PER_ANGSTROM)
    with pytest.raises(ValueError, match=r"more than 327\.67 from one atom to the next"):
        molecules_to_block(
            [dataclasses.replace(molecule, conformers=np.empty((0, 2, 3)), xy=10 * molecule.conformers[0])]
        )


@pytest.mark.parametrize("data", [b"", b"nonsense", encode_block(molecules_to_block([]), "zstd")[:-40]])
def test_damaged_bytes_are_one_clear_error(data):
    with pytest.raises(ValueError, match="not a block"):
        decode_block(data)


def test_a_stream_of_another_schema_is_refused():
    other = pa.record_batch({"x": pa.array([1])}, metadata=BLOCK_SCHEMA.metadata)
    with pytest.raises(ValueError, match="another schema"):
        decode_block(encode_block(other, "none"))


@pytest.mark.parametrize(("metadata", "version"), [({"mmsa_schema_version": "1"}, "1"), (None, "none")])
def test_a_block_of_another_version_is_refused(metadata, version):
    other = molecules_to_block([]).replace_schema_metadata(metadata)
    with pytest.raises(ValueError, match=f"schema version {version}, this program reads 3; prepare the shards again"):
        decode_block(encode_block(other, "none"))
