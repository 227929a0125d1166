from __future__ import annotations

import math

import pytest
import torch

from mmsa_dist.losses.contrast import contrast_loss, info_nce


def codes(rows: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_loops(a: torch.Tensor, b: torch.Tensor, temperature: float) -> float:
    def similarity(x: torch.Tensor, y: torch.Tensor) -> float:
        return float(x @ y / x.norm() / y.norm()) / temperature

    total = 0.0
    for i in range(len(a)):
        for query, targets in ((a[i], b), (b[i], a)):
            own = math.exp(similarity(query, targets[i]))
            total -= math.log(own / sum(math.exp(similarity(query, target)) for target in targets)) / 2
    return total / len(a)


def test_two_orthogonal_molecules_by_hand():
    # Own similarity 1, the other 0: -log(e / (e + 1)).
    assert info_nce(torch.eye(2), 3 * torch.eye(2), 1.0).item() == pytest.approx(math.log(1 + math.exp(-1)))


def test_equals_the_written_out_sum():
    a, b = codes(7, 5, seed=0), codes(7, 5, seed=1)
    assert info_nce(a, b, 0.1).item() == pytest.approx(by_loops(a, b, 0.1))


def test_is_symmetric_and_blind_to_scale():
    a, b = codes(6, 4, seed=0), codes(6, 4, seed=1)
    torch.testing.assert_close(info_nce(a, b, 0.2), info_nce(b, a, 0.2))
    torch.testing.assert_close(info_nce(a, b, 0.2), info_nce(7 * a, b * torch.arange(1, 7)[:, None], 0.2))


def test_gradient_equals_finite_differences():
    a, b = codes(5, 3, seed=0).requires_grad_(), codes(5, 3, seed=1).requires_grad_()
    present = torch.tensor([True, False, True, True, False])
    assert torch.autograd.gradcheck(lambda x, y: info_nce(x, y, 0.5, present_B=present), (a, b))


def test_absent_rows_are_neither_anchors_nor_negatives():
    a, b = codes(6, 4, seed=0), codes(6, 4, seed=1)
    present = torch.tensor([True, True, False, True, False, True])
    a[2], b[4] = torch.nan, torch.inf
    a.requires_grad_()
    loss = info_nce(a, b, 0.1, present_B=present)
    assert loss.item() == pytest.approx(by_loops(a.detach()[present], b[present], 0.1))
    loss.backward()
    assert a.grad.isfinite().all()
    assert (a.grad[~present] == 0).all()


@pytest.mark.parametrize("present", [[False, False], [True, False]], ids=["none", "one"])
def test_nothing_to_tell_apart_costs_nothing(present):
    a = codes(2, 3, seed=0).requires_grad_()
    loss = info_nce(a, codes(2, 3, seed=1), 0.1, present_B=torch.tensor(present))
    loss.backward()
    assert loss.item() == 0
    torch.testing.assert_close(a.grad, torch.zeros_like(a))


def test_loss_of_three_modalities_is_the_mean_over_pairs():
    by_name = {name: codes(6, 4, seed) for seed, name in enumerate(("gin", "comenet", "resnet"))}
    present = {name: torch.ones(6, dtype=torch.bool) for name in by_name}
    present["comenet"][2:] = False
    both = present["comenet"]
    expected = [
        info_nce(by_name["gin"], by_name["comenet"], 0.1, present_B=both),
        info_nce(by_name["gin"], by_name["resnet"], 0.1),
        info_nce(by_name["comenet"], by_name["resnet"], 0.1, present_B=both),
    ]
    torch.testing.assert_close(contrast_loss(by_name, present, 0.1), torch.stack(expected).mean())


def test_pair_that_no_molecule_has_does_not_count():
    by_name = {name: codes(6, 4, seed) for seed, name in enumerate(("gin", "comenet", "resnet"))}
    present = {name: torch.full((6,), name != "comenet") for name in by_name}
    torch.testing.assert_close(contrast_loss(by_name, present, 0.1), info_nce(by_name["gin"], by_name["resnet"], 0.1))


def test_one_modality_has_nothing_to_contrast():
    assert contrast_loss({"gin": codes(3, 2, seed=0)}, {"gin": torch.ones(3, dtype=torch.bool)}, 0.1) == 0


def test_similarities_keep_their_precision_under_autocast():
    a, b = codes(8, 16, seed=0).float(), codes(8, 16, seed=1).float()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = info_nce(a, b, 0.1)
    torch.testing.assert_close(mixed, info_nce(a, b, 0.1), rtol=0, atol=0)
