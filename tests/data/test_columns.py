"""Columns taken, sliced, joined and collated, against written-out molecules."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsa_dist.data.augment import random_conformer, random_pose
from mmsa_dist.data.collate import block_to_batch, collate
from mmsa_dist.data.columns import MoleculeColumns, _rows, from_block, join, places, ragged_rows
from mmsa_shards.schema import BLOCK_SCHEMA


def molecule(n_atoms: int, *, conformers: int = 1, tag: int = 0) -> dict[str, object]:
    """A chain of n atoms whose numbers say which atom of which molecule and conformer it is."""
    return {
        "id": f"M{tag}",
        "inchikey": f"KEY{tag}",
        "smiles": "C" * n_atoms,
        "atoms": [[5, 0, 1, 5, 3, 0, 3, 0, (tag + a) % 2] for a in range(n_atoms)],
        "bonds": [[0, 0, 0, 0]] * (n_atoms - 1),
        "bond_ends": [[a, a + 1] for a in range(n_atoms - 1)],
        "xy": [[0, 0]] + [[150, tag]] * (n_atoms - 1),
        "conformers": [[[0, 0, 0]] + [[1250, c, tag]] * (n_atoms - 1) for c in range(conformers)],
        "conformer_source": "etkdg" if conformers else "none",
        "descriptors": [tag + 0.5, 7.0],
    }


def block(*molecules: dict[str, object]) -> pa.RecordBatch:
    columns = []
    for field in BLOCK_SCHEMA:
        values = [m[field.name] for m in molecules]
        columns.append(pa.array(values, type=field.type))
    return pa.RecordBatch.from_arrays(columns, schema=BLOCK_SCHEMA)


@pytest.fixture
def three() -> pa.RecordBatch:
    return block(molecule(2, tag=0), molecule(3, conformers=2, tag=1), molecule(1, conformers=0, tag=2))


def test_a_block_becomes_columns(three: pa.RecordBatch) -> None:
    columns = from_block(three, first_index=10)
    assert columns.index.tolist() == [10, 11, 12]
    assert columns.atom_ptr.tolist() == [0, 2, 5, 6]
    assert columns.bond_ptr.tolist() == [0, 1, 3, 3]
    assert columns.conformers.tolist() == [1, 2, 0]
    assert columns.xyz_ptr.tolist() == [0, 2, 8, 8]
    assert columns.xyz_steps[5:8].tolist() == [[0, 0, 0], [1250, 1, 1], [1250, 1, 1]]
    assert columns.xy_steps[2:5].tolist() == [[0, 0], [150, 1], [150, 1]]
    assert columns.descriptors.tolist() == [[0.5, 7], [1.5, 7], [2.5, 7]]


def test_a_block_without_descriptors_has_none_of_each(three: pa.RecordBatch) -> None:
    bare = [row | {"descriptors": []} for row in three.to_pylist()]
    assert from_block(block(*bare)).descriptors.shape == (3, 0)
    assert from_block(block()).descriptors.shape == (0, 0)
    uneven = [row | {"descriptors": [1.0] * (number + 1)} for number, row in enumerate(three.to_pylist())]
    with pytest.raises(ValueError, match=r"descriptors: lists of different lengths \[1, 2, 3\] in one block"):
        from_block(block(*uneven))


def test_a_sliced_block_reads_like_a_block_of_its_rows(three: pa.RecordBatch) -> None:
    tail = from_block(three.slice(1, 2))
    assert tail.atom_ptr.tolist() == [0, 3, 4]
    assert tail.xyz_steps.shape == (6, 3)
    assert tail.xyz_steps[1].tolist() == [1250, 0, 1]


def test_lists_that_begin_inside_their_values_are_read_from_there() -> None:
    values = pa.array(range(12), pa.uint8())
    fixed = pa.FixedSizeListArray.from_arrays(values, 2).slice(1)  # [2, 3], [4, 5], ...
    lists = pa.ListArray.from_arrays(pa.array([1, 2, 4], pa.int32()), fixed)
    rows, ptr = _rows(lists)
    assert rows.tolist() == [row for molecule in lists.to_pylist() for row in molecule] == [[4, 5], [6, 7], [8, 9]]
    assert ptr.tolist() == [0, 1, 3]


def test_places_are_the_sums_of_steps_within_each_molecule() -> None:
    steps = np.array([[0, 0], [150, -75], [-1, 0], [7, 7], [100, 0]], np.int16)
    expected = [[0, 0], [1.5, -0.75], [1.49, -0.75], [0, 0], [1, 0]]
    np.testing.assert_array_equal(places(steps, np.array([0, 3, 5]), 100), np.array(expected, np.float32))
    assert places(steps[:0], np.array([0]), 100).shape == (0, 2)


def test_places_do_not_run_over() -> None:
    """Long molecules in a row: the sum over all of them leaves int32, the sum in each does not."""
    steps = np.full((100_000, 1), 32767, np.int16)
    ptr = np.array([0, 50_000, 99_998, 100_000])
    found = places(steps, ptr, 1)[:, 0]
    assert found[[0, 1, 50_000, 50_001, 99_998, 99_999]].tolist() == [0, 32767, 0, 32767, 0, 32767]
    assert found[49_999] == np.float32(49_999 * 32767)


def test_a_batch_numbers_its_atoms_and_masks_what_is_missing(three: pa.RecordBatch) -> None:
    batch = block_to_batch(three, picture_size=None)
    assert batch.bond_ends_E2.tolist() == [[0, 1], [2, 3], [3, 4]]
    assert batch.molecule_of_atom_A.tolist() == [0, 0, 1, 1, 1, 2]
    assert batch.has_xyz_B.tolist() == [True, True, False]
    assert torch.isnan(batch.xyz_A3[5]).all()
    assert not torch.isnan(batch.xyz_A3[:5]).any()
    assert batch.picture_B3HW is None
    assert not batch.has_picture_B.any()


def test_the_chosen_conformer_is_shown(three: pa.RecordBatch) -> None:
    batch = collate(from_block(three), picture_size=32, conformer_choice=np.array([7, 7, 7]))
    expected = [[0, 0, 0], [1.25, 0, 0], [0, 0, 0], [1.25, 0.001, 0.001], [2.5, 0.002, 0.002]]
    np.testing.assert_array_equal(batch.xyz_A3[:5].numpy(), np.array(expected, np.float32))
    assert batch.picture_B3HW is not None
    assert batch.picture_B3HW.shape == (3, 3, 32, 32)
    assert batch.picture_B3HW.is_contiguous(memory_format=torch.channels_last)


@st.composite
def columns_and_rows(draw: st.DrawFn) -> tuple[MoleculeColumns, list[int]]:
    sizes = draw(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 2)), min_size=1, max_size=6))
    columns = from_block(block(*[molecule(n, conformers=c, tag=t) for t, (n, c) in enumerate(sizes)]), first_index=0)
    return columns, draw(st.lists(st.integers(0, len(sizes) - 1), max_size=8))


def same(a: MoleculeColumns, b: MoleculeColumns) -> None:
    for name in vars(a):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


@given(columns_and_rows())
@settings(max_examples=60, deadline=None)
def test_taking_rows_is_joining_single_molecules(case: tuple[MoleculeColumns, list[int]]) -> None:
    columns, rows = case
    if rows:
        same(columns.take(np.array(rows)), join([columns.slice(row, row + 1) for row in rows]))


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5)), max_size=20))
def test_ragged_rows_are_the_ranges_in_order(ranges: list[tuple[int, int]]) -> None:
    starts = np.array([start for start, _ in ranges], dtype=np.int64)
    sizes = np.array([size for _, size in ranges], dtype=np.int64)
    expected = [row for start, size in ranges for row in range(start, start + size)]
    assert ragged_rows(starts, sizes).tolist() == expected


def test_chances_depend_on_molecule_epoch_and_seed_and_on_nothing_else() -> None:
    some, all_ = np.array([5, 3]), np.arange(2000)
    one, many = random_pose(some, seed=1, epoch=2), random_pose(all_, seed=1, epoch=2)
    np.testing.assert_array_equal(one.angle, many.angle[some])
    assert not np.array_equal(many.angle, random_pose(all_, seed=1, epoch=3).angle)
    assert not np.array_equal(many.angle, random_pose(all_, seed=2, epoch=2).angle)
    assert many.flip.mean() == pytest.approx(0.5, abs=0.05)
    assert many.angle.mean() == pytest.approx(np.pi, abs=0.15)
    assert 0.8 <= many.scale.min() < many.scale.max() <= 1
    assert len(set((random_conformer(all_, seed=0, epoch=0) % 7).tolist())) == 7
