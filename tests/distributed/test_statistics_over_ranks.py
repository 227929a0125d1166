"""Running statistics of norms are averaged over ranks; what is the same everywhere stays as it is, to the last bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mmsa_dist.encoders.resnet import ResNet
from mmsa_dist.runtime.distributed import average_statistics

pytestmark = pytest.mark.distributed

RANKS = 3  # a third of three equal numbers' sum may be another number
TIMES = 5


def rank_main(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", RANKS), rank=rank, world_size=RANKS)
    model = torch.nn.ModuleDict({"resnet": ResNet(channels=8), "norm": torch.nn.BatchNorm1d(2)})
    model["norm"].running_mean.copy_(torch.tensor([1.0, 2.0]) * rank)
    norms = {name for name, _ in model.named_buffers() if "running" in name or "num_batches" in name}
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if name not in norms}
    for _ in range(TIMES):
        average_statistics(model)
    moved = [name for name, buffer in before.items() if not torch.equal(buffer, model.get_buffer(name))]
    if rank == 0:
        torch.save({"moved": moved, "kept": len(before), "mean": model["norm"].running_mean}, f"{folder}/result.pt")
    dist.destroy_process_group()


def test_statistics_are_averaged_and_constants_are_not(tmp_path: Path) -> None:
    mp.spawn(rank_main, args=(str(tmp_path),), nprocs=RANKS)
    result = torch.load(tmp_path / "result.pt", weights_only=True)
    torch.testing.assert_close(result["mean"], torch.tensor([1.0, 2.0]))
    assert result["moved"] == []
    assert result["kept"] >= 2, "the mean and the deviation of pictures"
