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
from mmsa_dist.runtime.watchdog import Watchdog
from mmsa_dist.train.engine import start_processes, stop_processes
from mmsa_dist.train.loop import Run
from tests.fixtures.pretraining import free_port

pytestmark = pytest.mark.distributed

MINI = Path(__file__).parents[1] / "fixtures" / "mini.yaml"
WORDS = ["model.gin.norm=layer", "model.resnet={layers: 18, channels: 32, norm: group}", "train.steps=6"]
# Nothing that a loss hangs on may hear the other molecules of the same rank.
WORDS += ["model.structure.hyperedges=own", "model.structure.refresh_every=1", "model.gin.dropout=0"]
WORDS += ["train.save_every=100", "prepare.val_fraction=0.0", "train.clip=0.5"]


def rank_main(rank: int, port: int, ranks: int, folder: str, legs: dict[str, int], stages: tuple[int, ...]) -> None:
    warnings.simplefilter("ignore")
    names = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (names | {"MASTER_PORT": str(port)}).items():
            patch.setenv(name, value)
        device = start_processes()
        for stage in stages:
            for leg, stop in legs.items():
                words = [f"run.dir={folder}/{leg}-{stage}", f"data.shards={folder}/shards", f"train.zero_stage={stage}"]
                config = load_config(MINI, [*WORDS, *words, f"train.stop_after={stop}"])
                with Watchdog(config.train.lost_after_s) as watchdog:
                    Run(config, device, watchdog, resume=True).to_the_end()
        stop_processes()


@pytest.fixture(scope="module", params=[(2, 3), pytest.param((1,), marks=pytest.mark.slow)], ids=["2-3", "1"])
def folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path_factory.mktemp("elastic")
    request.getfixturevalue("make_tiny_shards")(folder)
    for ranks, legs in ((2, {"undisturbed": 6, "elastic": 2}), (1, {"elastic": 4}), (2, {"elastic": 6})):
        mp.spawn(rank_main, args=(free_port(), ranks, str(folder), legs, request.param), nprocs=ranks)
    return folder


def losses(run: Path) -> torch.Tensor:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    return torch.tensor([line["train/loss"] for line in lines])


def test_two_ranks_then_one_then_two(folder: Path) -> None:
    runs = sorted(folder.glob("elastic-*"))
    assert runs
    for elastic in runs:
        compare(elastic, elastic.with_name(elastic.name.replace("elastic", "undisturbed")))


def compare(elastic: Path, undisturbed: Path) -> None:
    torch.testing.assert_close(losses(elastic), losses(undisturbed), rtol=1e-4, atol=0)
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (elastic, undisturbed))
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-3, atol=6e-4, msg=name)
    assert not list((elastic / "checkpoints").glob("*.tmp"))
