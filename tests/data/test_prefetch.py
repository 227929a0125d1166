"""Looking ahead changes neither order nor contents, nor when an error or the end is told."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch

from mmsa_dist.data.batch import MoleculeBatch
from mmsa_dist.data.loader import BlockReader, Loader, LoaderOptions
from mmsa_dist.data.order import LoaderState
from mmsa_dist.data.prefetch import Prefetched
from tests.fixtures.batches import batch_of, random_molecule

OPTIONS = LoaderOptions(seed=0, batch_size=8, accumulate=2, lanes=4, window_blocks=2, picture_size=32, augment=True)


class Source:
    """Three batches, of which one may be an error; counts what was taken."""

    def __init__(self, broken: int = -1) -> None:
        self.batches = [batch_of(random_molecule(size, seed=size)) for size in (3, 4, 5)]
        self.taken, self._broken = 0, broken

    def __iter__(self) -> Iterator[MoleculeBatch]:
        return self

    def __next__(self) -> MoleculeBatch:
        number, self.taken = self.taken, self.taken + 1
        if number == self._broken:
            raise OSError("block 7 is broken")
        if number == 3:
            raise StopIteration
        return self.batches[number]


def sizes(batches: Iterator[MoleculeBatch]) -> list[int]:
    return [len(batch.atoms_A9) for batch in batches]


def test_nothing_is_taken_before_it_is_asked_for() -> None:
    source = Source()
    batches = Prefetched(source)
    assert source.taken == 0
    next(batches)
    assert source.taken == 1


def test_one_batch_is_held_however_often_one_looks() -> None:
    source = Source()
    batches = Prefetched(source)
    batches.look_ahead()
    batches.look_ahead()
    assert source.taken == 1
    assert next(batches) is not None
    assert source.taken == 1
    assert sizes(batches) == [4, 5]


def test_the_end_is_told_when_it_is_reached() -> None:
    batches = Prefetched(Source())
    seen = []
    for batch in batches:
        seen.append(len(batch.atoms_A9))
        batches.look_ahead()
    assert seen == [3, 4, 5]


def test_an_error_is_told_where_its_batch_would_have_been() -> None:
    batches = Prefetched(Source(broken=1))
    next(batches)
    batches.look_ahead()  # the step that is under way does not hear of it
    with pytest.raises(OSError, match="block 7"):
        next(batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_that_looks_ahead_gives_the_same_and_stands_where_it_was(tiny_shards: Path, workers: int) -> None:
    reader = BlockReader(str(tiny_shards), "train")
    plain = list(islice(Loader(reader, OPTIONS), 14))
    loader = Loader(reader, OPTIONS, workers=workers)
    for number, expected in enumerate(plain):
        assert loader.state == LoaderState(*divmod(number // 2, 5))
        found = next(loader)
        state = loader.state
        loader.look_ahead()
        assert loader.state == state
        for name, tensor in vars(expected).items():
            torch.testing.assert_close(getattr(found, name), tensor, rtol=0, atol=0, equal_nan=True)


@pytest.mark.gpu
def test_on_a_gpu_batches_arrive_whole_while_it_works(tiny_shards: Path) -> None:
    reader = BlockReader(str(tiny_shards), "train")
    plain = list(islice(Loader(reader, OPTIONS), 14))
    loader = Loader(reader, OPTIONS, device="cuda")
    busy = torch.randn(4096, 4096, device="cuda")
    for expected in plain:
        found = next(loader)
        for _ in range(20):
            busy = busy @ busy / busy.norm()
        loader.look_ahead()
        for name, tensor in vars(expected).items():
            assert getattr(found, name).is_cuda
            torch.testing.assert_close(getattr(found, name).cpu(), tensor, rtol=0, atol=0, equal_nan=True)
