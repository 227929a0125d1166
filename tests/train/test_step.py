"""A step that goes wrong changes nothing, and a run of them ends with words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mmsa_dist.config.load import load_config
from mmsa_dist.data.loader import BlockReader, Loader
from mmsa_dist.model import MMSAModel
from mmsa_dist.objective import Objective
from mmsa_dist.structure.global_neighbours import GlobalNeighbours
from mmsa_dist.train.bad_steps import BadSteps, BadStepsInARow
from mmsa_dist.train.engine import Engine, start_engine, start_processes, stop_processes
from mmsa_dist.train.loop import loader_options
from mmsa_dist.train.step import TrainStep

MINI = Path(__file__).parents[1] / "fixtures" / "mini.yaml"


class Sometimes(Objective):
    """An objective whose loss or gradient, or all that it computes, is not finite when it is told so."""

    harm = ""

    def forward(self, batch: Any, *arguments: Any) -> Any:
        if self.harm == "input":
            batch.xyz_A3.fill_(torch.inf)
        output = super().forward(batch, *arguments)
        if self.harm == "loss":
            output.total.data.fill_(torch.nan)
        if self.harm == "gradient":
            output.total.register_hook(lambda gradient: gradient * torch.inf)
        return output


@pytest.fixture(scope="module")
def device() -> Iterator[torch.device]:
    """The device of a process group of one; DeepSpeed joins one only once in the life of a process."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            patch.setenv(name, "")  # so that what `start_processes` sets is taken back
            patch.delenv(name)
        yield start_processes()
        stop_processes()


@pytest.fixture
def parts(tiny_shards: Path, device: torch.device, tmp_path: Path) -> tuple[TrainStep, Engine, Any]:
    config = load_config(MINI)
    torch.manual_seed(0)
    objective = Sometimes(MMSAModel(config.model), config.loss)
    engine = start_engine(objective, config)
    reader = BlockReader(str(tiny_shards), "train")
    source = GlobalNeighbours(reader.molecules, config.model.code, config.model.structure)
    bad_steps = BadSteps(tmp_path / "bad_steps", reader, limit=3)
    step = TrainStep(engine, config, Loader(reader, loader_options(config)), source, device, bad_steps)
    return step, engine, source


def snapshot(engine: Engine, source: GlobalNeighbours) -> list[torch.Tensor]:
    moments = [value for state in engine.optimizer.state.values() for value in state.values()]
    tensors = [*engine.module.parameters(), *engine.module.buffers(), *moments, source.bank.step_L]
    return [tensor.detach().clone() for tensor in tensors]


@pytest.mark.parametrize("harm", ["loss", "gradient", "input"])
def test_a_step_that_is_not_finite_changes_nothing(
    parts: tuple[TrainStep, Engine, Any], tmp_path: Path, harm: str
) -> None:
    step, engine, source = parts
    step.run(0, asked_to_stop=False)
    before = snapshot(engine, source)
    engine.module.harm = harm
    assert not step.run(1, asked_to_stop=False), "a bad step is no request to stop"
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(engine, source), strict=True))
    engine.module.harm = ""
    step.run(2, asked_to_stop=False)
    assert not all(torch.equal(a, b) for a, b in zip(before, snapshot(engine, source), strict=True))
    assert step.meters(3)["train/skipped_steps"] == 1
    (line,) = (tmp_path / "bad_steps" / "rank-00000.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert entry["step"] == 1
    assert len(set(entry["molecules"])) == 8
    assert all(isinstance(name, str) and name for name in entry["molecules"])
    assert set(entry["losses"]) == {"contrast", "reconstruct", "memory"}


def test_a_request_to_stop_is_answered_after_the_step_is_made(parts: tuple[TrainStep, Engine, Any]) -> None:
    step, engine, source = parts
    before = snapshot(engine, source)
    assert step.run(0, asked_to_stop=True)
    assert len(snapshot(engine, source)) > len(before), "the optimizer has moments now"
    assert not step.run(1, asked_to_stop=False)
    assert step.meters(2)["train/skipped_steps"] == 0


def test_a_run_of_them_stops_with_the_mend(parts: tuple[TrainStep, Engine, Any]) -> None:
    step, engine, _ = parts
    engine.module.harm = "loss"
    step.run(0, asked_to_stop=False)
    step.run(1, asked_to_stop=False)
    with pytest.raises(BadStepsInARow, match=r"3 steps in a row, up to step 2,.*bad_steps.*Lower train\.lr"):
        step.run(2, asked_to_stop=False)


def test_a_good_step_ends_the_count(parts: tuple[TrainStep, Engine, Any]) -> None:
    step, engine, _ = parts
    for number in range(6):
        engine.module.harm = "" if number == 2 else "loss" if number < 5 else ""
        step.run(number, asked_to_stop=False)
    assert step.meters(6)["train/skipped_steps"] == 4
