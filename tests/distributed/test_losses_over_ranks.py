"""Two gloo processes with half of the molecules each, against one process with all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from mmsa_dist.losses.contrast import contrast_loss, info_nce
from mmsa_dist.losses.masked_atom import MaskedAtomLoss
from mmsa_dist.losses.reconstruct import reconstruct_loss
from tests.fixtures.batches import batch_of, random_molecule

pytestmark = pytest.mark.distributed

RANKS, ROWS = 2, 8
# What the molecules have is spread unevenly, so that a mean of means would show.
PRESENT = {
    "gin": torch.ones(ROWS, dtype=torch.bool),
    "comenet": torch.tensor([True, False, False, False, True, True, True, True]),
    "resnet": torch.tensor([True, True, True, False, True, False, True, True]),
}


def weights() -> Tensor:
    """The parameters of the "model": codes and reconstructions are linear in them."""
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()


def losses_of(rows: slice, weight: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    inputs = {name: torch.randn(ROWS, 6, generator=generator, dtype=torch.float64)[rows] for name in PRESENT}
    present = {name: mask[rows] for name, mask in PRESENT.items()}
    codes = {name: (x @ weight).tanh() for name, x in inputs.items()}
    target = {name: x[:, :5] for name, x in inputs.items()}
    molecules = [random_molecule(size, seed=size) for size in range(1, ROWS + 1)][rows]
    batch = batch_of(*molecules)
    atom_loss = MaskedAtomLoss(5, mask_rate=1.0).double()  # all atoms: nothing hangs on the draw
    with torch.no_grad():
        atom_loss.head.weight.copy_(torch.linspace(-1, 1, 119 * 5).view(119, 5))
        atom_loss.head.bias.zero_()

    def encode_atoms(*_) -> Tensor:
        return torch.nn.functional.one_hot(batch.atoms_A9[:, 0].long() % 6, 6).double() @ weight

    return torch.stack(
        [
            info_nce(codes["gin"], codes["resnet"], 0.1, present_B=present["resnet"]),
            contrast_loss(codes, present, 0.1),
            reconstruct_loss(target, codes, dict.fromkeys(codes, codes["gin"]), present, present),
            atom_loss(batch, encode_atoms, torch.Generator().manual_seed(0)),
        ]
    )


def losses_and_gradients(rows: slice) -> tuple[Tensor, Tensor]:
    weight = weights()
    losses = losses_of(rows, weight)
    gradients = [torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in losses]
    return losses.detach(), torch.stack(gradients)


def rank_main(rank: int, folder: str) -> None:
    store = dist.FileStore(f"{folder}/store", RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    share = ROWS // RANKS
    results = losses_and_gradients(slice(rank * share, (rank + 1) * share))
    for value in results:  # as data-parallel training does
        dist.all_reduce(value)
        value /= RANKS
    if rank == 0:
        torch.save(results, f"{folder}/results.pt")
    dist.destroy_process_group()


def test_mean_over_ranks_equals_one_process(tmp_path: Path):
    mp.spawn(rank_main, args=(str(tmp_path),), nprocs=RANKS)
    losses, gradients = torch.load(tmp_path / "results.pt", weights_only=True)
    expected_losses, expected_gradients = losses_and_gradients(slice(0, ROWS))
    # The masked-atom loss is taken in float32.
    torch.testing.assert_close(losses[:3], expected_losses[:3])
    torch.testing.assert_close(gradients[:3], expected_gradients[:3])
    torch.testing.assert_close(losses[3], expected_losses[3], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients[3], expected_gradients[3], rtol=1e-5, atol=1e-6)
