"""Pictures drawn from depiction coordinates."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from mmsa_dist.data.columns import MoleculeColumns, pointers
from mmsa_dist.data.pictures import Pose, draw_pictures
from tests.fixtures.pretraining import environment

CARBON, NITROGEN, OXYGEN = 5, 6, 7


def chain(elements: list[int], xy: list[tuple[float, float]]) -> MoleculeColumns:
    """A molecule whose atoms are joined one after the other by single bonds."""
    n = len(elements)
    atoms = np.zeros((n, 9), np.uint8)
    atoms[:, 0], atoms[:, 2], atoms[:, 3] = elements, 1, 5
    ends = np.array([(i, i + 1) for i in range(n - 1)], np.uint16).reshape(-1, 2)
    return MoleculeColumns(
        index=np.array([0]),
        atoms=atoms,
        atom_ptr=pointers(np.array([n])),
        bonds=np.zeros((n - 1, 4), np.uint8),
        bond_ends=ends,
        bond_ptr=pointers(np.array([n - 1])),
        xy_steps=np.round(100 * (np.array(xy) - np.array([xy[0], *xy[:-1]]))).astype(np.int16),
        conformers=np.array([0]),
        xyz_steps=np.zeros((0, 3), np.int16),
        xyz_ptr=np.array([0, 0]),
        descriptors=np.empty((1, 0), np.float32),
    )


def draw(columns: MoleculeColumns, size: int = 64, pose: Pose | None = None) -> np.ndarray:
    return draw_pictures(columns, columns.bond_ends.astype(np.int64), size=size, pose=pose)[0]


def pose(angle: float = 0.0, flip: bool = False, scale: float = 1.0) -> Pose:
    return Pose(np.array([angle], np.float32), np.array([flip]), np.array([scale], np.float32))


def test_a_carbon_chain_is_a_black_line_through_the_middle() -> None:
    picture = draw(chain([CARBON, CARBON], [(-0.75, 0), (0.75, 0)]))
    assert picture[32, 32].max() < 60
    assert picture[10].min() == picture[54].min() == 255
    assert np.ptp(picture.astype(int), axis=2).max() == 0, "carbon has no colour"


def test_hetero_atoms_have_rdkits_colours_on_their_side() -> None:
    picture = draw(chain([NITROGEN, OXYGEN], [(-0.75, 0), (0.75, 0)]), size=128).astype(int)
    blue = (picture[..., 2] - picture[..., 0]) > 100
    red = (picture[..., 0] - picture[..., 2]) > 100
    assert blue.any()
    assert red.any()
    assert np.nonzero(blue)[1].max() < 66
    assert np.nonzero(red)[1].min() > 62


def test_up_in_the_depiction_is_up_in_the_picture() -> None:
    picture = draw(chain([CARBON, OXYGEN], [(0, -0.75), (0, 0.75)]), size=128).astype(int)
    red = np.nonzero((picture[..., 0] - picture[..., 2]) > 100)[0]
    assert red.max() <= 64


def test_a_quarter_turn_turns_the_picture() -> None:
    lying = chain([CARBON, CARBON, CARBON], [(-1.5, 0), (0, 0), (1.5, 0)])
    upright = draw(lying, pose=pose(angle=np.pi / 2))
    assert upright[26, 32].max() < 60
    assert upright[32, 26].min() == 255


def test_a_flip_mirrors_and_a_scale_shrinks() -> None:
    molecule = chain([CARBON, OXYGEN], [(-0.75, 0), (0.75, 0)])
    mirrored = draw(molecule, size=128, pose=pose(flip=True)).astype(int)
    red = np.nonzero((mirrored[..., 0] - mirrored[..., 2]) > 100)[1]
    assert red.max() <= 64
    dark = [(draw(molecule, pose=pose(scale=s)) < 128).any(axis=2).sum() for s in (1.0, 0.5)]
    assert dark[1] < dark[0]


@pytest.mark.parametrize("size", [32, 224])
def test_a_single_atom_and_coincident_atoms_are_drawn(size: int) -> None:
    ion = chain([CARBON], [(0, 0)])
    ion.atoms[:, 2] = 0  # degree
    assert draw(ion, size).min() < 255
    draw(chain([CARBON, OXYGEN], [(1, 1), (1, 1)]), size)


def test_pictures_of_a_batch_are_those_of_its_molecules() -> None:
    from mmsa_dist.data.columns import join

    molecules = [chain([CARBON, OXYGEN], [(0, 0), (1, 1)]), chain([NITROGEN] * 3, [(0, 0), (1.5, 0), (2, 1)])]
    both = join(molecules)
    ends = both.bond_ends.astype(np.int64) + np.repeat(both.atom_ptr[:-1], np.diff(both.bond_ptr))[:, None]
    together = draw_pictures(both, ends, size=64)
    for picture, molecule in zip(together, molecules, strict=True):
        np.testing.assert_array_equal(picture, draw(molecule))


def test_opencv_of_the_host_process_stays_as_it_is() -> None:
    """Drawing needs no thread, so that nothing has to be set for it."""
    code = """
import os
import cv2
cv2.setNumThreads(3)
import mmsa_dist.embed.embedder
from tests.data.test_pictures import NITROGEN, chain, draw
before = os.listdir("/proc/self/task")
draw(chain([NITROGEN] * 50, [(i, i % 7) for i in range(50)]), size=512)
assert os.listdir("/proc/self/task") == before
assert cv2.getNumThreads() == 3
"""
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True)
