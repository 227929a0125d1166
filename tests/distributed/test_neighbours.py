"""Bank, neighbours, memory meters and memory loss on several gloo ranks, against one process with everything."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

pytest.importorskip("faiss")
from mmsa_dist.losses.memory import memory_loss
from mmsa_dist.structure.bank import EmbeddingBank
from mmsa_dist.structure.global_neighbours import GlobalNeighbours, reshard
from mmsa_dist.structure.memory import Memory
from tests.fixtures.structure import structure

pytestmark = pytest.mark.distributed

# 103 molecules do not divide by 2 or 4; a global batch of 24 does; molecules 90.. are never seen.
MOLECULES, SEEN, WIDTH, BATCH, K, STEPS = 103, 90, 5, 24, 7, 8


def embedding(index: Tensor, step: int) -> Tensor:
    """What molecule `index` is at `step`: small integers, some all zero: equal distances and rows abound."""
    table = torch.randint(-1, 2, (MOLECULES + 1, WIDTH), generator=torch.Generator().manual_seed(step))
    table[::6] = 0
    return table[index].float()


def batch(step: int) -> Tensor:
    """A global batch with a repeated molecule and one from outside the manifest."""
    index = torch.randperm(SEEN, generator=torch.Generator().manual_seed(100 + step))[:BATCH]
    index[5], index[17], index[-1] = -1, index[2], index[2]
    return index


def new_source() -> GlobalNeighbours:
    return GlobalNeighbours(MOLECULES, WIDTH, structure(k=K, refresh_every=4, recall_sample=20))


def expected_table() -> tuple[Tensor, Tensor]:
    """Rows and steps of the bank after all steps, written out as a loop."""
    rows, steps = torch.full((MOLECULES, WIDTH), torch.nan), torch.full((MOLECULES,), -1)
    for step in range(1, STEPS + 2):
        for position, molecule in enumerate(batch(step).tolist()):
            if molecule >= 0:
                rows[molecule], steps[molecule] = written(step)[position], step
    return rows, steps


def written(step: int) -> Tensor:
    """Rows of a global batch; copies of one molecule differ, so that it shows which one wins."""
    rows = embedding(batch(step), step)
    rows[17], rows[-1] = 1.0, 2.0
    return rows


def own(rank: int, world: int) -> slice:
    return slice(rank * BATCH // world, (rank + 1) * BATCH // world)


def scenario(rank: int, world: int) -> dict[str, Tensor]:
    """Trains a bank and asks it; the answers of the ranks, put together, must not depend on their number."""
    part, source = own(rank, world), new_source()
    for step in range(1, STEPS + 1):
        source.observe(batch(step)[part], written(step)[part], step)
        source.refresh(step)
    source.observe(batch(STEPS + 1)[part], written(STEPS + 1)[part], STEPS + 1)  # after the last snapshot

    rows, steps = expected_table()
    torch.testing.assert_close(source.bank.rows_LC.float(), rows[rank::world], equal_nan=True)
    assert torch.equal(source.bank.step_L, steps[rank::world])
    asked = torch.arange(MOLECULES - rank - 1, 3, -3)  # another number of rows on every rank
    torch.testing.assert_close(source.bank.fetch(asked).float(), rows[asked], equal_nan=True)
    assert source.bank.fetch(torch.empty(0, dtype=torch.int64)).shape == (0, WIDTH)

    index, u = batch(0)[part], embedding(batch(0), 0)[part]
    found = source.find(u, index)
    here = found.vertices_BK < len(index)
    table = torch.cat([u, found.stale_VC.float()])
    assert torch.equal(index[found.vertices_BK[here]], found.ids_BK[here])
    torch.testing.assert_close(table[found.vertices_BK[~here]], rows[found.ids_BK[~here]])
    assert not torch.isin(found.ids_BK[~here], index).any()
    assert len(found.ids_BK[~here].unique()) == len(found.stale_VC)

    meters = source.meters()
    assert meters["bank/recall"] == 1.0
    age = (STEPS + 1 - steps[steps >= 0]).double()
    assert meters["bank/age_mean"] == pytest.approx(float(age.mean()))
    assert meters["bank/age_max"] == float(age.max())
    assert meters["bank/filled"] == pytest.approx(len(age) / MOLECULES)
    state = {f"state.{name}": tensor for name, tensor in source.state_dict().items()}
    spread = {"spread": found.spread}
    return {"ids": found.ids_BK, "distances": found.distances_BK} | spread | state | memory_of(part, world)


def memory_of(part: slice, world: int) -> dict[str, Tensor]:
    """Meters (equal on all ranks), and loss and gradient (each rank's share of the mean)."""
    torch.manual_seed(0)
    module, g = Memory(6, WIDTH, similarity="cosine", temperature=0.1), torch.randn(BATCH, WIDTH)
    rows = len(g[part])
    outputs = module(g[part], torch.arange(rows + 1), torch.arange(rows), torch.ones(rows))
    has_embedding = (torch.arange(BATCH) >= 7)[part]  # unevenly: of four ranks the first has none
    meters = module.meters(outputs[0], outputs[2], has_embedding)
    loss = memory_loss(outputs[0], outputs[1], 0.1, has_embedding)
    (gradient,) = torch.autograd.grad(loss, module.anchors_SD)
    share = torch.cat([loss.detach()[None], gradient.flatten()]) / world
    return {"meters": torch.tensor(list(meters.values()))[None], "loss": share[None]}


def rank_main(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=60))
    torch.save(scenario(rank, world), f"{folder}/{rank}.pt")
    # A rank with no row at all, and more ranks than rows, must not hang or fail.
    bank = EmbeddingBank(1, 2, rank, world)
    bank.write(torch.tensor([0]), torch.full((1, 2), float(rank)), step=0)
    assert bank.fetch(torch.tensor([0, 0])).tolist() == [[world - 1, world - 1]] * 2
    few = GlobalNeighbours(2, 1, structure(k=3, refresh_every=1, recall_sample=4))
    few.observe(torch.tensor([rank % 2]), torch.tensor([[float(rank % 2)]]), step=1)
    assert few.refresh(1)
    assert few.meters()["bank/recall"] == 1.0
    assert few.find(torch.zeros(1, 1), torch.tensor([0])).ids_BK.tolist() == [[1, -1, -1]]
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def alone() -> dict[str, Tensor]:
    return scenario(0, 1)


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_together_are_one_process(world: int, tmp_path: Path, alone: dict[str, Tensor]):
    mp.spawn(rank_main, args=(world, str(tmp_path)), nprocs=world)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(world)]
    for name in ("ids", "distances"):
        assert torch.equal(torch.cat([one[name] for one in ranks]), alone[name]), name
    for one in ranks:
        torch.testing.assert_close(one["meters"], alone["meters"])
        torch.testing.assert_close(one["spread"], alone["spread"], rtol=1e-14, atol=0)
        assert torch.equal(one["spread"], ranks[0]["spread"])
    torch.testing.assert_close(sum(one["loss"] for one in ranks), alone["loss"])

    # Their state, in the hands of one process, finds the same.
    states = [{n.removeprefix("state."): t for n, t in one.items() if n.startswith("state.")} for one in ranks]
    source = new_source()
    source.load_state_dict(reshard(states, 0, 1))
    found = source.find(embedding(batch(0), 0), batch(0))
    assert torch.equal(found.ids_BK, alone["ids"])
    assert torch.equal(found.distances_BK, alone["distances"])
    assert torch.equal(found.spread, ranks[0]["spread"])


def test_the_scenario_has_ties(alone: dict[str, Tensor]):
    distances = alone["distances"]
    assert (distances.diff(dim=1) == 0).float().mean() > 0.1
    assert (alone["ids"] >= 0).all()
