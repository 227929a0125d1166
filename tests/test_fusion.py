from __future__ import annotations

import pytest
import torch

from mmsa_dist.fusion import Fusion

WIDTHS = {"gin": 5, "comenet": 4, "resnet": 6}


def features(rows: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(rows, width, generator=generator) for name, width in WIDTHS.items()}


def masks(**of: list[bool]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(of.get(name, [True] * 3)) for name in WIDTHS}


def test_numbers_by_hand():
    fusion = Fusion({"a": 1, "b": 1}, projection=1, code=1)
    weights = {"project": (1.0, 2.0), "encode": (3.0, 4.0), "decode": (5.0, 6.0)}
    with torch.no_grad():
        for part, values in weights.items():
            for name, value in zip("ab", values, strict=True):
                fusion.get_submodule(f"{part}.{name}").weight.fill_(value)
                fusion.get_submodule(f"{part}.{name}").bias.zero_()
    f = torch.tensor([[0.1]])
    here = torch.tensor([True])
    out = fusion({"a": f, "b": -f}, {"a": here, "b": here}, permutation=[1, 0])
    x_a, x_b = torch.tanh(f), torch.tanh(-2 * f)
    c_a, c_b = torch.tanh(3 * x_a), torch.tanh(4 * x_b)
    torch.testing.assert_close(out.projected, {"a": x_a, "b": x_b})
    torch.testing.assert_close(out.codes, {"a": c_a, "b": c_b})
    torch.testing.assert_close(out.unified_BC, (c_a + c_b) / 2)
    torch.testing.assert_close(out.self_reconstruction, {"a": torch.tanh(5 * c_a), "b": torch.tanh(6 * c_b)})
    torch.testing.assert_close(out.cross_reconstruction, {"a": torch.tanh(5 * c_b), "b": torch.tanh(6 * c_a)})


def test_unified_is_the_mean_of_the_codes_present():
    fusion = Fusion(WIDTHS, projection=8, code=7)
    out = fusion(features(), masks(comenet=[True, False, False], resnet=[True, True, False]))
    gin, comenet, resnet = (out.codes[name] for name in WIDTHS)
    expected = [(gin + comenet + resnet)[0] / 3, (gin + resnet)[1] / 2, gin[2]]
    torch.testing.assert_close(out.unified_BC, torch.stack(expected))


def test_what_a_molecule_lacks_does_not_reach_its_unified_embedding():
    fusion = Fusion(WIDTHS, projection=8, code=7)
    present = masks(comenet=[True, False, True])
    other = features()
    other["comenet"] = other["comenet"].clone()
    other["comenet"][1] = 100.0
    torch.testing.assert_close(
        fusion(features(), present).unified_BC, fusion(other, present).unified_BC, rtol=0, atol=0
    )


def test_partner_decides_who_takes_part_in_cross_reconstruction():
    out = Fusion(WIDTHS, projection=8, code=7)(
        features(), masks(comenet=[True, False, False], resnet=[True, True, False]), permutation=[2, 1, 0]
    )
    assert out.cross_present["gin"].tolist() == [True, True, False]
    assert out.cross_present["comenet"].tolist() == [True, False, False]
    torch.testing.assert_close(out.cross_reconstruction["comenet"], out.self_reconstruction["comenet"])


def test_default_is_the_next_modality():
    fusion = Fusion(WIDTHS, projection=8, code=7)
    torch.testing.assert_close(
        fusion(features(), masks()).cross_reconstruction,
        fusion(features(), masks(), permutation=[1, 2, 0]).cross_reconstruction,
    )


def test_permutation_hangs_on_the_generator_alone():
    fusion = Fusion(WIDTHS, projection=8, code=7)
    draws = [fusion.draw_permutation(torch.Generator().manual_seed(seed)) for seed in range(60)]
    assert draws == [fusion.draw_permutation(torch.Generator().manual_seed(seed)) for seed in range(60)]
    assert len(set(draws)) == 6  # all orders of three


def test_bad_permutation_is_an_error():
    with pytest.raises(ValueError, match=r"permutation=\(0, 0, 1\) must contain each of 0\.\.2 once"):
        Fusion(WIDTHS, projection=8, code=7)(features(), masks(), permutation=(0, 0, 1))
