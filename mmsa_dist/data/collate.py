"""Collation: from numpy columns to the batch of tensors that the model reads.

The size letters are those of `mmsa_dist.data.batch`: F descriptors, H x W pixels of a picture.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from mmsa_dist.data.batch import MoleculeBatch
from mmsa_dist.data.columns import MoleculeColumns, from_block, places, pointers, ragged_rows
from mmsa_dist.data.pictures import Pose, draw_pictures
from mmsa_shards.schema import STEPS_PER_ANGSTROM


def collate(
    columns: MoleculeColumns,
    *,
    picture_size: int | None,
    pose: Pose | None = None,
    conformer_choice: np.ndarray | None = None,
) -> MoleculeBatch:
    """Makes a batch on the CPU.

    Args:
        columns: the molecules, in order.
        picture_size: side of the pictures in pixels; None draws none.
        pose: rotation, flip and scale per molecule; None draws the depictions as they are.
        conformer_choice: (n,) non-negative integers; molecule i gets conformer choice[i] modulo its number of
            conformers. None takes the first.
    """
    n = len(columns)
    sizes = np.diff(columns.atom_ptr)
    bond_sizes = np.diff(columns.bond_ptr)
    bond_ends = columns.bond_ends.astype(np.int64) + np.repeat(columns.atom_ptr[:-1], bond_sizes)[:, None]
    picture = None
    if picture_size is not None:
        pictures = draw_pictures(columns, bond_ends, size=picture_size, pose=pose)
        picture = torch.from_numpy(pictures).permute(0, 3, 1, 2)  # channels-last in memory, for ResNet
    return MoleculeBatch(
        index_B=torch.from_numpy(np.ascontiguousarray(columns.index)),
        atoms_A9=torch.from_numpy(_owned(columns.atoms)),
        atom_ptr=torch.from_numpy(columns.atom_ptr),
        bonds_E4=torch.from_numpy(_owned(columns.bonds)),
        bond_ends_E2=torch.from_numpy(bond_ends),
        xyz_A3=torch.from_numpy(_one_conformer(columns, sizes, conformer_choice)),
        has_xyz_B=torch.from_numpy(columns.conformers > 0),
        picture_B3HW=picture,
        has_picture_B=torch.full((n,), picture is not None),
        descriptors_BF=torch.from_numpy(_owned(columns.descriptors)),
    )


def block_to_batch(block: pa.RecordBatch, *, picture_size: int | None) -> MoleculeBatch:
    """Collates one Arrow block without augmentation, with first conformers and index -1."""
    return collate(from_block(block), picture_size=picture_size)


def _owned(array: np.ndarray) -> np.ndarray:
    """Returns a writable array, because torch does not support Arrow's read-only buffers."""
    return array if array.flags.writeable else array.copy()


def _one_conformer(columns: MoleculeColumns, sizes: np.ndarray, choice: np.ndarray | None) -> np.ndarray:
    """Returns (A, 3) float32, Å: each molecule's chosen conformer, first atom at the origin; NaN without one."""
    xyz = np.full((int(columns.atom_ptr[-1]), 3), np.nan, dtype=np.float32)
    has = columns.conformers > 0
    chosen = np.zeros(len(columns), dtype=np.int64) if choice is None else choice % np.maximum(columns.conformers, 1)
    sources = ragged_rows((columns.xyz_ptr[:-1] + chosen * sizes)[has], sizes[has])
    xyz[np.repeat(has, sizes)] = places(
        columns.xyz_steps.take(sources, axis=0), pointers(sizes[has]), STEPS_PER_ANGSTROM
    )
    return xyz
