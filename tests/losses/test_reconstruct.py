from __future__ import annotations

import torch

from mmsa_dist.losses.reconstruct import reconstruct_loss


def everyone(rows: int) -> torch.Tensor:
    return torch.ones(rows, dtype=torch.bool)


def test_two_modalities_by_hand():
    target = {"a": torch.tensor([[1.0, 1.0], [0.0, 0.0]]), "b": torch.zeros(2, 2)}
    own = {"a": torch.tensor([[1.0, 0.0], [0.0, 0.0]]), "b": torch.ones(2, 2)}  # MSE 1/4 and 1
    cross = {"a": torch.zeros(2, 2), "b": torch.tensor([[2.0, 0.0], [7.0, 7.0]])}  # MSE of row 0: 1 and 2
    only_first = torch.tensor([True, False])
    loss = reconstruct_loss(
        target, own, cross, {"a": everyone(2), "b": everyone(2)}, {"a": only_first, "b": only_first}
    )
    torch.testing.assert_close(loss, torch.tensor((0.25 + 1 + 1 + 2) / 2))


def test_targets_get_no_gradient_and_reconstructions_do():
    target, own, cross = (torch.randn(3, 4, requires_grad=True) for _ in range(3))
    mask = {"a": torch.tensor([True, True, False])}
    reconstruct_loss({"a": target}, {"a": own}, {"a": cross}, mask, mask).backward()
    assert target.grad is None
    # d/dr of the mean over 2 molecules and 4 numbers of (r - x)².
    torch.testing.assert_close(own.grad[:2], (own - target).detach()[:2] / 4)
    assert (own.grad[2] == 0).all()


def test_modality_that_no_molecule_has_costs_nothing():
    x = {"a": torch.ones(2, 3)}
    nobody = {"a": torch.zeros(2, dtype=torch.bool)}
    assert reconstruct_loss({"a": torch.zeros(2, 3)}, x, x, nobody, nobody) == 0
