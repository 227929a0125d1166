"""With layer and group norm a vector hangs on its own molecule alone, in training too; and computing twice is exact."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mmsa_dist.encoders import GIN, ComENet, Encoder, ResNet
from tests.fixtures.batches import Molecule, batch_of, random_molecule

FREE: dict[str, Callable[[], Encoder]] = {
    "gin": lambda: GIN(layers=3, width=16, norm="layer", pool="mean_max", atoms="ogb"),
    "comenet": lambda: ComENet(layers=2, hidden=16, middle=8),
    "resnet": lambda: ResNet(channels=32, norm="group"),
}
BOUND: dict[str, Callable[[], Encoder]] = {
    "gin": lambda: GIN(layers=3, width=16, dropout=0.2, pool="mean_max", atoms="ogb"),
    "resnet": lambda: ResNet(channels=8),
}


def molecules() -> list[Molecule]:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=generator)
    drawn = [random_molecule(size, seed=size) for size in (3, 9, 5, 4, 12, 6, 7, 2)]
    return [Molecule(m.atoms, m.bonds, m.xyz, picture) for m, picture in zip(drawn, pictures, strict=True)]


def built(make: Callable[[], Encoder]) -> Encoder:
    torch.manual_seed(0)
    return make().double().train()


@pytest.mark.parametrize("name", FREE)
def test_a_batch_is_the_two_halves_of_it(name: str) -> None:
    encoder, eight = built(FREE[name]), molecules()
    halves = torch.cat([encoder(batch_of(*eight[:4])), encoder(batch_of(*eight[4:]))])
    torch.testing.assert_close(encoder(batch_of(*eight)), halves)


@pytest.mark.parametrize("name", BOUND)
def test_batch_norm_is_what_binds_them(name: str) -> None:
    encoder, eight = built(BOUND[name]), molecules()
    halves = torch.cat([encoder(batch_of(*eight[:4])), encoder(batch_of(*eight[4:]))])
    assert not torch.allclose(encoder(batch_of(*eight)), halves, rtol=1e-3)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("make", [*FREE.values(), *BOUND.values()], ids=[*FREE, *(f"{name}-batch" for name in BOUND)])
def test_computing_twice_changes_neither_values_nor_gradients_nor_statistics(
    make: Callable[[], Encoder], reentrant: bool
) -> None:
    batch, found = batch_of(*molecules()), []
    for checkpointing in (False, True):
        encoder = built(make)
        if checkpointing:
            encoder.checkpoint_activations(reentrant=reentrant)
        torch.manual_seed(1)
        vectors = encoder(batch)
        vectors.square().sum().backward()
        gradients = [parameter.grad for parameter in encoder.parameters() if parameter.grad is not None]
        found.append([vectors.detach(), *gradients, *encoder.buffers()])
    assert len(found[0]) == len(found[1])
    for plain, twice in zip(*found, strict=True):
        torch.testing.assert_close(twice, plain)
