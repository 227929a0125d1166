from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmsa_dist.encoders.comenet import ComENet
from tests.fixtures.batches import BR, CL, C, F, Molecule, O, batch_of, permuted, random_molecule

# One table of tolerances: rounding of coordinates of a few Å, through four layers.
TOLERANCE = {torch.float64: {"rtol": 1e-9, "atol": 1e-9}, torch.float32: {"rtol": 5e-3, "atol": 5e-3}}

# A carbon with three different neighbours, not in a plane with them: chiral even without its hydrogen.
CHIRAL = Molecule(
    [C, F, CL, BR],
    xyz=torch.tensor([[0.0, 0, 0], [1.2, 0.5, 0.1], [-1.0, 1.4, 0.2], [0.1, -0.6, 1.8]], dtype=torch.float64),
)


@pytest.fixture(scope="module")
def comenet() -> ComENet:
    torch.manual_seed(0)
    return ComENet(layers=2, hidden=32, middle=8).double().eval()


def rotation(seed: int) -> torch.Tensor:
    q, r = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    q = q * r.diagonal().sign()
    return q * q.det()  # a rotation, not a reflection


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
def test_rotation_and_translation_change_nothing(dtype):
    torch.manual_seed(0)
    comenet = ComENet().to(dtype)
    molecules = [random_molecule(size, seed=size, dtype=dtype) for size in (1, 2, 3, 14, 30)]
    vectors = comenet(batch_of(*molecules))
    for seed in range(3):
        turn = rotation(seed).to(dtype)
        shift = torch.tensor([10.0, -4.0, 7.0], dtype=dtype)
        moved = [replace(m, xyz=m.xyz @ turn.T + shift) for m in molecules]
        torch.testing.assert_close(comenet(batch_of(*moved)), vectors, **TOLERANCE[dtype])


def test_mirror_image_of_a_chiral_molecule_differs(comenet):
    mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))
    here, turned, mirrored = comenet(
        batch_of(CHIRAL, replace(CHIRAL, xyz=CHIRAL.xyz @ rotation(0).T), replace(CHIRAL, xyz=CHIRAL.xyz @ mirror))
    )
    torch.testing.assert_close(turned, here, **TOLERANCE[torch.float64])
    assert (mirrored - here).norm() > 1e-3 * here.norm()


def test_mirror_image_of_a_planar_molecule_is_the_same(comenet):
    planar = replace(CHIRAL, xyz=CHIRAL.xyz * torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
    mirrored = replace(planar, xyz=planar.xyz * torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64))
    here, there = comenet(batch_of(planar, mirrored))
    torch.testing.assert_close(here, there, **TOLERANCE[torch.float64])


def test_order_of_atoms_and_molecules_does_not_matter(comenet):
    a, b = random_molecule(9, seed=0), random_molecule(5, seed=1)
    there = comenet(batch_of(a, b))
    back = comenet(batch_of(permuted(b, [3, 0, 4, 1, 2]), permuted(a, [8, 1, 6, 3, 0, 5, 2, 7, 4])))
    torch.testing.assert_close(there, back.flip(0))


def test_vector_does_not_depend_on_the_batch(comenet):
    molecules = [random_molecule(size, seed=size) for size in (6, 1, 17)]
    together = comenet(batch_of(*molecules))
    for number, molecule in enumerate(molecules):
        torch.testing.assert_close(comenet(batch_of(molecule))[0], together[number])


def test_element_and_distance_matter(comenet):
    def pair(other: int, distance: float) -> Molecule:
        return Molecule([C, other], xyz=torch.tensor([[0.0, 0, 0], [distance, 0, 0]], dtype=torch.float64))

    vectors = comenet(batch_of(pair(O, 1.4), pair(C, 1.4), pair(O, 1.2)))
    assert torch.pdist(vectors).min() > 1e-3


def test_atom_enters_the_cutoff_smoothly(comenet):
    def vector(distance: float) -> torch.Tensor:
        far = CHIRAL.xyz[:1] - torch.tensor([[0.0, 0.0, distance]], dtype=torch.float64)
        return comenet(batch_of(Molecule([*CHIRAL.atoms, O], xyz=torch.cat([CHIRAL.xyz, far]))))

    torch.testing.assert_close(vector(8.0 - 1e-7), vector(8.0 + 1e-7), rtol=1e-5, atol=1e-5)
    assert (vector(6.0) - vector(8.5)).abs().max() > 1e-4


def test_molecules_without_coordinates_leak_nothing():
    torch.manual_seed(0)
    comenet = ComENet(layers=2, hidden=32, middle=8).double()
    known = [random_molecule(size, seed=size) for size in (6, 4)]
    alone = comenet(batch_of(*known))
    alone_gradients = torch.autograd.grad(alone.square().sum(), list(comenet.parameters()))

    unknown = replace(random_molecule(5, seed=9), xyz=None)
    batch = batch_of(unknown, known[0], unknown, known[1])
    batch = replace(batch, xyz_A3=batch.xyz_A3.clone().requires_grad_())
    vectors = comenet(batch)
    assert comenet.present(batch).tolist() == [False, True, False, True]
    assert torch.equal(vectors[[0, 2]], torch.zeros_like(vectors[[0, 2]]))
    torch.testing.assert_close(vectors[[1, 3]], alone)

    *gradients, of_xyz = torch.autograd.grad(vectors.square().sum(), [*comenet.parameters(), batch.xyz_A3])
    assert of_xyz.isfinite().all()
    for mixed, clean in zip(gradients, alone_gradients, strict=True):
        torch.testing.assert_close(mixed, clean)


def test_no_coordinates_at_all_still_gives_every_parameter_a_gradient():
    comenet = ComENet(layers=1, hidden=16, middle=4)
    vectors = comenet(batch_of(Molecule([C, O]), Molecule([C])))
    assert torch.equal(vectors, torch.zeros(2, 16))
    vectors.sum().backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in comenet.parameters())


@pytest.mark.parametrize(
    "xyz",
    [
        [[0.0, 0, 0]],
        [[0.0, 0, 0], [0, 0, 0]],
        [[0.0, 0, 0], [1.2, 0, 0], [2.4, 0, 0]],
        [[0.0, 0, 0], [20, 0, 0], [40, 1, 0]],
    ],
    ids=["single", "coincident", "collinear", "far_apart"],
)
def test_degenerate_geometry_has_finite_values_and_gradients(xyz):
    comenet = ComENet(layers=2, hidden=16, middle=4)
    xyz = torch.tensor(xyz, requires_grad=True)
    batch = replace(batch_of(Molecule([C] * len(xyz), xyz=xyz.detach())), xyz_A3=xyz)
    vectors = comenet(batch)
    vectors.square().sum().backward()
    assert vectors.isfinite().all()
    assert xyz.grad is None or xyz.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in comenet.parameters())


def test_forces_equal_finite_differences():
    torch.manual_seed(0)
    comenet = ComENet(layers=1, hidden=8, middle=4).double()
    batch = batch_of(random_molecule(6, seed=3))
    xyz = batch.xyz_A3.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda moved: comenet(replace(batch, xyz_A3=moved)).sum(), xyz)


def test_runs_in_bf16():
    comenet = ComENet(layers=1, hidden=16, middle=4)
    batch = batch_of(random_molecule(6, seed=0, dtype=torch.float32), Molecule([C]))
    with torch.autocast("cpu", torch.bfloat16):
        vectors = comenet(batch)
        assert vectors.isfinite().all()
    vectors.float().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in comenet.parameters())
    assert comenet.bfloat16()(batch).isfinite().all()


def test_default_sizes_are_those_of_the_paper():
    comenet = ComENet()
    block = comenet.blocks[0]
    assert comenet.width == 256
    assert len(comenet.blocks) == 4
    assert block.angular_conv.narrow.weight.shape == (64, 12)
    assert block.dihedral_conv.narrow.weight.shape == (64, 6)
    assert block.angular_conv.widen.weight.shape == (256, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "cast_to_bf16"])
def test_radial_functions_are_orthonormal_on_the_unit_ball_and_zero_at_the_cutoff(dtype):
    basis = ComENet().to(dtype).basis  # a cast of the model must not move the zeros
    x = torch.linspace(0, 1, 4001, dtype=torch.float64)
    for radial in basis.radial_functions(8.0 * x):
        product = torch.trapezoid(radial[:, None] * radial[None] * x**2, x)
        torch.testing.assert_close(product, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-5)
        assert radial[:, -1].abs().max() < 1e-12
