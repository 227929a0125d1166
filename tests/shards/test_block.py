"""Blocks: what goes in comes out, and equal molecules give equal bytes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mmsa_shards.block import Molecule, decode_block, encode_block, molecules_to_block
from mmsa_shards.schema import ATOM_CATEGORIES, BLOCK_SCHEMA, BOND_CATEGORIES, CONFORMER_SOURCES

_float32 = st.floats(-1e4, 1e4, width=32)


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
        xy=draw(hnp.arrays(np.float32, (num_atoms, 2), elements=st.floats(-500, 500, width=16))),
        conformers=draw(hnp.arrays(np.float32, (num_conformers, num_atoms, 3), elements=_float32)),
        conformer_source=draw(st.sampled_from(CONFORMER_SOURCES)),
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
        for name in ("atoms", "bonds", "bond_ends", "xy", "conformers"):
            expected = getattr(molecule, name)
            np.testing.assert_array_equal(np.asarray(row[name]).reshape(expected.shape), expected)


def test_three_columns_worked_out_by_hand():
    water = Molecule(
        id="CID962",
        inchikey="XLYOFNOQVPJJNP-UHFFFAOYSA-N",
        smiles="O",
        atoms=np.array([[7, 0, 2, 5, 2, 0, 2, 0, 0]], np.uint8),
        bonds=np.empty((0, 4), np.uint8),
        bond_ends=np.empty((0, 2), np.uint16),
        xy=np.zeros((1, 2), np.float32),
        conformers=np.array([[[0.0, 0.25, -0.5]]], np.float32),
        conformer_source="etkdg",
    )
    block = molecules_to_block([water, water])
    assert block.num_rows == 2
    assert block["atoms"].offsets.to_pylist() == [0, 1, 2]
    assert block["bonds"].offsets.to_pylist() == [0, 0, 0]
    assert block["conformers"].to_pylist() == [[[[0.0, 0.25, -0.5]]]] * 2
    assert block["conformer_source"].indices.to_pylist() == [2, 2]


@pytest.mark.parametrize("data", [b"", b"nonsense", encode_block(molecules_to_block([]), "zstd")[:-40]])
def test_damaged_bytes_are_one_clear_error(data):
    with pytest.raises(ValueError, match="not a block"):
        decode_block(data)


def test_a_stream_of_another_schema_is_refused():
    other = pa.record_batch({"x": pa.array([1])})
    with pytest.raises(ValueError, match="another schema"):
        decode_block(encode_block(other, "none"))
