"""Collectives and bytes of a step and of a refresh, counted, against the formulas behind docs/scale.md."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

pytest.importorskip("faiss")
from mmsa_dist.structure.global_neighbours import GlobalNeighbours
from tests.distributed.neighbour_cost import Traffic, fetch, refresh, rows_of_table, search, write
from tests.fixtures.structure import structure

pytestmark = pytest.mark.distributed

MOLECULES, WIDTH, BATCH, K, SAMPLE = 97, 6, 5, 3, 20


class Counter:
    """Wraps the two collectives that neighbours are made of and counts what leaves this rank."""

    def __init__(self) -> None:
        self.total = Traffic(0, 0)
        self._all_gather, self._all_to_all = dist.all_gather, dist.all_to_all_single
        dist.all_gather, dist.all_to_all_single = self.all_gather, self.all_to_all

    def taken(self) -> Traffic:
        total, self.total = self.total, Traffic(0, 0)
        return total

    def all_gather(self, parts, x):
        self.total += Traffic(1, x.nbytes * (len(parts) - 1))
        self._all_gather(parts, x)

    def all_to_all(self, arriving, leaving, arriving_sizes=None, leaving_sizes=None):
        kept = leaving_sizes[dist.get_rank()] if leaving_sizes else len(leaving) // dist.get_world_size()
        row = leaving[:1].nbytes if len(leaving) else 0
        self.total += Traffic(1, leaving.nbytes - kept * row)
        self._all_to_all(arriving, leaving, arriving_sizes, leaving_sizes)


def rank_main(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=60))
    options = structure(k=K, refresh_every=2, refresh_lag=1, recall_sample=SAMPLE)
    source = GlobalNeighbours(MOLECULES, WIDTH, options)
    rows = torch.randn(MOLECULES, WIDTH, generator=torch.Generator().manual_seed(0))
    mine = torch.arange(MOLECULES)[rank::world]
    source.observe(mine, rows[mine], step=1)
    counter = Counter()

    assert not source.refresh(2)
    at_snapshot = counter.taken()
    assert source.refresh(3)
    total = at_snapshot + counter.taken()
    assert at_snapshot.messages == 1, "building sends nothing"
    assert total == refresh(world, SAMPLE, K, WIDTH)

    index = torch.randperm(MOLECULES, generator=torch.Generator().manual_seed(rank))[:BATCH]
    found = source.find(rows[index], index)
    stale = found.ids_BK[~torch.isin(found.ids_BK, index)].unique()
    asked = torch.bincount(stale % world, minlength=world)
    got = counter.taken()
    from_each = [torch.zeros_like(asked) for _ in range(world)]
    counter._all_gather(from_each, asked)
    wanted = sum(int(a[rank]) for other, a in enumerate(from_each) if other != rank)
    leaving = len(stale) - int(asked[rank])
    assert got == search(world, BATCH, K, WIDTH) + fetch(world, leaving, wanted, WIDTH)

    source.observe(index, rows[index], step=2)
    assert counter.taken() == write(world, int((index % world != rank).sum()), WIDTH)
    dist.destroy_process_group()


def test_the_document_has_the_numbers_of_the_formulas():
    page = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()
    assert "\n".join(rows_of_table()) in page


@pytest.mark.parametrize("world", [2, 4])
def test_what_is_sent_is_what_the_formulas_say(world: int, tmp_path: Path):
    mp.spawn(rank_main, args=(world, str(tmp_path)), nprocs=world)
