"""ZeRO 1 to 3: two ranks, then one, then two again go the way of two that were never stopped."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file

from mmsa_dist.config.load import load_config
from mmsa_dist.train.engine import _free_port, start_processes, stop_processes
from mmsa_dist.train.loop import _Run

pytestmark = pytest.mark.distributed

MINI = Path(__file__).parents[1] / "fixtures" / "mini.yaml"
STAGES = (1, 2, 3)
WORDS = ["model.gin.norm=layer", "model.resnet={layers: 18, channels: 32, norm: group}", "train.steps=3"]
# A molecule's hyperedge of neighbours also hears those of the same rank's batch: without them, no loss hangs on ranks.
WORDS += ["model.structure.neighbours=none"]
WORDS += ["train.save_every=100", "prepare.val_fraction=0.0", "train.clip=0.5"]


def rank_main(rank: int, port: int, ranks: int, folder: str, legs: dict[str, int]) -> None:
    warnings.simplefilter("ignore")
    names = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (names | {"MASTER_PORT": str(port)}).items():
            patch.setenv(name, value)
        device = start_processes()
        for stage in STAGES:
            for leg, stop in legs.items():
                words = [f"run.dir={folder}/{leg}-{stage}", f"data.shards={folder}/shards", f"train.zero_stage={stage}"]
                config = load_config(MINI, [*WORDS, *words, f"train.stop_after={stop}"])
                _Run(config, device, resume=True).to_the_end()
        stop_processes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path_factory.mktemp("elastic")
    request.getfixturevalue("make_tiny_shards")(folder)
    for ranks, legs in ((2, {"undisturbed": 3, "elastic": 1}), (1, {"elastic": 2}), (2, {"elastic": 3})):
        mp.spawn(rank_main, args=(_free_port(), ranks, str(folder), legs), nprocs=ranks)
    return folder


def losses(run: Path) -> torch.Tensor:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    return torch.tensor([line["train/loss"] for line in lines])


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_then_one_then_two(folder: Path, stage: int) -> None:
    elastic, undisturbed = folder / f"elastic-{stage}", folder / f"undisturbed-{stage}"
    torch.testing.assert_close(losses(elastic), losses(undisturbed), rtol=1e-4, atol=0)
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (elastic, undisturbed))
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-3, atol=6e-4, msg=name)
    assert not list((elastic / "checkpoints").glob("*.tmp"))
