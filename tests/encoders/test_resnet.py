from __future__ import annotations

import pytest
import torch
from torch.nn.functional import batch_norm, conv2d, max_pool2d

from mmsa_dist.encoders.resnet import IMAGENET_MEAN, IMAGENET_STD, ResNet
from tests.fixtures.batches import C, Molecule, batch_of


def picture(seed: int, side: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, side, side), generator=generator, dtype=torch.uint8)


def names_of_torchvision() -> dict[str, tuple[int, ...]]:
    def norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
        of_channels = ("weight", "bias", "running_mean", "running_var")
        return {f"{name}.{key}": (channels,) for key in of_channels} | {f"{name}.num_batches_tracked": ()}

    names = {"conv1.weight": (64, 3, 7, 7)} | norm("bn1", 64)
    before = 64
    for stage, channels in enumerate((64, 128, 256, 512), start=1):
        for block in range(2):
            inner = before if block == 0 else channels
            at = f"layer{stage}.{block}"
            names |= {f"{at}.conv1.weight": (channels, inner, 3, 3)} | norm(f"{at}.bn1", channels)
            names |= {f"{at}.conv2.weight": (channels, channels, 3, 3)} | norm(f"{at}.bn2", channels)
            if stage > 1 and block == 0:
                names |= {f"{at}.downsample.0.weight": (channels, inner, 1, 1)}
                names |= norm(f"{at}.downsample.1", channels)
        before = channels
    return names


def by_formula(state: dict[str, torch.Tensor], pictures: torch.Tensor) -> torch.Tensor:
    """ResNet-18 in inference mode, from its weights alone."""

    def conv_norm(x, conv, norm, stride, padding):
        x = conv2d(x, state[f"{conv}.weight"], stride=stride, padding=padding)
        keys = ("running_mean", "running_var", "weight", "bias")
        return batch_norm(x, *(state[f"{norm}.{key}"] for key in keys))

    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    x = (pictures.double() / 255 - mean) / std
    x = max_pool2d(conv_norm(x, "conv1", "bn1", 2, 3).relu(), 3, 2, 1)
    for stage in range(1, 5):
        for block in range(2):
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = conv_norm(x, f"{at}.conv1", f"{at}.bn1", stride, 1).relu()
            y = conv_norm(y, f"{at}.conv2", f"{at}.bn2", 1, 1)
            if f"{at}.downsample.0.weight" in state:
                x = conv_norm(x, f"{at}.downsample.0", f"{at}.downsample.1", stride, 0)
            x = (y + x).relu()
    return x.mean(dim=(2, 3))


def test_parameters_are_those_of_torchvision():
    state = ResNet().state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == names_of_torchvision()
    assert sum(parameter.numel() for parameter in ResNet().parameters()) == 11_689_512 - 513_000  # less fc


@pytest.mark.parametrize("side", [64, 75])
def test_equals_the_formula(side):
    torch.manual_seed(0)
    resnet = ResNet()
    pictures = torch.stack([picture(seed, side) for seed in range(3)])
    resnet.encode_pictures(pictures)  # running statistics away from 0 and 1
    resnet = resnet.double().eval()
    torch.testing.assert_close(resnet.encode_pictures(pictures), by_formula(resnet.state_dict(), pictures))


def test_molecules_without_a_picture_stay_out_of_the_batch_statistics():
    torch.manual_seed(0)
    resnet = ResNet()
    with_picture = [Molecule([C], picture=picture(seed)) for seed in range(3)]
    alone = resnet(batch_of(*with_picture))
    mixed = resnet(batch_of(with_picture[0], Molecule([C]), *with_picture[1:]))
    torch.testing.assert_close(mixed[[0, 2, 3]], alone)
    assert (mixed[1] == 0).all()


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_no_picture_at_all_still_gives_every_parameter_a_gradient(reentrant):
    resnet = ResNet()
    if reentrant is not None:
        resnet.checkpoint_activations(reentrant=reentrant)
    statistics = [buffer.clone() for buffer in resnet.buffers()]
    vectors = resnet(batch_of(Molecule([C]), Molecule([C])))
    assert torch.equal(vectors, torch.zeros(2, 512))
    vectors.sum().backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in resnet.parameters())
    assert all(torch.equal(now, before) for now, before in zip(resnet.buffers(), statistics, strict=True))
    assert resnet.training


def test_a_batch_without_pictures_leaves_frozen_norms_frozen():
    resnet = ResNet()
    resnet.bn1.eval()
    resnet(batch_of(Molecule([C])))
    assert not resnet.bn1.training
    assert resnet.layer1[0].bn1.training


def test_vector_does_not_depend_on_the_batch():
    resnet = ResNet().eval()
    molecules = [Molecule([C], picture=picture(seed)) for seed in range(3)]
    torch.testing.assert_close(resnet(batch_of(*molecules))[1:2], resnet(batch_of(molecules[1])), rtol=1e-4, atol=1e-5)


def test_runs_in_bf16():
    batch = batch_of(*(Molecule([C], picture=picture(seed)) for seed in range(2)), Molecule([C]))
    resnet = ResNet()
    with torch.autocast("cpu", torch.bfloat16):
        assert resnet(batch).isfinite().all()
    assert resnet.bfloat16()(batch).dtype == torch.bfloat16
